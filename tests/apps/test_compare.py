"""Methods side by side: paired differences, published numbers, sentences, tables, and the page."""

import json
import math
import re
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_outline import Outline, drawn_points
from scipy import stats
from tiny_sets import some_set

from apps.compare.findings import difference_of, findings, metrics, own_trainings, size_of, table_rows
from apps.compare.pairing import paired
from apps.compare.pictures import MOST_IMAGES, strips
from apps.compare.plots import cost_figure
from apps.compare.published import Published, published
from apps.compare.report import render_comparison
from apps.compare.results import Compared, Cost, Entry
from pipelines.workers.remote import network_slug

STRANGE = "my <b>&net"
RANDOM = Entry("random", 1, {"convnet": {0: 60.0, 1: 70.0, 2: 65.0}}, Cost(0.0, stored_bytes=640), images=10)


def row(method: str, values: list[float], ipc: int = 1, **changes: Any) -> Entry:
    cost = Cost(100.0, 40.0, 5.0, 2560, 500_000_000)
    accuracies = {"convnet": dict(enumerate(values))} if values else {}
    return Entry(method, ipc, accuracies, **{"cost": cost, "images": 10 * ipc, **changes})


def compared(*entries: Entry, networks: tuple[str, ...] = ("convnet",)) -> Compared:
    return Compared("digits", networks, [RANDOM, *entries], {"command": "atom-compare --note 'a < b'"})


@settings(deadline=None)  # the first example imports SciPy
@given(st.lists(st.tuples(*[st.floats(0, 100)] * 2), min_size=2, max_size=8))
def test_interval_is_that_of_students_paired_test(pairs: list[tuple[float, float]]) -> None:
    first, second = (dict(enumerate(values)) for values in zip(*pairs, strict=True))
    one = paired(first, second)
    assert one is not None
    assert one.n == len(pairs)
    assert one.ahead == sum(a > b for a, b in pairs)
    if one.std is None or one.std < 1e-6:
        return
    expected = stats.ttest_rel(*zip(*pairs, strict=True)).confidence_interval(0.95)
    assert (one.low, one.high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-6)
    assert one.clear == (stats.ttest_rel(*zip(*pairs, strict=True)).pvalue < 0.05)


def test_pairs_are_of_equal_seed_and_a_single_one_has_no_interval() -> None:
    one = paired({0: 80.0, 7: 90.0}, {7: 85.0, 3: 10.0})
    assert one is not None
    assert (one.mean, one.std, one.low, one.n, one.clear) == (5.0, None, None, 1, False)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_pairs_that_differ_by_the_same_have_no_interval() -> None:
    one = paired({0: 10.7, 1: 11.3, 2: 50.0}, {0: 10.1, 1: 10.7, 2: 49.4})
    assert one is not None
    assert (one.mean, one.low, one.high, one.clear) == (pytest.approx(0.6), None, None, False)
    assert difference_of(one) == "+0.6"
    assert (
        "+1.0 points beside random images in each of 3 pairs of trainings."
        in findings(compared(row("atom", [61.0, 71.0, 66.0])))[0]
    )


def test_a_row_that_lacks_trainings_is_not_the_best() -> None:
    """The one that did not diverge says nothing of those that did."""
    whole = compared(row("mtt", [99.0], reason="2 trainings failed"), row("atom", [80.0, 86.0, 84.0]))
    best = whole.best(1, "convnet")
    assert best is not None
    assert best.method == "atom"
    assert whole.best(1, "vgg11") is None


def test_random_images_with_a_teachers_labels_are_a_rival_of_soft_labels_alone() -> None:
    taught = row("random + teacher labels", [90.0, 91.0, 92.0])
    hard, soft = row("dm", [80.0, 81.0, 82.0]), row("datm", [80.0, 81.0, 82.0], soft_labels=True)
    whole = compared(taught, hard, soft)
    assert whole.lost(hard) is None
    assert "Worse than random images with the same teacher's labels" in (whole.lost(soft) or "")


