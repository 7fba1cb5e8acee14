"""The directory that a learner is: which files it has, and how they are read with checks.

learner.json, preprocess.safetensors, initial.safetensors (of given weights), memory/ and tests/ with a file a class,
versions/0001/ and so on, and `current`, one line with the number of the version in use. That line is what decides: all
else is written before it moves, and nothing that a version names is ever written over. Nothing is unpickled or run.
"""

# N images, C channels, H height, W width

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from apps.continual.exemplars import Exemplars
from apps.continual.saved import pack, unpack
from apps.continual.state import LearnerState
from apps.learner.record import FORMAT_VERSION, Kept, Learner, Version
from atom.atomic import TEMPORARY
from atom.errors import ArtifactError, ConfigError
from atom.preprocess import Preprocess
from atom.soundness import fail
from atom.tensor_files import read_description, read_tensors, tensor_bytes

LEARNER, PREPROCESS, INITIAL, CURRENT = (
    "learner.json",
    "preprocess.safetensors",
    "initial.safetensors",
    "current",
)
MODEL, ANSWERS = "model.safetensors", "answers.safetensors"
MEMORY, TESTS, VERSIONS, WORK = "memory", "tests", "versions", "work"
AGAIN = "copy the directory again from where it was made"
_MOST_NAME = 60
_LOCK = ".lock"
_CLASS_FILE = re.compile(r".+-[0-9a-f]{12}\.safetensors")
_VERSION_FOLDER = re.compile(r"\d{4,}")
_WORK_FOLDER = re.compile(r"[0-9a-f]{16}")


def folder_of(number: int) -> str:
    """The directory of a version, relative to the learner's.

    Example:
        >>> folder_of(3)
        'versions/0003'
    """
    return f"{VERSIONS}/{number:04d}"


def read_learner(directory: Path) -> Learner:
    """What `learner.json` says.

    Raises:
        ArtifactError: the directory is no learner, its file is damaged or of another version of the format.
    """
    path = directory / LEARNER
    if not path.is_file():
        what = "does not exist" if not directory.exists() else f"has no {LEARNER}"
        raise ArtifactError(
            f"{directory} is no learner: it {what}; check the path, or make one with `atom-learner init"
            f" {directory} --data …`."
        )
    return read_description(
        path,
        Learner,
        version=FORMAT_VERSION,
        what="a learner",
        again=AGAIN,
        newer="use this learner where it was made",
    )


def learner_json(learner: Learner) -> bytes:
    """The content of `learner.json`."""
    return (json.dumps(learner.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n").encode()


def read_current(directory: Path, learner: Learner) -> Version:
    """The version in use.

    Raises:
        ArtifactError: `current` is missing or names no version that is there.
    """
    path = directory / CURRENT
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({type(error).__name__}); write the number of a version into it, such as"
            f" {learner.versions[-1].number if learner.versions else 1:04d}."
        ) from error
    found = learner.version(int(text)) if re.fullmatch(r"\d{1,9}", text) else None
    if found is None or found.removed:
        fail(str(path), f"{text[:40]!r}", "the number of a version in learner.json", "write one into it")
    return found


def read_preprocess(directory: Path, learner: Learner) -> Preprocess:
    """The preprocessing of all images.

    Raises:
        ArtifactError: it is missing, damaged or another one.
    """
    return Preprocess.from_tensors(_tensors(directory / PREPROCESS, learner.sha256, PREPROCESS))


def read_initial(directory: Path, learner: Learner) -> dict[str, Tensor] | None:
    """The weights that the network begins with, where they were given; errors as for `read_preprocess`."""
    if not learner.given_weights:
        return None
    return _tensors(directory / INITIAL, learner.sha256, INITIAL)


def read_state(directory: Path, version: Version) -> LearnerState:
    """The network of a version and what der++ recorded; errors as for `read_preprocess`."""
    folder = directory / folder_of(version.number)
    weights = {n: t.numpy() for n, t in _tensors(folder / MODEL, version.sha256, MODEL).items()}
    answers = {}
    if ANSWERS in version.sha256:
        named = _tensors(folder / ANSWERS, version.sha256, ANSWERS)
        answers = {int(label): tensor.numpy() for label, tensor in named.items()}
    return LearnerState(version.number, weights, answers)


def state_files(state: LearnerState) -> dict[str, bytes]:
    """Content by file name of what `read_state` reads."""
    files = {MODEL: _as_tensors(state.weights)}
    if state.logits:
        files[ANSWERS] = _as_tensors({str(label): state.logits[label] for label in sorted(state.logits)})
    return files


def _as_tensors(named: Mapping[str, object]) -> bytes:
    tensors = {name: torch.tensor(array) for name, array in named.items()}
    return tensor_bytes(tensors, {"format_version": FORMAT_VERSION})


def _tensors(path: Path, digests: Mapping[str, str], name: str) -> dict[str, Tensor]:
    if name not in digests:
        fail(str(path), "no digest of it in learner.json", "one", AGAIN)
    return read_tensors(path, again=AGAIN, sha256=digests[name])


def safe_name(name: str) -> str:
    """A class's name as part of a file name: letters and digits, at most 60 characters.

    Example:
        >>> safe_name("../mug, red"), safe_name("…")
        ('mug_red', 'class')
    """
    cleaned = re.sub(r"[^\w-]+", "_", name).strip("_.")[:_MOST_NAME]
    while len(cleaned.encode()) > 2 * _MOST_NAME:
        cleaned = cleaned[:-1]
    return cleaned or "class"


def class_file(
    kept: Exemplars, name: str, *, kind: str, stands_for: int, folder: str = MEMORY
) -> tuple[Kept, bytes]:
    """The images of a class as a file, and what `learner.json` says of it; the same images make the same file.

    The name holds a digest of the content: no file is ever written over, and classes whose names differ only in what
    file names cannot hold do not meet.
    """
    # The name of the class and its number are told inside too, for those who meet this file alone.
    content = pack("memory", {0: kept}, class_name=name, stands_for=stands_for, memory=kind)
    digest = hashlib.sha256(content).hexdigest()
    told = {
        "file": f"{folder}/{safe_name(name)}-{digest[:12]}.safetensors",
        "sha256": digest,
        "kind": kind,
        "images": kept.num_images,
        "num_bytes": kept.num_bytes,
        "stands_for": stands_for,
    }
    return Kept.model_validate(told), content


def read_class(directory: Path, kept: Kept, *, shape: tuple[int, int, int]) -> Exemplars:
    """The images of a class.

    Args:
        directory: of the learner.
        kept: which.
        shape: [C, H, W] that they must have.

    Raises:
        ArtifactError: the file is missing, damaged or another one.
    """
    path = directory / kept.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); {AGAIN}.") from error
    if hashlib.sha256(content).hexdigest() != kept.sha256:
        fail(str(path), "another content", "the one that learner.json names by a digest", AGAIN)
    exemplars = unpack(content, "memory").exemplars.get(0)
    if exemplars is None or exemplars.images_NCHW.shape[1:] != shape:
        fail(str(path), "images of another shape or none", f"{shape}", AGAIN)
    return exemplars


