import numpy as np

from apps.nas.verdict import Estimate, ProxyScores, Verdict, difference_table, judge, table
from apps.nas.verdict_table import estimate_text, p_text, seconds_text


def judged(ks=(1, 5, 10)) -> Verdict:
    rng = np.random.default_rng(0)
    quality = {f"net{place:02d}": value for place, value in enumerate(rng.normal(70, 5, size=30))}
    truth = {name: tuple(value + rng.normal(size=3)) for name, value in quality.items()}
    good = {name: tuple(value / 2 + rng.normal(size=2)) for name, value in quality.items()}
    sizes = {name: (float(rng.integers(4)),) for name in quality}
    proxies = [
        ProxyScores("atom", good, images=50_000, train_seconds=5168.9, prepare_seconds=30.0),
        ProxyScores("parameters", sizes, images=0, train_seconds=0.1),
    ]
    return judge(proxies, truth, reference_name="whole set", reference_seconds=9000.0, resamples=199, ks=ks)


def test_the_table_shows_values_intervals_and_cost():
    verdict = judged()
    columns, rows = table(verdict)
    assert columns[:7] == ["proxy", "n", "images", "train s", "prepare s", "τ-b all", "ρ all"]
    assert columns[7:] == ["τ-b top 20 %", "ρ top 20 %", "regret@1", "regret@5", "P@10"]
    assert {len(row) for row in rows} == {len(columns)}
    assert rows[0][:5] == ["atom", "30", "50,000", "5,169", "30"]
    kendall = verdict.proxies[0].agreement[0].kendall
    assert rows[0][5] == f"{kendall.value:.2f} [{kendall.low:.2f}, {kendall.high:.2f}]"
    columns, rows = table(judged(ks=(1,)))
    assert rows[0][-2:] == ["–", "–"]


def test_the_difference_table_has_one_row_a_pair():
    verdict = judged()
    columns, rows = difference_table(verdict)
    assert [row[:2] for row in rows] == [["atom − parameters", "30"]]
    assert len(rows[0]) == len(columns) == 10
    assert rows[0][2][0] in "+-"
    assert rows[0][3] == p_text(verdict.differences[0].p)


def test_numbers_are_short_and_undefined_ones_are_dashes():
    assert estimate_text(Estimate(-0.001, -0.456, 0.5)) == "0.00 [-0.46, 0.50]"
    assert estimate_text(Estimate(0.25, None, None)) == "0.25"
    assert estimate_text(Estimate(None, None, None)) == "–"
    assert [p_text(p) for p in (None, 0.0002, 0.0123, 0.5)] == ["–", "<0.001", "0.012", "0.50"]
    assert [seconds_text(s) for s in (None, 0.04, 9.96, 12.4, 5168.9)] == ["–", "0.0", "10.0", "12", "5,169"]
