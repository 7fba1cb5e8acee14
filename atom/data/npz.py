"""MedMNIST's layout, which others take too: one .npz archive of image and label arrays, a pair a part."""

# N images, C channels, H height, W width, K classes

import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from atom.data import about
from atom.data.decode import match_channels, resize_images
from atom.data.image_set import Images, ImageSet, Labels, RealData
from atom.data.request import Request, slug
from atom.errors import DataError

TRAIN_PART = "train"
TEST_PARTS = ("test", "val")
MAX_BYTES = 1 << 32
"""Largest array that is read, and a stop for a zip bomb: four times the largest of MedMNIST at 64 pixels."""


def read_npz(request: Request) -> RealData:
    """The images of train_images and test_images, or val_images where that is the part asked for.

    Images are uint8 [N, H, W] or [N, H, W, 3], labels integers [N] or [N, 1], 0 to K - 1. The file names no classes:
    they are called by their numbers unless the request names them.

    Raises:
        DataError: there is no such file, an array is missing, damaged, too large or of another kind, or the labels are
            not 0 to K - 1 in both parts.
    """
    file = _locate(request)
    part = request.test_part or TEST_PARTS[0]
    if part not in TEST_PARTS:
        raise DataError(
            f"--test-part {part}: this layout has the parts {' and '.join(TEST_PARTS)} to test on; pass one of them."
        )
    train_images, test_images = match_channels(*(_images(file, name, request) for name in (TRAIN_PART, part)))
    train_labels, test_labels = (_labels(file, name) for name in (TRAIN_PART, part))
    class_names = _class_names(request, file, train_labels)
    for name, images, labels_N in (
        (TRAIN_PART, train_images, train_labels),
        (part, test_images, test_labels),
    ):
        if len(images) != len(labels_N):
            raise DataError(
                f"{file}: {name}_images holds {len(images)} images, but {name}_labels {len(labels_N)} labels; the"
                " arrays do not belong together."
            )
    if test_labels.max(initial=0) >= len(class_names):
        raise DataError(
            f"{file}: {part}_labels holds class {test_labels.max()}, but train_labels only 0 to {len(class_names) - 1};"
            " every class needs training images."
        )
    name = slug(file.with_suffix(""))
    remark = f"judged by {part}_images, not by {TEST_PARTS[0]}_images"
    return RealData(
        name,
        request.spec,
        ImageSet.create(train_images, train_labels, class_names),
        ImageSet.create(test_images, test_labels, class_names),
        about.unknown_source(name, "npz"),
        remarks=() if part == TEST_PARTS[0] else (remark,),
    )


def _locate(request: Request) -> Path:
    """The archive itself, or the only one in the directory."""
    root = request.root
    if root.is_file():
        return root
    if not root.is_dir():
        raise DataError(
            f"{request.spec}: {root} does not exist; expected a .npz file or a directory with one."
        )
    found = sorted(path for path in root.iterdir() if path.suffix.lower() == ".npz" and path.is_file())
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:10]) or "none"
        raise DataError(
            f"{request.spec}: {root} holds {len(found)} .npz files ({names}); expected exactly one, or pass the file"
            " itself."
        )
    return found[0]


