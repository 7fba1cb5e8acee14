"""One unit of work: a pure function of its arguments, honest about which images it may look at."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from apps.nas.proxies import Proxy, part_rows
from apps.nas.space import Candidate, load_space
from apps.nas.trial import (
    ZERO_COST_BATCH,
    Images,
    Recipe,
    Unit,
    rows_of_batch,
    run_unit,
    train_unit,
)
from apps.nas.zero_cost import METHODS, zero_cost_score
from atom import nets
from atom.errors import ConfigError, NotFiniteError
from atom.settings import EvaluateSettings
from atom.streams import stream
from atom.train import accuracy

CPU = torch.device("cpu")
K, C, H, W = 3, 2, 8, 6
NETWORK, OTHER = "convnet-w32-d1-batch-relu-avg", "convnet-w32-d2-instance-leakyrelu-max"
SETTINGS = EvaluateSettings(
    epochs=3, lr_net=0.05, batch_train=8, eval_dsa_strategy="color_crop", eval_precision="float32"
)
RECIPE = Recipe(SETTINGS, whole_epochs=2, steps=5)
PROXIES = {
    "atom": Proxy("atom", "set", "main", 6),
    "random": Proxy("random", "set", "main", 6),
    "early-steps": Proxy("early-steps", "steps", "main", 20),
    "early-seconds": Proxy("early-seconds", "seconds", "main", 20),
    "whole": Proxy("whole", "whole", "main", 20),
    "whole:4": Proxy("whole:4", "real", "main", 20, epochs=4),
    "part-50:4": Proxy("part-50:4", "real", "main", 10, epochs=4, percent=50),
    "random:2": Proxy("random:2", "set", "main", 6, epochs=2),
    **{name: Proxy(name, "zero-cost", "main", 0) for name in METHODS},
}
TRAINED = ("atom", "random", "early-steps", "whole")


def made(count, purpose, *, noise=0.3):
    """Classes that differ by where the image is bright."""
    rng = stream(0, f"test/trial/{purpose}")
    labels_N = np.arange(count) % K
    images_NCHW = noise * rng.standard_normal((count, C, H, W), dtype=np.float32)
    for image, label in zip(images_NCHW, labels_N, strict=True):
        image[:, :, 2 * label : 2 * label + 2] += 1.0
    return images_NCHW, labels_N


def tensors(pair):
    return torch.tensor(pair[0]), torch.tensor(pair[1])


REAL = Images(
    train=tensors(made(20, "train")), validation=tensors(made(31, "val")), test=tensors(made(37, "test"))
)
NOTHING = (torch.full((5, C, H, W), torch.nan), torch.zeros(5, dtype=torch.int64))
SMALL = {
    "atom": {None: made(6, "atom")},
    "random": {seed: made(6, f"random {seed}") for seed in range(3)},
    "random:2": {seed: made(6, f"random {seed}") for seed in range(3)},
}


@pytest.fixture(scope="module")
def space():
    return load_space("small", channels=C, image_size=(H, W), num_classes=K)


def arguments(space, **changes):
    given = {"space": space, "small": SMALL, "real": {"main": REAL}, "recipe": RECIPE, "device": CPU}
    return {**given, **changes}


def run(space, proxy, network=NETWORK, seed=0, **changes):
    return run_unit(Unit(network, proxy, seed), PROXIES[proxy], **arguments(space, **changes))


def trained(space, proxy, network=NETWORK, seed=0, **changes):
    """Weights and score."""
    net, score = train_unit(Unit(network, proxy, seed), PROXIES[proxy], **arguments(space, **changes))
    return net, [value.clone() for value in net.state_dict().values()], score


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def without_times(score):
    return replace(score, train_seconds=0.0, score_seconds=0.0)


def test_epochs_of_a_proxy_count_instead_of_the_recipes(space):
    recipe = Recipe(SETTINGS.model_copy(update={"epochs": 2}), whole_epochs=9, steps=5)
    _, weights, score = trained(space, "random:2")
    _, expected, same = trained(space, "random", recipe=recipe)
    assert equal(weights, expected)
    assert without_times(score) == without_times(same)
    # Unlike the reference, it looks at no test image.
    _, _, score = trained(space, "whole:4")
    assert score.test_accuracy is None
    assert score.steps == 4 * 3


def test_a_part_trains_as_its_images_alone_do(space):
    rows = part_rows(REAL.train[1].numpy(), 50)
    alone = Images(
        train=(REAL.train[0][rows], REAL.train[1][rows]), validation=REAL.validation, test=REAL.test
    )
    whole = Proxy("whole:4", "real", "main", 10, epochs=4)
    unit = Unit(NETWORK, "whole:4", 0)
    _, weights, score = trained(space, "part-50:4")
    net, expected = train_unit(unit, whole, **arguments(space, real={"main": alone}))
    assert equal(weights, list(net.state_dict().values()))
    assert without_times(score) == without_times(expected)


@pytest.mark.parametrize("proxy", [*TRAINED, *METHODS])
def test_a_unit_comes_out_the_same_whatever_ran_before(space, proxy):
    _, weights, score = trained(space, proxy, seed=1)
    run(space, "random", network=OTHER, seed=2)
    run(space, "naswot", seed=1)
    torch.rand(7)
    np.random.default_rng().random(7)
    torch.manual_seed(123)
    _, again, score_again = trained(space, proxy, seed=1)
    assert equal(weights, again)
    assert without_times(score) == without_times(score_again)


@pytest.mark.parametrize("proxy", TRAINED)
def test_the_score_is_the_share_of_validation_images_labelled_rightly(space, proxy):
    net, _, score = trained(space, proxy)
    net.eval()
    with torch.no_grad():
        right = [
            int(net(image_CHW[None]).argmax()) == int(label)
            for image_CHW, label in zip(*REAL.validation, strict=True)
        ]
    assert score.score == pytest.approx(100 * sum(right) / 31, abs=1e-9)


def test_training_learns_what_can_be_learned(space):
    recipe = replace(RECIPE, settings=SETTINGS.model_copy(update={"epochs": 40, "eval_dsa_strategy": "none"}))
    assert run(space, "atom", recipe=recipe).score > 90


def test_torch_and_its_threads_are_left_as_they_were(space):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    run(space, "atom", recipe=replace(RECIPE, threads=threads + 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_read_only_images_are_taken_and_not_changed(space, recwarn):
    images_NCHW, labels_N = made(6, "atom")
    before = images_NCHW.copy()
    images_NCHW.setflags(write=False)
    labels_N.setflags(write=False)
    run(space, "atom", small={"atom": {None: (images_NCHW, labels_N)}})
    np.testing.assert_array_equal(images_NCHW, before)
    assert not list(recwarn)


def test_real_images_are_not_changed(space):
    before = [tensor.clone() for tensor in (*REAL.train, *REAL.validation, *REAL.test)]
    for proxy in (*TRAINED, *METHODS):
        run(space, proxy)
    assert equal(before, [*REAL.train, *REAL.validation, *REAL.test])


@pytest.mark.parametrize(
    ("proxy", "steps"),
    [
        ("atom", 3),  # 6 images are one batch of 8
        ("early-steps", 5),  # 20 images are three batches, so the second epoch ends in the middle
        ("whole", 2 * 3),
        ("parameters", 0),
    ],
)
def test_steps_are_those_of_the_recipe(space, proxy, steps):
    assert run(space, proxy).steps == steps


@pytest.mark.parametrize("batch", [1, 7, 20, 64])
def test_early_steps_takes_its_steps_whatever_the_batch(space, batch):
    recipe = replace(RECIPE, settings=SETTINGS.model_copy(update={"batch_train": batch}))
    assert run(space, "early-steps", recipe=recipe).steps == 5


def test_early_steps_does_not_ask_how_many_epochs_there_are(space):
    longer = replace(RECIPE, settings=SETTINGS.model_copy(update={"epochs": 50}), whole_epochs=60)
    assert equal(trained(space, "early-steps")[1], trained(space, "early-steps", recipe=longer)[1])


def test_early_seconds_of_almost_no_time_takes_no_step(space):
    score = run(space, "early-seconds", seconds=1e-9)
    assert score.steps == 0
    assert 0 <= score.score <= 100


def test_early_seconds_needs_to_be_told_the_seconds(space):
    with pytest.raises(ConfigError, match="training budget"):
        run(space, "early-seconds")


def test_proxies_of_one_seed_share_their_random_numbers(space):
    same = {name: {None: made(6, "atom")} for name in ("atom", "random")}
    assert equal(trained(space, "atom", small=same)[1], trained(space, "random", small=same)[1])


def test_the_reference_draws_other_random_numbers_than_the_proxies(space):
    # The same images for as many epochs: only random numbers can tell the two trainings apart.
    recipe = replace(RECIPE, whole_epochs=3)
    small = {"atom": {None: made(20, "train")}}
    _, proxy, score = trained(space, "atom", small=small, recipe=recipe)
    _, whole, reference = trained(space, "whole", small=small, recipe=recipe)
    assert score.steps == reference.steps
    assert not equal(proxy, whole)
    far = trained(space, "atom", seed=1_000_000, small=small, recipe=recipe)[1]
    assert equal(far, whole)


@pytest.mark.parametrize("proxy", [*TRAINED, "synflow"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_seed_draws_weights_of_its_own(space, proxy, seed):
    # Steps too small to move a weight leave the weights that the training began with.
    still = SETTINGS.model_copy(update={"lr_net": 1e-30})
    net, _, _ = trained(space, proxy, network=OTHER, seed=seed, recipe=replace(RECIPE, settings=still))
    expected = nets.build(OTHER, channels=C, image_size=(H, W), num_classes=K)
    nets.fill_weights(expected, stream(seed + 1_000_000 * (proxy == "whole"), "nas/weights"))
    for one, other in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-20)


@pytest.mark.parametrize("proxy", TRAINED)
def test_being_looked_at_after_each_epoch_changes_nothing(space, proxy):
    told = []

    def look(epoch, score):
        told.append((epoch, score().steps))

    unit = Unit(NETWORK, proxy, 0)
    net, score = train_unit(unit, PROXIES[proxy], **arguments(space, on_epoch=look))
    _, weights, alone = trained(space, proxy)
    assert equal(net.state_dict().values(), weights)
    assert without_times(score) == without_times(alone)
    per_epoch = 1 if proxy in ("atom", "random") else 3
    assert told == [(epoch, epoch * per_epoch) for epoch in range(1, alone.steps // per_epoch + 1)]


@pytest.mark.parametrize("proxy", TRAINED)
def test_another_seed_trains_another_network(space, proxy):
    assert not equal(trained(space, proxy, seed=0)[1], trained(space, proxy, seed=1)[1])


def test_random_images_are_those_drawn_for_the_seed(space):
    changed = {"random": {**SMALL["random"], 1: made(6, "something else")}}
    before, after = ([trained(space, "random", seed=s, small=m)[1] for s in (0, 1)] for m in (SMALL, changed))
    assert equal(before[0], after[0])
    assert not equal(before[1], after[1])
    for_all = {"random": {None: SMALL["random"][2]}}
    assert equal(trained(space, "random", seed=2)[1], trained(space, "random", seed=2, small=for_all)[1])


def test_a_random_draw_that_is_missing_is_not_replaced_by_another(space):
    with pytest.raises(KeyError):
        run(space, "random", seed=3)


@pytest.mark.parametrize("proxy", ["atom", "random", "early-steps", *METHODS])
def test_proxies_never_look_at_test_images(space, proxy):
    score = run(space, proxy)
    assert score.test_accuracy is None
    # Were one of them looked at, NaN would end the unit.
    blind = {"main": replace(REAL, test=NOTHING)}
    assert without_times(run(space, proxy, real=blind)) == without_times(score)


@pytest.mark.parametrize("proxy", METHODS)
def test_scores_without_training_look_at_training_images_only(space, proxy):
    blind = {"main": replace(REAL, test=NOTHING, validation=NOTHING)}
    assert run(space, proxy, real=blind).score == run(space, proxy).score


@pytest.mark.parametrize("proxy", ["atom", "random"])
def test_tiny_sets_are_trained_on_alone(space, proxy):
    blind = {"main": replace(REAL, train=NOTHING)}
    assert without_times(run(space, proxy, real=blind)) == without_times(run(space, proxy))


def test_test_images_decide_the_test_accuracy_of_the_reference_alone(space):
    net, weights, score = trained(space, "whole")
    images_TCHW, labels_T = REAL.test
    swapped = {"main": replace(REAL, test=(images_TCHW, (labels_T + 1) % K))}
    _, again, other = trained(space, "whole", real=swapped)
    assert equal(weights, again)
    assert score.score == other.score
    assert score.test_accuracy == accuracy(net, *REAL.test)
    assert score.test_accuracy != other.test_accuracy


def test_each_proxy_sees_the_real_images_in_its_own_preprocessing(space):
    scaled = Images(
        *((images * 2 - 1, labels) for images, labels in (REAL.train, REAL.validation, REAL.test))
    )
    real = {"main": replace(REAL, train=NOTHING, validation=NOTHING), "own": scaled}
    proxy = replace(PROXIES["atom"], real="own")
    unit = Unit(NETWORK, "atom", 0)
    own = run_unit(unit, proxy, **arguments(space, real=real))
    assert own.score == run(space, "atom", real={"main": scaled}).score


@pytest.mark.parametrize("proxy", ["atom", "early-steps", "whole"])
def test_a_network_that_runs_away_is_said_with_the_number_of_images(space, proxy):
    hopeless = SETTINGS.model_copy(update={"lr_net": 1e20})
    with pytest.raises(NotFiniteError, match=r"hold NaN or infinity for \d+ of 31 images after training"):
        run(space, proxy, network="convnet-w32-d2-nonorm-relu-avg", recipe=replace(RECIPE, settings=hopeless))


def test_a_network_that_cannot_be_built_is_a_config_error(space):
    with pytest.raises(ConfigError, match="unknown part 'nonsense'"):
        run(space, "atom", network="convnet-nonsense")


def test_counts_are_those_of_the_space(space):
    known = {candidate.name: candidate for candidate in space.candidates}[NETWORK]
    assert run(space, "parameters").score == known.parameters
    assert run(space, "multiply-adds").score == known.multiply_adds


def test_a_users_own_cost_is_believed_and_a_missing_one_counted(space):
    for cost in (123, None):
        candidate = Candidate(NETWORK, None, cost)
        believed = run(space.with_candidates([candidate]), "multiply-adds").score
        assert believed == (cost or run(space, "multiply-adds").score)


@pytest.mark.parametrize("method", ["synflow", "naswot", "grad-norm", "jacob-cov"])
def test_scores_without_training_are_those_of_fresh_weights_and_the_rows_of_the_seed(space, method):
    net, _, score = trained(space, method, seed=1)
    rows_B = rows_of_batch(20, 1)
    images_NCHW, labels_N = REAL.train
    expected = zero_cost_score(method, net, images_BCHW=images_NCHW[rows_B], labels_B=labels_N[rows_B])
    assert score.score == expected
    # The same initial weights as those of the trained proxies.
    before = trained(space, "early-seconds", seed=1, seconds=1e-9)[1]
    assert equal(before, trained(space, method, seed=1)[1])


def test_rows_of_a_batch_are_different_in_order_and_drawn_by_seed():
    rows_B = rows_of_batch(1000, 0)
    assert len(rows_B) == len(set(rows_B.tolist())) == ZERO_COST_BATCH
    assert rows_B.tolist() == sorted(rows_B.tolist())
    assert set(rows_B.tolist()) <= set(range(1000))
    np.testing.assert_array_equal(rows_B, rows_of_batch(1000, 0))
    assert set(rows_B.tolist()) != set(rows_of_batch(1000, 1).tolist())
    assert rows_of_batch(5, 0).tolist() == [0, 1, 2, 3, 4]


def test_times_are_kept_apart(space):
    score = run(space, "atom")
    assert score.train_seconds > 0
    assert score.score_seconds > 0
    assert run(space, "synflow").score_seconds == 0


RUDE = """
import torch
from torch import nn

