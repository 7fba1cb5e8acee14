"""SVHN, cropped digits: the official MATLAB files."""

# N images, C channels, H height, W width

from pathlib import Path

import numpy as np

from atom.data import about, official
from atom.data.download import RemoteFile, download, file_md5
from atom.data.image_set import ImageSet, RealData
from atom.data.request import Request
from atom.errors import DataError

FILES = {
    "train": RemoteFile(
        "http://ufldl.stanford.edu/housenumbers/train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"
    ),
    "test": RemoteFile(
        "http://ufldl.stanford.edu/housenumbers/test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"
    ),
}
FOLDERS = ("", "SVHN", "svhn")


def read_svhn(request: Request) -> RealData:
    """73,257 training and 26,032 test images, 32x32 RGB; the `extra` part is not used."""
    files = [_locate(request, remote) for remote in FILES.values()]
    train, test = (_read_part(file) for file in files)
    data = RealData(request.name, request.spec, train, test, about.SVHN)
    if [file_md5(file) for file in files] == [remote.md5 for remote in FILES.values()]:
        return data
    return official.compared(data, official.SVHN, otherwise="other bytes")


def _locate(request: Request, remote: RemoteFile) -> Path:
    for folder in FOLDERS:
        file = request.root / folder / remote.name
        if file.is_file():
            return file
    if request.may_download:
        return download(remote, request.root, spec=request.spec, on_download=request.on_download)
    raise DataError(
        f"{request.spec}: {remote.name} is not in {request.root}; put the official file there, "
        "or name its folder with --data-dir."
    )


def _read_part(file: Path) -> ImageSet:
    from scipy.io import loadmat  # half a second of import time, needed by this source only

    try:
        content = loadmat(file, variable_names=["X", "y"])
    except MemoryError:
        raise
    except Exception as error:  # the reader lets zlib.error, KeyError, TypeError and others through
        raise DataError(f"{file}: not a readable MATLAB file ({error}); fetch the file again.") from error
    images_HWCN, labels = content.get("X"), content.get("y")
    if (
        not isinstance(images_HWCN, np.ndarray)
        or not isinstance(labels, np.ndarray)
        or images_HWCN.dtype != np.uint8
        or images_HWCN.shape[:-1] != (32, 32, 3)
        or labels.size != images_HWCN.shape[-1]
    ):
        raise DataError(
            f"{file}: expected X as uint8 [32, 32, 3, N] and y as N labels, "
            "the layout of SVHN's cropped digits."
        )
    labels_N = labels.reshape(-1).astype(np.int64)
    if labels_N.size and not (labels_N.min() >= 0 and labels_N.max() <= 10):
        raise DataError(f"{file}: labels run from {labels_N.min()} to {labels_N.max()}; expected 1 to 10.")
    # The files call the digit 0 class 10.
    return ImageSet.create(images_HWCN.transpose(3, 2, 0, 1), labels_N % 10, about.DIGIT_NAMES)