def test_published_numbers_stand_beside_the_same_setting_only() -> None:
    asked: dict[str, Any] = {
        "dataset": "cifar10", "ipc": 10, "factor": 1, "network": "convnet", "judge": "convnet"
    }  # fmt: skip
    known = published("dsa", **asked)
    assert known is not None
    assert (known.mean, known.std) == (52.1, 0.5)
    assert "DC/DSA" in known.source
    others = [
        {"dataset": "digits"}, {"ipc": 2}, {"factor": 2}, {"network": "convnet-w32"}, {"judge": "vgg11"}
    ]  # fmt: skip
    for other in others:
        assert published("dsa", **(asked | other)) is None
    assert published("atom", **asked) is None
    woof = published("dm", **(asked | {"dataset": "imagewoof"}))
    assert woof == Published(31.4, 0.5, "DataDAM's poster, Table 2")
    assert published("dm", **(asked | {"dataset": "imagewoof", "ipc": 50})) is None


def test_sentences_name_the_best_and_those_that_random_images_beat() -> None:
    said = findings(
        compared(
            row("atom", [80.0, 86.0, 84.0]), row("dsa", [30.0, 29.0, 31.0]), row("mtt", [], reason="no.")
        )
    )
    assert said[0].startswith("atom at ipc 1 is best on convnet: 83.3 ± 3.1 %, +18.3 [")
    assert "3 pairs of trainings of equal seed" in said[0]
    assert said[1].startswith("dsa at ipc 1: Worse than random images for convnet (30.0 ± 1.0 against 65.0")
    assert said[2:] == ["mtt at ipc 1: no."]


def test_where_random_images_are_best_the_sentence_says_so() -> None:
    told = findings(compared(row("dsa", [30.0, 29.0, 31.0])))[0]
    assert (
        told == "random at ipc 1 is best on convnet: 65.0 ± 5.0 %, so nothing that was distilled is better."
    )


def test_rows_of_a_table_have_accuracy_difference_and_cost() -> None:
    heads, rows = table_rows(compared(row("atom", [80.0, 86.0, 84.0]), row("dm", [50.0], ipc=10)), 1)
    assert heads == ["method", "images", "convnet", "- random", "distil", "judge", "memory", "bytes"]
    assert rows[0] == ["random", "10", "65.0 ± 5.0", "–", "0 s", "–", "–", "640 B"]
    difference = paired({0: 80.0, 1: 86.0, 2: 84.0}, RANDOM.accuracies["convnet"])
    assert difference is not None
    assert rows[1][3] == f"+18.3 [{difference.low:.1f}, {difference.high:.1f}]"
    assert rows[1][4:] == ["100 s", "5 s", "500 MB", "2.56 kB"]
    assert len(rows) == 2


def test_numbers_for_mlflow_leave_out_what_is_not_there() -> None:
    whole = compared(row("mtt", [], reason="refused"), row("atom", [80.0]))
    assert set(metrics(whole, whole.entries[1], str)) == {
        "time/distill_worker_s", "time/evaluate_worker_s", "cost/stored_bytes", "cost/peak_bytes"
    }  # fmt: skip
    numbers = metrics(whole, whole.entries[2], str)
    assert (numbers["eval/convnet/acc_mean"], numbers["eval/convnet/minus_random"]) == (80.0, 20.0)
    assert "eval/convnet/acc_std" not in numbers


def test_columns_of_reestimated_statistics_have_names_that_mlflow_takes() -> None:
    column = "convnet-batch (100 real)"
    random, atom = (Entry(name, 1, {column: {0: 50.0, 1: 60.0}}) for name in ("random", "atom"))
    for name in metrics(Compared("digits", [column], [random, atom]), atom, network_slug):
        assert re.fullmatch(r"[\w.\-/ ]+", name), "see MLflow's rules for names of metrics"


def test_json_holds_every_training_and_every_difference() -> None:
    known = {"convnet": Published(50.0, 1.0, "a paper")}
    whole = compared(row("atom", [80.0, 86.0, 84.0], published=known), row("dm", [], reason="refused"))
    found = json.loads(json.dumps(whole.to_dict()))
    judged = found["rows"][1]["networks"]["convnet"]
    assert judged["by_seed"] == {"0": 80.0, "1": 86.0, "2": 84.0}
    assert judged["minus_random"]["mean"] == pytest.approx(fmean([20, 16, 19]))
    assert "minus_best" not in judged
    assert judged["published"]["source"] == "a paper"
    assert found["rows"][0]["networks"]["convnet"]["minus_best"]["mean"] == pytest.approx(-18.333, abs=1e-3)
    assert found["rows"][2]["reason"] == "refused"
    assert found["rows"][1]["cost"]["peak_bytes"] == 500_000_000


