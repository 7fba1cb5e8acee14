"""Summaries of cells against numbers worked out by hand, and the way of results through JSON."""

import json
from collections.abc import Sequence

import numpy as np
import pytest

from apps.continual.results import Cell, CellResult, ContinualResults, StepResult, summarise
from atom.errors import ArtifactError


def made_result(rows: Sequence[Sequence[float]], *, seed: int = 0, complete: bool = True) -> CellResult:
    steps = [
        StepResult(
            i,
            tuple(row),
            tuple(100.0 for _ in row),
            float(np.mean(row)),
            10,
            640,
            2.0,
            by_class={"cat": row[0]},
        )
        for i, row in enumerate(rows)
    ]
    return CellResult(Cell("random", "er", 0, seed), tuple(steps), complete)


def test_summaries_count_complete_cells() -> None:
    results = [
        made_result([[80.0], [60.0, 90.0]]),
        made_result([[90.0], [60.0, 70.0]], seed=1),
        made_result([[50.0]], seed=2, complete=False),
    ]
    row = summarise(results, {"random": 7.0})[0]
    assert (row.n, row.num_orders, row.num_seeds, row.distil_seconds) == (2, 1, 2, 7.0)
    assert row.final_average == (70.0, pytest.approx(50**0.5))
    assert row.average_incremental[0] == pytest.approx((80 + 75 + 90 + 65) / 4)
    assert row.forgetting_first[0] == row.forgetting_max[0] == 25.0
    assert row.backward_transfer[0] == -25.0
    assert row.train_seconds == 8.0


def test_results_survive_json() -> None:
    cells = (made_result([[80.0], [60.0, 90.0]]), made_result([[50.0]], seed=1, complete=False))
    results = ContinualResults(
        *(
            "digits",
            2,
            4,
            cells,
            tuple(summarise(cells, {"random": 1.0})),
            {"random": 1.0},
            {"a": "b"},
            (("c", "why"),),
        ),
        score_on="validation",
        steps={1993: (("cat", "dog"), ("cow", "pig"))},
        class_images={"cat": 5, "dog": 6, "cow": 7, "pig": 8},
        whitening_bytes=75_497_472,
    )
    saved = json.loads(json.dumps(results.to_dict()))
    assert ContinualResults.from_dict(saved) == results
    del saved["score_on"], saved["whitening_bytes"]  # as an earlier version wrote them
    earlier = ContinualResults.from_dict(saved)
    assert (earlier.score_on, earlier.whitening_bytes) == ("test", 0)
    for row in saved["summaries"]:
        del row["forgetting"]
    assert ContinualResults.from_dict(saved).summaries == results.summaries
    del saved["steps"]
    with pytest.raises(ArtifactError, match="results of a stream: 'steps' is missing; expected"):
        ContinualResults.from_dict(saved)
