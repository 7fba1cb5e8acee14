"""A buffer as it stands, in one file: what it takes to go on without the images that it replaces."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError

from apps.continual.exemplars import Storage
from apps.continual.memory import Memory
from apps.continual.saved import pack, unpack
from atom import atomic
from atom.errors import ArtifactError, ConfigError
from atom.methods.registry import options_of
from atom.methods.settings import DistillSettings
from atom.preprocess import Preprocess

FILE, PREPROCESS_FILE = "buffer.safetensors", "preprocess.safetensors"


@dataclass(frozen=True, eq=False)
class SavedBuffer:
    """What a `DistilledBuffer` holds.

    Attributes:
        memory: exemplars by class.
        num_experiences: that brought them.
        tasks, labels_are_tensors: see `datasets.Arrived`.
        preprocess: digest of the preprocessing that the buffer was given, or None.
        counts: how much each image of a class counts, float64 [N], see `apps.continual.budget.priorities`.
        options: with which the buffer was made, plain values; None in files of before.
    """

    memory: Memory
    num_experiences: int
    tasks: dict[int, int] | None
    labels_are_tensors: bool
    preprocess: str | None
    counts: dict[int, np.ndarray]
    options: dict[str, Any] | None


class BufferOptions(BaseModel):
    """With what a buffer was made, as its file says it."""

    model_config = ConfigDict(strict=True, extra="forbid")

    max_size: int
    num_classes: int
    adaptive_size: bool
    storage: Storage
    train_dsa_strategy: str
    symbols: bool | None
    settings: dict[str, Any]
    """Of the distillation, not yet checked; see `settings_of`."""
    identities: dict[Literal["network", "method"], str] = {}
    """Of a network and a method that are a user's own code, by name of the setting."""

    def arguments(self) -> dict[str, Any]:
        """As `DistilledBuffer` takes them, but for the settings."""
        return self.model_dump(exclude={"settings", "identities"})


def save_buffer(saved: SavedBuffer, directory: Path, preprocess: Preprocess | None) -> None:
    """Replace the file of a directory, in one step; before it that of the preprocessing, if there is one.

    Raises:
        StoreError: it cannot be written.
    """
    content = pack(
        "buffer",
        {class_id: saved.memory[class_id] for class_id in saved.memory.classes},
        keys=saved.counts,
        options=saved.options,
        num_experiences=saved.num_experiences,
        tasks=None if saved.tasks is None else sorted(saved.tasks.items()),
        labels_are_tensors=saved.labels_are_tensors,
        preprocess=saved.preprocess,
    )
    if preprocess is not None and not (directory / PREPROCESS_FILE).exists():
        tensors = {name: tensor.contiguous() for name, tensor in preprocess.tensors().items()}
        atomic.write_file(directory / PREPROCESS_FILE, safetensors.torch.save(tensors))
    atomic.write_file(directory / FILE, content)


def load_buffer(directory: Path, *, num_classes: int) -> SavedBuffer | None:
    """What the last buffer on a directory held, or None where there was none.

    Raises:
        ArtifactError: the file is damaged.
        ConfigError: it is missing beside files of experiences, or holds classes of another benchmark.
    """
    path = directory / FILE
    if not path.exists():
        if _experiences(directory):
            raise ConfigError(
                f"{directory} holds experiences, but no {FILE}; an older version wrote them. Pass restore=False and"
                " give the buffer their real images once more."
            )
        return None
    try:
        saved = unpack(path.read_bytes(), "buffer")
    except (ArtifactError, OSError) as error:
        raise ArtifactError(f"{path}: {error}") from error
    memory, header = Memory(saved.exemplars), saved.header
    if memory.classes[-1] >= num_classes:
        raise ConfigError(
            f"{path} holds class {memory.classes[-1]}, expected those below num_classes {num_classes}; pass as"
            " num_classes all that there will be."
        )
    return SavedBuffer(
        memory,
        header["num_experiences"],
        None if header["tasks"] is None else dict(header["tasks"]),
        header["labels_are_tensors"],
        header["preprocess"],
        {class_id: counts_N for class_id, counts_N in saved.keys.items()},
        header["options"],
    )


