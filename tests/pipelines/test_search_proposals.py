"""Which networks a search proposes: none twice, none lost, and what an earlier run knows counts."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from apps.nas.early import Report
from apps.nas.search_page import Tried
from apps.nas.space import Candidate, Space, load_space, sample
from apps.nas.trial import Score
from atom.errors import ConfigError
from pipelines.architecture.search_proposals import Dimensions, Proposals
from pipelines.architecture.search_trial import RUNG, result_of
from pipelines.architecture.study import open_study, write_study
from pipelines.workers.faults import Failure


def digits_space(spec: str) -> Space:
    return load_space(spec, channels=1, image_size=(8, 8), num_classes=10)


def names_space(number: int) -> Space:
    return Space("mine:list", tuple(Candidate(f"n{i}", 1, 1) for i in range(number)), 1, (8, 8), 10)


def proposals(space: Space, **changes: Any) -> Proposals:
    options: dict[str, Any] = {"trials": 5, "seed": 0}
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


def test_a_sample_keeps_its_axes_and_knows_no_network_in_its_gaps() -> None:
    space = sample(digits_space("small"), 7, seed=0)
    found = Dimensions(space)
    assert list(found.choices) == ["width", "depth", "norm", "activation", "pooling"]
    there = {tuple(candidate.axes.values()) for candidate in space.candidates}
    known = 0
    for point in itertools.product(*found.choices.values()):
        name = found.name_of(dict(zip(found.choices, point, strict=True)))
        assert (name is not None) == (point in there)
        known += name is not None
    assert known == 7


def test_networks_without_axes_are_searched_by_name() -> None:
    space = names_space(3)
    found = Dimensions(space)
    assert found.choices == {"network": list(space.names)}
    assert found.name_of({"network": space.names[1]}) == space.names[1]


@pytest.mark.parametrize("spec", ["small", "sampled", "names"])
def test_no_network_is_proposed_twice_and_all_of_a_small_space_come_up(spec: str) -> None:
    space = names_space(12) if spec == "names" else digits_space("small")
    space = sample(space, 40, seed=0) if spec == "sampled" else space
    ask = proposals(space, trials=40)
    seen: list[str] = []
    for number in range(min(40, len(space.names))):
        proposed = ask.suggest(f"t{number}")
        seen.append(proposed["network"])
        ask.on_trial_complete(f"t{number}", {"value": float(len(proposed["network"]))})
    assert ask.suggest("more") == Searcher.FINISHED
    assert len(set(seen)) == len(seen) == ask.tried == ask.trials
    assert set(seen) <= set(space.names)


def test_what_has_come_out_moves_the_sampler_and_is_not_proposed_again() -> None:
    space = digits_space("small")
    ask = proposals(space, trials=50)
    ask.values = {name: (90.0 if "-w64-" in name else 10.0) for name in space.names[::8]}
    known, found = set(ask.values), []
    for number in range(20):
        found.append(ask.suggest(f"t{number}")["network"])
        ask.on_trial_complete(f"t{number}", {"value": 90.0 if "-w64-" in found[-1] else 10.0})
    assert not set(found) & known
    assert sum("-w64-" in name for name in found) >= 15
    assert ask.suggest("more") == Searcher.FINISHED


def test_a_network_comes_with_what_is_known_of_it() -> None:
    curve = reports(1, 2)
    ask = proposals(names_space(2), sampler="grid", known=lambda name: curve if name == "n1" else ())
    assert ask.suggest("a") == {"network": "n0", "known": ()}
    assert ask.suggest("b") == {"network": "n1", "known": curve}


def test_the_last_place_is_kept_for_a_network_that_may_yet_be_lost() -> None:
    ask = proposals(names_space(3), trials=1)
    lost = ask.suggest("a")["network"]
    assert ask.suggest("b") is None
    ask.on_trial_complete("a", error=True)
    ask.again(lost)
    assert ask.suggest("c")["network"] == lost
    ask.on_trial_complete("c", {"value": 1.0})
    assert ask.values == {lost: 1.0}
    assert ask.suggest("d") == Searcher.FINISHED


def test_as_many_networks_are_under_way_as_the_cluster_has_room_for_now() -> None:
    room = 1
    ask = proposals(names_space(9), sampler="grid", room=lambda: room)
    assert [ask.suggest("a")["network"], ask.suggest("b")] == ["n0", None]
    room = 3
    assert [ask.suggest("b")["network"], ask.suggest("c")["network"], ask.suggest("d")] == ["n1", "n2", None]
    ask.on_trial_complete("a", {"value": 1.0})
    assert ask.suggest("d")["network"] == "n3"


def test_a_network_short_of_memory_is_tried_beside_one_fewer_until_it_got_on() -> None:
    ask = proposals(names_space(9), sampler="grid", room=lambda: 2)
    assert [ask.suggest(trial)["network"] for trial in "ab"] == ["n0", "n1"]
    ask.on_trial_complete("b", error=True)
    ask.again("n1", short=True)
    assert ask.suggest("c") is None
    ask.on_trial_complete("a", {"value": 1.0})
    assert [ask.suggest("c")["network"], ask.suggest("d")] == ["n1", None]
    ask.on_trial_complete("c", {"value": 1.0})
    assert [ask.suggest(trial)["network"] for trial in "de"] == ["n2", "n3"]


def test_failed_network_counts_as_tried_and_is_not_proposed_again() -> None:
    ask = proposals(names_space(3), trials=3, sampler="grid")
    assert ask.suggest("a")["network"] == "n0"
    ask.on_trial_complete("a", {"value": float("nan"), "failure": Failure("no", "")})
    assert ask.failed == {"n0"}
    assert {ask.suggest("b")["network"], ask.suggest("c")["network"]} == {"n1", "n2"}


def test_a_proposal_depends_on_what_came_out_and_not_on_how_the_search_was_begun() -> None:
    space = digits_space("small")

    def values(network: str) -> float:
        return float(len(network)) + network.count("w64")

    whole = proposals(space, trials=25)
    tried = []
    for number in range(25):
        tried.append(whole.suggest(f"t{number}")["network"])
        whole.on_trial_complete(f"t{number}", {"value": values(tried[-1])})
    # Killed after 17, and begun anew: the first ones are told again from the table.
    again = proposals(space, trials=25)
    for number in range(25):
        assert again.suggest(f"u{number}")["network"] == tried[number]
        again.on_trial_complete(f"u{number}", {"value": values(tried[number])})


@pytest.mark.parametrize("sampler", ["grid", "random"])
def test_without_optuna_networks_come_in_order_or_drawn(sampler: str) -> None:
    ask = proposals(names_space(6), trials=6, sampler=sampler)
    found = [ask.suggest(f"t{number}")["network"] for number in range(6)]
    assert sorted(found) == ["n0", "n1", "n2", "n3", "n4", "n5"]
    assert (found == sorted(found)) == (sampler == "grid")


def test_nothing_is_proposed_once_no_more_are_wanted() -> None:
    wanted = [True, True, False]
    ask = proposals(names_space(6), trials=6, wanted=lambda: wanted[0])
    ask.suggest("a")
    ask.suggest("b")
    wanted[0] = False
    assert ask.suggest("c") is None
    assert not ask._running.keys() - {"a", "b"}
    ask.on_trial_complete("a", {"value": 1.0})
    ask.on_trial_complete("b", {"value": 1.0})
    assert ask.suggest("d") == Searcher.FINISHED
    assert ask.ended


@pytest.mark.parametrize("rungs", [(1, 2, 4), (2, 4), (1, 3, 4), (4,)])
def test_asha_halves_at_the_rungs_whatever_their_epochs(rungs: tuple[int, ...]) -> None:
    curves = {"a": reports(10, 20, 30, 40), "b": reports(5, 15), "c": reports(3), "d": reports(9, 19, 29, 39)}
    asha = ASHAScheduler(
        time_attr=RUNG,
        metric="score",
        mode="max",
        max_t=2 ** (len(rungs) - 1),
        grace_period=1,
        reduction_factor=2,
    )
    controller: Any = None
    for network, curve in curves.items():
        trial = Trial("network", trial_id=network, stub=True)
        asha.on_trial_add(controller, trial)
        for report in curve:
            result = result_of(report, rungs, factor=2)
            asha.on_trial_result(controller, trial, result)
        asha.on_trial_complete(controller, trial, result)
    assert {time: sorted(scores.values()) for time, scores in asha._brackets[0]._rungs} == {
        2**place: sorted(curve[rung - 1].score.score for curve in curves.values() if len(curve) >= rung)
        for place, rung in enumerate(rungs)
    }


def test_networks_of_a_search_are_trials_of_a_study_once(tmp_path: Path) -> None:
    space = digits_space("small")
    url = f"sqlite:///{tmp_path}/study.db"
    top, stopped, failed, slow = space.names[:4]
    tried = [
        Tried(top, "finished", {"whole:2": 50.0, "whole:8": 70.0}, parameters=7),
        Tried(stopped, "stopped", {"whole:2": 40.0}),
        Tried(failed, "failed", reason="no"),
        Tried(slow, "too slow"),
    ]
    assert write_study(open_study(url, "s"), tried, space) == 3
    assert write_study(open_study(url, "s"), tried, space) == 0
    further = [replace(tried[1], status="finished", scores={"whole:2": 40.0, "whole:8": 90.0})]
    study = open_study(url, "s")
    assert write_study(study, further, space) == 1
    assert study.best_trial.user_attrs["network"] == stopped
    assert study.trials[0].params == dict(space.candidates[0].axes)
    assert study.trials[0].intermediate_values == {0: 50.0, 1: 70.0}
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE"]


@pytest.mark.parametrize("url", ["nonsense", "nodb://x/y", "sqlite:////no/such/folder/s.db"])
def test_a_storage_that_cannot_be_opened_is_one_sentence(url: str) -> None:
    with pytest.raises(ConfigError, match=r"--optuna-storage: cannot be opened .*expected a URL such as"):
        open_study(url, "s")
