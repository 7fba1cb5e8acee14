import base64
import dataclasses
import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from page_outline import Outline, drawn_points
from scipy.stats import kendalltau

from apps.nas import plots
from apps.nas.report import render_report, render_scores
from apps.nas.summary import chance_tau, summary
from apps.nas.verdict import (
    Agreement,
    Ceiling,
    Difference,
    Estimate,
    ProxyVerdict,
    TopK,
    Verdict,
)
from apps.page import duration, number, picture

NONE = Estimate(None, None, None)
NETWORKS = [f"net-{place}" for place in range(8)]
TRUTH = {name: 80.0 - 5 * place for place, name in enumerate(NETWORKS)}


def proxy_verdict(name: str, scores: dict[str, float], **changes: Any) -> ProxyVerdict:
    """One proxy with invented statistics; the report must print them, not compute them."""
    agreement = (
        Agreement("all", 8, Estimate(0.71, 0.41, 0.88), Estimate(0.82, 0.55, 0.93)),
        Agreement("top 20 %", 2, NONE, NONE),
    )
    top = (TopK(1, Estimate(0.0, 0.0, 1.0), Estimate(2.0, 1.0, 4.0), Estimate(5.0, 0.0, 15.0)),)
    made = ProxyVerdict(name, 8, 2, agreement, top, 500, 600.0, 1200.0, "net-1", 75.0, scores)
    return dataclasses.replace(made, **changes)


