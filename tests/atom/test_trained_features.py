"""The options of the matching methods in their loop: trained networks, calibration, and what else is matched."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from distill_samples import CHANNELS, CPU, HEIGHT, SIZES, WIDTH, make_distiller, make_settings, real_images
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from atom import nets
from atom.draws import rows_of_batch
from atom.errors import ConfigError
from atom.methods import feature_terms_reference as slow
from atom.methods import matching_reference as reference
from atom.methods.method import Prepared, State
from atom.methods.settings import DistillSettings
from atom.methods.trained_features import TrainedNetworks, calibration_loss
from atom.resolve import resolve_settings
from atom.streams import stream

SHAPE = {"channels": CHANNELS, "height": HEIGHT, "width": WIDTH, "num_classes": len(SIZES)}
TRAINED = {"trained_networks": 2, "training_passes": 3}
ALL = {
    **TRAINED,
    "calibration": 0.7,
    "cf_weight": 20.0,
    "cf_frequencies": 5,
    "covariance_weight": 4.0,
    "ipc": 2,
}
METHODS = ["atom", "spatial", "channel", "dm"]


def run(
    settings: DistillSettings, unit: Sequence[int], cuts: Sequence[int], *, double: bool = False
) -> tuple[Prepared, State, State]:
    """The networks, the start and the end of a group, with a new instance for each call."""
    real = real_images()
    prepared = make_distiller(settings).prepare_all(real)
    if double:
        real = {c: images.double() for c, images in real.items()}
    start = state = make_distiller(settings).start(unit, real)
    for until in cuts:
        method = make_distiller(settings)
        if double:
            method.net.double()
            if method.step.judge is not None:
                method.step.judge.double()
        state = method.advance(state, until, unit=unit, real=real, prepared=prepared)
    return prepared, start, state


def same_bits(first: State, second: State) -> bool:
    return np.array_equal(first.losses, second.losses) and all(
        np.array_equal(first.arrays[name], second.arrays[name]) for name in ("images", "momentum")
    )


def network(settings: DistillSettings, weights_P: Sequence[float]) -> nets.BlockNet:
    net = nets.build(settings.network, channels=CHANNELS, image_size=(HEIGHT, WIDTH), num_classes=len(SIZES))
    net = net.double().eval()
    vector_to_parameters(torch.tensor(weights_P, dtype=torch.float64), net.parameters())
    return nets.require_blocks(net, settings.network)


def slow_loss(settings: DistillSettings, prepared: Prepared, class_id: int) -> Callable[[Tensor], float]:
    """Loss of a class at the first iteration, by its decoded images, after the definitions."""
    options, seed = settings.options, settings.seed
    rng = stream(seed, "distill/trained", 0)
    epochs = prepared[f"expert {rng.integers(options.trained_networks)}"]["epochs"].tolist()
    # In float32, as the loop mixes weights.
    share = float(rng.random())
    net, end = network(settings, slow.between(epochs[0], epochs[-1], share)), network(settings, epochs[-1])
    real_NCHW = real_images()[class_id].double()
    rows = rows_of_batch(stream(seed, "distill/batch", 0, class_id), len(real_NCHW), settings.batch_real)
    real_NCHW = real_NCHW[torch.from_numpy(rows)]
    real_ND = slow.rows_of(net.blocks(real_NCHW)[1])
    size = (options.cf_frequencies, len(real_ND[0]))
    frequencies = stream(seed, "distill/frequencies", 0).standard_normal(size, dtype=np.float32).tolist()

    def loss(images_NCHW: Tensor) -> float:
        decoded = torch.stack(reference.decode_stored(images_NCHW, settings.factor))
        own_ND = slow.rows_of(net.blocks(decoded)[1])
        means = reference.class_loss(
            net.blocks,
            real_NCHW,
            decoded,
            method=settings.method,
            p=getattr(options, "power", 1),
            task_balance=options.task_balance,
        )
        characteristic = slow.characteristic_distance(real_ND, own_ND, frequencies)
        covariance = slow.covariance_distance(real_ND, own_ND)
        entropy = slow.cross_entropy(slow.rows_of(end(decoded)), class_id)
        return (
            means
            + options.cf_weight * characteristic
            + options.covariance_weight * covariance
            + options.calibration * entropy
        )

    return loss


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("method", ["atom", "dm"])
def test_a_step_with_all_options_equals_the_reference(method: str, factor: int) -> None:
    settings = make_settings(**{**ALL, "ipc": 3 - factor}, method=method, factor=factor)
    prepared, start, end = run(settings, [2, 0], [1], double=True)
    for row, class_id in enumerate((2, 0)):
        images = torch.from_numpy(start.images[row])
        loss = slow_loss(settings, prepared, class_id)
        assert end.losses[0, row] == pytest.approx(loss(images), rel=1e-5)
        gradient = reference.numeric_gradient(loss, images)
        torch.testing.assert_close(
            torch.from_numpy(end.arrays["momentum"][row]), gradient, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("options", [ALL, {**TRAINED, "calibration": 1.0}, {"cf_weight": 300.0}])
@pytest.mark.parametrize("cuts", [[6], [2, 5, 6], [0, 1, 6]])
def test_result_does_not_depend_on_how_the_way_is_cut(options: dict[str, object], cuts: list[int]) -> None:
    settings = make_settings(**options, dsa_strategy="color_cutout_scale")
    assert same_bits(run(settings, [0, 2], cuts)[2], run(settings, [0, 2], [6])[2])


@pytest.mark.parametrize("method", METHODS)
def test_a_class_has_the_same_images_in_any_group(method: str) -> None:
    settings = make_settings(**ALL, method=method)
    whole, alone = run(settings, [0, 1, 2, 3], [4])[2], run(settings, [2], [4])[2]
    np.testing.assert_allclose(whole.images[2], alone.images[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(whole.losses[:, 2], alone.losses[:, 0], rtol=1e-3)


@pytest.mark.parametrize(
    "changed",
    [
        {"trained_networks": 3},
        {"training_passes": 4},
        {"calibration": 0.0},
        {"cf_weight": 0.0, "cf_frequencies": 1024},
        {"cf_frequencies": 6},
        {"covariance_weight": 0.0},
    ],
)
def test_every_option_changes_the_images(changed: dict[str, object]) -> None:
    first, second = (run(make_settings(**{**ALL, **more}), [0], [2])[2] for more in ({}, changed))
    assert not np.array_equal(first.images, second.images)


def test_options_that_are_off_ask_for_nothing_and_leave_the_bits() -> None:
    off = {
        "trained_networks": 0,
        "calibration": 0.0,
        "cf_weight": 0.0,
    }
    settings = make_settings(**off, covariance_weight=0.0)
    method = make_distiller(settings)
    assert list(method.preparations(settings)) == []
    assert method.step.judge is None
    assert method.draws.at(0, [0], [9]).frequencies_FD is None
    assert method.draws.at(0, [0], [9]).weights is not None
    assert same_bits(run(settings, [0, 1], [3])[2], run(make_settings(), [0, 1], [3])[2])


def test_no_random_network_is_drawn_where_trained_ones_are_met_and_other_numbers_stay() -> None:
    fresh, trained = (make_distiller(make_settings(**o)).draws.at(3, [0], [9]) for o in ({}, TRAINED))
    assert trained.weights is None
    assert trained.rows_GB.equal(fresh.rows_GB)
    assert trained.params_GP.equal(fresh.params_GP)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_step_with_all_options_is_traced_whole(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without code generation, which takes long: what matters is that nothing breaks the graph."""
    settings = make_settings(**ALL, precision=precision)
    eager = run(settings, [0, 1], [2])[2]
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled = run(settings.model_copy(update={"compile": "on"}), [0, 1], [2])[2]
    np.testing.assert_allclose(compiled.losses, eager.losses, rtol=1e-2 if precision == "bfloat16" else 1e-4)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_compiled_steps_equal_the_eager_ones_and_repeat_their_bits() -> None:
    settings, real = make_settings(**ALL, compile="on"), real_images()
    prepared, start, eager = run(settings.model_copy(update={"compile": "off"}), [0, 1], [2])
    compiled = make_distiller(settings)
    first, second = (compiled.advance(start, 2, unit=[0, 1], real=real, prepared=prepared) for _ in range(2))
    np.testing.assert_allclose(first.losses, eager.losses, rtol=1e-4)
    np.testing.assert_allclose(first.images, eager.images, rtol=1e-3, atol=1e-4)
    assert same_bits(first, second)


