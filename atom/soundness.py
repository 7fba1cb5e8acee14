"""What a distilled set must be: the checks behind `DistilledSet.validate`, each with its sentence."""

# N stored images, C channels, H height, W width, K classes

from collections import Counter
from typing import NoReturn

import torch
from pydantic import ValidationError
from torch import Tensor

from atom.errors import ArtifactError, ConfigError
from atom.set_values import SetValues
from atom.settings import OwnTraining, images_of_classes

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
    _check_training(distilled, where)


def _check_names(distilled: SetValues, where: str) -> None:
    names = distilled.class_names
    if not names:
        fail(where, "there are no class names", "one a class")
    for name in names:
        if not isinstance(name, str) or not name or not _is_utf8(name):
            fail(where, f"class name {name!r}", "text that is not empty and can be written as UTF-8")
    for name, count in Counter(names).items():
        if count > 1:
            fail(where, f"class name {name!r} occurs {count} times", "distinct names")
    if not distilled.method:
        fail(where, "the method is empty", "its name, such as 'atom'")
    if distilled.ipc < 1 or distilled.factor < 1:
        fail(where, f"ipc {distilled.ipc} and factor {distilled.factor}", "both at least 1")


def _check_images(distilled: SetValues, where: str) -> None:
    images = distilled.images_NCHW
    if images.ndim != 4 or images.dtype != torch.float32:
        fail(where, f"images are {images.dtype} {list(images.shape)}", "torch.float32 [N, C, H, W]")
    most = distilled.num_classes * distilled.ipc
    fewest, or_fewer = most, ""
    if distilled.soft_labels is not None:
        # A class without an image of its own is known by the labels of others.
        fewest, or_fewer = (
            most - distilled.num_classes + 1,
            f", perhaps up to {distilled.num_classes - 1} fewer",
        )
    if not fewest <= len(images) <= most or 0 in images.shape:
        fail(
            where,
            f"images have shape {list(images.shape)}",
            f"{most} images ({distilled.num_classes} classes, ipc {distilled.ipc}){or_fewer}, none of size 0",
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
    counts = images_of_classes(len(distilled.images_NCHW), distilled.num_classes)
    expected_N = torch.arange(distilled.num_classes).repeat_interleave(torch.tensor(counts))
    if labels.dtype != torch.int64 or labels.shape != expected_N.shape:
        fail(where, f"labels are {labels.dtype} {list(labels.shape)}", f"torch.int64 [{len(expected_N)}]")
    wrong_N = (labels.cpu() != expected_N).nonzero()
    if len(wrong_N):
        index = int(wrong_N[0])
        fail(
            where,
            f"label {int(labels[index])} of image {index}",
            f"{int(expected_N[index])}, since the images lie class by class, "
            + (f"{distilled.ipc} each" if distilled.is_even else "those of the first classes one more"),
        )


def check_even(distilled: SetValues, where: str, why: str) -> None:
    """Refuse a set of images in all where every class has to have as many.

    Args:
        distilled: sound.
        where: begins the sentence, such as a flag.
        why: what needs it, after "which".

    Raises:
        ConfigError: classes have different numbers of images, some perhaps none.
    """
    if not distilled.is_even:
        raise ConfigError(
            f"{where}: the set has {distilled.size} for {distilled.num_classes} classes, not as many of each, which"
            f" {why}; pass a set that was made with --ipc."
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


def _check_training(distilled: SetValues, where: str) -> None:
    try:
        own = OwnTraining.model_validate(dict(distilled.training))
    except (ValidationError, ConfigError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        fail(where, f"training {dict(distilled.training)} ({reason})", "settings of an evaluation")
    if "protocol" in distilled.training:
        fail(
            where,
            f"training {dict(distilled.training)}",
            "no protocol, which whoever evaluates the set chooses",
        )
    steps, of_class = own.steps_per_epoch, distilled.ipc * distilled.factor**2
    if own.step_sizes and of_class % steps:
        fail(
            where,
            f"a training of {steps} steps an epoch for {of_class} decoded images of each class",
            "a number of steps that divides them",
        )
