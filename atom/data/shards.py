"""Which tar files a spec of shards means, and which part of the set each holds."""

import re
from collections.abc import Sequence

from atom.data.class_folders import visible
from atom.data.place import Place
from atom.data.request import Request
from atom.errors import DataError

TRAIN = "train"
TEST_PARTS = ("test", "validation")
"""In this order; the first that has labels is the test part."""
MAX_SHARDS = 100_000
"""A stop for braces that multiply; ImageNet-21k has some 2,000 shards."""

_SPELT = {"train": TRAIN, "training": TRAIN, "val": "validation", "valid": "validation"}
_WORDS = ("training", "train", "validation", "valid", "val", "test")
_GLOB = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_DEPTH = 3
"""Directories below the set's in which shards are looked for: data/train/0.tar has two."""


def find_shards(request: Request) -> tuple[Place, list[Place]]:
    """The directory of a set and its shards, sorted by name: those a pattern means, one tar, or all below a directory.

    Raises:
        DataError: there are none, one is missing or packed, or a brace is no range and no list.
    """
    root, pattern = request.place, request.pattern
    if pattern:
        return root, _matching(request, root, pattern)
    if root.is_file():
        _check_plain(root)
        return root.parent, [root]
    shards = _below(root, _DEPTH) if root.is_dir() else []
    if not shards:
        what = "holds no *.tar" if root.is_dir() else "does not exist"
        raise DataError(f"{request.spec}: {root} {what}; expected a tar file, or a directory with shards.")
    return root, shards


def part_of(names: Sequence[str], other: str | None = None) -> str | None:
    """The part that a path tells, by its first name that does: one that begins with its word, or has it between marks.

    Args:
        names: of the path, in the order in which they are asked.
        other: a word besides the usual ones.

    >>> part_of(["val", "0000.tar"]), part_of(["imagenet1k-train-0000.tar"]), part_of(["latest-0.tar"])
    ('validation', 'train', None)
    >>> part_of(["testudo.tar", "train"]), part_of(["valley"]), part_of(["trainset0.tar"])
    ('train', None, 'train')
    """
    words = "|".join([*([re.escape(other)] if other else []), *_WORDS])
    known = re.compile(rf"(?:^|[-_.])({words})(?:set)?(?=[-_.\d]|$)", re.IGNORECASE)
    for name in names:
        if match := known.search(name):
            return spelt(match[1])
    return None


def spelt(word: str) -> str:
    """The one name of a part that has several."""
    return _SPELT.get(word.lower(), word.lower())


def expanded(pattern: str) -> list[str]:
    """The texts that braces stand for, as in a shell.

    Raises:
        DataError: a brace holds neither a range nor a list, or they are too many.

    >>> expanded("{train,val}-{08..10}.tar")
    ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-08.tar', 'val-09.tar', 'val-10.tar']
    """
    texts = [pattern]
    while any(braces := [_BRACES.search(text) for text in texts]):
        found: list[str] = []
        for text, brace in zip(texts, braces, strict=True):
            found += [text] if brace is None else _replaced(text, brace)
            if len(found) > MAX_SHARDS:
                raise DataError(f"{pattern}: means more than {MAX_SHARDS} files; name fewer.")
        texts = found
    return texts


def _replaced(text: str, brace: re.Match[str]) -> list[str]:
    inside = brace[1]
    if bounds := _RANGE.fullmatch(inside):
        first, last = int(bounds[1]), int(bounds[2])
        if last - first > MAX_SHARDS:
            raise DataError(f"{text}: means more than {MAX_SHARDS} files; name fewer.")
        options = [f"{number:0{len(bounds[1])}d}" for number in range(first, last + 1)]
    else:
        options = inside.split(",") if "," in inside else []
    if not options:
        raise DataError(
            f"{text}: {{{inside}}} is no range such as {{0000..0009}} and no list such as {{train,val}}."
        )
    return [text[: brace.start()] + option + text[brace.end() :] for option in options]


def _matching(request: Request, root: Place, pattern: str) -> list[Place]:
    if not root.is_dir():
        raise DataError(f"{request.spec}: {root} does not exist; expected a directory with shards.")
    if "**" in pattern:
        raise DataError(
            f"{request.spec}: ** is not taken; name the directory, of which shards are found {_DEPTH} directories down."
        )
    shards: set[Place] = set()
    for name in expanded(pattern):
        found = [path for path in root.glob(name) if path.is_file()] if _GLOB.search(name) else [root / name]
        if not found:
            raise DataError(f"{request.spec}: no file in {root} is called {name}.")
        if not found[0].is_file():
            raise DataError(f"{found[0]}: the shard does not exist; fetch it, or name those that are there.")
        shards.update(found)
    for shard in shards:
        _check_plain(shard)
    return sorted(shards)


def _below(directory: Place, depth: int) -> list[Place]:
    inside = visible(directory)
    found = [path for path in inside if path.name.lower().endswith(".tar") and path.is_file()]
    if depth:
        found += [shard for path in inside if path.is_dir() for shard in _below(path, depth - 1)]
    for path in inside:
        _check_plain(path)
    return sorted(found)


def _check_plain(shard: Place) -> None:
    """Refuse what is packed: images are read from where they lie in the file."""
    if shard.name.lower().endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
        raise DataError(
            f"{shard}: is packed, and images cannot be read from within; unpack it to a plain .tar."
        )


__all__ = ["TEST_PARTS", "TRAIN", "expanded", "find_shards", "part_of", "spelt"]
