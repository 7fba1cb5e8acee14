"""Proxies that are made of others: which networks they score, what they cost, and what the verdict says of them."""

from pathlib import Path
from typing import Any

import pytest
from tiny_search import digits_case, named_space

from apps.nas.table import Row
from apps.nas.trial import Score, Unit
from pipelines.architecture import rank
from pipelines.architecture.case import NasCase
from pipelines.architecture.derived import add_derived
from pipelines.architecture.report import verdict_of
from pipelines.architecture.scores import Scores
from pipelines.architecture.winner import best_networks
from pipelines.console.signals import StopSignal

NETWORKS = tuple("abcdef")


def case_of(folder: Path, *proxies: str, **asked: Any) -> NasCase:
    given = {"proxies": proxies, "ipc": 1, "resamples": 100, **asked}
    return digits_case(folder, networks=named_space(**dict.fromkeys(NETWORKS, 1)), **given)


def scores_of(**proxies: list[tuple[float, ...] | None]) -> Scores:
    """Scores of the networks in order, one a seed; None where the network failed."""
    scored = Scores()
    for proxy, values in proxies.items():
        for network, seeds in zip(NETWORKS, values, strict=True):
            for seed, value in enumerate(seeds or (0.0, 0.0)):
                unit = Unit(network, proxy, seed)
                score = Score(value, train_seconds=1.0 + seed, score_seconds=0.25)
                row = Row.of(unit, score, key="k")
                scored.rows[unit] = row if seeds else Row.failure(unit, "broken", key="k")
    return scored


def test_members_are_scored_too_and_a_joined_proxy_costs_what_they_cost(tmp_path: Path) -> None:
    from apps.nas.proxies import with_members

    names = with_members(("synflow+random+naswot", "naswot"))
    assert names == ("synflow+random+naswot", "naswot", "synflow", "random")
    case = case_of(tmp_path, *names)
    joined, random = case.primary, case.material.named("random")
    assert (joined.kind, joined.images, joined.members) == ("combined", 10, ("synflow", "random", "naswot"))
    assert joined.prepare_seconds == random.prepare_seconds
    assert random.prepare_seconds


def test_a_joined_proxy_ranks_by_mean_scores_the_networks_that_every_member_scored(tmp_path: Path) -> None:
    case = case_of(tmp_path, "naswot+synflow", "naswot", "synflow", reference="whole")
    naswot = [(1.0, 3.0), (5.0, 5.0), None, (0.0, 4.0), (9.0, 9.0), (8.0, 8.0)]
    synflow = [(7.0, 7.0), (6.0, 6.0), (9.0, 9.0), (5.0, 5.0), (4.0, 4.0), (3.0, 3.0)]
    scored = scores_of(naswot=naswot, synflow=synflow)
    add_derived(case, scored)
    # Means of naswot: 2, 5, –, 2, 9, 8: ranks 1.5, 3, –, 1.5, 5, 4.
    assert scored.complete("naswot+synflow", NETWORKS) == {
        "a": (3.25,),
        "b": (3.5,),
        "d": (2.25,),
        "e": (3.5,),
        "f": (2.5,),
    }
    assert {row.proxy for row in scored.failed} == {"naswot"}
    assert sum(row.train_seconds for row in scored.of("naswot+synflow")) == 5 * (3.0 + 3.0)
    assert sum(row.score_seconds for row in scored.of("naswot+synflow")) == 5 * 4 * 0.25


def test_the_verdict_judges_it_as_any_other_and_it_may_pick_the_winner(tmp_path: Path) -> None:
    table = tmp_path / "reference.csv"
    table.write_text(
        "network,accuracy\n" + "".join(f"{name},{80 - 5 * i}\n" for i, name in enumerate(NETWORKS))
    )
    case = case_of(
        tmp_path, "naswot+synflow", "naswot", "synflow", reference=str(table), retrain=2, iterations=1
    )
    falling = [(float(-place),) for place in range(len(NETWORKS))]
    scored = scores_of(naswot=falling, synflow=[(2.0 * score,) for (score,) in falling])
    add_derived(case, scored)
    verdict = verdict_of(case, scored)
    assert verdict is not None
    joined, *members = verdict.proxies
    assert joined.name == "naswot+synflow"
    assert (joined.n, joined.num_seeds, joined.pick) == (6, 1, "a")
    assert joined.agreement[0].kendall.value == pytest.approx(1.0)
    assert joined.train_seconds == pytest.approx(sum(member.train_seconds for member in members))
    assert list(best_networks(case, scored)) == ["a", "b"]


def test_the_table_of_results_does_not_hold_what_is_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(tmp_path, "naswot+synflow", "naswot", "synflow")
    known = scores_of(naswot=[(1.0,)] * 6, synflow=[(1.0,)] * 6)

    def score(case: NasCase, units: Any, scored: Scores, *_: Any, **__: Any) -> None:
        assert {unit.proxy for unit in units} == {"naswot", "synflow"}
        scored.rows |= known.rows

    monkeypatch.setattr(rank, "_run", score)
    scored = rank.rank(case, StopSignal())
    assert set(scored.complete("naswot+synflow", NETWORKS).values()) == {(3.5,)}
    assert case.table.rows == []