def difference(second: str, low: float | None, high: float | None) -> Difference:
    value = None if low is None or high is None else (low + high) / 2
    return Difference("atom", second, "all", "kendall", 8, Estimate(value, low, high), 0.04)


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    falling = {name: 50.0 - place for place, name in enumerate(NETWORKS)}
    failed = {name: score for name, score in falling.items() if name != "net-3"} | {"net-5": -math.inf}
    sizes = {name: 1e4 * 4.0 ** (place // 2) for place, name in enumerate(NETWORKS)}
    undefined = (Agreement("all", 8, NONE, NONE),)
    proxies = (
        proxy_verdict("atom", failed, n=7),
        proxy_verdict("parameters", sizes, images=0, train_seconds=0.0, prepare_seconds=0.0),
        proxy_verdict("<b>&random", falling, prepare_seconds=None),
        proxy_verdict("constant", dict.fromkeys(NETWORKS, 1.0), agreement=undefined, top=()),
    )
    differences = (
        difference("parameters", -0.1, 0.3),
        difference("<b>&random", 0.05, 0.4),
        difference("constant", None, None),
    )
    return Verdict(
        level=0.95,
        resamples=999,
        truth=TRUTH,
        truth_std=dict.fromkeys(NETWORKS, 0.5),
        reference_seconds=18_000.0,
        reference_name="whole set, 50 epochs",
        ceiling=Ceiling(3, 0.93, 0.98),
        proxies=proxies,
        differences=differences,
    )


WINNER: dict[str, Any] = {
    "network": "net-0",
    "proxy score": 71.25,
    "validation mean": 82.0,
    "validation std": 0.75,
    "test mean": 81.23,
    "test std": 0.5,
    "n": 3,
    "parameters": 1234,
    "multiply_adds": None,
    "delivered": True,
}


@pytest.fixture(scope="module")
def page(verdict: Verdict) -> str:
    return render_report(
        verdict,
        title="Search <script>alert(1)</script>",
        facts={"command": "nas.py --note 'a < b'", "seeds": "3"},
        failures=[("net-3", "atom", "loss became NaN & stopped")],
        winners=[WINNER, {**WINNER, "network": "net-9", "test std": None, "n": 1, "delivered": False}],
    )


@pytest.fixture(scope="module")
def outline(page: str) -> Outline:
    return Outline(page)


def test_every_tag_is_closed_in_order(outline):
    assert outline.open == []
    assert outline.wrong == []


def test_the_page_fetches_nothing(page, outline):
    assert len(outline.links) == 6
    assert all(link.startswith("data:image/") for link in outline.links)
    assert "http" not in page
    assert "url(" not in page
    assert "@import" not in page


def test_text_from_outside_is_escaped(page, outline):
    assert "<script" not in page
    assert "<b>" not in page
    assert "Search <script>alert(1)</script>" in outline.text
    assert "<b>&random" in outline.text
    assert "nas.py --note 'a < b'" in outline.text


def test_every_proxy_network_failure_winner_and_fact_is_named(outline, verdict):
    for word in [*(proxy.name for proxy in verdict.proxies), *NETWORKS, "whole set, 50 epochs"]:
        assert word in outline.text
    assert ["net-3", "atom", "loss became NaN & stopped"] in outline.rows
    assert ["net-0", "71.25", "82.0 ± 0.8", "81.2 ± 0.5", "3", "1,234", "–", "yes"] in outline.rows
    assert ["net-9", "71.25", "82.0 ± 0.8", "81.2", "1", "1,234", "–", ""] in outline.rows
    assert ["seeds", "3"] in outline.rows


def test_every_row_of_a_table_is_as_wide_as_its_headings(page):
    tables = re.findall(r"<table>.*?</table>", page, flags=re.DOTALL)
    assert len(tables) == 7
    for table in tables:
        groups = sum(int(width) for width in re.findall(r'<th colspan="(\d+)"', table))
        rows = [row for row in Outline(table).rows if row]
        widths = {len(row) for row in (rows[1:] if groups else rows)} | ({groups} if groups else set())
        assert len(widths) == 1


def test_the_verdict_row_holds_estimates_with_intervals_and_costs(outline):
    row = next(row for row in outline.rows if row[0] == "atom" and "20 min" in row)
    assert row[1:4] == ["0.71[0.41, 0.88]", "0.82[0.55, 0.93]", "8"]
    assert row[4:] == ["net-1", "75.00", "500", "2", "20 min", "10 min"]


def test_undefined_and_unknown_values_are_dashes(outline):
    constant = [row for row in outline.rows if row[0] == "constant"]
    assert constant[0][1:3] == ["–", "–"]
    assert set(constant[1][1:]) == {"–"}
    unknown = next(row for row in outline.rows if row[0] == "<b>&random")
    assert unknown[-2] == "–"
    assert "None" not in outline.text
    assert "nan" not in outline.text


def test_networks_without_score_and_ties_are_shown_as_they_are(outline):
    rows = {row[0]: row for row in outline.rows if len(row) == 11}
    assert rows["net-3"][3:5] == ["–", "–"]
    assert rows["net-5"][3:5] == ["−∞", "7"]
    assert rows["net-6"][5:7] == ["640,000", "1.5"]
    assert rows["net-0"][1:3] == ["80.00 ± 0.50", "1"]


def test_summary_tells_a_clear_difference_from_an_unclear_one(verdict):
    sentence = summary(verdict)[1]
    assert "does not differ clearly from that of parameters" in sentence
    assert "is clearly higher than that of <b>&random" in sentence
    assert "cannot be compared with that of constant" in sentence


def test_a_difference_is_read_from_either_side(verdict):
    turned = Difference("parameters", "atom", "all", "kendall", 8, Estimate(0.2, 0.1, 0.3), 0.01)
    sentence = summary(dataclasses.replace(verdict, differences=(turned,)))[1]
    assert "atom over all networks is clearly lower than that of parameters" in sentence


def test_summary_has_the_best_the_regret_the_ceiling_and_the_cost(verdict):
    sentences = summary(verdict)
    assert 3 <= len(sentences) <= 6
    assert "atom, parameters and <b>&random order the networks most like the reference" in sentences[0]
    assert "0.71 (1 is the same order, 0 none), 95 % interval [0.41, 0.88], 8 of 8" in sentences[0]
    assert "costs 5.00 points [0.00, 15.00]" in sentences[2]
    assert "agree at τ-b 0.93" in sentences[3]
    assert "took 30 min, 20 min of preparation included: 10 times less" in sentences[-1]


def test_summary_admits_a_best_proxy_that_may_be_chance(verdict):
    weak = (Agreement("all", 8, Estimate(0.2, -0.3, 0.6), NONE),)
    proxies = (dataclasses.replace(verdict.proxies[0], agreement=weak),)
    assert "may be chance" in summary(dataclasses.replace(verdict, proxies=proxies))[0]


def test_a_tie_is_credited_to_everyone_who_shares_it(verdict):
    shared = (
        Agreement("all", 8, Estimate(0.5, 0.1, 0.8), NONE),
        Agreement("top 20 %", 3, Estimate(0.82, None, None), NONE),
    )
    proxies = tuple(
        dataclasses.replace(verdict.proxies[place], name=name, agreement=shared)
        for place, name in enumerate(("atom", "early-steps"))
    )
    sentence = summary(dataclasses.replace(verdict, proxies=proxies))[0]
    assert "atom and early-steps order the networks most like the reference" in sentence
    assert "among the true top 20 % atom and early-steps do best (τ-b 0.82" in sentence


def test_a_pick_that_is_the_best_by_luck_of_a_tie_is_not_said_to_cost_what_it_does_not(verdict):
    shared = (TopK(1, Estimate(0.5, None, None), Estimate(1.0, None, None), Estimate(2.5, None, None)),)
    proxy = dataclasses.replace(verdict.proxies[0], pick="net-0", pick_truth=80.0, top=shared)
    sentence = summary(dataclasses.replace(verdict, proxies=(proxy,)))[2]
    assert sentence == (
        "The pick of atom, net-0, is the best network, 80.00 %, but others share its score: taking any one of them"
        " costs 2.50 points on average."
    )


@pytest.mark.parametrize(("kendall", "noise"), [(-0.07, True), (0.4, True), (0.6, False)])
def test_a_reference_whose_seeds_do_not_agree_is_called_noise(verdict, kendall, noise):
    # Eight networks: 19 of 20 unrelated orders stay below 0.49.
    told = " ".join(summary(dataclasses.replace(verdict, ceiling=Ceiling(2, kendall, kendall))))
    assert ("the reference itself is mostly noise" in told) == noise


def test_unrelated_orders_stay_below_the_tau_of_chance_nineteen_times_of_twenty():
    rng = np.random.default_rng(0)
    taus = [kendalltau(rng.permutation(16), rng.permutation(16)).statistic for _ in range(2000)]
    assert np.mean(np.array(taus) <= chance_tau(16)) == pytest.approx(0.95, abs=0.015)


def test_one_network_is_not_networks(verdict):
    lone = dataclasses.replace(verdict, truth={"net-0": 80.0}, proxies=verdict.proxies[3:])
    assert summary(lone)[0].startswith("With one network no rank")


def test_counts_have_no_decimals_and_small_p_no_zero(verdict):
    sizes = proxy_verdict("parameters", dict.fromkeys(NETWORKS, 9546.0) | {"net-0": 11018.0})
    small = (dataclasses.replace(verdict.differences[0], p=0.0001),)
    made = dataclasses.replace(verdict, proxies=(sizes,), differences=small)
    told = Outline(render_report(made, title="t", facts={}))
    cells = [cell for row in told.rows for cell in row]
    assert {"9,546", "11,018", "<0.001"} <= set(cells)
    assert "0.000" not in cells


def test_summary_says_what_is_unknown(verdict):
    proxy = dataclasses.replace(verdict.proxies[3], prepare_seconds=None)
    bare = dataclasses.replace(verdict, proxies=(proxy,), differences=(), ceiling=Ceiling(1, None, None))
    text = " ".join(summary(bare))
    assert "no proxy can be judged" in text
    assert "no second seed" in text
    assert "whose time is unknown" in text


def test_a_dearer_proxy_is_said_to_cost_more(verdict):
    proxy = dataclasses.replace(verdict.proxies[0], train_seconds=36_000.0, prepare_seconds=0.0)
    assert "2 times more than the reference" in summary(dataclasses.replace(verdict, proxies=(proxy,)))[-1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.0, "0 s"),
        (0.25, "0.25 s"),
        (90, "90 s"),
        (600, "10 min"),
        (9000, "2.5 h"),
        (8.64e5, "10 days"),
    ],
)
def test_durations_come_in_a_unit_that_suits_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(-0.001, "0.00"), (-1.5, "−1.50"), (math.nan, "–"), (math.inf, "–"), (None, "–")]
)
def test_numbers_have_a_true_minus_and_no_negative_zero(value, text):
    assert number(value) == text


