"""Proxies that are made of others: which networks they score, what they cost, and what the verdict says of them."""

from pathlib import Path
from typing import Any

import pytest
from tiny_search import digits_case, named_space

from apps.nas.proxies import MIN_TO_FIT, with_members
from apps.nas.summary import summary
from apps.nas.table import Row
from apps.nas.trial import Score, Unit
from atom.errors import ConfigError
from pipelines import nas
from pipelines.architecture import rank
from pipelines.architecture.case import NasCase
from pipelines.architecture.derived import add_derived
from pipelines.architecture.report import _weights, verdict_of
from pipelines.architecture.scores import Scores
from pipelines.architecture.winner import ranked
from pipelines.console.commands import NasCommand
from pipelines.console.signals import StopSignal

NETWORKS = tuple("abcdef")
MANY = tuple("abcdefghijklmn")


def case_of(folder: Path, *proxies: str, networks: tuple[str, ...] = NETWORKS, **asked: Any) -> NasCase:
    given = {"proxies": proxies, "ipc": 1, "resamples": 100, **asked}
    return digits_case(folder, networks=named_space(**dict.fromkeys(networks, 1)), **given)


def table_of(folder: Path, networks: tuple[str, ...]) -> str:
    """A reference that falls by 5 points from network to network."""
    path = folder / "reference.csv"
    rows = "".join(f"{network},{90 - 5 * place}\n" for place, network in enumerate(networks))
    path.write_text(f"network,accuracy\n{rows}")
    return str(path)


def scores_of(**proxies: list[tuple[float, ...] | None]) -> Scores:
    """Scores of the first networks in order, one a seed; None where the network failed."""
    scored = Scores()
    for proxy, values in proxies.items():
        for network, seeds in zip(MANY, values, strict=False):
            for seed, value in enumerate(seeds or (0.0, 0.0)):
                unit = Unit(network, proxy, seed)
                score = Score(value, train_seconds=1.0 + seed, score_seconds=0.25)
                row = Row.of(unit, score, key="k")
                scored.rows[unit] = row if seeds else Row.failure(unit, "broken", key="k")
    return scored


def test_members_are_scored_too_and_a_joined_proxy_costs_what_they_cost(tmp_path: Path) -> None:
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
    table = table_of(tmp_path, NETWORKS)
    case = case_of(tmp_path, "naswot+synflow", "naswot", "synflow", reference=table, retrain=2)
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
    assert list(ranked(case, scored))[:2] == ["a", "b"]


def test_the_table_of_results_does_not_hold_what_is_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(tmp_path, "naswot+synflow", "naswot", "synflow")
    known = scores_of(naswot=[(1.0,)] * 6, synflow=[(1.0,)] * 6)

    def score(case: NasCase, units: Any, scored: Scores, *_: Any, **__: Any) -> None:
        assert {unit.proxy for unit in units} == {"naswot", "synflow"}
        scored.rows |= known.rows

    monkeypatch.setattr(rank, "score_units", score)
    scored = rank.rank(case, StopSignal())
    assert set(scored.complete("naswot+synflow", NETWORKS).values()) == {(3.5,)}
    assert case.table.rows == []


def falling(*, noise: float) -> list[tuple[float, ...] | None]:
    """Scores of the fourteen networks, the first the best but for some noise."""
    return [(noise * (7 * place % 5) - place,) for place in range(len(MANY))]


def test_networks_without_a_reference_are_predicted_too_and_the_fit_is_told(tmp_path: Path) -> None:
    case = case_of(
        tmp_path,
        *("fitted", "synflow", "naswot"),
        networks=MANY,
        reference=table_of(tmp_path, MANY[2:]),
        retrain=1,
    )
    scored = scores_of(synflow=falling(noise=0.3), naswot=falling(noise=0.5))
    add_derived(case, scored)
    # Better than all that the table knows, and not in it.
    assert next(iter(ranked(case, scored))) == "a"
    verdict = verdict_of(case, scored)
    assert verdict is not None
    assert (verdict.proxies[0].name, verdict.proxies[0].n) == ("fitted", 12)
    assert verdict.fit is not None
    assert (verdict.fit.n, list(verdict.fit.weights)) == (12, ["synflow", "naswot"])
    assert verdict.fit.rmse < verdict.fit.rmse_of_mean / 2
    (told,) = [sentence for sentence in summary(verdict) if sentence.startswith("fitted, a regression")]
    assert (
        f"by {verdict.fit.rmse:.2f} points (root mean square over 12 networks, one left out at a time)"
        in told
    )
    assert told.endswith(f"predicting their mean misses by {verdict.fit.rmse_of_mean:.2f}.")
    assert "synflow" in _weights(scored)["weights of fitted"]


def test_what_is_fitted_on_a_reference_trained_here_costs_its_time_too(tmp_path: Path) -> None:
    case = case_of(tmp_path, "fitted", "synflow", "whole", networks=MANY)
    scored = scores_of(synflow=falling(noise=0.3))
    for place, network in enumerate(MANY):
        unit = Unit(network, "whole", 0)
        score = Score(0.0, test_accuracy=90.0 - place, train_seconds=100.0)
        scored.rows[unit] = Row.of(unit, score, key="k")
    add_derived(case, scored)
    verdict = verdict_of(case, scored)
    assert verdict is not None
    fitted, synflow = verdict.proxies
    assert fitted.train_seconds == pytest.approx(synflow.train_seconds)
    assert (synflow.prepare_seconds, fitted.prepare_seconds) == (0.0, 1400.0)


def test_a_fit_leaves_out_a_proxy_that_scored_nothing_and_itself_where_too_little_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = table_of(tmp_path, MANY)
    case = case_of(tmp_path, "synflow", "naswot", "fitted", networks=MANY, reference=table)
    scored = scores_of(synflow=falling(noise=0.3), naswot=[None] * len(MANY))
    add_derived(case, scored)
    assert scored.fit is not None
    assert list(scored.fit.weights) == ["synflow"]
    few: list[tuple[float, ...] | None] = [
        *falling(noise=0.3)[: MIN_TO_FIT - 1],
        None,
        None,
        None,
        None,
        None,
    ]
    scored = scores_of(synflow=falling(noise=0.3), naswot=few)
    add_derived(case, scored)
    assert scored.fit is None
    assert scored.of("fitted") == []
    said = " ".join(capsys.readouterr().out.split())
    assert "Note: --proxies fitted: left out; fewer than 10 networks have a reference" in said
    verdict = verdict_of(case, scored)
    assert verdict is not None
    assert [proxy.n for proxy in verdict.proxies] == [14, 9, 0]


def test_a_fit_without_a_reference_or_with_too_few_networks_is_refused(tmp_path: Path) -> None:
    alone = NasCommand.of(proxies=("synflow", "fitted"), dataset="digits")
    with pytest.raises(
        ConfigError, match="fitted: learns from networks trained in full; pass --reference whole"
    ):
        nas.search(alone)
    with pytest.raises(
        ConfigError, match="fitted: learns from networks with a reference, at least 10, and here are 6"
    ):
        case_of(tmp_path, "synflow", "fitted", reference="whole")
    with pytest.raises(
        ConfigError, match="and here are 9; take a larger --sample or table, or leave fitted out"
    ):
        case_of(tmp_path, "synflow", "fitted", networks=MANY, reference=table_of(tmp_path, MANY[:9]))
    assert NasCommand.of(proxies=("synflow", "fitted")).shrunk().nas.sample == 12
    assert NasCommand.of(proxies=("synflow",)).shrunk().nas.sample == 4
