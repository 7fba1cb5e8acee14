import base64
import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from page_outline import Outline, drawn_points

from apps.continual import plots
from apps.continual.findings import (
    classes_seen,
    findings,
    gains,
    group_of,
    recommendations,
    size,
    suspicions,
)
from apps.continual.report import render_continual
from apps.continual.results import (
    ON_STATISTICS,
    Cell,
    CellResult,
    ContinualResults,
    StepResult,
    summarise,
)

STRANGE = "$\\x$<b>&mine"
PNG = b"\x89PNG\r\n\x1a\n not really"


def cell(memory: str, learner: str, rows: list[list[float]], **changes: int) -> CellResult:
    """A run through a stream of three steps, as far as the rows go; each step has as many test images."""
    of = Cell(memory, learner, order=changes.get("order", 0), seed=changes.get("seed", 0))
    images = 0 if memory == "none" else 20
    steps = tuple(
        StepResult(
            step, tuple(row), tuple(a + 1 for a in row), float(np.mean(row)), images, 3072 * images, 40.0
        )
        for step, row in enumerate(rows)
    )
    return CellResult(of, steps, complete=len(steps) == 3)


def falling(last: float) -> list[list[float]]:
    """First accuracies 90, 80, 70, which all fall to `last` in the last step; the first step first rises to 95."""
    return [[90.0], [95.0, 80.0], [last, last, 70.0]]