def test_ranks_of_ties_are_their_mid_rank_and_minus_infinity_is_last():
    assert plots.ranks_of({"a": -math.inf, "b": 2.0, "c": 2.0, "d": 9.0}) == {
        "a": 4,
        "b": 2.5,
        "c": 2.5,
        "d": 1,
    }


def test_each_proxy_has_a_panel_and_only_sizes_a_log_axis(verdict):
    figure = plots.scatter_figure(verdict)
    assert [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes] == [
        p.name for p in verdict.proxies
    ]
    assert [axes.get_xscale() for axes in figure.axes] == ["linear", "log", "linear", "linear"]


def test_a_phone_gets_pictures_of_its_own_with_panels_below_each_other(page, verdict):
    assert page.count('<source media="(max-width:699px)"') == page.count("<picture>") == 3
    panels = plots.scatter_figure(verdict, narrow=True).axes
    assert {axes.get_subplotspec().colspan.start for axes in panels} == {0}
    assert len(panels) == len(verdict.proxies)


@pytest.mark.parametrize("num_proxies", [1, 3, 4])
def test_a_long_name_of_the_reference_is_not_cut_at_the_edges(verdict, num_proxies):
    name = "test accuracy after 100 epochs on all 50000 training images"
    made = dataclasses.replace(verdict, proxies=verdict.proxies[:num_proxies], reference_name=name)
    figure = plots.scatter_figure(made)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    label = figure.get_supylabel()
    box = next(text for text in figure.texts if text.get_text() == label).get_window_extent()
    assert " ".join(label.split()) == f"accuracy under {name}, %"
    assert box.y0 >= 0
    assert box.y1 <= figure.bbox.height
    assert box.x0 >= 0


