"""The network that a search delivers: a directory with weights, preprocessing, description and instructions.

`model.safetensors`, `preprocess.safetensors` and `winner.json` are read back by `load_winner`; `README.md` is for
people, and holds the code that does the same step by step.
"""

# N images, C channels, H height, W width

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from apps.nas.space import Space
from apps.nas.winner_config import Config
from apps.nas.winner_readme import write_readme
from atom.errors import ArtifactError, ConfigError
from atom.preprocess import Preprocess
from atom.soundness import fail
from atom.tensor_files import read_description, read_tensors, tensor_bytes

FORMAT_VERSION = 1
MODEL, PREPROCESS, CONFIG, README = (
    "model.safetensors",
    "preprocess.safetensors",
    "winner.json",
    "README.md",
)
AGAIN = "copy the directory again from where it was made, or run the search again"


def model_bytes(net: nn.Module, *, network: str, seed: int) -> bytes:
    """The content of `model.safetensors`: all parameters and buffers, contiguous, on the CPU.

    Args:
        net: trained.
        network, seed: written into the header, for those who meet this file alone.
    """
    return tensor_bytes(
        net.state_dict(), {"network": network, "seed": seed, "format_version": FORMAT_VERSION}
    )


def winner_files(
    config: Mapping[str, Any], model: bytes, *, preprocess: Preprocess, title: str
) -> dict[str, bytes]:
    """Content by file name of what `load_winner` reads, and the README.

    Args:
        config: the fields of `Config` but for the format version and the digests.
        model: from `model_bytes`.
        preprocess: of the images that the network was trained on.
        title: of the source of the images, such as "CIFAR-10".
    """
    tensors = {
        MODEL: model,
        PREPROCESS: tensor_bytes(preprocess.tensors(), {"format_version": FORMAT_VERSION}),
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in tensors.items()}
    checked = Config.model_validate({**config, "format_version": FORMAT_VERSION, "sha256": digests})
    text = json.dumps(checked.model_dump(), indent=2, ensure_ascii=False) + "\n"
    readme = write_readme(checked, title=title)
    return {**tensors, CONFIG: text.encode(), README: readme.encode()}


def load_winner(
    directory: str | Path, *, trust_code: bool = False
) -> tuple[nn.Module, Preprocess, dict[str, Any]]:
    """The delivered network with its weights on the CPU in evaluation mode, its preprocessing and `winner.json`.

    `net(preprocess.apply(images_NCHW))` gives logits for uint8 images [N, C, H, W], in the order of
    `config["class_names"]`.

    Args:
        directory: that was delivered.
        trust_code: import and run the code that `winner.json` names, where the network is a user's own. Only a
            network of this project is built without it: a directory from elsewhere may name any code.

    Raises:
        ArtifactError: a file is missing or damaged, or the weights do not fit the network.
        ConfigError: the network is a user's own and its code is not trusted, or cannot be imported from here, or
            its list has lost it.
    """
    folder = Path(directory).expanduser()
    for name in (CONFIG, MODEL, PREPROCESS):
        if not (folder / name).is_file():
            raise ArtifactError(
                f"{folder}: {name} is missing, expected a local directory with {CONFIG}, {MODEL} and"
                f" {PREPROCESS}; check the path, or {AGAIN}."
            )
    config = _read_config(folder / CONFIG)
    _check_trust(config, folder / CONFIG, trust_code=trust_code)
    weights, tensors = (
        read_tensors(folder / name, again=AGAIN, sha256=config.sha256[name]) for name in (MODEL, PREPROCESS)
    )
    try:
        preprocess = Preprocess.from_tensors(tensors)
    except ArtifactError as error:
        raise ArtifactError(f"{folder / PREPROCESS}: {error}") from error
    return _rebuilt(config, weights, folder / MODEL), preprocess, config.model_dump()


def _check_trust(config: Config, path: Path, *, trust_code: bool) -> None:
    code = next((name for name in (config.space, config.network) if ":" in name), None)
    if code is not None and not trust_code:
        raise ConfigError(
            f"{path}: the network is built by code outside this project, {code!r}, which would be run; read that"
            " code first, then pass trust_code=True."
        )


def _rebuilt(config: Config, weights: Mapping[str, Tensor], path: Path) -> nn.Module:
    height, width = config.image_size
    space = Space(config.space, (), config.channels, (height, width), config.num_classes)
    todo = "bring its source back to what it was when it was trained, or run the search again"
    net = space.build(config.network)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:300]
        raise ArtifactError(f"{path}: does not fit {config.network!r} ({problem}); {todo}.") from error
    return net.eval()


def _read_config(path: Path) -> Config:
    config = read_description(
        path,
        Config,
        version=FORMAT_VERSION,
        what="the winner",
        again=AGAIN,
        newer="run the search again",
    )
    if len(config.class_names) != config.num_classes:
        fail(str(path), f"{len(config.class_names)} class names", f"{config.num_classes}", AGAIN)
    if not {MODEL, PREPROCESS} <= config.sha256.keys():
        fail(str(path), f"digests of {sorted(config.sha256)}", f"of {MODEL} and {PREPROCESS}", AGAIN)
    return config