def test_weights_lie_between_an_experts_start_and_its_end() -> None:
    settings = make_settings(**TRAINED)
    prepared = make_distiller(settings).prepare_all(real_images())
    ends = [prepared[f"expert {k}"]["epochs"][[0, -1]] for k in range(2)]
    networks, seen, shares = TrainedNetworks(settings, prepared, CPU), set(), []
    for iteration in range(40):
        weights, end = (part.numpy() for part in networks.weights_at(iteration))
        (number,) = [k for k in range(2) if np.array_equal(ends[k][1], end)]
        way = ends[number][0] - end
        share = float((weights - end) @ way / (way @ way))
        np.testing.assert_allclose(weights, end + share * way, atol=1e-6)
        seen.add(number)
        shares.append(share)
    assert seen == {0, 1}
    assert 0 <= min(shares) < 0.2
    assert 0.8 < max(shares) <= 1


def test_weights_are_loaded_in_place_in_the_order_of_parameters() -> None:
    net = nets.build("convnet-w4-d2", channels=2, image_size=(6, 4), num_classes=4).to(
        memory_format=torch.channels_last
    )
    places = [parameter.data_ptr() for parameter in net.parameters()]
    flat_P = torch.randn(sum(p.numel() for p in net.parameters()), generator=torch.Generator().manual_seed(0))
    nets.load_vector(net, flat_P)
    assert torch.equal(torch.cat([p.reshape(-1) for p in net.parameters()]), flat_P)
    assert [parameter.data_ptr() for parameter in net.parameters()] == places