@pytest.mark.parametrize("sizes", [(9_546, 11_018), (6e4, 5e5), (1e4, 6.4e5), (3e3, 4e9)])
def test_labels_of_a_log_axis_do_not_overprint(verdict, sizes):
    scores = {name: float(np.geomspace(*sizes, 8)[place]) for place, name in enumerate(NETWORKS)}
    three = tuple(proxy_verdict("parameters", scores) for _ in range(3))
    figure = plots.scatter_figure(dataclasses.replace(verdict, proxies=three))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axis = figure.axes[0].xaxis
    boxes = [label.get_window_extent() for label in axis.get_ticklabels(which="both") if label.get_text()]
    assert len(boxes) >= 2
    assert all(
        left.x1 < right.x0 for left, right in itertools.pairwise(sorted(boxes, key=lambda box: box.x0))
    )


def test_a_failed_network_is_marked_in_its_panel(verdict):
    panel = plots.scatter_figure(verdict).axes[0]
    offsets = [np.asarray(marks.get_offsets()) for marks in panel.collections if hasattr(marks, "get_sizes")]
    at_edge = {float(y) for points in offsets for x, y in points if x == 0.02}
    assert at_edge == {TRUTH["net-3"], TRUTH["net-5"]}


@pytest.mark.parametrize("draw", [plots.scatter_figure, plots.rank_flow_figure, plots.cost_quality_figure])
def test_every_panel_shows_all_that_is_drawn_in_it(
    verdict: Verdict, draw: Callable[[Verdict], Figure]
) -> None:
    # The worst network fails under the one proxy, and the spread of the best leads beyond 100 %.
    truth = {name: 99.0 - 12 * place for place, name in enumerate(NETWORKS)}
    kept = {name: 50.0 - place for place, name in enumerate(NETWORKS[:-1])}
    extreme = dataclasses.replace(
        verdict,
        truth=truth,
        truth_std=dict.fromkeys(NETWORKS, 4.0),
        proxies=(proxy_verdict("atom", kept, n=7),),
    )
    for axes in draw(extreme).axes:
        (left, right), (low, high) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
        x, y = drawn_points(axes)
        assert left <= x.min() <= x.max() <= right
        assert low <= y.min() <= y.max() <= high
        if draw is plots.scatter_figure:
            assert y.max() <= 100


def test_rank_flow_puts_the_reference_first_and_leaves_a_gap_for_a_failure(verdict):
    top = dataclasses.replace(verdict, truth={**TRUTH, "net-3": 99.0})
    (axes,) = plots.rank_flow_figure(top).axes
    heads = [label.get_text().split("\n")[0] for label in axes.get_xticklabels()]
    assert heads == ["reference", "atom", "parameters", "<b>&random", "constant"]
    best = np.asarray(axes.lines[0].get_ydata())
    assert best[0] == 1
    assert np.isnan(best[1])


