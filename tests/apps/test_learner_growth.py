"""A head that grows, weights of a file, and what a step does to a network with them."""

# K classes, C channels, H height, W width

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from apps.continual.memory import Exemplars, Memory
from apps.continual.settings import LearnerSettings
from apps.continual.state import LearnerState
from apps.learner.growth import Body, read_weights, with_outputs
from apps.learner.step import Pixels, StepJob, grown_state, run_step
from atom.errors import ArtifactError, ConfigError
from atom.preprocess import Preprocess
from atom.settings import EvaluateSettings
from atom.streams import stream

CPU = torch.device("cpu")
C, H, W = 2, 8, 6
BODY = Body("convnet-w8-d1-batch-relu-avg", C, (H, W))
LEARNERS = ("er", "er-ace", "der++", "gdumb")

PRETRAINED = '''
from torch import nn

class Small(nn.Module):
    """As torchvision's: features, and a head called fc."""
    def __init__(self, channels, num_classes):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(24, num_classes)

    def forward(self, images):
        return self.fc(self.pool(self.features(images)).flatten(1))

def small(channels, image_size, num_classes):
    return Small(channels, num_classes)

def frozen(channels, image_size, num_classes):
    net = Small(channels, num_classes)
    for parameter in net.features.parameters():
        parameter.requires_grad = False
    return net

class Turned(Small):
    """Its head has a column a class."""
    def __init__(self, channels, num_classes):
        super().__init__(channels, num_classes)
        self.fc = nn.Identity()
        self.head = nn.Parameter(self.features[0].weight.new_zeros(24, num_classes))

    def reset_parameters(self):
        nn.init.zeros_(self.head)

    def forward(self, images):
        return self.pool(self.features(images)).flatten(1) @ self.head

def turned(channels, image_size, num_classes):
    return Turned(channels, num_classes)

def stiff(channels, image_size, num_classes):
    return nn.Sequential(Small(channels, 3), nn.Upsample(num_classes) if num_classes != 3 else nn.Identity())
'''


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file with networks of a user's own."""
    path = tmp_path / "own.py"
    path.write_text(PRETRAINED)
    return path


def pixels(classes: list[int], number: int, purpose: str) -> dict[int, np.ndarray]:
    """Images of classes that differ by the column that is bright."""
    found = {}
    for label in classes:
        noise = stream(0, f"test/growth/{purpose}", 0, label).integers(0, 120, (number, C, H, W))
        noise[:, :, :, label] += 120
        found[label] = noise.astype(np.uint8)
    return found


def batch(images: dict[int, np.ndarray]) -> Pixels:
    labels = np.repeat(sorted(images), [len(images[label]) for label in sorted(images)])
    return Pixels(np.concatenate([images[label] for label in sorted(images)]), labels.astype(np.int64))


def memory(images: dict[int, np.ndarray]) -> Memory:
    return Memory({label: Exemplars(part[:4]) for label, part in images.items()})


FIRST, SECOND, AGAIN = pixels([0, 1, 2], 12, "one"), pixels([3, 4], 12, "two"), pixels([1], 12, "three")
PREPROCESS = Preprocess.fit(batch(FIRST).images_NCHW, zca=False)


def job(learner: str, **changes: object) -> StepJob:
    fields = {
        "number": 1,
        "learner": learner,
        "body": BODY,
        "num_classes": 3,
        "num_old": 0,
        "current": batch(FIRST),
        "memory_before": Memory().to_bytes(),
        "memory_after": memory(FIRST).to_bytes(),
        "preprocess": {name: tensor.numpy() for name, tensor in PREPROCESS.tensors().items()},
        "state": None,
        "initial": None,
        "settings": LearnerSettings(step_epochs=6, batch_current=6, batch_memory=6),
        "train_settings": EvaluateSettings(
            epochs=6, batch_train=6, eval_precision="float32", eval_dsa_strategy="crop"
        ),
        "symbols": False,
        "seed": 0,
        "tests": batch(pixels([0, 1, 2, 3, 4], 5, "tests")),
    }
    return StepJob(**(fields | {"tests": batch(pixels([0, 1, 2], 5, "tests"))} | changes))


def second(learner: str, state: bytes, **changes: object) -> StepJob:
    return replace(
        job(learner),
        number=2,
        num_classes=5,
        num_old=3,
        current=batch(SECOND),
        memory_before=memory(FIRST).to_bytes(),
        memory_after=memory(FIRST | SECOND).to_bytes(),
        state=state,
        tests=batch(pixels([0, 1, 2, 3, 4], 5, "tests")),
        **changes,
    )


@pytest.mark.parametrize("network", ["convnet-w8-d2", "vgg11-batch", "resnet18", "vit", "alexnet"])
def test_head_of_every_network_of_the_project_has_a_row_for_each_class(network: str) -> None:
    body = Body(network, 3, (32, 32))
    head = body.head()
    shapes = {name: tuple(value.shape) for name, value in body.build(7).state_dict().items()}
    assert head
    assert all(shapes[name][0] == 7 for name in head)