def results_of(cells: list[CellResult], **changes: Any) -> ContinualResults:
    made = ContinualResults(
        stream="digits <in> 3 steps",
        num_steps=3,
        num_classes=10,
        cells=tuple(cells),
        summaries=tuple(summarise(cells, {"distilled": 600.0})),
        distil_seconds={"distilled": 600.0},
        facts={"command": "continual.py --note 'a < b'"},
        failures=(("herding-er-o1-s0", "loss became NaN & stopped"),),
        steps={0: (("0", "1", "2", "3"), ("4", "5", "6"), ("7", "8", "9"))},
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture(scope="module")
def results() -> ContinualResults:
    cells = []
    for order in (0, 1):
        shift = 2.0 * order
        cells += [
            cell("random", "er", falling(30 + shift), order=order),
            cell("herding", "er", falling(50)[: 3 - 2 * order], order=order),
            cell("distilled", "er", falling(60 + shift), order=order),
            cell(STRANGE, "er", falling(59 + 2 * shift), order=order),
            cell("random", "gdumb", falling(40 + shift), order=order),
            cell("distilled", "gdumb", falling(39 - shift), order=order),
            cell("kcenter", "gdumb", falling(40)[: 2 - order], order=order),
            cell("set", "gdumb", [], order=order),
            cell("none", "finetune", falling(shift), order=order),
            cell("none", "joint", falling(68 + shift), order=order),
        ]
    return results_of(cells)


@pytest.fixture(scope="module")
def page(results: ContinualResults) -> str:
    return render_continual(
        results, title="Replay <script>", memory_pictures={"distilled": PNG, STRANGE: PNG}
    )


@pytest.fixture(scope="module")
def outline(page: str) -> Outline:
    return Outline(page)


@pytest.fixture(scope="module")
def said(results: ContinualResults) -> list[str]:
    return [sentence.replace("\u00a0", " ") for sentence in findings(results)]


def test_every_tag_is_closed_in_order(outline):
    assert outline.open == []
    assert outline.wrong == []


def test_the_page_fetches_nothing(page, outline):
    assert len(outline.links) == 2 * 3 + 2
    assert all(link.startswith("data:image/") for link in outline.links)
    assert "http" not in page
    assert "url(" not in page
    assert "@import" not in page


def test_text_from_outside_is_escaped(page, outline):
    assert "<script" not in page
    assert "<b>&mine" not in page
    assert "Replay <script>" in outline.text
    assert STRANGE in outline.text
    assert "continual.py --note 'a < b'" in outline.text


def test_every_memory_learner_failure_and_fact_is_named(outline, results):
    for result in results.cells:
        assert result.cell.memory in outline.text
        assert result.cell.learner in outline.text
    assert ["herding-er-o1-s0", "loss became NaN & stopped"] in outline.rows
    assert ["stream", "digits <in> 3 steps"] in outline.rows


def test_every_row_of_a_table_is_as_wide_as_its_headings(page):
    for found in re.findall(r"<table>.*?</table>", page, flags=re.DOTALL):
        groups = sum(int(width) for width in re.findall(r'<th colspan="(\d+)"', found))
        rows = [row for row in Outline(found).rows if row]
        widths = {len(row) for row in (rows[1:] if groups else rows)} | ({groups} if groups else set())
        assert len(widths) == 1


def test_a_result_row_holds_means_spreads_and_costs(outline):
    row = next(row for row in outline.rows if row[:2] == ["er", "distilled"])
    average = np.mean([(60 + 60 + 70) / 3, (62 + 62 + 70) / 3])
    std = np.std([(60 + 60 + 70) / 3, (62 + 62 + 70) / 3], ddof=1)
    assert row[2:4] == ["2 of 22 × 1", f"{average:.2f}± {std:.2f}"]
    forgotten = [((95 - last) + (80 - last)) / 2 for last in (60, 62)]
    assert row[7] == f"{np.mean(forgotten):.2f}± {np.std(forgotten, ddof=1):.2f}"
    assert row[10:] == ["61.4 kB20 images", "10 min", "4 min"]


def test_incomplete_cells_are_shown_as_such(outline):
    rows = {tuple(row[:2]): row for row in outline.rows if len(row) == 13}
    assert rows["er", "herding"][2] == "1 of 21 × 1"
    assert rows["er", "herding"][3] == "56.67"
    assert rows["gdumb", "kcenter"][2:] == ["0 of 2", *["–"] * 10]
    assert ["er", "herding", "1", "0", "1 of 3"] in outline.rows
    assert ["gdumb", "set", "0", "0", "0 of 3"] in outline.rows
    assert "incomplete: 1 of 3 steps by 2 of 2 cells" in outline.text
    assert "set: no step is done" in outline.text
    assert "nan" not in outline.text
    assert "None" not in outline.text


def test_the_matrix_is_the_mean_over_complete_cells(results, outline):
    herding = [r for r in results.cells if (r.cell.memory, r.cell.learner) == ("herding", "er")]
    group = group_of(herding)
    assert group is not None
    assert (len(group.cells), group.num_steps, group.complete) == (1, 3, True)
    assert ["3", "61.0", "61.0", "70.0"] in outline.rows
    assert ["2", "95.0", "80.0", ""] in outline.rows


def test_long_streams_show_some_of_their_steps_the_first_and_last_among_them(results):
    rows = [[50.0] * (step + 1) for step in range(50)]
    long = dataclasses.replace(cell("random", "er", rows), complete=True)
    page = render_continual(
        results_of([long], num_steps=50, num_classes=50, steps={0: tuple((str(c),) for c in range(50))}),
        title="t",
    )
    heads = next(row for row in Outline(page).rows if row and row[0] == "after")
    assert len(heads) == 21
    assert (heads[1], heads[-1]) == ("1", "50")
    assert "Of 50 steps, 20 are shown" in page


def test_accuracies_with_other_statistics_stand_beside_those_shown(
    results: ContinualResults, page: str
) -> None:
    assert "as trained" not in page
    cells = [
        dataclasses.replace(
            one,
            steps=tuple(
                dataclasses.replace(step, statistics="step", other_on_seen=12.25, other_class_row=(12.25,))
                for step in one.steps
            ),
        )
        if one.cell.learner == "gdumb"
        else one
        for one in results.cells
    ]
    restated = results_of(cells)
    shown = render_continual(restated, title="Toys")
    assert "<small>as trained: 12.2" in shown
    assert ON_STATISTICS in shown
    assert ContinualResults.from_dict(json.loads(json.dumps(restated.to_dict()))) == restated


def test_gains_are_paired_by_order_and_seed(results):
    found = {(gain.learner, gain.memory): gain for gain in gains(results)}
    assert found["er", "distilled"].points == (pytest.approx(20.0), pytest.approx(0.0))
    assert found["er", "distilled"].num_ahead == 2
    assert found["er", "herding"].num_pairs == 1
    assert found["gdumb", "distilled"].points[0] == pytest.approx(np.mean([-2 / 3, -10 / 3]))
    assert found["gdumb", "distilled"].num_ahead == 0
    assert ("er", "random") not in found
    assert ("finetune", "none") not in found


def test_the_findings_name_the_best_memory_of_each_learner_and_the_references(said):
    assert len(said) == 7
    assert "distilled under er (64.0 ± 0.9 %) and random under gdumb (50.7 ± 0.9 %)" in said[0]
    assert "finetune, which keeps nothing, reaches 24.0 ± 0.9 %" in said[0]
    assert "joint, which keeps all training images, reaches 69.3 ± 0.9 %" in said[0]
    assert "5 of 20 cells are not complete" in said[0]


def test_a_ceiling_below_a_memory_and_a_training_at_chance_are_suspected(
    results: ContinualResults,
) -> None:
    assert suspicions(results) == []
    low = [[12.0], [12.0, 12.0], [12.7, 12.7, 12.7]]
    cells = [
        *(r for r in results.cells if r.cell.learner in ("er", "finetune")),
        cell("distilled", "er-ace", low, order=0),
        cell("distilled", "er-ace", falling(60), order=1),
        cell("none", "joint", falling(35)),
    ]
    ceiling, chance = (said.replace("\u00a0", " ") for said in suspicions(results_of(cells)))
    assert "joint keeps all training images, and yet ends at 46.7 %" in ceiling
    assert "below distilled under er (64.0 ± 0.9 %) and 2 others" in ceiling
    assert chance.startswith("er-ace with distilled ends near chance (10.0 %) in 1 of 2 cells")
    assert findings(results_of(cells))[0].replace("\u00a0", " ") == ceiling


@pytest.mark.parametrize(
    ("num_classes", "last", "suspected"), [(2, 70.0, False), (2, 52.0, True), (1, 99.0, False)]
)
def test_a_training_is_near_chance_only_a_little_above_it(
    num_classes: int, last: float, suspected: bool
) -> None:
    run = cell("random", "er", [[last], [last] * 2, [last] * 3])
    told = suspicions(results_of([run], num_classes=num_classes))
    assert any("near chance" in said for said in told) == suspected


def ends(*lasts: float, memory: str = "random", learner: str = "er") -> list[CellResult]:
    return [
        cell(memory, learner, [[last], [last] * 2, [last] * 3], order=order)
        for order, last in enumerate(lasts)
    ]


@pytest.mark.parametrize("lasts", [(80.0, 80.04), (78.0, 84.0)])
def test_a_ceiling_is_not_suspected_for_a_difference_within_the_spread_or_too_small_to_print(
    lasts: tuple[float, ...],
) -> None:
    joint = ends(80.0, 80.0, memory="none", learner="joint")
    assert suspicions(results_of([*joint, *ends(*lasts)])) == []
    # Of one order and seed nobody knows the spread.
    assert suspicions(results_of([*joint[:1], *ends(81.9)])) == []
    assert "it is no ceiling" in suspicions(results_of([*joint[:1], *ends(82.1)]))[0]


def test_a_ceiling_below_two_memories_names_one_other() -> None:
    cells = [*ends(60.0, memory="none", learner="joint"), *ends(80.0), *ends(70.0, memory="herding")]
    (said,) = suspicions(results_of(cells))
    assert "below random under er (80.0\u00a0%) and 1 other:" in said.replace(" %", "\u00a0%")


def test_the_table_comes_first(page: str) -> None:
    assert "<p" not in page[: page.index("<table>")]
    assert page.index("<table>") < page.index('class="summary"')


def test_classes_are_named_where_their_accuracy_stands(results: ContinualResults) -> None:
    named = [
        dataclasses.replace(
            result,
            steps=tuple(
                dataclasses.replace(s, by_class={"<cat>": s.class_row[0], "dog": 99.0 - result.cell.order})
                for s in result.steps
            ),
        )
        for result in results.cells
    ]
    steps = {0: (("<cat>",), ("dog",), ("cow", "pig", "hen", "emu"))}
    shown = results_of(named, steps=steps, class_images={"<cat>": 7, "dog": 9})
    outline = Outline(render_continual(shown, title="t"))
    heads = [row for row in outline.rows if row and row[0] == "class"]
    assert heads[0][:6] == ["class", "images", "random", "herding", "distilled", STRANGE]
    (cat,) = (row for row in outline.rows if row[0] == "<cat>")
    assert cat[:5] == ["<cat>", "7", "31.0", "50.0", "61.0"]
    (dog,) = (row for row in outline.rows if row[0] == "dog")
    assert dog[:5] == ["dog", "9", "98.5", "99.0", "98.5"]
    assert ["", "<cat>", "dog", "cowpig+ 2"] in outline.rows
    assert ["0", "<cat>", "dog", "cow, pig, hen, emu"] in outline.rows


def test_the_findings_tell_ranges_that_overlap_from_those_that_do_not(results, said):
    assert "overlap under er (second is $" in said[1]
    assert "where the order may be chance" in said[1]
    apart = [r for r in results.cells if r.cell.memory in ("random", "distilled") and r.cell.learner == "er"]
    assert "do not overlap under er (second is random" in findings(results_of(apart))[1]


def test_the_findings_say_when_a_single_cell_knows_nothing_of_chance(results):
    single = [r for r in results.cells if r.cell.order == 0]
    assert "are unknown under er" in findings(results_of(single))[1]


def test_the_findings_compare_distilled_with_random_in_points_either_way(said):
    assert "20.0 ± 0.0 points more under er (ahead in 2 of 2 cells)" in said[2]
    assert "2.0 ± 1.9 points less under gdumb (ahead in 0 of 2 cells)" in said[2]


def test_the_findings_have_forgetting_bytes_and_seconds(said):
    assert "26.5 ± 1.4 points by er with distilled" in said[3]
    assert "finetune" in said[3]
    assert "distilled holds 20 images in 61.4 kB and random holds 20 images in 61.4 kB" in said[-1]
    assert said[-1].endswith("making distilled took 10 min.")


def test_memories_that_name_their_mode_are_distilled_ones():
    cells = [
        cell(memory, "er", falling(last), order=order)
        for order in (0, 1)
        for memory, last in (("random", 30), ("distilled-dm", 50), ("distilled-spatial", 20))
    ]
    seconds = {"distilled-dm": 60.0}
    made = results_of(cells, summaries=tuple(summarise(cells, seconds)), distil_seconds=seconds)
    compared, cost = (findings(made)[place].replace("\u00a0", " ") for place in (2, -1))
    assert "distilled-dm reaches 13.3 ± 0.0 points more under er (ahead in 2 of 2 cells)" in compared
    assert "distilled-spatial reaches 6.7 ± 0.0 points less under er (ahead in 0 of 2 cells)" in compared
    assert "distilled-dm holds 20 images in 61.4 kB, distilled-spatial holds 20 images" in cost
    assert "making distilled-dm took 60 s" in cost
    assert "how long it took to make distilled-spatial is unknown" in cost


def test_the_page_names_the_bytes_of_a_whitening_and_is_silent_without_one(results, page):
    said = "the whitening, 75.5 MB (two 3,072 x 3,072 float32 matrices), not counted"
    whitened = dataclasses.replace(results, whitening_bytes=2 * 4 * 3072**2)
    assert said in render_continual(whitened, title="t")
    assert "the whitening" not in page


def test_the_page_names_the_images_that_were_scored(results, page):
    assert "Accuracies are on test images" in page
    assert "on the test images of step j" in page
    told = render_continual(dataclasses.replace(results, score_on="validation"), title="t")
    assert "Accuracies are on validation images" in told
    assert "on the validation images of step j" in told
    assert "test images" not in told


def test_a_distillation_of_unknown_time_is_said_to_be_so(results):
    assert "is unknown" in findings(dataclasses.replace(results, distil_seconds={}))[-1]


def test_no_complete_cell_still_becomes_a_page():
    outline = Outline(render_continual(results_of([cell("random", "er", [[50.0]])]), title="t"))
    assert outline.wrong == []
    assert "None of 1 cells is complete" in outline.text
    assert len(outline.links) == 2
    assert "Compared with random" not in outline.text


def test_no_cells_at_all_still_become_a_page():
    outline = Outline(render_continual(results_of([], failures=(), facts={}), title="t"))
    assert outline.wrong == []
    assert outline.links == []
    assert "Failures" not in outline.text


def test_references_alone_still_become_a_page(results):
    alone = [r for r in results.cells if r.cell.learner in ("finetune", "joint")]
    outline = Outline(render_continual(results_of(alone), title="t"))
    assert outline.wrong == []
    assert "No learner with a memory has a complete cell" in outline.text


def test_a_stream_of_one_step_has_no_forgetting():
    one = dataclasses.replace(cell("random", "er", [[50.0]]), complete=True)
    outline = Outline(render_continual(results_of([one], num_steps=1, steps={0: (("0",),)}), title="t"))
    row = next(row for row in outline.rows if row[:2] == ["er", "random"])
    assert row[7:10] == ["–", "–", "–"]
    assert len(outline.links) == 4


def test_a_memory_picture_is_embedded_as_it_is(outline):
    assert outline.links[-1] == "data:image/png;base64," + base64.b64encode(PNG).decode()


def test_classes_seen_follow_the_cut_of_the_stream(results):
    assert classes_seen(results) == [4, 7, 10]
    large_first = dataclasses.replace(results, steps={1993: (("a", "b", "c"), ("d",), ("e",))})
    assert classes_seen(large_first) == [3, 4, 5]


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (999_999, "1 MB"), (614_400, "614 kB")],
)
def test_bytes_come_in_a_decimal_unit_that_suits_them(num_bytes, text):
    assert size(num_bytes) == text


