"""Loss curves of units as points for MLflow: one of each class, and their sum once all have come to the end.

Of many classes the curves are no metrics but a table, an artifact: a page of a thousand metrics shows nothing.
"""

# T iterations, G classes of a unit

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from atom.methods.method import Unit
from pipelines.output.checkpoints import Checkpoints

TOTAL = "loss/total"

LOSS_POINTS = 200
"""Values of each loss curve that MLflow gets; the whole curve is in the checkpoints."""

MOST_CURVES = 50
"""Classes that have a metric each; of more there is a table. Chosen: what fits a page of MLflow's."""
TABLE = "loss_per_class.parquet"


def are_many(units: Sequence[Unit]) -> bool:
    """Whether the classes of these units have too many curves for a metric each."""
    return sum(map(len, units)) > MOST_CURVES


def write_table(losses: Mapping[Unit, np.ndarray], total: int, folder: Path) -> None:
    """The curves of the classes of these units as a parquet file: class, iteration, loss; points as of metrics."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shown_T = [t for t in range(total) if _shown(t, total)]
    columns = [
        (class_id, curve[:, column])
        for unit, curve in losses.items()
        if curve.shape[1] == len(unit)
        for column, class_id in enumerate(unit)
    ]
    table = {
        "class": np.repeat(np.array([class_id for class_id, _ in columns], np.int32), len(shown_T)),
        "iteration": np.tile(np.array(shown_T, np.int32), len(columns)),
        "loss": np.concatenate([np.zeros(0, np.float32), *(curve[shown_T] for _, curve in columns)]),
    }
    pq.write_table(pa.table(table), folder / TABLE)


def stored_curves(
    checkpoints: Checkpoints, units: Sequence[Unit], total: int
) -> list[tuple[str, float, int]]:
    """Points of the loss curves of what is stored, for a run that lacks them; `total` iterations make a whole one."""
    losses = {unit: state.losses for unit, state in checkpoints.load_all(units).items()}
    known = {"joint": len(units) == 1, "many": are_many(units)}
    points = [p for unit, curve in losses.items() for p in loss_points(unit, curve, 0, total, **known)]
    whole = (
        bool(units) and len(losses) == len(units) and all(len(curve) == total for curve in losses.values())
    )
    return points + (total_points(losses) if whole else [])


def total_points(losses: Mapping[Unit, np.ndarray]) -> list[tuple[str, float, int]]:
    """The method's loss: the sum over classes, once all units have come to the end."""
    if any(_names(unit, curve, joint=len(losses) == 1) == [TOTAL] for unit, curve in losses.items()):
        return []  # told on the way
    total_T = np.concatenate(list(losses.values()), axis=1).sum(axis=1)
    return [(TOTAL, float(value), t) for t, value in enumerate(total_T) if _shown(t, len(total_T))]


def _shown(iteration: int, total: int) -> bool:
    return iteration % max(1, total // LOSS_POINTS) == 0 or iteration == total - 1


def _names(unit: Unit, losses_TG: np.ndarray, *, joint: bool, many: bool = False) -> list[str]:
    """Of the curves of a unit: one a class, or where it has one loss for all classes, the total one."""
    if losses_TG.shape[1] == len(unit):
        return [] if many else [f"loss/class_{class_id:02d}" for class_id in unit]
    return [TOTAL] if joint else []


def loss_points(
    unit: Unit, losses_TG: np.ndarray, begin: int, total: int, *, joint: bool, many: bool
) -> list[tuple[str, float, int]]:
    """Points of the chunk that began at iteration `begin`, thinned alike for every class.

    Args:
        unit, losses_TG: with all its losses so far.
        begin, total: iterations.
        joint: whether it is the only unit.
        many: whether classes have no metrics, see `are_many`.
    """
    return [
        (name, float(losses_TG[t, column]), t)
        for t in range(begin, len(losses_TG))
        if _shown(t, total)
        for column, name in enumerate(_names(unit, losses_TG, joint=joint, many=many))
        if np.isfinite(losses_TG[t, column])
    ]


__all__ = ["are_many", "loss_points", "stored_curves", "total_points", "write_table"]
