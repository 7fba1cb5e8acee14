"""MNIST and Fashion-MNIST: the official idx files, raw or gzipped, as they lie under the data directory."""

# N images, C channels, H height, W width

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atom.data import about, official
from atom.data.download import RemoteFile, download
from atom.data.image_set import Images, ImageSet, Labels, RealData, SourceInfo
from atom.data.official import Part
from atom.data.request import Request
from atom.errors import DataError

STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_MAGIC = bytes((0, 0, 8))
MAX_DEPTH = 3
"""Folders below the data directory that are searched."""
MAX_BYTES = 1 << 29
"""Largest unpacked file that is read: ten times the official one, and a stop for a gzip bomb."""


@dataclass(frozen=True)
class IdxSource:
    """One image set published as four idx files."""

    folder: str
    """torchvision's folder name."""
    mirror: str
    md5s: tuple[str, str, str, str]
    """Of the gzipped files, in the order of STEMS."""
    class_names: tuple[str, ...]
    info: SourceInfo
    raw_md5s: tuple[str, str, str, str]
    """Of the files once unpacked."""
    official: tuple[Part, Part]
    """Both sets use the same file names; the counts of the test part tell them apart."""


SOURCES = {
    "mnist": IdxSource(
        folder="MNIST",
        mirror="https://ossci-datasets.s3.amazonaws.com/mnist/",
        md5s=(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        class_names=about.DIGIT_NAMES,
        info=about.MNIST,
        raw_md5s=(
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        official=official.MNIST,
    ),
    "fashionmnist": IdxSource(
        folder="FashionMNIST",
        mirror="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        md5s=(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        class_names=about.FASHION_NAMES,
        info=about.FASHIONMNIST,
        raw_md5s=(
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
        official=official.FASHIONMNIST,
    ),
}


def read_idx(request: Request) -> RealData:
    """MNIST or Fashion-MNIST, 28x28 grey, from the first place that holds all four files."""
    source = SOURCES[request.name]
    files = _locate(request, source)
    parts: list[ImageSet] = []
    md5s: list[str] = []
    for images_file, labels_file in (files[:2], files[2:]):
        images_NHW = read_idx_file(images_file, num_dims=3)
        labels_N = read_idx_file(labels_file, num_dims=1)
        md5s += [_raw_md5(images_NHW), _raw_md5(labels_N)]
        if len(images_NHW) != len(labels_N):
            raise DataError(
                f"{images_file} holds {len(images_NHW)} images, but {labels_file} {len(labels_N)} labels; "
                "the two files do not belong together."
            )
        if labels_N.max(initial=0) >= len(source.class_names):
            raise DataError(
                f"{labels_file}: label {labels_N.max()} is out of range; "
                f"expected 0 to {len(source.class_names) - 1}."
            )
        parts.append(ImageSet.create(images_NHW[:, None], labels_N, source.class_names))
    train, test = parts
    _refuse_the_other(test.labels, request, files[3])
    data = RealData(request.name, request.spec, train, test, source.info)
    if tuple(md5s) == source.raw_md5s:
        return data
    return official.compared(data, source.official, otherwise="other bytes")


def read_idx_file(file: Path, *, num_dims: int) -> Images:
    """The uint8 array of one idx file, gzipped if its name ends in .gz.

    The format: two zero bytes, type 8 (uint8), the number of dimensions, each size as a big-endian 32-bit
    integer, then the values.

    Raises:
        DataError: the file is damaged, of another type, or shorter or longer than its header says.
    """
    try:
        if file.suffix == ".gz":
            with gzip.open(file) as stream:
                content = stream.read(MAX_BYTES + 1)
        else:
            with file.open("rb") as stream:
                content = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read ({error}); fetch the file again.") from error
    if len(content) > MAX_BYTES:
        raise DataError(f"{file}: unpacks to more than {MAX_BYTES} bytes; this is not the official file.")
    header_bytes = 4 + 4 * num_dims
    magic = _MAGIC + bytes([num_dims])
    if len(content) < header_bytes or content[:4] != magic:
        raise DataError(
            f"{file}: starts with {content[:4].hex() or 'nothing'}, expected {magic.hex()} "
            f"(idx, unsigned bytes, {num_dims} dimension(s)); this is not the official file."
        )
    sizes = [int(size) for size in np.frombuffer(content, ">u4", count=num_dims, offset=4)]
    expected = header_bytes + int(np.prod(sizes, dtype=object))
    if len(content) != expected:
        raise DataError(
            f"{file}: has {len(content)} bytes unpacked, but its header promises {expected}; "
            "fetch the file again."
        )
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(sizes).copy()


def _raw_md5(array: Images) -> str:
    """MD5 of the unpacked file that the array was read from."""
    sizes = np.array(array.shape, ">u4").tobytes()
    digest = hashlib.md5(_MAGIC + bytes([array.ndim]) + sizes, usedforsecurity=False)
    digest.update(array.data)
    return digest.hexdigest()


def _locate(request: Request, source: IdxSource) -> list[Path]:
    """The four files, downloaded if allowed and not found."""
    for directory in _places(request, source):
        files = [_present(directory, stem) for stem in STEMS]
        found = [file for file in files if file is not None]
        if len(found) == len(STEMS):
            return found
    home = request.root / source.folder / "raw"
    if request.may_download:
        return [
            _present(home, stem)
            or download(
                RemoteFile(f"{source.mirror}{stem}.gz", md5),
                home,
                spec=request.spec,
                on_download=request.on_download,
            )
            for stem, md5 in zip(STEMS, source.md5s, strict=True)
        ]
    raise DataError(
        f"{request.spec}: no folder under {request.root} holds {STEMS[0]}[.gz] and its three companions; "
        f"put the four official files into {home}, or name their folder with --data-dir."
    )


def _places(request: Request, source: IdxSource) -> Iterator[Path]:
    """torchvision's folder, the root itself, then deeper folders whose own or parent's name is the set's."""
    yield request.root / source.folder / "raw"
    yield request.root
    for depth in range(1, MAX_DEPTH + 1):
        for directory in sorted(request.root.glob("/".join("*" * depth))):
            names = [re.sub(r"[^a-z]", "", name.lower()) for name in directory.parts[-2:]]
            if request.name in names and directory.is_dir():
                yield directory


def _present(directory: Path, stem: str) -> Path | None:
    # ".idx3" instead of "-idx3" is how some archives unpack the same files.
    for name in (stem, f"{stem}.gz", stem.replace("-idx", ".idx")):
        if (directory / name).is_file():
            return directory / name
    return None


def _refuse_the_other(test_labels_N: Labels, request: Request, labels_file: Path) -> None:
    """Both sets use the same file names; labels of the wrong one would train without a complaint."""
    counts = tuple(int(count) for count in np.bincount(test_labels_N, minlength=10))
    for name, source in SOURCES.items():
        if name != request.name and counts == source.official[1].counts:
            raise DataError(
                f"{labels_file} belongs to {source.info.title}, not to {SOURCES[request.name].info.title}; "
                f"pass --dataset {name}, or name another place with --data-dir."
            )
