"""CIFAR-10 and CIFAR-100: the official archive, or what it unpacks to, as Python or as binary batches."""

# N images, C channels, H height, W width

import hashlib
from dataclasses import replace
from pathlib import Path

from atom.data import about, official
from atom.data.cache import cached
from atom.data.cifar_batches import (
    CifarSource,
    ReadFile,
    archive_reader,
    folder_reader,
    read_binary,
    read_python,
)
from atom.data.download import RemoteFile, download
from atom.data.image_set import RealData
from atom.data.request import Request
from atom.errors import DataError

SOURCES = {
    "cifar10": CifarSource(
        archive=RemoteFile(
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"
        ),
        python_folder="cifar-10-batches-py",
        python_parts=(tuple(f"data_batch_{number}" for number in range(1, 6)), ("test_batch",)),
        python_names=("batches.meta", "label_names"),
        python_labels="labels",
        md5s={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        official=official.CIFAR10,
        names_sha256="bb3914949cecedee6d1257f7f5fdb8f43fa3b2c8095fd1763161caf1b873fe59",
        binary_folder="cifar-10-batches-bin",
        binary_names="batches.meta.txt",
        label_bytes=1,
        num_classes=10,
        info=about.CIFAR10,
    ),
    "cifar100": CifarSource(
        archive=RemoteFile(
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"
        ),
        python_folder="cifar-100-python",
        python_parts=(("train",), ("test",)),
        python_names=("meta", "fine_label_names"),
        python_labels="fine_labels",
        md5s={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        },
        official=official.CIFAR100,
        names_sha256="fbe8ad23bbaf24969898a386833b49c3aaf6ad1119d43f7b41cdea1b3416d578",
        binary_folder="cifar-100-binary",
        binary_names="fine_label_names.txt",
        label_bytes=2,
        num_classes=100,
        info=about.CIFAR100,
    ),
}


def read_cifar(request: Request) -> RealData:
    """60,000 colour images of 32x32 pixels, from the first layout that is found, downloaded if allowed."""
    source = SOURCES[request.name]
    found = _locate(request, source)
    if found is None and request.may_download:
        found = download(source.archive, request.root, spec=request.spec, on_download=request.on_download)
    if found is None:
        raise DataError(
            f"{request.spec}: neither {source.python_folder}, {source.binary_folder} nor "
            f"{source.archive.name} is in {request.root}; "
            "put one of them there, or name its folder with --data-dir."
        )

    def build() -> RealData:
        return _build(request, source, found)

    if found.is_file():
        return cached(request, found.parent, [found], name=request.name, build=build)
    files = [file for file in found.iterdir() if file.is_file()]
    return cached(request, found, files, name=request.name, build=build)


def _locate(request: Request, source: CifarSource) -> Path | None:
    """A folder of batches, or the archive."""
    root = request.root
    if root.is_file() and root.name == source.archive.name:
        return root
    first_python, first_binary = source.python_parts[1][0], source.binary_parts[1][0]
    # CIFAR-100's batches are called "train" and "test", so in the root they must be files.
    for folder, first in (
        (root / source.python_folder, first_python),
        (root / source.binary_folder, first_binary),
        (root, first_python),
        (root, first_binary),
    ):
        if (folder / first).is_file():
            return folder
    archive = root / source.archive.name
    return archive if archive.is_file() else None


def _build(request: Request, source: CifarSource, found: Path) -> RealData:
    md5s: dict[str, str] = {}
    read = _noting(archive_reader(found, source) if found.is_file() else folder_reader(found), md5s)
    if found.is_dir() and (found / source.binary_parts[1][0]).is_file():
        train, test = read_binary(read, source, found)
    else:
        train, test = read_python(read, source, found)
    data = RealData(request.name, request.spec, train, test, source.info)
    names = hashlib.sha256("\n".join(train.class_names).encode()).hexdigest()
    otherwise = "" if names == source.names_sha256 else "other class names, or another order of them"
    if source.md5s.items() <= md5s.items() and not otherwise:
        return data
    data = official.compared(data, source.official, otherwise=otherwise)
    if data.source is source.info and not source.official[0].labels:
        remark = (
            f"the images are {source.info.title}'s by their counts and sums; whether their labels are could be"
            " checked on the Python batches as published only"
        )
        return replace(data, remarks=(remark,))
    return data


def _noting(read: ReadFile, md5s: dict[str, str]) -> ReadFile:
    """The reader, which also notes the MD5 of every file it reads."""

    def noting(name: str) -> bytes:
        content = read(name)
        md5s[name] = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return content

    return noting