def test_page_is_whole_shows_every_row_and_fetches_nothing() -> None:
    distilled = some_set(images=3)
    entries = [
        row(STRANGE, [80.0, 86.0, 84.0], published={"convnet": Published(50.0, 1.0, "a <paper>")}),
        row("mtt", [], reason="the loss is not finite & stays so"),
        row("dm", [90.0, 91.0, 92.0], ipc=10),
    ]
    pictures = {1: [strips(distilled, STRANGE), strips(distilled, "random")]}
    page = render_comparison(compared(*entries), title="digits <1>", pictures=pictures)
    outline = Outline(page)
    assert (outline.open, outline.wrong) == ([], [])
    assert all(link.startswith("data:image/") for link in outline.links)
    assert {STRANGE, "mtt", "dm", "random"} <= {cells[0] for cells in outline.rows if cells}
    for text in (
        "One image a class",
        "10 images a class",
        "a <paper>",
        "not finite & stays so",
        "50.0 ± 1.0",
    ):
        assert text in outline.text
    assert page == render_comparison(compared(*entries), title="digits <1>", pictures=pictures)


def test_page_without_published_numbers_says_so() -> None:
    assert "no published number for this setting" in render_comparison(compared(), title="t")


@pytest.mark.parametrize("narrow", [False, True])
def test_points_and_lines_lie_within_their_panels(narrow: bool) -> None:
    entries = [row("atom", [80.0, 86.0, 84.0]), row("$x$", [20.0, 30.0, 10.0], cost=Cost(1e5))]
    figure = cost_figure(compared(*entries, row("dm", [1.0, 2.0], ipc=50)), narrow=narrow)
    figure.draw_without_rendering()
    assert len(figure.axes) == 2
    for axes in figure.axes:
        x, y = drawn_points(axes)
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        assert np.all((x >= left) & (x <= right))
        assert np.all((y >= low) & (y <= high))


def test_a_row_of_unknown_cost_is_no_line_and_the_caption_names_it() -> None:
    unknown, refused = row("m<t>t", [70.0, 71.0], cost=Cost()), Entry("dc", 1, reason="refused")
    whole = compared(row("atom", [80.0]), unknown, refused)
    (axes,) = cost_figure(whole).axes
    assert [text.get_text() for text in axes.texts] == ["random"]
    assert "Left out, cost unknown: m<t>t at ipc 1." in Outline(render_comparison(whole, title="t")).text


def test_names_of_many_lines_stand_within_the_panel_each_at_a_place_of_its_own() -> None:
    figure = cost_figure(compared(*(row(f"r{n}", [65.0], cost=Cost(0.0)) for n in range(9))))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 10
    assert all(box.x1 < axes.bbox.x1 for box in boxes)
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])


def test_strips_show_the_first_images_of_each_class() -> None:
    one = strips(some_set(images=3), "atom")
    assert len(one.images) == len(one.class_names) == 2
    assert (one.width, one.height) == (4, 5)
    many = strips(some_set(images=MOST_IMAGES + 5), "atom")
    assert len(many.images[0]) < 10_000
    assert all(image.startswith(b"\x89PNG") for image in many.images)


def test_sizes_have_the_unit_that_suits_them() -> None:
    assert [size_of(n) for n in (None, 0, 999, 1000, 2_500_000, 7 * 10**9)] == [
        "–", "0 B", "999 B", "1 kB", "2.5 MB", "7 GB"
    ]  # fmt: skip


def test_a_training_of_its_own_is_told() -> None:
    rows = compared(row("mtt (own training)", [80.0, 90.0], training={"lr_net": 0.02 + 1e-9}))
    said = "mtt (own training) at ipc 1: trained by what the set carries, lr_net=0.02."
    assert own_trainings(rows) == [said]
    assert said not in findings(rows)
    assert said in Outline(render_comparison(rows, title="x")).text
    assert math.isclose(RANDOM.std("convnet") or 0.0, 5.0)
