"""Which networks a search proposes: none twice, none lost, and what an earlier run knows counts."""

from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from apps.nas.early import Report
from apps.nas.space import Candidate, Space, load_space, sample
from apps.nas.trial import Score
from pipelines.architecture.search import _replay
from pipelines.architecture.search_proposals import Dimensions, Proposals
from pipelines.workers.faults import Failure


def digits_space(spec: str) -> Space:
    return load_space(spec, channels=1, image_size=(8, 8), num_classes=10)


def names_space(number: int) -> Space:
    return Space("mine:list", tuple(Candidate(f"n{i}", 1, 1) for i in range(number)), 1, (8, 8), 10)


def proposals(space: Space, **changes: Any) -> Proposals:
    options: dict[str, Any] = {"trials": 5, "known": {}, "first": (), "seed": 0}
    return Proposals(space, **{**options, **changes})


def reports(*scores: float) -> tuple[Report, ...]:
    return tuple(
        Report(e, Score(score, steps=3 * e, train_seconds=0.1 * e)) for e, score in enumerate(scores, 1)
    )


def test_axes_are_searched_where_the_networks_are_all_their_combinations() -> None:
    space = digits_space("small")
    found = Dimensions(space)
    assert list(found.choices) == ["width", "depth", "norm", "activation", "pooling"]
    assert sorted(found.choices["width"]) == [32, 64]
    assert [found.name_of(dict(point)) for point in found.points.values()] == list(space.names)


def test_names_are_searched_in_a_sample_and_in_a_users_space() -> None:
    for space in (sample(digits_space("small"), 7, seed=0), names_space(3)):
        found = Dimensions(space)
        assert found.choices == {"network": list(space.names)}
        assert found.name_of({"network": space.names[1]}) == space.names[1]


@pytest.mark.parametrize("spec", ["small", "names"])
def test_no_network_is_proposed_twice_and_all_of_a_small_space_come_up(spec: str) -> None:
    space = names_space(12) if spec == "names" else digits_space("small")
    ask = proposals(space, trials=40)
    seen: list[str] = []
    for number in range(min(40, len(space.names))):
        proposed = ask.suggest(f"t{number}")
        seen.append(proposed["network"])
        ask.on_trial_complete(f"t{number}", {"score": float(len(proposed["network"]))})
    assert ask.suggest("more") == Searcher.FINISHED
    assert len(set(seen)) == len(seen) == ask.tried == ask.trials
    assert set(seen) <= set(space.names)


def test_what_an_earlier_run_knows_is_not_proposed_and_moves_the_sampler() -> None:
    space = digits_space("small")
    known = {name: (90.0 if "-w64-" in name else 10.0) for name in space.names[::8]}
    ask = proposals(space, trials=len(known) + 20, known=known)
    found = []
    for number in range(20):
        found.append(ask.suggest(f"t{number}")["network"])
        ask.on_trial_complete(f"t{number}", {"score": 90.0 if "-w64-" in found[-1] else 10.0})
    assert not set(found) & set(known)
    assert sum("-w64-" in name for name in found) >= 15
    assert ask.suggest("more") == Searcher.FINISHED


def test_the_last_place_is_kept_for_a_network_that_may_yet_be_lost() -> None:
    ask = proposals(names_space(3), trials=1)
    lost = ask.suggest("a")["network"]
    assert ask.suggest("b") is None
    ask.on_trial_complete("a", error=True)
    ask.again(lost)
    assert ask.suggest("c") == {"network": lost}
    ask.on_trial_complete("c", {"score": 1.0})
    assert ask.scores == {lost: 1.0}
    assert ask.suggest("d") == Searcher.FINISHED


def test_failed_network_counts_as_tried_and_is_not_proposed_again() -> None:
    ask = proposals(names_space(3), trials=3, first=["n2"])
    assert ask.suggest("a") == {"network": "n2"}
    ask.on_trial_complete("a", {"score": float("nan"), "failure": Failure("no", "")})
    assert ask.failed == {"n2"}
    assert {ask.suggest("b")["network"], ask.suggest("c")["network"]} == {"n0", "n1"}


def test_known_curves_fill_the_rungs_as_live_trials_do() -> None:
    curves = {"a": reports(10, 20, 30, 40), "b": reports(5, 15), "c": reports(3), "d": reports(9, 19, 29, 39)}
    rungs = []
    for replay in (True, False):
        asha = ASHAScheduler(
            time_attr="epochs", metric="score", mode="max", max_t=4, grace_period=1, reduction_factor=2
        )
        if replay:
            _replay(asha, curves)
        else:
            controller: Any = None
            for network, curve in curves.items():
                trial = Trial("network", trial_id=network, stub=True)
                asha.on_trial_add(controller, trial)
                for report in curve:
                    result = {"epochs": report.epochs, "score": report.score.score}
                    asha.on_trial_result(controller, trial, result)
                asha.on_trial_complete(controller, trial, result)
        rungs.append([(epochs, sorted(scores.values())) for epochs, scores in asha._brackets[0]._rungs])
    assert rungs[0] == rungs[1]
    assert dict(rungs[0])[1] == [3.0, 5.0, 9.0, 10.0]