def test_calibration_is_the_cross_entropy_of_each_class() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 4)).double()
    images = torch.randn(6, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = calibration_loss(net, images, torch.tensor([3, 0]))
    logits = slow.rows_of(net(images))
    expected = [slow.cross_entropy(logits[:3], 3), slow.cross_entropy(logits[3:], 0)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_images_come_to_be_known_by_the_trained_networks() -> None:
    settings = make_settings(
        method="dm", **TRAINED, calibration=1.0, task_balance=0.0, iterations=20, lr_img=0.5, init="noise"
    )
    losses = run(settings, [0, 1], [20])[2].losses
    assert losses[-5:].mean() < losses[:5].mean()


def resolved(**values: object) -> DistillSettings:
    asked = DistillSettings.model_validate({"network": "convnet-w4-d2", **values})
    return resolve_settings(asked, device_kind="cpu", symbols=False, **SHAPE)  # type: ignore


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"training_passes": 7},
            "--training-passes 7: no networks are trained; pass --trained-networks 5 as well",
        ),
        ({"cf_frequencies": 3}, "--cf-frequencies 3: none are drawn without --cf-weight"),
        ({"calibration": 1.0}, "--calibration 1 asks trained networks, and there are none"),
        (
            {"trained_networks": 2, "network": "convnet-w4-d2-batch"},
            "--network convnet-w4-d2-batch: --trained-networks .* pass a network without BatchNorm",
        ),
        (
            {"covariance_weight": 50.0},
            "--covariance-weight 50: .* at least 2 images of it, and --ipc, with --factor, gives 1; pass more",
        ),
        ({"covariance_weight": 50.0, "ipc": 2, "batch_real": 1}, "--batch-real gives 1"),
        ({"method": "dm", "task_balance": 0.0}, "--task-balance 0: it is the only term of dm"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_sentence(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        resolved(**values)


def test_what_suffices_is_taken() -> None:
    assert resolved(covariance_weight=50.0, factor=2).ipc == 1
    assert resolved(method="dm").options.task_balance == 0.01
    assert resolved(method="dm", task_balance=0.0, cf_weight=300.0).options.cf_weight == 300
    assert resolved(cf_weight=300.0, network="convnet-w4-d2-batch").network == "convnet-w4-d2-batch"
    assert resolved(method="spatial", task_balance=0.0).options.task_balance == 0
