"""The report of a search: its order, its pick, and a page that needs nothing from elsewhere."""

import re

from apps.nas.search_page import NOT_COMPARABLE, Tried, best_first, pick_of, render_search, search_figure

TRIED = [
    Tried("slow", "stopped", 91.0, 4, 10, 100),
    Tried("first", "finished", 80.0, 8, 10, 300),
    Tried("<b>bad", "failed", None, 0, reason="RuntimeError: <i>no"),
    Tried("cheap", "finished", 80.0, 8, 10, 200, truth=70.0),
    Tried("far", "stopped", 60.0, 6, None, None),
]


def test_pick_is_a_finished_network_and_the_cheaper_of_equals() -> None:
    pick = pick_of(TRIED)
    assert pick is not None
    assert pick.network == "cheap"
    assert pick_of([one for one in TRIED if one.status != "finished"]) is None


def test_stopped_networks_come_after_all_finished_ones() -> None:
    assert [one.network for one in best_first(TRIED)] == ["first", "cheap", "far", "slow", "<b>bad"]


def test_page_is_self_contained_and_shows_all_networks_as_text() -> None:
    html = render_search(
        TRIED, title="a <search>", sentences=["It & that."], facts={"seed": "0"}, winners=[{"network": "w"}]
    )
    assert html == render_search(
        TRIED, title="a <search>", sentences=["It & that."], facts={"seed": "0"}, winners=[{"network": "w"}]
    )
    for text in (
        "a &lt;search&gt;",
        "It &amp; that.",
        NOT_COMPARABLE,
        "&lt;b&gt;bad",
        "RuntimeError: &lt;i&gt;no",
    ):
        assert text in html
    assert "<b>" not in html
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)"', html))
    assert not re.search(r'(href|src)="http', html)
    assert "reference, %" in html


def test_picture_colours_every_end_and_takes_a_search_without_trials() -> None:
    _, labels = search_figure(TRIED).axes[0].get_legend_handles_labels()
    assert labels == ["finished (2)", "stopped (2)", "failed (1)"]
    assert list(search_figure([]).axes[0].collections) == []