def test_rank_flow_of_many_networks_has_a_log_axis_and_ten_colours():
    names = [f"n{place}" for place in range(200)]
    truth = {name: float(place) for place, name in enumerate(names)}
    many = Verdict(
        level=0.95,
        resamples=9,
        truth=truth,
        truth_std={},
        reference_seconds=1.0,
        reference_name="r",
        ceiling=Ceiling(1, None, None),
        proxies=(proxy_verdict("atom", truth, n=200),),
        differences=(),
    )
    (axes,) = plots.rank_flow_figure(many).axes
    assert axes.get_yscale() == "log"
    assert len(axes.lines) == 10


def test_cost_figure_labels_each_proxy_that_has_a_coefficient_once(verdict):
    (axes,) = plots.cost_quality_figure(verdict).axes
    labels = sorted(text.get_text() for text in axes.texts)
    assert labels == ["<b>&random (preparation ?)", "atom", "parameters"]


def test_names_with_dollar_signs_are_not_read_as_formulae(verdict):
    proxies = tuple(dataclasses.replace(proxy, name=f"$\\x$ {proxy.name}") for proxy in verdict.proxies)
    strange = dataclasses.replace(verdict, proxies=proxies, reference_name="$^$")
    for draw in (plots.scatter_figure, plots.rank_flow_figure, plots.cost_quality_figure):
        assert picture(draw(strange)).startswith("data:image/svg+xml")


def test_a_picture_over_the_limit_becomes_png(verdict):
    figure = plots.cost_quality_figure(verdict)
    head, _, data = picture(figure, max_bytes=1000).partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG")


def test_the_same_verdict_becomes_the_same_bytes(verdict):
    first, second = (picture(plots.cost_quality_figure(verdict)) for _ in range(2))
    assert first == second


def test_a_verdict_that_says_nothing_still_becomes_a_page(verdict):
    proxy = proxy_verdict(
        "atom", {"net-0": 1.0}, n=1, agreement=(Agreement("all", 1, NONE, NONE),), top=(), pick=""
    )
    truth = {name: TRUTH[name] for name in NETWORKS[:2]}
    bare = dataclasses.replace(
        verdict, truth=truth, proxies=(proxy,), differences=(), ceiling=Ceiling(1, None, None)
    )
    outline = Outline(render_report(bare, title="t", facts={}))
    assert outline.wrong == []
    assert "Failures" not in outline.text
    assert "Winners" not in outline.text
    assert "Differences" not in outline.text


def test_the_proxy_to_take_is_the_cheapest_of_those_not_clearly_behind(verdict):
    def taken(*differences: Difference, tau: float = 0.93, low: float = 0.41) -> list[str]:
        weak = (Agreement("all", 8, Estimate(0.71, low, 0.88), NONE), Agreement("top 20 %", 2, NONE, NONE))
        proxies = [
            dataclasses.replace(p, agreement=weak if p.name == "parameters" else p.agreement)
            for p in verdict.proxies
        ]
        made = {"ceiling": Ceiling(3, tau, tau), "differences": differences, "proxies": tuple(proxies)}
        return [said for said in summary(dataclasses.replace(verdict, **made)) if said.startswith("Take ")]

    close, clear = difference("parameters", -0.1, 0.3), difference("parameters", 0.1, 0.3)
    (said,) = taken(close)
    assert said.startswith("Take parameters (τ-b 0.71, 0 s): atom (0.71, 30 min) is not clearly better")
    # One whose cost is not known is not among them, nor one that may be chance.
    assert "<b>&random" not in said
    assert taken(clear)[0].startswith("Take atom (τ-b 0.71, 30 min): of those above chance")
    assert taken(close, low=-0.1)[0].startswith("Take atom")
    # A reference that does not agree with itself recommends nothing.
    assert taken(close, tau=0.1) == []


def test_scores_that_are_infinite_have_no_spread() -> None:
    html = render_scores(
        {"naswot": {"a": (-math.inf, -math.inf), "b": (1.0, 3.0)}},
        title="t",
        facts={},
        failures=[],
        winners=[],
    )
    assert "± 1.41" in html
    assert "nan" not in html


def test_which_network_to_take_is_said_above_all_else(verdict) -> None:
    html = render_report(verdict, title="t", facts={}, answer=["Take <a>.", "Confidence: none."])
    assert '<div class="summary"><p><strong>Take &lt;a&gt;.</strong></p><p>Confidence: none.</p><p>' in html
