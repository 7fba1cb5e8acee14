"""Decoded arrays kept under the data directory, so that the second run starts at once.

An entry is a directory of plain `.npy` files and one JSON file; its name holds a digest of the source files'
relative paths, sizes and times and of the options, so changed sources never meet an old entry. The fingerprints in
the JSON file are checked on every read. Large arrays are mapped from their files, and so take no memory.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from atom.data.image_set import ImageSet, RealData, SourceInfo
from atom.data.mapped import is_large, opened
from atom.data.place import Place, Remote
from atom.data.request import Request, cache_folder
from atom.errors import AtomError

LOADER_VERSION = 3
"""Raise it when the same files give other arrays, or other words about them."""
PARTS = ("train", "test")

_DAMAGED = (FileNotFoundError, EOFError, ValueError, KeyError, TypeError, AtomError)
"""What reading an entry raises that lacks something or holds something else."""
_DRAFT = re.compile(r"\..+-[0-9a-f]{24}-")
_DRAFT_S = 24 * 3600
"""Age of a draft from which on nobody writes it any more. Chosen: writing takes seconds or minutes."""

log = logging.getLogger(__name__)


def _key(request: Request, root: Place, files: Iterable[Place], facts: object) -> str:
    """Cheap digest of what a source would give: names, sizes and times of its files, and the options."""
    listing = [(_within(file, root), *_size_and_time(file)) for file in sorted(set(files))]
    text = json.dumps([LOADER_VERSION, str(root.resolve()), sorted(request.options.items()), facts, listing])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _within(file: Place, root: Place) -> str:
    return str(file) if isinstance(file, Remote) or isinstance(root, Remote) else os.path.relpath(file, root)


def _size_and_time(file: Place) -> tuple[int, int]:
    try:
        stat = file.stat()
    except OSError:  # a dangling link, say: decoding names it, or skips it if asked to
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def cached(
    request: Request,
    root: Place,
    files: Iterable[Place],
    *,
    name: str,
    build: Callable[[], RealData],
    facts: object = None,
) -> RealData:
    """What `build` makes of the files, from the cache if it did before; a cache that fails only costs time.

    Args:
        request: its options decide as well.
        root: what the files' names are relative to.
        files: all that `build` reads.
        name: of the set, for the entry.
        build: reads and decodes.
        facts: whatever else was found beside the files and is part of the answer, as JSON can hold it.
    """
    if not request.keep_decoded:
        return build()
    entry = cache_folder(request.data_dir) / f"{name}-{_key(request, root, files, facts)}"
    if entry.is_dir():
        try:
            return _read(entry, name=name, spec=request.spec)
        except _DAMAGED as error:
            log.info("rebuilding the damaged cache entry %s (%s)", entry, error)
            shutil.rmtree(entry, ignore_errors=True)
        except OSError as error:
            # A network disk that is away for a moment, say: the entry is whole for the next run.
            log.warning(
                "the cache entry %s cannot be read now, and images are decoded anew (%s)", entry, error
            )
    data = build()
    try:
        _write(entry, data)
    except OSError as error:
        log.warning("decoded images are not cached: %s cannot be written (%s)", entry.parent, error)
        return data
    if not (is_large(data.train.images.nbytes) or is_large(data.test.images.nbytes)):
        return data
    try:
        # From the entry, so that what was decoded takes no place beside it.
        return _read(entry, name=name, spec=request.spec)
    except (OSError, *_DAMAGED) as error:
        log.warning("the cache entry %s cannot be read at once (%s)", entry, error)
        return data


def _read(entry: Path, *, name: str, spec: str) -> RealData:
    meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
    parts: list[ImageSet] = []
    for part in PARTS:
        images = opened(entry / f"{part}_images.npy")
        labels = np.load(entry / f"{part}_labels.npy", allow_pickle=False)
        image_set = ImageSet.create(images, labels, meta["class_names"])
        if image_set.fingerprint != meta["fingerprints"][part]:
            raise ValueError(f"the {part} part does not match its fingerprint")
        parts.append(image_set)
    train, test = parts
    return RealData(
        name,
        spec,
        train,
        test,
        SourceInfo(**meta["source"]),
        skipped=tuple(meta["skipped"]),
        remarks=tuple(meta["remarks"]),
    )


def _write(entry: Path, data: RealData) -> None:
    """Write under a temporary name, then rename: a reader sees a whole entry or none."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    _remove_old_drafts(entry.parent)
    if entry.exists():
        return
    draft = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    try:
        for part, image_set in zip(PARTS, (data.train, data.test), strict=True):
            np.save(draft / f"{part}_images.npy", image_set.images, allow_pickle=False)
            np.save(draft / f"{part}_labels.npy", image_set.labels, allow_pickle=False)
        meta = {
            "class_names": data.train.class_names,
            "fingerprints": {"train": data.train.fingerprint, "test": data.test.fingerprint},
            "source": asdict(data.source),
            "skipped": data.skipped,
            "remarks": data.remarks,
        }
        (draft / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        # mkdtemp is private to its owner; a data directory is often shared.
        draft.chmod(0o755)
        try:
            draft.rename(entry)
        except OSError:
            # Another process was as far a moment before.
            if not entry.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _remove_old_drafts(folder: Path) -> None:
    """Drafts whose writers were killed."""
    for draft in folder.iterdir():
        with suppress(OSError):
            if _DRAFT.match(draft.name) and draft.is_dir() and time.time() - draft.stat().st_mtime > _DRAFT_S:
                shutil.rmtree(draft, ignore_errors=True)
