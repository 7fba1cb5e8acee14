"""Whole-set accuracies out of a table of somebody's own, or an earlier run's."""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atom.errors import ConfigError
from atom.nets import parse_architecture

if TYPE_CHECKING:
    from apps.nas.table import Row


def read_reference(path: Path) -> dict[str, tuple[float, ...]]:
    """Accuracies in percent by network, one for each seed, in the order of the seeds.

    The table is .csv or .parquet with the columns `network` and `accuracy`, and `seed` where a network has several
    rows. Architecture strings of NAS-Bench-201 stand for the networks of --space nasbench201. The results table of an
    earlier run is one too: its rows of the proxy "whole" count, by test accuracy.

    Raises:
        ConfigError: it cannot be read, lacks a column, or holds something that is no accuracy.
    """
    rows = list(_rows(path))
    if not rows:
        raise ConfigError(f"--reference {path}: holds no rows; expected one for each network and seed.")
    if {"proxy", "test_accuracy"} <= set(rows[0]):
        rows = [{**row, "accuracy": row["test_accuracy"]} for row in rows if row["proxy"] == "whole"]
        # A training that failed has none: a null in parquet, nothing between two commas.
        rows = [row for row in rows if row["accuracy"] not in (None, "")]
        if not rows:
            raise ConfigError(
                f"--reference {path}: has no rows of the proxy 'whole'; run it with --reference whole."
            )
    missing = {"network", "accuracy"} - set(rows[0])
    if missing:
        raise ConfigError(
            f"--reference {path}: has no column {' and '.join(sorted(missing))}; its columns are"
            f" {', '.join(map(str, rows[0]))}."
        )
    found: dict[str, dict[str, float]] = {}
    for place, row in enumerate(rows):
        seeds = found.setdefault(_own_name(str(row["network"])), {})
        given = row.get("seed")
        seed = str(len(seeds) if given in (None, "") else given)
        if seed in seeds:
            raise ConfigError(
                f"--reference {path}: network {row['network']!r} has seed {seed} twice; give one row for each"
                " (the results of a run hold rows of earlier settings too: pass its reference.csv)."
            )
        seeds[seed] = _percent(row["accuracy"], f"--reference {path}, row {place + 1}")
    highest = max(max(seeds.values()) for seeds in found.values())
    if 0 < highest <= 1:
        raise ConfigError(
            f"--reference {path}: no accuracy is above {highest:g}, so they look like fractions; expected percent, such"
            " as 87.04 for 0.8704: multiply the column by 100."
        )
    return {
        network: tuple(seeds[seed] for seed in sorted(seeds, key=_by_number))
        for network, seeds in found.items()
    }


def write_reference(rows: "Iterable[Row]") -> bytes:
    """The whole-set accuracies of a run as a table that `read_reference` takes; rows of one setting, none failed."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["network", "seed", "accuracy", "validation_accuracy"])
    table.writerows([row.network, row.seed, row.test_accuracy, row.score] for row in rows)
    return text.getvalue().encode()


def _rows(path: Path) -> Iterable[Mapping[str, Any]]:
    try:
        if path.suffix == ".csv":
            # Spreadsheets put a byte-order mark before the first column's name.
            with path.open(newline="", encoding="utf-8-sig") as file:
                yield from csv.DictReader(file)
        elif path.suffix == ".parquet":
            import pyarrow.parquet as pq

            yield from pq.read_table(path).to_pylist()
        else:
            raise ConfigError(
                f"--reference {path}: expected none, whole, or a table that ends in .csv or .parquet."
            )
    except (OSError, ValueError, csv.Error) as error:
        problem = " ".join(str(error).split())[:200]
        raise ConfigError(f"--reference {path}: cannot be read ({problem}).") from None


def _own_name(network: str) -> str:
    try:
        return parse_architecture(network).name
    except ConfigError:
        return network


def _by_number(seed: str) -> tuple[float, str]:
    try:
        return float(seed), seed
    except ValueError:
        return math.inf, seed


def _percent(value: object, where: str) -> float:
    try:
        number = float(value)  # pyrefly: ignore
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 100:
        raise ConfigError(f"{where}: accuracy {value!r}; expected a number from 0 to 100, in percent.")
    return number
