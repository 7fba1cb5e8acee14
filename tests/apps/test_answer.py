"""What a search tells a user to take, and how sure it is."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from apps.nas.answer import Choice, Cost, answer, differ, front

COST = Cost(search=1200.0, sets=720.0, retrain=60.0)


def choice(network: str, validation: float, std: float | None = 0.5, **changes: Any) -> Choice:
    given: dict[str, Any] = {
        "test": validation - 1,
        "test_std": std,
        "n": 3 if std is not None else 1,
        "parameters": 11_018,
        "multiply_adds": 4_000_000,
        "latency_ms": 1.234,
    }
    return Choice(network, validation, std, **{**given, **changes})


def told(*choices: Choice, finalists: int = 7, cost: Cost = COST) -> list[str]:
    return answer(choices, cost, finalists=finalists, networks=720, decided_by="whole:10")


def test_the_first_sentence_says_what_to_take_and_the_next_what_is_as_good() -> None:
    sentences = told(
        choice("x", 88.0),
        choice("near", 87.9, multiply_adds=1_000_000),
        choice("unsure", 84.5, 4.0),
        choice("far", 80.0),
    )
    assert sentences == [
        "Take x: 87.0 ± 0.5 % of the test images (3 trainings), 11,018 parameters, 4 M multiply-adds, 1.23 ms for an"
        " image.",
        "near (86.9 ± 0.5 %, 4 times cheaper in multiply-adds) is as good within noise.",
        "Confidence: it is clearly ahead of 1 of the 3 others trained in full (Welch's test at 5 %); of 720 networks 7"
        " came to whole:10, and a better one may have been left out.",
        "Cost: 33 min of workers, 12 min the set and 60 s the trainings in full of them.",
    ]


def test_few_networks_or_trainings_make_no_claim() -> None:
    alone = told(choice("x", 88.0, None), choice("y", 70.0, None), finalists=4)
    assert "not known: that takes two networks trained twice" in alone[1]
    assert "no claim that it is the best of 720: 4 came to whole:10, and that takes 5" in alone[1]
    noise = told(choice("x", 88.0, 2.0), choice("y", 87.0, 2.0))
    assert "y (86.0 ± 2.0 %) is as good within noise." in noise
    assert "the 2 networks trained in full are not clearly apart" in noise[2]
    untrained = told(Choice("x", 88.0), Choice("y", 87.0), cost=Cost(60.0))
    assert untrained[0] == (
        "Take x: 88.0 % of the validation images at whole:10 (one training, flattered by being the best of 7 on the"
        " same images), its cost is unknown."
    )
    assert untrained[-1] == "Cost: 60 s of workers."
    assert told()[0] == "No network reached the end, so there is none to take."


@settings(deadline=None)
@given(
    st.lists(st.floats(50, 99), min_size=2, max_size=6), st.lists(st.floats(50, 99), min_size=2, max_size=6)
)
def test_difference_is_welchs(one: list[float], other: list[float]) -> None:
    def of(values: list[float]) -> Choice:
        return Choice("n", float(np.mean(values)), float(np.std(values, ddof=1)), n=len(values))

    if max(np.std(one), np.std(other)) < 1e-3:
        return  # SciPy's own precision ends there
    if of(one).validation_std == of(other).validation_std == 0.0:
        assert differ(of(one), of(other)) == (of(one).validation != of(other).validation)
        return
    expected = stats.ttest_ind(one, other, equal_var=False).pvalue
    if abs(expected - 0.05) > 1e-6:
        assert differ(of(one), of(other)) == (expected < 0.05)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
def test_nothing_beats_what_is_on_the_front_and_all_else_is_beaten(points: list[tuple[int, int]]) -> None:
    choices = [
        choice(f"n{place:02}", float(score), multiply_adds=cost, latency_ms=None)
        for place, (score, cost) in enumerate(points)
    ]
    found = front(choices)

    def beaten(one: Choice) -> bool:
        return any(
            other.validation >= one.validation
            and other.multiply_adds <= one.multiply_adds
            and (other.validation, other.multiply_adds) != (one.validation, one.multiply_adds)
            for other in choices
        )

    assert {(c.validation, c.multiply_adds) for c in found} == {
        (c.validation, c.multiply_adds) for c in choices if not beaten(c)
    }
    assert [c.multiply_adds for c in found] == sorted(c.multiply_adds for c in found)


@pytest.mark.parametrize("known", [True, False])
def test_front_is_by_milliseconds_where_all_are_known(known: bool) -> None:
    slow = choice("slow", 80.0, multiply_adds=1, latency_ms=9.0)
    quick = choice("quick", 80.0, multiply_adds=2, latency_ms=1.0 if known else None)
    assert [c.network for c in front([slow, quick])] == ["quick" if known else "slow"]
