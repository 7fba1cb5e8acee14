"""Distilled sets for and from other projects: `*.pt` files of the families of DC and MTT, and DD-Ranking's inputs."""

# N stored images, M decoded images, C channels, H height, W width, K classes

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from atom import atomic
from atom.distilled import DistilledSet
from atom.errors import ArtifactError
from atom.preprocess import Preprocess
from atom.settings import images_of_classes
from atom.sheet import png_bytes, to_pictures
from atom.soundness import check_even, fail

_DC_FORM = (
    "{'data': [[images, labels], ...]} as written by DatasetCondensation, [images, labels] as by IDC and NCFM, or"
    " images alone with their labels in a file beside them as by MTT and DATM"
)


def export_dc_pt(distilled: DistilledSet, path: str | Path) -> Path:
    """Write the set as DatasetCondensation and its relatives save theirs; returns the path.

    The file holds `{'data': [[images, labels]], 'accs_all_exps': {network: [accuracy, ...]}}`: decoded images
    float32 [M, C, H, W] in the set's preprocessed space, labels int64 [M], accuracies as fractions, the mean
    where the single ones were not kept. Those projects normalise test images with constants of their own:
    give them `distilled.preprocess` instead, whitening included.

    Raises:
        ArtifactError: the set is not sound, or has soft labels, for which such files have no place.
        StoreError: the file cannot be written.
    """
    distilled.validate()
    if distilled.soft_labels is not None:
        fail(
            "export_dc_pt",
            "a set with soft labels",
            "class labels, all that these files hold",
            "pass it to export_mtt_pt or export_dd_ranking",
        )
    images_MCHW, labels_M = distilled.decode()
    accuracies: dict[str, list[float]] = {}
    for row in distilled.results:
        if row.get("method") == distilled.method and isinstance(row.get("mean"), int | float):
            single = row.get("accuracies") or [row["mean"]]
            accuracies.setdefault(str(row.get("network")), []).extend(float(a) / 100 for a in single)
    content = {"data": [[_own(images_MCHW), _own(labels_M)]], "accs_all_exps": accuracies}
    path = Path(path).expanduser().absolute()
    atomic.write_file(path, _torch_bytes(content))
    return path


def export_mtt_pt(distilled: DistilledSet, directory: str | Path) -> Path:
    """Write the set as MTT, DATM and their relatives save theirs; returns the directory.

    `images_best.pt`: decoded images float32 [M, C, H, W] in the set's space. `labels_best.pt`: labels int64
    [M], or logits float32 [M, K] whose softmax are the soft labels, as DATM keeps them. `import_dc_pt` reads both.

    Raises:
        ArtifactError: the set is not sound.
        ConfigError: a set of images in all with a factor: the files tell an image's class by its place alone.
        StoreError: the directory cannot be written, or holds something else.
    """
    distilled.validate()
    if distilled.factor > 1:
        check_even(distilled, "export_mtt_pt", "files with a factor tell classes by")
    images_MCHW, targets = distilled.decode()
    if distilled.soft_labels is not None:
        # The logarithm of 0 would be no finite logit.
        targets = targets.clamp(min=torch.finfo(targets.dtype).tiny).log()
    files = {
        "images_best.pt": _torch_bytes(_own(images_MCHW)),
        "labels_best.pt": _torch_bytes(_own(targets)),
    }
    directory = Path(directory).expanduser().absolute()
    atomic.write_directory(directory, files, owns=files.__contains__)
    return directory


