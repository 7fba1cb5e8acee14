"""A memory that changes inside a step: what is in it when, and what learners make of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.continual.learner import learn
from apps.continual.memory import Exemplars, Reservoir, select
from apps.continual.passing import Passing
from apps.continual.selection import random_places
from apps.continual.settings import LearnerSettings
from apps.continual.state import StepData
from atom.preprocess import Preprocess
from atom.settings import EvaluateSettings

PREPROCESS = Preprocess(torch.zeros(1), torch.ones(1))
NETWORK, SIDE, CLASSES = "convnet-w8-d2", 8, 4
ASKED = {
    "settings": LearnerSettings(step_epochs=1, batch_current=4, batch_memory=4, replay_dsa_strategy="none"),
    "train_settings": EvaluateSettings(eval_precision="float32"),
    "device": torch.device("cpu"),
    "symbols": True,
    "network": NETWORK,
}


def pixels(lot: int, number: int) -> np.ndarray:
    return np.random.default_rng(lot).integers(0, 256, (number, 1, SIDE, SIDE)).astype(np.uint8)


def passing_of(reservoir: Reservoir, lots: dict[int, int]) -> Passing:
    """Of the next lots, by their number of images, into a reservoir as it stands."""
    before = [reservoir.keys_of(lot) for lot in reservoir.classes]
    return Passing(
        keys_before=np.concatenate([*before, np.empty(0)]),
        keys_current=np.concatenate([reservoir.draw(lot, number) for lot, number in lots.items()]),
        lots_current=np.repeat(list(lots), list(lots.values())),
        kept={},
        capacity=reservoir.capacity,
    )


def contents(reservoir: Reservoir):
    found = reservoir.contents(PREPROCESS)
    return None if found is None else (found[0], found[1])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 99))
def test_after_the_step_a_reservoir_is_that_of_the_whole_step_at_once(capacity, batch, seed):
    reservoir = Reservoir(capacity, seed=seed)
    reservoir.add(2, Exemplars(pixels(2, 7)))
    before = contents(reservoir)
    lots = {0: 11, 3: 5}
    passing = passing_of(reservoir, lots)
    batch_N = np.random.default_rng(seed).permutation(16) // batch
    since, until = passing.stays(before[1].numpy(), batch_N)
    for lot, number in lots.items():
        reservoir.add(lot, Exemplars(pixels(lot, number)))
    left = np.flatnonzero(until == batch_N.max() + 2)
    lots_P = np.concatenate([before[1].numpy(), passing.lots_current])
    assert {lot: int((lots_P[left] == lot).sum()) for lot in reservoir.classes} == {
        lot: reservoir[lot].num_images for lot in reservoir.classes
    }
    keys_P = np.concatenate([passing.keys_before, passing.keys_current])
    for lot in reservoir.classes:
        assert np.array_equal(np.sort(keys_P[left][lots_P[left] == lot]), reservoir.keys_of(lot))
    for step in range(batch_N.max() + 2):
        there = (since <= step) & (step < until)
        assert there.sum() == min(capacity, len(before[1]) + (batch_N < step).sum())
        # No image is replayed before it has passed.
        assert not there[len(before[1]) :][batch_N >= step].any()


def test_each_lot_has_its_own_room_where_classes_have_equal_shares():
    places = {lot: random_places(6, seed=1, class_id=lot) for lot in (1, 3)}
    passing = Passing(
        keys_before=np.arange(4),
        keys_current=np.concatenate(list(places.values())),
        lots_current=np.repeat([1, 3], 6),
        kept={0: 2, 1: 3, 3: 3},
    )
    since, until = passing.stays(np.zeros(4, np.int64), np.arange(12) % 3)
    assert until[:4].tolist() == [4, 4, 0, 0]
    assert since[:4].tolist() == [0] * 4
    for lot, rows in ((1, slice(4, 10)), (3, slice(10, 16))):
        kept = select("random", torch.zeros(6, 1, 2, 2), number=3, seed=1, class_id=lot)
        assert np.flatnonzero(until[rows] == 4).tolist() == sorted(kept.tolist())


def step_data(step: int, reservoir: Reservoir, lots: dict[int, int], seen: tuple[int, ...]) -> StepData:
    """A step of a stream in which lots 4 and above are classes that come back; the reservoir takes them in."""
    before, passing = contents(reservoir), passing_of(reservoir, lots)
    images = torch.cat([PREPROCESS.apply(pixels(lot, number)) for lot, number in lots.items()])
    of_lots = torch.from_numpy(passing.lots_current)
    for lot, number in lots.items():
        reservoir.add(lot, Exemplars(pixels(lot, number)))
    after = contents(reservoir)
    return StepData(
        step,
        tuple(lot % CLASSES for lot in lots),
        seen,
        CLASSES,
        current=(images, of_lots % CLASSES),
        memory_before=None if before is None else (before[0], before[1] % CLASSES),
        memory_after=(after[0], after[1] % CLASSES),
        lots_before=None if before is None else before[1],
        lots_after=after[1],
        passing=passing,
    )


@pytest.mark.parametrize("name", ["er", "er-ace", "der++"])
def test_learners_replay_images_of_the_step_that_have_passed(name):
    first = step_data(0, Reservoir(12, seed=0), {0: 9, 1: 8}, (0, 1))
    state = learn(name, None, first, seed=3, **ASKED)
    alone = learn("finetune", None, first, seed=3, **ASKED)
    assert any(not np.array_equal(state.weights[key], alone.weights[key]) for key in state.weights)
    again = learn(name, None, first, seed=3, **ASKED)
    assert all(np.array_equal(state.weights[key], again.weights[key]) for key in state.weights)


def test_answers_of_der_are_those_of_the_images_that_are_left_by_lot():
    reservoir = Reservoir(12, seed=0)
    state = learn("der++", None, step_data(0, reservoir, {0: 9, 1: 8}, (0, 1)), seed=3, **ASKED)
    held = {lot: reservoir[lot].num_images for lot in reservoir.classes if reservoir[lot].num_images}
    assert {lot: answers.shape for lot, answers in state.logits.items()} == {
        lot: (number, CLASSES) for lot, number in held.items()
    }
    known = state.logits
    state = learn("der++", state, step_data(1, reservoir, {2: 8, 4: 6}, (0, 1, 2)), seed=3, **ASKED)
    for lot in (0, 1):
        kept = reservoir[lot].num_images
        assert kept
        assert np.array_equal(state.logits[lot], known[lot][:kept])
    assert {lot: len(answers) for lot, answers in state.logits.items()} == {
        lot: reservoir[lot].num_images for lot in reservoir.classes if reservoir[lot].num_images
    }


def test_a_class_that_comes_back_has_answers_of_its_own():
    """Without one pass: der++ knows an image by its lot, not its class."""
    reservoir = Reservoir(40, seed=0)
    data = [step_data(0, reservoir, {0: 9, 1: 8}, (0, 1)), step_data(1, reservoir, {4: 6, 2: 5}, (0, 1, 2))]
    state = None
    for step, one in enumerate(data):
        whole = StepData(**{**vars(one), "passing": None})
        before, state = state, learn("der++", state, whole, seed=3, **ASKED)
        if step:
            assert np.array_equal(state.logits[0], before.logits[0])
    assert {lot: len(answers) for lot, answers in state.logits.items()} == {0: 9, 1: 8, 2: 5, 4: 6}