def test_each_learner_has_a_panel_with_a_line_a_memory_and_the_references_in_all(results):
    figure = plots.accuracy_figure(results)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["er", "gdumb"]
    assert [len(axes.lines) for axes in figure.axes] == [6, 5]
    assert {line.get_linestyle() for line in figure.axes[0].lines} == {"-", "--", ":"}


def test_an_incomplete_memory_is_a_thin_line_that_ends_early(results):
    thin = [line for line in plots.accuracy_figure(results).axes[1].lines if line.get_linewidth() < 1]
    assert len(thin) == 1
    assert list(np.asarray(thin[0].get_xdata())) == [4]


def test_forgetting_has_two_bars_a_memory_and_a_panel_for_the_references(results):
    figure = plots.forgetting_figure(results)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["er", "gdumb", "without replay"]
    assert [len(axes.patches) for axes in figure.axes] == [8, 4, 4]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


def test_sizes_have_a_log_axis_and_memories_of_one_size_do_not_hide_another(results):
    axes = plots.size_figure(results).axes[0]
    assert axes.get_xscale() == "log"
    bars = [bar for bar in axes.containers if isinstance(bar, ErrorbarContainer)]
    assert len({float(np.asarray(bar.lines[0].get_xdata())[0]) for bar in bars}) == 4