def read_options(directory: Path) -> tuple[BufferOptions, Preprocess | None]:
    """With what the last buffer on a directory was made.

    Raises:
        ArtifactError: a file is damaged or missing, or another version wrote it.
        ConfigError: there is none, or an older version wrote it.
    """
    path = directory / FILE
    if not path.exists():
        raise ConfigError(
            f"{directory} holds no {FILE}; pass the directory of a buffer that took an experience."
        )
    try:
        header = unpack(path.read_bytes(), "buffer").header
    except (ArtifactError, OSError) as error:
        raise ArtifactError(f"{path}: {error}") from error
    options, preprocess = header["options"], None
    if options is None:
        raise ConfigError(
            f"{path} does not say how its buffer was made; an older version wrote it. Pass restore=True to"
            " DistilledBuffer with what it was made with."
        )
    if header["preprocess"] is not None:
        path = directory / PREPROCESS_FILE
        try:
            preprocess = Preprocess.from_tensors(safetensors.torch.load(path.read_bytes()))
        except (ArtifactError, OSError, SafetensorError) as error:
            raise ArtifactError(f"{path}: {error}") from error
    try:
        return BufferOptions.model_validate(options), preprocess
    except ValidationError as error:
        raise _of_another_version(directory / FILE, error) from error


def settings_of(options: BufferOptions, directory: Path, **given: str | None) -> DistillSettings:
    """The settings of a buffer's distillation.

    Code is never run because a file names it: a user's own network or method is named again by whoever opens it.

    Args:
        options: of the buffer.
        directory: where they were read.
        given: "network" and "method" as the caller names them; None where left out.

    Raises:
        ArtifactError: another version wrote them.
        ConfigError: an own network or method is not named, or cannot be imported; one of this project is, as another.
    """
    path, settings = directory / FILE, dict(options.settings)
    for kind, name in given.items():
        known = str(settings.get(kind, ""))
        if ":" not in known:
            if name not in (None, known):
                raise ConfigError(f"{kind} {name!r}: the buffer in {path} has {known!r}; leave it out.")
        elif name is None or ":" not in name:
            raise ConfigError(
                f"{path}: the {kind} of its distillation is code of yours, {known!r:.200}, which is run only if you say"
                f" so; pass {kind}='PATH/TO/FILE.py:NAME' to DistilledBuffer.open."
            )
        else:
            settings[kind] = name
    if given.get("method"):
        # What is wrong with the caller's code is no fault of the file.
        options_of(str(settings["method"]))
    try:
        return DistillSettings.model_validate(settings)
    except (ConfigError, ValidationError) as error:
        raise _of_another_version(path, error) from error


def _of_another_version(path: Path, error: Exception) -> ArtifactError:
    what = str(error).rstrip(".")
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}, received {first['input']!r:.80}"
    return ArtifactError(
        f"{path}: written by another version of this project, expected options that this one knows ({what}); open it"
        " with the version that wrote it, or pass restore=True to DistilledBuffer with what it was made with."
    )


def check_empty(directory: Path) -> None:
    """Refuse a directory that holds experiences: whether they are to be gone on from is the user's to say.

    Raises:
        ConfigError: it does.
    """
    if (directory / FILE).exists() or _experiences(directory):
        raise ConfigError(
            f"directory {directory} holds experiences of a buffer; pass restore=True to go on after them without their"
            " real images, restore=False to run a script again from its first experience, or another directory."
        )


def _experiences(directory: Path) -> bool:
    return any(directory.glob("experience-*.safetensors"))


__all__ = [
    "FILE",
    "BufferOptions",
    "SavedBuffer",
    "check_empty",
    "load_buffer",
    "read_options",
    "save_buffer",
    "settings_of",
]
