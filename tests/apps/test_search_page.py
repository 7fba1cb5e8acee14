"""The report of a search: its order, its rungs, and a page that needs nothing from elsewhere."""

import csv
import io
import re

import pytest
from scipy import stats

from apps.nas.search_page import (
    NOT_COMPARABLE,
    RungReached,
    Tried,
    best_first,
    climb_figure,
    front_figure,
    render_search,
    rungs_reached,
    search_csv,
)

TRIED = [
    Tried("slow", "stopped", {"random:5": 91.0}, 10, 100, order=2.0),
    Tried("first", "finished", {"random:5": 50.0, "whole:2": 80.0}, 10, 300, order=4.0),
    Tried("<b>bad", "failed", reason="RuntimeError: <i>no"),
    Tried("cheap", "finished", {"random:5": 60.0, "whole:2": 80.0}, 10, 200, order=3.0, truth=70.0),
    Tried("far", "stopped", {"random:5": 60.0, "whole:2": 10.0}, order=1.0),
    Tried("late", "too slow", latency_ms=9.0),
]
RANKS = {"slow": 2.0, "first": 4.0, "cheap": 3.0, "far": 1.0, "never trained": 0.5}
RUNGS = [
    RungReached("synflow", 5, 1.0),
    RungReached("random:5", 4, 200.0, 0.5),
    RungReached("whole:2", 3, None),
]


def test_networks_come_by_how_far_they_climbed_and_by_their_score_there() -> None:
    names = ["first", "cheap", "far", "slow", "late", "<b>bad"]
    assert [one.network for one in best_first(TRIED)] == names
    rows = list(csv.DictReader(io.StringIO(search_csv(TRIED))))
    assert [row["network"] for row in rows] == names
    assert rows[1] | {} == {
        "network": "cheap",
        "status": "finished",
        "parameters": "10",
        "multiply_adds": "200",
        "latency_ms": "",
        "order": "3.0",
        "truth": "70.0",
        "reason": "",
        "random:5": "60.0",
        "whole:2": "80.0",
    }


def test_rungs_tell_whom_they_saw_and_how_they_agree_with_the_one_below() -> None:
    found = rungs_reached(TRIED, ["random:5", "whole:2"], {"random:5": 200.0}, order="synflow", ranks=RANKS)
    assert [(rung.name, rung.networks, rung.seconds) for rung in found] == [
        ("synflow", 5, None),
        ("random:5", 4, 200.0),
        ("whole:2", 3, None),
    ]
    expected = stats.kendalltau([2, 4, 3, 1], [91, 50, 60, 60]).statistic
    assert found[1].tau == pytest.approx(expected)
    assert found[2].tau == pytest.approx(stats.kendalltau([50, 60, 60], [80, 80, 10]).statistic)
    assert [rung.tau for rung in rungs_reached([], ["whole:2"], {}, order="", ranks={})] == [None]


def test_page_is_self_contained_and_shows_all_networks_as_text() -> None:
    given = {
        "title": "a <search>",
        "sentences": ["Take <it>.", "It & that."],
        "facts": {"seed": "0"},
        "winners": [
            {
                **{"network": "<b>w", "proxy score": 71.0, "n": 1, "parameters": None, "multiply_adds": None},
                **{"validation mean": 82.0, "validation std": None, "test mean": 81.0, "test std": None},
                "delivered": True,
            }
        ],
    }
    html = render_search(TRIED, RUNGS, **given)
    assert html == render_search(TRIED, RUNGS, **given)
    for text in (
        "a &lt;search&gt;",
        "<strong>Take &lt;it&gt;.</strong>",
        "It &amp; that.",
        NOT_COMPARABLE,
        "&lt;b&gt;bad",
        "&lt;b&gt;w",
        "RuntimeError: &lt;i&gt;no",
        "0.50 (synflow)",
    ):
        assert text in html
    assert "<b>" not in html
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)"', html))
    assert not re.search(r'(href|src)="http', html)
    assert "reference, %" in html


def test_a_search_that_came_to_nothing_has_a_page() -> None:
    html = render_search([TRIED[2]], [], title="t", sentences=["No network reached the end."], facts={})
    assert "No network reached the end." in html


def test_pictures_draw_what_climbed_and_what_no_other_beats() -> None:
    axes = climb_figure(TRIED, ["random:5", "whole:2"]).axes[0]
    assert len([line for line in axes.lines if len(line.get_xdata())]) == 4
    assert [label.get_text() for label in axes.get_xticklabels()] == ["random:5", "whole:2"]
    finished = [one.choice for one in TRIED if one.status == "finished"]
    beaten, best = front_figure(finished).axes[0].lines
    assert list(beaten.get_xdata()) == [300, 200]
    assert list(best.get_xdata()) == [200]
