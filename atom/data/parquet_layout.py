"""Where the files of a parquet set lie: the layouts of `datasets` and of the Hugging Face Hub."""

import glob
import re
from dataclasses import dataclass

from atom.data.place import Place
from atom.data.request import Request
from atom.errors import DataError

TEST_PARTS = ("test", "validation", "valid", "val")
"""In this order; the first that has labels is the test part."""

_CONFIG_NAMES = ("plain_text", "default")
"""What the Hub calls the only configuration of a set."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Layout:
    """The files of the parts, all shards present."""

    train: tuple[Place, ...]
    tests: dict[str, tuple[Place, ...]]
    """By the name of the part, the one to be preferred first."""

    @property
    def files(self) -> list[Place]:
        """All of them."""
        return [*self.train, *(file for files in self.tests.values() for file in files)]


def find_layout(request: Request, root: Place) -> Layout:
    """The files in `root`, in `root/data`, in the only configuration below, or in the cache's snapshot.

    Raises:
        DataError: there are none, a shard is missing, or there are several configurations to choose from.
    """
    folder = _folder(request, _snapshot(root))
    train = _files(folder, "train")
    wanted = (request.test_part,) if request.test_part else TEST_PARTS
    tests = {part: files for part in wanted if (files := _files(folder, part))}
    if request.test_part and _files(folder, request.test_part) == train:
        raise DataError(f"--test-part {request.test_part}: {train[0]} is the training part; name another.")
    if not tests:
        names = " or ".join(f"{part}-*.parquet" for part in wanted)
        raise DataError(
            f"{request.spec}: no {names} in {folder}; expected the Hugging Face layout, or the name of another "
            "part as --test-part."
        )
    for files in (train, *tests.values()):
        _check_complete(files)
    return Layout(train, tests)


def set_folder(root: Place) -> Place:
    """The folder that bears the set's name: not a configuration, nor a commit in the Hub's cache.

    Example:
        >>> from pathlib import Path
        >>> set_folder(Path("/cache/datasets--uoft-cs--cifar10/snapshots/" + 40 * "a")).name
        'cifar10'
    """
    for folder in (root.resolve(), *root.resolve().parents):
        if folder.name.startswith("datasets--"):
            return folder.with_name(folder.name.rsplit("--", 1)[1])
        passed = folder.name in (*_CONFIG_NAMES, "snapshots") or _COMMIT.fullmatch(folder.name)
        if not passed and not (folder.name == "data" and _COMMIT.fullmatch(folder.parent.name)):
            return folder
    return root


def _snapshot(root: Place) -> Place:
    """The checked-out files of an entry of the Hub's cache; any other folder as it is."""
    snapshots = sorted(path for path in root.glob("snapshots/*") if path.is_dir())
    current = root / "refs" / "main"
    if len(snapshots) > 1 and current.is_file():
        named = root / "snapshots" / current.read_text(encoding="utf-8", errors="replace").strip()
        snapshots = [path for path in snapshots if path == named] or snapshots
    return snapshots[-1] if snapshots else root


def _folder(request: Request, root: Place) -> Place:
    """The folder with the training files."""
    for folder in (root, root / "data"):
        if _files(folder, "train"):
            return folder
    below = [path for path in sorted(root.glob("*")) if path.is_dir() and not path.name.startswith(".")]
    configs = [folder for folder in below if _files(folder, "train")]
    if not configs:
        raise DataError(
            f"{request.spec}: no train-*.parquet in {root}, {root / 'data'} or another folder below; "
            "expected the Hugging Face layout."
        )
    if len(configs) > 1:
        names = ", ".join(folder.name for folder in configs[:10])
        raise DataError(
            f"{request.spec}: {root} holds several configurations ({names}); pass one, such as parquet:{configs[0]}."
        )
    return configs[0]


def _files(folder: Place, part: str) -> tuple[Place, ...]:
    """`part-*.parquet`, `part.parquet`, or the Hub's conversion, `part/0000.parquet`."""
    name = glob.escape(part)
    flat = {*folder.glob(f"{name}-*.parquet"), *folder.glob(f"{name}.parquet")}
    return tuple(sorted(flat or folder.glob(f"{name}/*.parquet")))


def _check_complete(files: tuple[Place, ...]) -> None:
    """Shards are called part-00000-of-00003: a missing one would silently shrink the set."""
    numbered = [re.search(r"-(\d+)-of-(\d+)(?:-[0-9a-f]+)?$", file.stem) for file in files]
    present = {(int(match[1]), int(match[2])) for match in numbered if match}
    for total in {total for _, total in present}:
        for number in range(total):
            if (number, total) not in present:
                raise DataError(
                    f"{files[0].parent}: shard {number:05d} of {total:05d} is missing "
                    f"beside {files[0].name}; fetch all shards."
                )
