"""What a distilled set must be: the checks behind `DistilledSet.validate`, each with its sentence."""

# N stored images, C channels, H height, W width, K classes

from typing import NoReturn

import torch
from torch import Tensor

from atom.errors import ArtifactError
from atom.set_values import SetValues

AGAIN = "copy the set again from where it was made, or distil it again"


def fail(where: str, found: str, expected: str, todo: str = AGAIN) -> NoReturn:
    """Raise ArtifactError: where, received, expected, what to do, in one sentence."""
    raise ArtifactError(f"{where}: {found}, expected {expected}; {todo}.")


def check_set(distilled: SetValues, where: str) -> None:
    """Raise ArtifactError on the first thing that is wrong with the set."""
    _check_names(distilled, where)
    _check_images(distilled, where)
    _check_labels(distilled, where)
    if distilled.soft_labels is not None:
        _check_soft_labels(distilled, distilled.soft_labels, where)
    _check_preprocess(distilled, where)


def _check_names(distilled: SetValues, where: str) -> None:
    names = distilled.class_names
    if not names:
        fail(where, "there are no class names", "one a class")
    for name in names:
        if not isinstance(name, str) or not name or not _is_utf8(name):
            fail(where, f"class name {name!r}", "text that is not empty and can be written as UTF-8")
        if names.count(name) > 1:
            fail(where, f"class name {name!r} occurs {names.count(name)} times", "distinct names")
    if not distilled.method:
        fail(where, "the method is empty", "its name, such as 'atom'")
    if distilled.ipc < 1 or distilled.factor < 1:
        fail(where, f"ipc {distilled.ipc} and factor {distilled.factor}", "both at least 1")


def _check_images(distilled: SetValues, where: str) -> None:
    images = distilled.images_NCHW
    if images.ndim != 4 or images.dtype != torch.float32:
        fail(where, f"images are {images.dtype} {list(images.shape)}", "torch.float32 [N, C, H, W]")
    count = distilled.num_classes * distilled.ipc
    if len(images) != count or 0 in images.shape:
        fail(
            where,
            f"images have shape {list(images.shape)}",
            f"{count} images ({distilled.num_classes} classes, ipc {distilled.ipc}), none of size 0",
        )
    if distilled.factor > min(images.shape[2:]):
        fail(
            where,
            f"factor {distilled.factor} with images of {images.shape[2]}x{images.shape[3]} pixels",
            f"a factor of at most {min(images.shape[2:])}",
        )
    check_finite(images, "images", where)


def _check_labels(distilled: SetValues, where: str) -> None:
    labels = distilled.labels
    expected_N = torch.arange(distilled.num_classes).repeat_interleave(distilled.ipc)
    if labels.dtype != torch.int64 or labels.shape != expected_N.shape:
        fail(where, f"labels are {labels.dtype} {list(labels.shape)}", f"torch.int64 [{len(expected_N)}]")
    wrong_N = (labels.cpu() != expected_N).nonzero()
    if len(wrong_N):
        index = int(wrong_N[0])
        fail(
            where,
            f"label {int(labels[index])} of image {index}",
            f"{int(expected_N[index])}, since the images lie class by class, {distilled.ipc} each",
        )


def _check_soft_labels(distilled: SetValues, soft_NK: Tensor, where: str) -> None:
    shape = (len(distilled.labels), distilled.num_classes)
    if soft_NK.dtype != torch.float32 or soft_NK.shape != shape:
        fail(where, f"soft labels are {soft_NK.dtype} {list(soft_NK.shape)}", f"torch.float32 {list(shape)}")
    check_finite(soft_NK, "soft labels", where)
    if bool((soft_NK < 0).any()) or not bool(((soft_NK.sum(1) - 1).abs() < 1e-3).all()):
        fail(
            where,
            "soft labels that are negative or do not sum to 1",
            "a distribution over the classes in each row",
        )


def _check_preprocess(distilled: SetValues, where: str) -> None:
    channels, size = distilled.images_NCHW.shape[1], distilled.images_NCHW[0].numel()
    fitted = len(distilled.preprocess.mean_C)
    if fitted != channels:
        fail(where, f"preprocessing of {fitted} channels for images of {channels}", "the same number")
    zca = distilled.preprocess.zca
    if zca is not None and len(zca.mean_D) != size:
        fail(where, f"whitening of {len(zca.mean_D)} values for images of {size}", "the same number")
    for name, tensor in distilled.preprocess.tensors().items():
        check_finite(tensor, f"preprocessing ({name})", where)


def check_finite(tensor: Tensor, name: str, where: str) -> None:
    """Raise ArtifactError if a value is NaN or infinite, with their number and the first index."""
    bad = ~torch.isfinite(tensor)
    if bool(bad.any()):
        first = tuple(bad.nonzero()[0].tolist())
        fail(
            where,
            f"{int(bad.sum())} of {tensor.numel()} values of {name} are NaN or infinite, first at {first}",
            "finite values",
            "the optimisation diverged or the file is damaged; distil again, perhaps with a smaller --lr-img",
        )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
