"""CIFAR-10 and CIFAR-100: the official archive, or what it unpacks to, as Python or as binary batches."""

# N images, C channels, H height, W width

from pathlib import Path

from atom.data import about
from atom.data.cache import cached
from atom.data.cifar_batches import CifarSource, archive_reader, folder_reader, read_binary, read_python
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
    read = archive_reader(found, source) if found.is_file() else folder_reader(found)
    if found.is_dir() and (found / source.binary_parts[1][0]).is_file():
        train, test = read_binary(read, source, found)
    else:
        train, test = read_python(read, source, found)
    return RealData(request.name, request.spec, train, test, source.info)
