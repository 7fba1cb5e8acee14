"""One step of one cell: which BatchNorm statistics its network is judged with."""

import numpy as np
import pytest
import ray
import torch
from tiny_digits import white_digits

from apps.continual.exemplars import Exemplars
from apps.continual.memory import Memory
from apps.continual.results import Cell, StepResult
from apps.continual.settings import LearnerSettings
from atom.preprocess import Preprocess
from atom.settings import EvaluateSettings
from pipelines.incremental.remote import CellStep, StepContext, StepInputs, StoredMemory, run_cell_step

pytestmark = [pytest.mark.ray, pytest.mark.timeout(200)]

BATCH = "convnet-w8-d1-batch"
STEPS = ((0, 1),)
NAMES = tuple(f"digit {label}" for label in range(10))
SPACE = Preprocess(torch.zeros(1), torch.ones(1))
TRAIN = EvaluateSettings(epochs=40, batch_train=8, eval_dsa_strategy="none", eval_precision="float32")
REPLAY = LearnerSettings(step_epochs=1, replay_dsa_strategy="none")


def judged(memory: str, learner: str, network: str) -> StepResult:
    """A step of two classes of digits, whose memory holds images far from the real ones in scale."""
    white, labels = white_digits()
    of = {c: white[labels == c][:40] for c in STEPS[0]}
    kept = Memory(
        {
            c: Exemplars.from_white(torch.from_numpy(5 * of[c][:6] + 9), "float32", preprocess=SPACE)
            for c in of
        }
    )
    held = StoredMemory(ray.put(kept.to_bytes()), num_images=kept.num_images, num_bytes=kept.num_bytes)
    references = {c: ray.put(np.ascontiguousarray(images)) for c, images in of.items()}
    tensors = ray.put({name: tensor.numpy() for name, tensor in SPACE.tensors().items()})
    cell = Cell(memory, learner, order=0, seed=0)
    inputs = StepInputs(STEPS, STEPS, tensors, references, references, StoredMemory(), held, None, REPLAY)
    context = StepContext({cell: inputs}, network, NAMES, TRAIN, "cpu")
    return run_cell_step(CellStep(cell, 0), context)[0]


@pytest.mark.parametrize("memory", ["distilled", "random"])
def test_learners_that_go_on_are_judged_by_statistics_of_the_step_whatever_the_memory(
    ray_cluster: None, memory: str
) -> None:
    result = judged(memory, "er", BATCH)
    assert result.statistics == "step"
    assert result.other_on_seen is not None
    assert len(result.other_class_row) == len(result.class_row)


def test_a_fresh_network_is_judged_as_trained_with_the_other_beside(ray_cluster: None) -> None:
    result = judged("distilled", "gdumb", BATCH)
    assert result.statistics == "training"
    # The memory's images are far from the real ones in scale, so the training's statistics are of no use here.
    assert result.other_on_seen is not None
    assert result.other_on_seen > result.accuracy_on_seen


@pytest.mark.parametrize(
    ("memory", "learner", "network"),
    [("distilled", "gdumb", "convnet-w8-d1"), ("none", "finetune", BATCH)],
)
def test_without_batch_norm_or_memory_there_is_one_accuracy(
    ray_cluster: None, memory: str, learner: str, network: str
) -> None:
    result = judged(memory, learner, network)
    assert (result.statistics, result.other_on_seen, result.other_class_row) == ("training", None, ())


def test_each_class_has_an_accuracy_by_its_name(ray_cluster: None) -> None:
    result = judged("distilled", "gdumb", "convnet-w8-d1")
    assert list(result.by_class) == ["digit 0", "digit 1"]
    # As many images of both.
    assert np.mean(list(result.by_class.values())) == pytest.approx(result.accuracy_on_seen)
