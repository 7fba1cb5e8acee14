"""A user's own network: training begins with what the function returns, pretrained and frozen parameters included."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from apps.continual.learner import LearnerState, StepData, learn, predict_seen
from apps.continual.settings import LearnerSettings
from apps.nas.proxies import Proxy
from apps.nas.space import Candidate, Space, load_space
from apps.nas.trial import Images, Recipe, Unit, train_unit
from atom import nets
from atom.data import load
from atom.errors import ConfigError
from atom.evaluate import evaluate
from atom.nets.starts import begin
from atom.preprocess import Preprocess
from atom.settings import EvaluateSettings, InitialWeights
from atom.streams import stream
from pipelines.architecture.proxies import gather, keys_of
from pipelines.evaluation import check_networks, initial_key

CPU = torch.device("cpu")
SIZES = {"channels": 1, "image_size": (8, 8), "num_classes": 3}
STILL = EvaluateSettings(
    epochs=2, lr_net=1e-12, batch_train=4, eval_dsa_strategy="none", eval_precision="float32"
)
REPLAY = LearnerSettings(step_epochs=1, joint_epochs=1, lr_replay=1e-12, replay_dsa_strategy="none")
BODY = """
import random
import numpy as np
import torch
from torch import nn

def backbone(channels, image_size, num_classes, *, frozen=False, last=False):
    net = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.Linear(4 * 36, num_classes))
    nn.init.constant_(net[0].weight, 0.123)
    net[0].requires_grad_(not frozen)
    net[2].requires_grad_(not last)
    return net

def pretrained(channels, image_size, num_classes):
    return backbone(channels, image_size, num_classes)

def frozen(channels, image_size, num_classes):
    return backbone(channels, image_size, num_classes, frozen=True)

def all_frozen(channels, image_size, num_classes):
    return backbone(channels, image_size, num_classes, frozen=True, last=True)

def bare(channels, image_size, num_classes):
    net = backbone(channels, image_size, num_classes)
    net.scale = nn.Parameter(torch.tensor(random.random() + np.random.rand()))
    return net

def wired(channels, image_size, num_classes):
    class Wired(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.order = random.randrange(10**9), torch.randperm(64)
            self.register_buffer("mask", torch.rand(64), persistent=False)
            self.linear = nn.Linear(64, num_classes)

        def forward(self, images):
            return self.linear(images.flatten(1)[:, self.order] * self.mask)

    return Wired()

def wide(channels, image_size, num_classes):
    width = random.randrange(2, 10**3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_classes))

def second_class(channels, image_size, num_classes):
    net = backbone(channels, image_size, num_classes)
    net[2].bias.data[1] = 1000.0
    return net