torch.set_default_dtype(torch.float64)


class Rude(nn.Module):
    def __init__(self, num_features, num_classes):
        super().__init__()
        self.linear = nn.Linear(num_features, num_classes, dtype=torch.float32)

    def forward(self, images):
        torch.set_grad_enabled(False)
        torch.set_default_device("meta")
        return self.linear(images.flatten(1))


def rude(channels, image_size, num_classes):
    torch.set_num_threads(2)
    return Rude(channels * image_size[0] * image_size[1], num_classes)


networks = [("rude", rude, 1), ("sound", "convnet-w32-d1-batch-relu-avg", 1)]
"""


def test_a_network_that_changes_pytorchs_settings_leaves_its_neighbours_alone(tmp_path):
    (tmp_path / "rude_space.py").write_text(RUDE)
    own = load_space(f"{tmp_path / 'rude_space.py'}:networks", channels=C, image_size=(H, W), num_classes=K)
    alone = run(own, "atom", network="sound")
    with pytest.raises((RuntimeError, TypeError)):
        run(own, "atom", network="rude")
    assert without_times(run(own, "atom", network="sound")) == without_times(alone)
    assert torch.ones(1).dtype == torch.float32
    assert torch.get_num_threads() == 1
    assert torch.is_grad_enabled()


def test_soft_labels_of_a_tiny_set_are_trained_on(space):
    images_NCHW, labels_N = SMALL["atom"][None]
    sharp = {"atom": {None: (images_NCHW, np.eye(K, dtype=np.float32)[labels_N])}}
    shifted = {"atom": {None: (images_NCHW, np.eye(K, dtype=np.float32)[(labels_N + 1) % K])}}
    assert run(space, "atom", small=sharp).score == pytest.approx(run(space, "atom").score, abs=4)
    _, weights, _ = trained(space, "atom", small=sharp)
    assert not equal(weights, trained(space, "atom", small=shifted)[1])
