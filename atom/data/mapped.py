"""Arrays of images in files of the local disk instead of memory, so that a set may be larger than that."""

# N images, C channels, H height, W width

import errno
import logging
import math
import mmap
import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from atom.errors import DataError
from atom.free_memory import free_memory

Images = npt.NDArray[np.uint8]

MAPPED_BYTES = 2**24
"""Arrays from this size on lie in files; smaller ones cost less than the libraries that read them. Chosen."""
_STEP_BYTES = 2**24
"""What is copied at once. Chosen."""
_SPARSE = 8
"""Rows that lie this many times as far apart as they would one after another are read without what is between. Chosen:
a disk is read ahead in 128 KiB, which is of use where one row in a few is wanted."""

log = logging.getLogger(__name__)


def is_large(num_bytes: int) -> bool:
    """Whether an array of so many bytes lies in a file where it can."""
    return num_bytes >= MAPPED_BYTES


def empty(shape: tuple[int, ...], folder: Path | None) -> Images:
    """An array to be filled, uint8: from `MAPPED_BYTES` on in a file of `folder` that ends with it.

    The file has no name, so nothing is left behind, and its bytes are the disk's from the start: a mapped file whose
    disk is full ends the process that writes there. Where no file can be had the array lies in memory.

    Args:
        shape: of the array.
        folder: made if missing; None: no file.

    Raises:
        DataError: neither the disk nor the memory has room.
    """
    num_bytes = math.prod(shape)
    if folder is None or not is_large(num_bytes):
        return np.empty(shape, dtype=np.uint8)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            _reserve(file.fileno(), num_bytes)
            return np.frombuffer(mmap.mmap(file.fileno(), num_bytes), dtype=np.uint8).reshape(shape)
    except OSError as error:
        free, why = free_memory(), error.strerror or str(error)
        if free is not None and num_bytes > free:
            images, *size = shape
            raise DataError(
                f"{images} images x {math.prod(size)} bytes take {_told(num_bytes)}, for which there is neither a file"
                f" in {folder} ({why}) nor memory ({_told(free)} free); pass --data-dir on another disk, or a smaller"
                " --image-size."
            ) from error
        log.warning(
            "decoded images are kept in memory: a file of %s in %s failed (%s)", _told(num_bytes), folder, why
        )
        return np.empty(shape, dtype=np.uint8)


def opened(file: Path) -> np.ndarray:
    """The array of a .npy file, from `MAPPED_BYTES` on mapped from it, read-only.

    Raises:
        OSError, ValueError: it cannot be read, or holds none.
    """
    mode = "r" if is_large(file.stat().st_size) else None
    return np.load(file, mmap_mode=mode, allow_pickle=False)


def named_file(array: np.ndarray) -> Path | None:
    """The file with a name, which others may change, that an array is mapped from; None where there is none."""
    base: object = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and base.filename is not None:
            return Path(base.filename)
        base = base.base
    return None


def is_cut_off(array: np.ndarray) -> bool:
    """Whether the file that an array is mapped from has become shorter: reading what is gone would end the process."""
    mapping = _mapping(array)
    return mapping is not None and mapping.size() < len(mapping)


def taken(images: Images, rows: npt.NDArray[np.int64], folder: Path | None = None) -> Images:
    """`images[rows]`, in memory or as `empty` has it.

    Rows that lie far apart are read without what lies between: a disk is read ahead otherwise, and a class of a file
    with 100 mixed classes cost all of it (579 MiB read for 5, measured; 8 so).
    """
    mapping = _mapping(images) if _sparse(rows) else None
    out = empty((len(rows), *images.shape[1:]), folder)
    step = max(1, _STEP_BYTES // max(1, math.prod(images.shape[1:])))
    try:
        if mapping is not None:
            mapping.madvise(mmap.MADV_RANDOM)
        for start in range(0, len(rows), step):
            out[start : start + step] = images[rows[start : start + step]]
    finally:
        if mapping is not None:
            mapping.madvise(mmap.MADV_NORMAL)
    return out


def in_colour(images: Images, folder: Path | None) -> Images:
    """Grey images [N, 1, H, W] with their channel three times over, as `empty` has it."""
    out = empty((len(images), 3, *images.shape[2:]), folder)
    out[:] = images
    return out


def _reserve(file: int, num_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, num_bytes)
        return
    # Macs have no such call: what the disk has now is all that can be asked, and some systems do not tell it either.
    if hasattr(os, "fstatvfs"):
        disk = os.fstatvfs(file)
        if disk.f_bavail * disk.f_frsize < num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(file, num_bytes)


def _sparse(rows: npt.NDArray[np.int64]) -> bool:
    return len(rows) > 0 and int(rows.max() - rows.min()) + 1 > _SPARSE * len(rows)


def _mapping(array: np.ndarray) -> mmap.mmap | None:
    """The file that an array is mapped from, if the system takes advice on how it is read."""
    base: object = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, mmap.mmap) and hasattr(base, "madvise") else None


def _told(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2g} GB"


__all__ = ["empty", "in_colour", "is_cut_off", "is_large", "named_file", "opened", "taken"]
