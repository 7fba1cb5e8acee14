"""Ladders of a search: what their rungs are, and which are refused."""

import pytest

from apps.nas.ladder import Ladder, Stage, default_ladder, next_rung, parse_ladder
from atom.errors import ConfigError


def test_rungs_on_the_same_images_are_one_training() -> None:
    rungs = (
        "synflow+naswot",
        "distilled:12",
        "distilled:50",
        "distilled-2:20",
        "part-20:5",
        "whole:2",
        "whole:10",
    )
    found = parse_ladder(rungs)
    assert found == Ladder(
        ("synflow", "naswot"),
        (
            Stage("distilled", (12, 50)),
            Stage("distilled-2", (20,)),
            Stage("part-20", (5,)),
            Stage("whole", (2, 10)),
        ),
    )
    assert found.proxies == ("synflow", "naswot", "distilled:50", "distilled:20", "part-20:5", "whole:10")
    assert [stage.set_number for stage in found.stages] == [0, 1, None, None]
    assert found.num_sets == 2
    assert found.told.split() == list(rungs)
    assert parse_ladder(found.told.split()) == found


@pytest.mark.parametrize(
    ("rungs", "message"),
    [
        (("parameters",), "--ladder parameters: no rung trains a network"),
        ((), "no rung trains a network"),
        (("whole:2", "synflow"), "--ladder synflow: stands in the wrong place"),
        (("synflow+synflow", "whole:2"), "named twice"),
        (
            ("whole:2", "random:9", "whole:10"),
            "--ladder whole:10: other images stand between two rungs on whole",
        ),
        (("whole:10", "whole:2"), "the rungs on whole have 10, 2 epochs, expected rising"),
        (("whole:2", "whole:2"), "expected rising"),
        (("whole",), "--ladder whole: unknown rung"),
        (("whole:0",), "unknown rung"),
        (("distilled-0:5",), "unknown rung"),
        (("early-steps", "whole:2"), "--ladder early-steps: unknown rung"),
        (("synflow+random", "whole:2"), "unknown rung"),
    ],
)
def test_what_is_no_ladder_is_refused(rungs: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_ladder(rungs)


@pytest.mark.parametrize("whole_epochs", [1, 4, 5, 100])
def test_the_default_is_a_ladder_that_ends_on_the_whole_set(whole_epochs: int) -> None:
    found = parse_ladder(default_ladder(epochs=50, whole_epochs=whole_epochs))
    assert found.stages[0] == Stage("random", (50,))
    assert found.stages[-1].source == "whole"
    assert found.stages[-1].epochs[-1] == whole_epochs
    assert found.num_sets == 0


def test_one_in_the_factor_climbs_and_never_none() -> None:
    assert [next_rung(number, 3) for number in (0, 1, 3, 4, 60)] == [0, 1, 1, 2, 20]