def test_rows_of_old_outputs_stay_bit_for_bit_and_new_ones_begin_as_drawn() -> None:
    begun = run_step(job("er"), CPU).state
    before = LearnerState.from_bytes(begun)
    grown = grown_state(second("er", begun), before)
    fresh = BODY.begin(5, seed=0, step=2)
    for name, value in grown.weights.items():
        if name in BODY.head():
            assert value[:3].tobytes() == before.weights[name].tobytes()
            assert value[3:].tobytes() == fresh[name][3:].tobytes()
        else:
            assert value.tobytes() == before.weights[name].tobytes()


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_learner_learns_new_classes_and_a_class_that_comes_back(learner: str) -> None:
    one = run_step(job(learner), CPU)
    two = run_step(second(learner, one.state), CPU)
    # Class 1 comes back: its images in memory are others now.
    others = FIRST | SECOND | {1: AGAIN[1]}
    three = run_step(
        replace(
            second(learner, two.state),
            number=3,
            num_old=5,
            current=batch(AGAIN),
            memory_before=memory(FIRST | SECOND).to_bytes(),
            memory_after=memory(others).to_bytes(),
        ),
        CPU,
    )
    assert sorted(two.before) == [0, 1, 2]
    assert sorted(two.after) == sorted(three.before) == [0, 1, 2, 3, 4]
    assert three.before == two.after
    state = LearnerState.from_bytes(three.state)
    if learner == "der++":
        assert {label: said.shape for label, said in state.logits.items()} == dict.fromkeys(range(5), (4, 5))
        before = LearnerState.from_bytes(two.state)
        assert np.array_equal(state.logits[0], before.logits[0])
        assert not np.array_equal(state.logits[1], before.logits[1])
        first = LearnerState.from_bytes(one.state)
        assert np.array_equal(before.logits[0][:, :3], first.logits[0])
    else:
        assert not state.logits


def test_a_step_is_the_same_bits_again() -> None:
    begun = run_step(job("der++"), CPU).state
    assert run_step(job("der++"), CPU).state == begun
    assert run_step(second("der++", begun), CPU).state == run_step(second("der++", begun), CPU).state


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_pretrained_features_are_kept_and_the_head_begins_anew(
    own: Path, tmp_path: Path, ending: str
) -> None:
    body = Body(f"{own}:frozen", C, (H, W))
    pretrained = body.build(1000, seed=7).state_dict()
    file = tmp_path / f"weights.{ending}"
    if ending == "pt":
        torch.save({"state_dict": pretrained}, file)
    else:
        safetensors.torch.save_file(pretrained, file)
    initial = read_weights(file, body, body.begin(3, seed=0, step=1), body.head())
    assert not body.head() & initial.keys()
    for learner in LEARNERS:
        one = run_step(job(learner, body=body, initial=initial), CPU)
        two = run_step(second(learner, one.state, body=body, initial=initial), CPU)
        weights = LearnerState.from_bytes(two.state).weights
        for name in ("features.0.weight", "features.0.bias", "features.1.weight", "features.1.bias"):
            assert np.array_equal(weights[name], pretrained[name].numpy()), name
        assert weights["fc.weight"].shape == (5, 24)


def test_weights_of_another_network_are_refused_by_name(own: Path, tmp_path: Path) -> None:
    body, file = Body(f"{own}:small", C, (H, W)), tmp_path / "weights.pt"
    fresh, head = body.begin(3, seed=0, step=1), body.head()

    def refused(content: object, kind: type[Exception], message: str) -> None:
        torch.save(content, file)
        with pytest.raises(kind, match=message):
            read_weights(file, body, fresh, head)

    good = body.build(3).state_dict()
    refused({**good, "more": torch.zeros(2)}, ConfigError, "more is no weight of network")
    refused({k: v for k, v in good.items() if "0.bias" not in k}, ConfigError, r"features.0.bias is missing")
    refused(
        {**good, "features.0.bias": torch.zeros(9)}, ConfigError, r"features.0.bias is \(9,\), but network"
    )
    refused({**good, "features.0.bias": torch.full((6,), torch.nan)}, ArtifactError, "holds NaN or infinity")
    refused([1, 2], ArtifactError, "holds no tensors by name")
    refused(nn.Linear(2, 2), ArtifactError, "since pickles run code")
    with pytest.raises(ConfigError, match="no such file"):
        read_weights(tmp_path / "none.pt", body, fresh, head)


def test_a_head_without_a_row_a_class_is_refused(own: Path) -> None:
    with pytest.raises(ConfigError, match=r"head is \(24, 2\) for 2 classes and \(24, 3\) for 3, so no row"):
        Body(f"{own}:turned", C, (H, W)).head()


def test_an_output_taken_out_leaves_the_others_bit_for_bit() -> None:
    weights = BODY.begin(4, seed=0, step=1)
    less = with_outputs(weights, {}, BODY.head(), [0, 2, 3])
    for name in BODY.head():
        assert less[name].tobytes() == weights[name][[0, 2, 3]].tobytes()


def test_statistics_are_those_of_the_real_images_of_the_step() -> None:
    one = run_step(job("er"), CPU)
    weights = LearnerState.from_bytes(one.state).weights
    name = next(name for name in weights if name.endswith("running_mean"))
    images_NCHW = PREPROCESS.apply(batch(FIRST).images_NCHW)
    net = BODY.build(3)
    net.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
    conv = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    expected = conv(images_NCHW).mean(dim=(0, 2, 3))
    torch.testing.assert_close(torch.tensor(weights[name]), expected, atol=1e-5, rtol=1e-4)
