"""A version of a learner in use: loaded, asked about photos, written as one file for other programs."""

# N images, C channels, H height, W width, K classes

import importlib.util
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from apps.continual.state import load_weights
from apps.learner.directory import (
    check_network,
    read_current,
    read_learner,
    read_preprocess,
    read_state,
)
from apps.learner.growth import Body
from apps.learner.merging import fit_channels
from apps.learner.record import Learner
from apps.served import Served, torchscript
from atom.data.class_folders import visible
from atom.data.decode import Entry, decode_one
from atom.errors import ConfigError, DataError
from atom.preprocess import Preprocess
from atom.train import predict as logits_of


def load_version(
    directory: str | Path, *, number: int | None = None, network: str = ""
) -> tuple[nn.Module, Preprocess, list[str]]:
    """The network of a version on the CPU in evaluation mode, the preprocessing, and the classes by label.

    `net(preprocess.apply(images_NCHW))` gives logits for uint8 images [N, C, H, W].

    Args:
        directory: of the learner.
        number: of the version; None: the current one.
        network: a user's own network, PATH.py:FUNCTION: nothing is run because the directory names it.

    Raises:
        ArtifactError: no learner, or a file of it is damaged.
        ConfigError: there is no such version, or a user's own network is not named or another one.
    """
    folder = Path(directory).expanduser()
    learner = read_learner(folder)
    version = read_current(folder, learner) if number is None else learner.version(number)
    if version is None or version.removed:
        known = ", ".join(str(one.number) for one in learner.versions if not one.removed)
        raise ConfigError(f"version {number}: {folder} has {known}; name one of these.")
    net = body_of(learner, check_network(learner, network)).build(len(version.classes))
    load_weights(net, read_state(folder, version), network=learner.network)
    return net.eval(), read_preprocess(folder, learner), list(version.classes)


def body_of(learner: Learner, network: str) -> Body:
    """The learner's network, by the name that it is built by."""
    height, width = learner.image_size
    kept = learner.settings["evaluate"]["initial_weights"]
    return Body(network, learner.channels, (height, width), kept)


def read_photos(path: Path, learner: Learner) -> Iterator[tuple[str, np.ndarray]]:
    """Name and pixels, uint8 [C, H, W], of each image of a file or folder, those of folders in it too.

    Raises:
        ConfigError: there is no such file or folder.
        DataError: an image is broken, or of another size or colour than the learner's; or there is none.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such image or folder; check the path.")
    files = [path] if path.is_file() else list(_files(path))
    if not files:
        raise DataError(f"{path}: no image in it; pass an image or a folder of images.")
    for file in files:
        pixels_CHW, _ = decode_one(Entry(str(file), 0, file), image_size=learner.resize)
        yield str(file), fitting(pixels_CHW[None], learner, str(file))[0]


def _files(folder: Path) -> Iterator[Path]:
    for path in visible(folder):
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def fitting(images_NCHW: np.ndarray, learner: Learner, where: str) -> np.ndarray:
    """The images as the learner takes them: grey ones in three channels where it has three, and the other way round.

    Raises:
        DataError: they are of another size, or in colour where the learner is grey.
    """
    height, width = images_NCHW.shape[2:]
    if [height, width] != learner.image_size:
        raise DataError(
            f"{where}: images of {width}x{height} pixels (width x height), but this learner takes"
            f" {learner.image_size[1]}x{learner.image_size[0]} and was begun without --image-size, which would resize"
            " them; resize them first."
        )
    fitted = fit_channels(images_NCHW, learner.channels)
    if fitted is None:
        raise DataError(f"{where}: images in colour, but this learner takes grey ones; convert them first.")
    return fitted


def probabilities(net: nn.Module, preprocess: Preprocess, images_NCHW: np.ndarray) -> np.ndarray:
    """Probability of each class, float32 [N, K], for uint8 images."""
    return logits_of(net, preprocess.apply(images_NCHW)).softmax(dim=1).numpy()


def export(
    net: nn.Module, preprocess: Preprocess, classes: list[str], *, form: str, file: Path, learner: Learner
) -> None:
    """Write the network with its preprocessing as one file, and beside it FILE.json with the classes by label.

    Args:
        net, preprocess, classes: see `load_version`.
        form: "onnx" or "torchscript".
        file: where to write.
        learner: has the shape of the images.

    Raises:
        ConfigError: packages for ONNX are missing, or the network cannot be written in that form.
    """
    served = Served(net, preprocess).eval()
    height, width = learner.image_size
    shape = (learner.channels, height, width)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".partial-{file.name}")
    try:
        _write(served, shape, form, partial)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    told = {"classes": classes, "input": ["N", *shape], "input_type": "uint8", "output": "probabilities"}
    file.with_name(f"{file.name}.json").write_text(
        json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _write(served: Served, shape: tuple[int, int, int], form: str, file: Path) -> None:
    if form == "onnx":
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"--format onnx: the package {missing[0]} is missing; pip install 'atom-distill[onnx]', or pass"
                " --format torchscript."
            )
    try:
        if form == "torchscript":
            file.write_bytes(torchscript(served, shape))
            return
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                served,
                (torch.zeros(2, *shape, dtype=torch.uint8),),
                file,
                input_names=["images"],
                output_names=["probabilities"],
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
    except OSError:
        raise
    except Exception as error:  # whatever a user's network makes the exporter say
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"--format {form}: this network cannot be written so ({type(error).__name__}: {reason}); try the other"
            " format."
        ) from error


__all__ = ["body_of", "export", "fitting", "load_version", "probabilities", "read_photos"]
