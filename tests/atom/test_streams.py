from hypothesis import given
from hypothesis import strategies as st

from atom.streams import stream

counters = st.integers(min_value=0, max_value=2**63)


@given(seed=st.integers(), purpose=st.text(max_size=20), iteration=counters, class_id=counters)
def test_a_stream_depends_on_its_arguments_alone(
    seed: int, purpose: str, iteration: int, class_id: int
) -> None:
    first = stream(seed, purpose, iteration, class_id).random(4)
    stream(seed, "something else").random(100)
    assert (first == stream(seed, purpose, iteration, class_id).random(4)).all()


def test_streams_of_different_arguments_differ() -> None:
    draws = {
        stream(seed, purpose, iteration, class_id).random()
        for seed in (0, 1, -1)
        for purpose in ("a", "b", "")
        for iteration in (0, 1, 2**40)
        for class_id in (0, 1, 7)
    }
    assert len(draws) == 3 * 3 * 3 * 3


def test_seed_and_purpose_are_not_confused() -> None:
    assert stream(1, "1").random() != stream(11, "").random()


def test_streams_are_the_same_on_every_machine() -> None:
    # Written down once: a change here changes every published set.
    assert stream(0, "distill/weights", 3).integers(0, 2**32, size=3).tolist() == [
        30085633,
        3665465266,
        517846405,
    ]