networks = [("second", second_class, None), ("known", "convnet-w8-d1", None), ("wired", wired, None)]
"""


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Name of a function of the file above."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(BODY, encoding="utf-8")
    return lambda function: f"{tmp_path}/mine.py:{function}"


def images_of(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    images_NCHW = stream(0, "test/starts").standard_normal((count, 1, 8, 8), dtype=np.float32)
    return torch.from_numpy(images_NCHW), torch.arange(count) % 3


def learned(learner: str, network: str, *, seed: int = 0, kept: InitialWeights = "kept") -> LearnerState:
    """A learner after a first step in which no weight moves."""
    real = images_of(9)
    data = StepData(0, (0, 1, 2), (0, 1, 2), 3, current=real, memory_after=real, everything_seen=real)
    train = STILL.model_copy(update={"initial_weights": kept})
    return learn(
        learner, None, data, network=network, settings=REPLAY, train_settings=train, seed=seed, device=CPU
    )


@pytest.mark.parametrize("function", ["pretrained", "frozen"])
@pytest.mark.parametrize("learner", ["gdumb", "joint", "er", "er-ace", "der++", "finetune"])
def test_learners_begin_with_the_weights_that_a_function_returns(
    name: Callable[[str], str], learner: str, function: str
) -> None:
    weights = learned(learner, name(function)).weights
    np.testing.assert_allclose(weights["0.weight"], 0.123, atol=1e-6)


def test_parts_that_a_function_leaves_random_follow_the_seed(name: Callable[[str], str]) -> None:
    one, again, other = (learned("er", name("frozen"), seed=seed).weights["2.weight"] for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.allclose(one, other)


@pytest.mark.parametrize("kept", ["kept", "drawn"])
def test_what_a_function_draws_beside_its_weights_is_the_same_where_they_are_loaded(
    name: Callable[[str], str], kept: InitialWeights
) -> None:
    begun = nets.begin(
        partial(nets.build, name("wired"), **SIZES), stream(3, "test"), own=True, initial_weights=kept
    )
    rebuilt = nets.build(name("wired"), **SIZES)
    assert not torch.equal(begun.linear.weight, rebuilt.linear.weight)
    rebuilt.load_state_dict(begun.state_dict())
    images_NCHW = images_of(9)[0]
    assert rebuilt.first == begun.first
    assert torch.equal(rebuilt(images_NCHW), begun(images_NCHW))


def test_a_learner_answers_by_the_wiring_that_it_trained(name: Callable[[str], str]) -> None:
    images_NCHW, labels_N = images_of(9)
    data = StepData(0, (0, 1, 2), (0, 1, 2), 3, current=(images_NCHW, labels_N))
    replay = REPLAY.model_copy(update={"step_epochs": 100, "lr_replay": 0.1})
    state = learn(
        "er", None, data, network=name("wired"), settings=replay, train_settings=STILL, seed=0, device=CPU
    )
    logits_NK = predict_seen(
        state, name("wired"), images_TCHW=images_NCHW, num_classes=3, train_settings=STILL, device=CPU
    )
    assert torch.equal(logits_NK.argmax(1), labels_N)


def test_a_network_whose_shapes_are_drawn_is_refused(name: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError, match=r"draws names or shapes of weights at random.* fixed seed"):
        learned("er", name("wide"))


def test_a_network_that_hides_weights_from_its_state_is_told_so() -> None:
    class Hiding(torch.nn.Linear):
        def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:
            return {
                name: value for name, value in super().state_dict(*args, **options).items() if name == "bias"
            }

    with pytest.raises(ConfigError, match=r"state_dict\(\) leaves out what load_state_dict\(\) asks for"):
        begin(lambda *, seed: Hiding(3, 2), np.random.default_rng(0), own=True)


def test_weights_are_drawn_where_that_was_asked_for(name: Callable[[str], str]) -> None:
    weights = learned("er", name("pretrained"), kept="drawn").weights
    assert np.std(weights["0.weight"]) > 0.01
    with pytest.raises(ConfigError, match=r"--initial-weights drawn: 40 of 475 parameters .* are frozen"):
        learned("er", name("frozen"), kept="drawn")


def test_a_network_without_anything_to_train_is_refused(name: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError, match="every parameter is frozen"):
        learned("er", name("all_frozen"))


def test_parameters_that_nobody_can_draw_are_no_hindrance_and_global_generators_stay(
    name: Callable[[str], str],
) -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    scales = [nets.build(name("bare"), **SIZES, seed=seed).scale.item() for seed in (0, 0, 1)]
    assert scales[0] == scales[1] != scales[2]
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


def test_an_evaluation_begins_with_the_weights_that_a_function_returns(name: Callable[[str], str]) -> None:
    images, labels = images_of(9)
    test = images_of(30)[0].numpy(), np.array([1] * 12 + [0, 2] * 9)
    found = evaluate(
        images,
        labels,
        test_images=test[0],
        test_labels=test[1],
        network=name("second_class"),
        num_classes=3,
        seeds=(0,),
        settings=STILL,
        device=CPU,
        threads=1,
    )
    assert found.accuracies == (40.0,)


def test_a_ranking_begins_with_the_weights_that_a_function_returns(name: Callable[[str], str]) -> None:
    space = load_space(name("networks"), **SIZES)
    assert [space.is_own(network) for network in space.names] == [True, False, True]
    train = images_of(9)
    validation = images_of(30)[0], torch.tensor([1] * 12 + [0, 2] * 9)
    net, score = train_unit(
        Unit("second", "early", 0),
        Proxy("early", "steps", "main", 9),
        space=space,
        small={},
        real={"main": Images(train=train, validation=validation, test=validation)},
        recipe=Recipe(STILL, whole_epochs=1, steps=2),
        device=CPU,
    )
    assert score.score == 40.0
    np.testing.assert_allclose(net[0].weight.detach(), 0.123, atol=1e-6)


def test_it_is_said_what_becomes_of_the_weights_of_ones_own_network(name: Callable[[str], str]) -> None:
    real = load("digits", data_dir=Path("unused"))
    drawn = STILL.model_copy(update={"initial_weights": "drawn"})
    assert check_networks(["convnet-w8"], real, settings=STILL, distils="convnet-w8") == []
    (kept,) = check_networks([name("frozen")], real, settings=STILL)
    assert "begins with the weights that the function returns, 40 of 1,490 parameters frozen" in kept
    assert "--initial-weights drawn" in kept
    (random_ones,) = check_networks([name("pretrained")], real, settings=drawn)
    assert "begins with random weights, not those that the function returns" in random_ones
    (copies,) = check_networks([], real, settings=STILL, distils=name("pretrained"))
    assert "distillation takes random copies" in copies


def test_a_result_is_known_by_the_weights_that_it_began_with(name: Callable[[str], str]) -> None:
    drawn = STILL.model_copy(update={"initial_weights": "drawn"})
    assert initial_key(name("pretrained"), STILL) != initial_key(name("pretrained"), drawn)
    assert initial_key("convnet-w8", STILL) == initial_key("convnet-w8", drawn) == {}


def test_a_score_of_a_users_space_is_known_by_its_start_without_a_look_at_the_space() -> None:
    real = load("digits", data_dir=Path("unused")).hold_out(0.1)
    material = gather(
        ("early-steps",),
        [],
        [],
        real,
        Preprocess.fit(real.train.images, zca=False),
        ipc=1,
        seeds=1,
        seed=0,
        own_digests={},
    )
    drawn = STILL.model_copy(update={"initial_weights": "drawn"})
    for spec, differ in (("nowhere.py:networks", True), ("small", False)):
        space = Space(spec, (Candidate("a", 1, 1, identity="a"),), **SIZES)
        one, other = (
            keys_of([Unit("a", "early-steps", 0)], material, space, Recipe(settings, 1, 2), "cpu")
            for settings in (STILL, drawn)
        )
        assert (one != other) is differ


def test_other_weights_of_the_same_function_are_another_network(
    name: Callable[[str], str], tmp_path: Path
) -> None:
    path, digests = tmp_path / "weights.pt", []
    loads = f"\ndef loads(**sizes):\n    net = backbone(**sizes)\n    net.load_state_dict(torch.load({str(path)!r}))"
    (tmp_path / "loads.py").write_text(f"{BODY}{loads}\n    return net\n", encoding="utf-8")
    for value in (1.0, 1.0, 2.0):
        net = nets.build(name("pretrained"), **SIZES)
        nn.init.constant_(net.get_submodule("0").weight, value)
        torch.save(net.state_dict(), path)
        digests.append(nets.network_digest(nets.build(f"{tmp_path}/loads.py:loads", **SIZES), 1, (8, 8)))
    assert digests[0] == digests[1] != digests[2]


def test_networks_of_the_project_have_the_weights_of_the_stream() -> None:
    build = partial(nets.build, "convnet-w8-d1", **SIZES)
    begun, filled = nets.begin(build, stream(3, "test"), own=False), build()
    nets.fill_weights(filled, stream(3, "test"))
    for one, other in zip(begun.parameters(), filled.parameters(), strict=True):
        assert torch.equal(one, other)