def import_dc_pt(
    path: str | Path,
    *,
    preprocess: Preprocess,
    class_names: Sequence[str],
    method: str,
    factor: int = 1,
    experiment: int = -1,
    source: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> DistilledSet:
    """A set from a file of another project; nothing in the file is run.

    Three forms are read: `res_*.pt` of DatasetCondensation and its relatives, `data*.pt` of IDC and NCFM, whose images
    are pixels in [0, 1] and are preprocessed here, and `images_*.pt` of MTT and its relatives, with `labels_*.pt`
    beside it. DATM's labels are logits, and become soft labels.

    Args:
        path: the file.
        preprocess: what the file's images were preprocessed with, or are to be; the file does not say. For most it
            is the mean and std of their `utils.py`.
        class_names: K names, the index is the label.
        method: what to call it, such as "dm".
        factor: of IDC and NCFM; the file does not say.
        experiment: which of a `res_*.pt` file's syntheses; each adds one, and the last is -1.
        source: see `DistilledSet`.
        settings: see `DistilledSet`.

    Raises:
        ArtifactError: the file is missing, holds anything but plain tensors in such a form, or class labels that
            do not give every class the same number of images.
    """
    path = Path(path)
    images_NCHW, labels, pixels = _images_and_labels(path, experiment)
    soft_NK = None
    if (
        class_names
        and labels.ndim == 2
        and labels.is_floating_point()
        and labels.shape == (len(images_NCHW), len(class_names))
    ):
        # Learned labels may prefer another class than the image's own, which its place tells: class by class.
        soft_NK = labels.float().softmax(1)
        counts = images_of_classes(len(labels), len(class_names))
        labels = torch.arange(len(class_names)).repeat_interleave(torch.tensor(counts))
    labels_N = labels.long()
    if labels_N.ndim != 1 or images_NCHW.shape[:1] != labels_N.shape:
        fail(
            str(path),
            f"images {list(images_NCHW.shape)} and labels {list(labels_N.shape)}",
            "one label an image",
        )
    if factor > 1 and images_NCHW.ndim == 4 and any(size % factor for size in images_NCHW.shape[2:]):
        # Their grids are padded there, ours are not.
        size = "x".join(map(str, images_NCHW.shape[2:]))
        fail(str(path), f"images of {size} pixels", f"a size that factor {factor} divides", "pass factor=1")
    if pixels:
        images_NCHW = preprocess.apply(images_NCHW.clamp(0, 1))
    order_N = labels_N.argsort(stable=True)
    each, more = divmod(len(labels_N), max(1, len(class_names)))
    # Only soft labels may be of fewer images than every class the same number.
    ipc = max(1, each + (soft_NK is not None and more > 0))
    distilled = DistilledSet(
        images_NCHW=images_NCHW[order_N].contiguous(),
        labels=labels_N[order_N],
        class_names=tuple(class_names),
        ipc=ipc,
        factor=factor,
        method=method,
        preprocess=preprocess,
        source=source or {},
        settings=settings or {},
        soft_labels=None if soft_NK is None else soft_NK[order_N],
    )
    distilled.validate(str(path))
    return distilled


def export_dd_ranking(distilled: DistilledSet, directory: str | Path, *, lr_net: float | None = None) -> Path:
    """Write the inputs of DD-Ranking's evaluators; returns the directory.

    `images.pt` float32 [M, C, H, W] preprocessed, `labels.pt` int64 [M] or soft float32 [M, K], `lr.pt` the
    learning rate of the network, and `images/<label>_<class>/<number>.png`, the clipped 8-bit pictures, in
    folders whose alphabetic order is that of the labels.

    Args:
        distilled: the set.
        directory: to write, or an earlier export to replace.
        lr_net: step size on the network; default the one that the set carries, else 0.01, that of DM's evaluation.

    Raises:
        ArtifactError: the set is not sound, or carries steps of its own, as dd's, and no lr_net is given.
        ConfigError: a set of images in all: DD-Ranking compares with as many random images of each class.
        StoreError: the directory cannot be written, or holds something else.
    """
    distilled.validate()
    check_even(distilled, "export_dd_ranking", "its random images of equal storage have")
    images_MCHW, targets = distilled.decode()
    if lr_net is None and distilled.training.get("step_sizes"):
        fail(
            "export_dd_ranking",
            f"a set with {len(distilled.training['step_sizes'])} steps of their own images and sizes",
            "one step size, all that these files hold",
            "pass lr_net to export it without the order, the sizes and the first weights it was made for",
        )
    if lr_net is None:
        lr_net = float(distilled.training.get("lr_net", 0.01))
    files = {
        "images.pt": _torch_bytes(_own(images_MCHW)),
        "labels.pt": _torch_bytes(_own(targets)),
        "lr.pt": _torch_bytes(torch.tensor(lr_net)),
    }
    folders = [f"{index:05d}_{folder_name(name)}" for index, name in enumerate(distilled.class_names)]
    for index, (picture, label) in enumerate(
        zip(to_pictures(distilled.pixels()), distilled.decoded_labels().tolist(), strict=True)
    ):
        files[f"images/{folders[label]}/{index:05d}.png"] = png_bytes(picture)
    directory = Path(directory).expanduser().absolute()
    known = re.compile(r"(images|labels|lr)\.pt|images/\d{5}_[A-Za-z0-9-]*/\d{5}\.png")
    atomic.write_directory(directory, files, owns=lambda name: known.fullmatch(name) is not None)
    return directory


def folder_name(class_name: str) -> str:
    """Letters, digits and dashes of a class name: no path, no hidden file, no name a shell would act on."""
    return re.sub(r"[^A-Za-z0-9]+", "-", class_name).strip("-")[:40]


def _images_and_labels(path: Path, experiment: int) -> tuple[Tensor, Tensor, bool]:
    """Images, labels, and whether the images are pixels, of whichever form the file has."""
    content = _read_dc(path)
    pixels = isinstance(content, list | tuple) and len(content) == 2 and all(map(torch.is_tensor, content))
    if pixels:
        entry = content
    elif torch.is_tensor(content):
        entry = content, _labels_beside(path)
    else:
        entry = _experiment(content, path, experiment)
    if not isinstance(entry, list | tuple) or len(entry) != 2 or not all(torch.is_tensor(t) for t in entry):
        fail(str(path), f"an entry of type {type(entry).__name__}", "two tensors, images and labels")
    return entry[0].detach().float().cpu(), entry[1].detach().cpu(), pixels


def _labels_beside(path: Path) -> Tensor:
    beside = path.with_name(path.name.replace("images", "labels", 1))
    if beside == path or not beside.is_file():
        fail(
            str(path),
            "images without labels",
            f"{beside.name if beside != path else 'labels_*.pt'} beside images_*.pt",
            "put that file there",
        )
    labels = _read_dc(beside)
    if not torch.is_tensor(labels):
        fail(str(beside), f"a {type(labels).__name__}", "a tensor of labels", "pass a file of that form")
    return labels


def _experiment(content: Any, path: Path, experiment: int) -> Any:
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list) or not data:
        fail(
            str(path),
            f"a {type(content).__name__} without a list 'data'",
            _DC_FORM,
            "pass a file of that form",
        )
    if not -len(data) <= experiment < len(data):
        fail(
            str(path),
            f"experiment {experiment}",
            f"one of the file's {len(data)}",
            "pass experiment=-1 for the last",
        )
    return data[experiment]


def _read_dc(path: Path) -> Any:
    import pickle

    try:
        return torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Torch's own text advises to load without weights_only, the one thing not to do here.
        _refuse_dc(path, "it holds something else", error)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        _refuse_dc(path, str(error.strerror), error)
    except Exception as error:  # a damaged file can fail in any way
        _refuse_dc(path, "it is damaged", error)


def _refuse_dc(path: Path, reason: str, error: Exception) -> NoReturn:
    raise ArtifactError(
        f"{path} cannot be read as plain tensors ({reason}), expected {_DC_FORM};"
        " save it again with tensors only."
    ) from error


def _own(tensor: Tensor) -> Tensor:
    """A copy with storage of its own: torch.save writes the whole storage of a view."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _torch_bytes(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