def unused_files(directory: Path, learner: Learner) -> list[Path]:
    """What no version names any more: left by a killed command, or of a class that was forgotten.

    A user's own files, whose names are others, are none of these.
    """
    used = {kept.file for one in learner.versions for kept in (*one.memory.values(), *one.tests.values())}
    files = [
        path
        for folder in (MEMORY, TESTS)
        for path in sorted((directory / folder).glob("*"))
        if _is_left(path, _CLASS_FILE) and f"{folder}/{path.name}" not in used
    ]
    there = {folder_of(one.number) for one in learner.versions if not one.removed}
    files += [
        path
        for path in sorted((directory / VERSIONS).glob("*"))
        if _is_left(path, _VERSION_FOLDER) and f"{VERSIONS}/{path.name}" not in there
    ]
    return files


def _is_left(path: Path, name: re.Pattern[str]) -> bool:
    return path.name.startswith(TEMPORARY) or name.fullmatch(path.name) is not None


def work_folders(directory: Path, *, but: str = "") -> list[Path]:
    """Work of steps on their way, or of killed ones, half-made images of theirs among it.

    Args:
        directory: of the learner.
        but: the name of one to leave out.
    """
    return [path for path in sorted((directory / WORK).glob("*")) if _is_work(path) and path.name != but]


def _is_work(path: Path) -> bool:
    if not (path.is_dir() and _WORK_FOLDER.fullmatch(path.name)):
        return False
    names = {one.name for one in path.iterdir() if not one.name.startswith(TEMPORARY)}
    # One that was killed as it began holds nothing but its lock.
    return "settings.json" in names or names <= {_LOCK}


def check_free(directory: Path) -> None:
    """Refuse to begin a learner among other files; what a killed `init` left does no harm.

    Raises:
        ConfigError: the directory holds anything else.
    """
    stranger = next(iter(_strangers(directory)), None)
    if stranger is not None:
        raise ConfigError(
            f"{directory} holds {stranger.relative_to(directory).as_posix()}, which is no part of a learner; a learner"
            " begins in a new or empty directory, so pass another one."
        )


def _strangers(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if path.is_dir() and path.name in (MEMORY, TESTS):
            yield from (one for one in sorted(path.iterdir()) if not _is_left(one, _CLASS_FILE))
        elif path.is_dir() and path.name == VERSIONS:
            for one in sorted(path.iterdir()):
                first = one.name == Path(folder_of(1)).name and (one / MODEL).is_file()
                if not (first or one.name.startswith(TEMPORARY)):
                    yield one
        elif path.is_dir() and path.name == WORK:
            yield from (one for one in sorted(path.iterdir()) if not _is_work(one))
        elif path.name not in (_LOCK, PREPROCESS, INITIAL, "mlartifacts") and not path.name.startswith(
            ("mlflow.db", TEMPORARY)
        ):
            yield path


def check_network(learner: Learner, given: str) -> str:
    """The name to build the network by.

    Code is never run because a directory names it: a user's own network is named again by whoever asks.

    Args:
        learner: of which.
        given: what --network says; nothing where it was left out.

    Raises:
        ConfigError: a user's own network is not named, or another one.
    """
    own = ":" in learner.network
    if not given:
        if own:
            raise ConfigError(
                f"this learner's network is code of yours, {learner.network}, which is run only if you say so; pass"
                f" --network PATH/{learner.network}."
            )
        return learner.network
    if not own and given != learner.network:
        raise ConfigError(
            f"--network {given}: this learner's network is {learner.network}; leave the flag out."
        )
    return given


__all__ = [
    "ANSWERS",
    "CURRENT",
    "INITIAL",
    "LEARNER",
    "MEMORY",
    "MODEL",
    "PREPROCESS",
    "TESTS",
    "VERSIONS",
    "WORK",
    "check_free",
    "check_network",
    "class_file",
    "folder_of",
    "learner_json",
    "read_class",
    "read_current",
    "read_initial",
    "read_learner",
    "read_preprocess",
    "read_state",
    "safe_name",
    "state_files",
    "unused_files",
    "work_folders",
]
