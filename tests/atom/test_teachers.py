"""Soft labels by teachers against slow loops, and what teachers are refused for."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import vector_to_parameters

from atom import nets
from atom.errors import ConfigError
from atom.formation import decode
from atom.methods.experts import train
from atom.methods.lookup import check_read
from atom.methods.method import Shape
from atom.methods.settings import DistillSettings
from atom.methods.teacher_settings import TeacherSettings
from atom.methods.teachers import check_teachers, own_teachers, retold, soft_labels, teachers, told_of
from atom.resolve import resolve_settings
from atom.set_values import plain

NETWORK, CPU = "convnet-w8-d2", torch.device("cpu")
SHAPE = {"channels": 2, "height": 8, "width": 6, "num_classes": 3}


def settings(**changes: Any) -> DistillSettings:
    asked = DistillSettings.model_validate({"network": NETWORK, **changes})
    return resolve_settings(asked, device_kind="cpu", symbols=True, **SHAPE)


def real_images() -> dict[int, torch.Tensor]:
    """Forty images [40, 2, 8, 6] of each of three classes, which a network can tell apart."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((3, 2, 8, 6))
    return {c: torch.from_numpy(means[c] + rng.standard_normal((40, 2, 8, 6))).float() for c in range(3)}


def trained(epoch: int, number: int = 1) -> list[np.ndarray]:
    asked = TeacherSettings(teacher_epoch=epoch, num_teachers=number, lr_teacher=0.05, batch_teacher=10)
    return [
        one.read_from(train(one, real_images(), num_classes=3, device=CPU))["epochs"][-1]
        for one in teachers(asked, settings())
    ]


def labelled(images_NCHW: torch.Tensor, weights: list[np.ndarray], factor: int = 1) -> torch.Tensor:
    return soft_labels(
        images_NCHW, weights, network=NETWORK, num_classes=3, factor=factor, device=CPU, threads=1
    )


def slow_labels(images_NCHW: torch.Tensor, weights: list[np.ndarray], factor: int) -> np.ndarray:
    """The definition, image by image, teacher by teacher, tile by tile, in float64."""
    net = nets.build(NETWORK, channels=2, image_size=(8, 6), num_classes=3).double().eval()
    found = np.zeros((len(images_NCHW), 3))
    for row, image in enumerate(images_NCHW.double()):
        tiles = decode(image[None], factor)
        for weights_P in weights:
            vector_to_parameters(torch.from_numpy(weights_P.astype(np.float64)), net.parameters())
            for tile in tiles:
                logits = net(tile[None])[0].detach().numpy()
                odds = [np.exp(one - logits.max()) for one in logits]
                for class_id in range(3):
                    found[row, class_id] += odds[class_id] / sum(odds)
    return found / (len(weights) * factor**2)


@pytest.mark.parametrize(("factor", "number"), [(1, 1), (1, 3), (2, 2)])
def test_labels_are_the_mean_answer_over_teachers_and_tiles(factor: int, number: int) -> None:
    weights, images = trained(2, number), torch.cat(list(real_images().values()))
    assert len({own.tobytes() for own in weights}) == number
    labels_NK = labelled(images, weights, factor)
    assert labels_NK.dtype == torch.float32
    assert torch.allclose(labels_NK.sum(1), torch.ones(120), atol=1e-5)
    assert bool((labels_NK >= 0).all())
    assert np.allclose(labels_NK.numpy(), slow_labels(images, weights, factor), atol=2e-6)


def test_an_untrained_teacher_knows_nothing_and_a_trained_one_knows_the_class() -> None:
    images = torch.cat(list(real_images().values()))
    labels_N = torch.arange(3).repeat_interleave(40)
    untrained, weak, strong = (labelled(images, trained(epoch)) for epoch in (0, 1, 8))
    assert float((untrained - 1 / 3).abs().max()) < 0.25
    of_class = [float(own[torch.arange(120), labels_N].mean()) for own in (untrained, weak, strong)]
    assert of_class == sorted(of_class)
    assert of_class[2] > 0.8


def test_labels_have_the_same_bits_again_and_leave_images_and_weights_alone() -> None:
    weights, images = trained(1, 2), real_images()[0]
    for own in weights:
        own.setflags(write=False)
    before = images.clone()
    assert labelled(images, weights).equal(labelled(images, weights))
    assert images.equal(before)


def test_teachers_are_the_same_for_every_method_of_equal_network_and_seed() -> None:
    asked = TeacherSettings(teacher_epoch=3)
    for method in ("herding", "random", "dc", "dsa", "idc", "dd", "rat-bptt", "mtt"):
        assert teachers(asked, settings()) == teachers(asked, settings(method=method))
    assert teachers(asked, settings())[0].recipe.dsa_strategy != "none"
    assert teachers(asked, settings()) != teachers(asked, settings(seed=1))
    assert teachers(TeacherSettings(), settings()) == ()


def test_what_a_set_says_of_its_teachers_names_no_folder() -> None:
    told = told_of(teachers(TeacherSettings(teacher_epoch=3, num_teachers=2), settings()))
    assert (told["network"], told["epoch"], told["number"], told["rate"]) == (NETWORK, 3, 2, 0.05)


def test_teachers_are_found_by_what_a_set_says_of_them_unless_that_is_not_sound() -> None:
    found = teachers(TeacherSettings(teacher_epoch=3, num_teachers=2), settings())
    told = plain(told_of(found))
    shape = Shape(**SHAPE)
    assert retold(told, shape) == found
    unsound = [{"epoch": -1}, {"epoch": "x"}, {"network": "evil.py:f"}, {"rate": None}, {"most": 3}]
    # Work without end, and networks that no worker could build or keep.
    unsound += [{"epoch": 10**12}, {"number": 200_000}, {"network": "convnett"}, {"network": "convnet-batch"}]
    for change in unsound:
        assert retold({**told, **change}, shape) == ()
    for nothing in (None, {}, "teacher", {"epoch": 3}):
        assert retold(nothing, shape) == ()


def test_a_method_that_learns_labels_has_its_experts_for_others() -> None:
    own = own_teachers(DistillSettings.model_validate({"method": "datm", "num_experts": 3}))
    assert [one.number for one in own] == [0, 1, 2]
    assert own[0].epochs == 7
    assert own_teachers(settings()) == ()


@pytest.mark.parametrize(
    ("asked", "changes", "message"),
    [
        ({"teacher_epoch": 2}, {"method": "datm"}, "the method datm learns the labels of its images itself"),
        (
            {"teacher_epoch": 2},
            {"network": "convnet-batch"},
            "running statistics of BatchNorm in --network convnet-b",
        ),
        ({"lr_teacher": 0.1}, {}, "--lr-teacher: there are no teachers without --teacher-epoch"),
    ],
)
def test_teachers_that_cannot_be_are_refused(asked: dict, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_teachers(TeacherSettings(**asked), DistillSettings.model_validate(changes), Shape(**SHAPE))


@pytest.mark.parametrize("method", ["dc", "dd", "rat-bptt", "random"])
def test_augmentation_may_be_chosen_for_teachers_where_the_method_has_none(method: str) -> None:
    asked = DistillSettings.model_validate({"method": method, "dsa_strategy": "crop"})
    check_read(asked, taught=True)
    assert teachers(TeacherSettings(teacher_epoch=3), asked)[0].recipe.dsa_strategy == "crop"
    with pytest.raises(ConfigError, match=f"--dsa-strategy: the method {method} does not read it"):
        check_read(asked)


def test_no_teacher_gives_no_labels() -> None:
    with pytest.raises(ConfigError, match="soft labels need a teacher"):
        labelled(real_images()[0], [])