def test_a_memory_of_no_bytes_stands_at_the_left_edge(results):
    cells = [*results.cells, cell("none", "er", falling(1))]
    axes = plots.size_figure(results_of(cells)).axes[0]
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks[0] == "0 B"
    left, _ = axes.get_xlim()
    assert left > 0


@pytest.fixture(scope="module")
def far_apart() -> ContinualResults:
    """Learners at opposite ends of the scale, the lower one first, and a spread that leads beyond 100 %."""
    cells = []
    for order in (0, 1):
        low, high = falling(15), [[99.0], [99.0, 60.0 + 39 * order], [99.0 * order, 99.0, 99.0]]
        cells += [
            cell("random", "gdumb", [[value / 10 for value in row] for row in low], order=order),
            cell("random", "er", high, order=order),
            cell("none", "finetune", low, order=order),
        ]
    return results_of(cells, failures=())


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("draw", [plots.accuracy_figure, plots.size_figure, plots.forgetting_figure])
def test_every_panel_shows_all_that_is_drawn_in_it(
    far_apart: ContinualResults, draw: Callable[..., Figure], narrow: bool
) -> None:
    figure = draw(far_apart, narrow=narrow)
    for axes in figure.axes:
        (left, right), (low, high) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
        x, y = drawn_points(axes)
        assert len(x) > 0
        assert left <= x.min()
        assert x.max() <= right
        assert low <= y.min()
        assert y.max() <= high