def _array(file: Path, name: str) -> npt.NDArray[np.generic]:
    """One array of the archive, its size known before any of it is unpacked; pickles are never read.

    The size that the archive states is a bound: its reader stops there, whatever the stream holds.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            listing = [(member.filename.removesuffix(".npy"), member) for member in archive.infolist()]
            members = [member for called, member in listing if called == name]
            if not members:
                listed = ", ".join(sorted({called for called, _ in listing})[:10]) or "nothing"
                raise DataError(
                    f"{file}: has no array {name} ({listed} is there); expected MedMNIST's layout, {TRAIN_PART}_images,"
                    f" {TRAIN_PART}_labels, and the same for {' and '.join(TEST_PARTS)}."
                )
            if len(members) > 1:
                raise DataError(
                    f"{file}: holds {len(members)} arrays called {name}, and which is meant cannot be told; write the"
                    " file again."
                )
            size = members[0].file_size
            if size > MAX_BYTES:
                raise DataError(
                    f"{file}: {name} unpacks to {size} bytes; at most {MAX_BYTES} are read, so pass smaller images."
                )
            with archive.open(members[0]) as content:
                _check_header(content, file, name, size)
            # The member that was checked: numpy's own reader of archives may prefer another of that name.
            with archive.open(members[0]) as content:
                return np.asarray(np.lib.format.read_array(content, allow_pickle=False))
    except (DataError, MemoryError):
        raise
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{file}: {name} cannot be read ({reason}); write the file again.") from error


def _check_header(content: IO[bytes], file: Path, name: str, num_bytes: int) -> None:
    """Refuse what is no plain array, or promises more than there is, before room is made for it."""
    version = np.lib.format.read_magic(content)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(content)
    if dtype.hasobject:
        raise DataError(
            f"{file}: {name} holds Python objects, which could run commands when read; write it as a plain array."
        )
    promised = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if content.tell() + promised != num_bytes:
        raise DataError(
            f"{file}: {name} has {num_bytes} bytes unpacked, but its header promises {content.tell() + promised}; write"
            " the file again."
        )


def _images(file: Path, part: str, request: Request) -> Images:
    """uint8 [N, C, H, W], of the size that was asked for."""
    name = f"{part}_images"
    images: npt.NDArray[Any] = _array(file, name)
    grey = images.ndim == 3
    if images.dtype != np.uint8:
        fractions = np.issubdtype(images.dtype, np.floating)
        how = " (from [0, 1]: np.round(255 * values).astype(np.uint8))" if fractions else ""
        raise DataError(
            f"{file}: {name} is {images.dtype}; expected uint8, 0 to 255, since how to scale other values is your"
            f" choice{how}."
        )
    if not grey and (images.ndim != 4 or images.shape[3] != 3):
        raise DataError(
            f"{file}: {name} has shape {images.shape}; expected [N, H, W] for grey images or [N, H, W, 3] for colour,"
            " channels last."
        )
    height, width = images.shape[1:3]
    if request.image_size is None and height != width:
        raise DataError(
            f"{file}: {name} are {width}x{height} (width x height), but the networks take square images; pass"
            " --image-size to crop and resize all images."
        )
    images_NCHW = images[:, None] if grey else images.transpose(0, 3, 1, 2)
    # Here, and not after both parts are joined: they may come in two sizes.
    return images_NCHW if request.image_size is None else resize_images(images_NCHW, request.image_size)


def _labels(file: Path, part: str) -> Labels:
    """int64 [N], 0 or more."""
    name = f"{part}_labels"
    labels = _array(file, name)
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError(
            f"{file}: {name} has {labels.shape[1]} columns, several labels an image; only one label an image is"
            " supported, so write the column you mean as [N, 1]."
        )
    if labels.ndim not in (1, 2) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{file}: {name} is {labels.dtype} {labels.shape}; expected integers [N, 1] or [N], one a class from 0."
        )
    labels_N = labels.reshape(-1).astype(np.int64)
    if labels_N.min(initial=0) < 0:
        raise DataError(f"{file}: {name} holds {labels_N.min()}; expected classes from 0.")
    return labels_N


def _class_names(request: Request, file: Path, train_labels_N: Labels) -> tuple[str, ...]:
    """Those asked for, else the numbers; a class in the middle without training images is found here."""
    present_K = np.unique(train_labels_N)
    if not np.array_equal(present_K, np.arange(len(present_K))):
        listed = ", ".join(map(str, present_K[:10]))
        missing = int(np.flatnonzero(present_K != np.arange(len(present_K)))[0])
        raise DataError(
            f"{file}: train_labels holds the classes {listed}, but no image of class {missing}; number the classes"
            f" from 0 to {len(present_K) - 1}, or add training images."
        )
    names = request.class_names
    if names is not None and len(names) != len(present_K):
        raise DataError(
            f"{file}: --class-names names {len(names)} classes ({', '.join(names[:10])}), but train_labels holds"
            f" {len(present_K)}; name each once, in the order of their numbers."
        )
    return names or tuple(map(str, present_K.tolist()))
