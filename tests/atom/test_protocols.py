"""Protocols by name: what they say, and CutMix."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from atom import nets
from atom.protocols import PROTOCOLS
from atom.resolve import resolve_evaluation
from atom.settings import EvaluateSettings, OwnTraining
from atom.streams import stream
from atom.train import Budget, _mixed, train_network


def test_what_is_not_given_is_decided_by_the_protocol() -> None:
    def resolved(**values: object) -> tuple[int | None, int | None, str]:
        asked = EvaluateSettings.model_validate(values)
        settings = resolve_evaluation(asked, device_kind="cpu", symbols=False)
        return settings.epochs, settings.batch_train, settings.eval_dsa_strategy

    every = "color_crop_cutout_flip_scale_rotate"
    assert resolved() == (300, 256, every)
    assert resolved(protocol="dm") == (1000, 256, every)
    assert resolved(protocol="datadam") == (1800, 64, every)
    assert resolved(protocol="idc") == (1000, 64, "color_crop_flip_scale_rotate")
    assert resolved(protocol="idc", epochs=5, batch_train=9, eval_dsa_strategy="cutout") == (5, 9, "cutout")


def test_step_sizes_fall_where_the_protocol_says() -> None:
    assert [PROTOCOLS["common"].rate_share(epoch, 5) for epoch in range(5)] == [1, 1, 1, 0.1, 0.1]
    idc = [PROTOCOLS["idc"].rate_share(epoch, 6) for epoch in range(6)]
    assert idc == pytest.approx([1, 1, 1, 1, 0.2, 0.04])


def test_cutmix_puts_a_box_of_another_image_and_its_share_of_the_label() -> None:
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, 8, 8)
    labels = torch.arange(6)
    shares = []
    for seed in range(200):
        mixed_NCHW, mixed = _mixed(images, labels, 0.5, stream(seed, "test/cutmix"))
        if mixed is None:
            assert torch.equal(mixed_NCHW, images)
            continue
        others, share = mixed
        for image, own, other in zip(mixed_NCHW, labels, others, strict=True):
            foreign = image[0] == other
            assert torch.equal(image[0], image[1])
            assert bool((foreign | (image[0] == own)).all())
            if own != other:
                assert float(foreign.float().mean()) == pytest.approx(share)
                rows, columns = foreign.any(1).sum(), foreign.any(0).sum()
                assert int(rows * columns) == int(foreign.sum())
        shares.append(share)
    assert 70 < len(shares) < 130
    assert min(shares) >= 0
    assert max(shares) <= 1


def test_a_training_by_cutmix_is_the_one_written_out() -> None:
    images, labels = torch.randn(6, 3, 8, 8, generator=torch.manual_seed(0)), torch.tensor([0, 0, 1, 1, 2, 2])
    settings = EvaluateSettings(protocol="idc", epochs=6, eval_dsa_strategy="none", eval_precision="float32")
    nets_ = [nets.build("convnet-w4-d2", channels=3, image_size=(8, 8), num_classes=3) for _ in range(2)]
    for net in nets_:
        nets.fill_weights(net, stream(0, "test/weights"))
    train_network(nets_[0], images, labels, settings=settings, seed=3, symbols=False)
    optimizer = torch.optim.SGD(nets_[1].parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    mixed_steps = 0
    for epoch in range(6):
        rows = torch.from_numpy(stream(3, "evaluate/order", epoch).permutation(6))
        batch, mixed = _mixed(images[rows], labels[rows], 0.5, stream(3, "evaluate/cutmix", epoch, 0))
        optimizer.param_groups[0]["lr"] = 0.01 * (0.2 ** ((epoch >= 4) + (epoch >= 5)))
        logits = nets_[1](batch)
        loss = cross_entropy(logits, labels[rows])
        if mixed is not None:
            mixed_steps += 1
            loss = mixed[1] * cross_entropy(logits, mixed[0]) + (1 - mixed[1]) * loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert mixed_steps
    for one, other in zip(nets_[0].parameters(), nets_[1].parameters(), strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), atol=1e-6)


def test_steps_that_a_set_brings_are_taken_on_the_images_as_they_are() -> None:
    images, labels = torch.randn(4, 3, 8, 8, generator=torch.manual_seed(0)), torch.tensor([0, 0, 1, 1])
    ends = []
    for protocol in ("common", "idc"):
        settings = OwnTraining(
            protocol=protocol,
            epochs=8,
            step_sizes=(0.1,) * 8,
            eval_dsa_strategy="none",
            eval_precision="float32",
        )
        net = nets.build("convnet-w4-d2", channels=3, image_size=(8, 8), num_classes=2)
        nets.fill_weights(net, stream(0, "test/weights"))
        train_network(net, images, labels, settings=settings, seed=3, symbols=False)
        ends.append(torch.cat([weight.flatten() for weight in net.parameters()]))
    assert torch.equal(*ends)


@pytest.mark.parametrize("soft", [False, True])
def test_a_budget_has_the_drops_of_the_protocol_and_labels_may_be_soft(soft: bool) -> None:
    images, labels = torch.randn(6, 3, 8, 8, generator=torch.manual_seed(0)), torch.tensor([0, 0, 1, 1, 2, 2])
    targets = torch.nn.functional.one_hot(labels, 3).float() if soft else labels
    settings = EvaluateSettings(protocol="idc", eval_dsa_strategy="none", eval_precision="float32")
    ends = []
    for given in ({"budget": Budget(steps=12)}, {}):
        net = nets.build("convnet-w4-d2", channels=3, image_size=(8, 8), num_classes=3)
        nets.fill_weights(net, stream(0, "test/weights"))
        asked = settings if given else settings.changed(epochs=12)
        assert train_network(net, images, targets, settings=asked, seed=3, symbols=False, **given) == 12
        ends.append(torch.cat([weight.flatten() for weight in net.parameters()]))
    assert torch.equal(*ends)