@pytest.mark.parametrize("draw", [plots.accuracy_figure, plots.size_figure])
def test_no_accuracy_is_drawn_below_0_or_above_100_percent(
    far_apart: ContinualResults, draw: Callable[..., Figure]
) -> None:
    for axes in draw(far_apart).axes:
        _, y = drawn_points(axes)
        assert y.min() >= 0
        assert y.max() <= 100


@pytest.mark.parametrize("draw", [plots.accuracy_figure, plots.size_figure, plots.forgetting_figure])
def test_narrow_figures_have_their_panels_in_one_column(
    results: ContinualResults, draw: Callable[..., Figure]
) -> None:
    figure = draw(results, narrow=True)
    columns = {axes.get_subplotspec().get_gridspec().ncols for axes in figure.axes}
    assert columns == {1}
    assert len(figure.axes) == len(draw(results).axes)


def test_the_same_results_become_the_same_page(results, page):
    again = render_continual(
        results, title="Replay <script>", memory_pictures={"distilled": PNG, STRANGE: PNG}
    )
    assert again == page


def test_the_memory_to_take_is_the_cheapest_of_those_as_good_as_the_best():
    def told(
        *distilled: float, name: str = "distilled", seconds: float | None = 60.0, base: float = 50
    ) -> list[str]:
        lasts = {"random": [base - 20] * 2, "herding": [base] * 2, name: distilled}
        cells = [
            cell(memory, "er", falling(last), order=order)
            for memory, by_order in lasts.items()
            for order, last in enumerate(by_order)
        ]
        spent = {name: seconds} if seconds else {}
        made = results_of(cells, summaries=tuple(summarise(cells, spent)), distil_seconds=spent)
        said = recommendations(made)
        assert set(said) <= set(findings(made))
        return [one.replace("\u00a0", " ") for one in said]

    (as_good,) = told(54, 49)
    assert re.match(r"Under er take herding \(.*, 61.4 kB\): distilled \(.*, 60 s to make\) is not", as_good)
    (better,) = told(60, 56)
    assert re.match(r"Under er take distilled \(.*\): herding \(.*\) is .* points below on the same", better)
    assert told(20, 21)[0].startswith("Under er take herding")
    # What nobody knows the cost of is not taken for free.
    assert told(54, 49, name="set", seconds=None)[0].startswith("Under er take herding")
    # Of single cells nothing is said, and where all is near chance neither.
    single = [cell(memory, "er", falling(50), order=0) for memory in ("random", "herding")]
    assert recommendations(results_of(single)) == []
