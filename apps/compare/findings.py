"""What a comparison says, in sentences and in the cells of its tables."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from apps.compare.pairing import LEVEL, Paired
from apps.compare.results import RANDOM, Compared, Entry
from apps.page import duration, number
from atom.rivals import accuracy_text, training_text


def accuracy_of(entry: Entry, network: str) -> str:
    """Mean and spread for a table; "–" where there is no training."""
    mean = entry.mean(network)
    if mean is None:
        return "–"
    return accuracy_text({"mean": mean, "std": entry.std(network), "n": len(entry.accuracies[network])})


def difference_of(one: Paired | None) -> str:
    """A paired difference with its sign, and the interval in brackets."""
    if one is None:
        return "–"
    bounds = "" if one.low is None or one.high is None else f" [{number(one.low, 1)}, {number(one.high, 1)}]"
    return signed(one.mean) + bounds


def signed(points: float) -> str:
    """With one decimal and its sign; a true minus."""
    text = number(points, 1)
    return text if text.startswith("−") or float(text) == 0 else f"+{text}"


def size_of(count: int | None) -> str:
    """Bytes in the unit that suits them; "–" for None."""
    if count is None:
        return "–"
    number, unit = next(
        (count / scale, unit) for unit, scale in _UNITS if count < 1000 * scale or unit == "GB"
    )
    return f"{number:.3g} {unit}"


_UNITS = (("B", 1), ("kB", 10**3), ("MB", 10**6), ("GB", 10**9))


def findings(compared: Compared) -> list[str]:
    """The best of each table and network, then the rows that random images beat, then those without an accuracy."""
    said = [
        _best(compared, ipc, network)
        for ipc in compared.ipcs
        for network in compared.networks
        if compared.best(ipc, network) is not None
    ]
    return [*said, *remarks(compared)]


def remarks(compared: Compared) -> list[str]:
    """What is wrong with rows: random images beat them, or they failed."""
    lost = [(entry, compared.lost(entry)) for entry in compared.entries]
    said = [f"{_called(entry)}: {sentence}" for entry, sentence in lost if sentence is not None]
    return said + [
        f"{_called(entry)}: {entry.reason.rstrip('.')}." for entry in compared.entries if entry.reason
    ]


def own_trainings(compared: Compared) -> list[str]:
    """How the rows were trained that their sets tell it of."""
    return [
        f"{_called(entry)}: trained by what the set carries, {training_text(entry.training)}."
        for entry in compared.entries
        if entry.training
    ]


def _best(compared: Compared, ipc: int, network: str) -> str:
    best = compared.best(ipc, network)
    assert best is not None, "asked for tables that have one"
    told = f"{_called(best)} is best on {network}: {accuracy_of(best, network)} %"
    ahead = compared.against_random(best, network)
    if ahead is None:
        return f"{told}." if best.method != RANDOM else f"{told}, so nothing that was distilled is better."
    if ahead.low is None:
        pairs = "one pair" if ahead.n == 1 else f"each of {ahead.n} pairs"
        return f"{told}, {signed(ahead.mean)} points beside random images in {pairs} of trainings."
    return (
        f"{told}, {difference_of(ahead)} points beside random images ({100 * LEVEL:g} % interval, {ahead.n} pairs of"
        f" trainings of equal seed)."
    )


def _called(entry: Entry) -> str:
    return f"{entry.method} at ipc {entry.ipc}"


def table_rows(compared: Compared, ipc: int) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the table on the screen: accuracy and difference to random by network, then the cost."""
    heads = ["method", "images"]
    for network in compared.networks:
        heads += [network, "- random"]
    heads += ["distil", "judge", "memory", "bytes"]
    rows = []
    for entry in compared.of(ipc):
        row = [entry.method, str(entry.images or "–")]
        for network in compared.networks:
            row += [accuracy_of(entry, network), difference_of(compared.against_random(entry, network))]
        rows.append([*row, *cost_of(entry)])
    return heads, rows


def cost_of(entry: Entry) -> list[str]:
    """Seconds to distil and to judge, the worker's peak memory, and the bytes of the images."""
    cost = entry.cost
    memory = size_of(cost.peak_bytes)
    if cost.device_peak_bytes:
        memory += f" + {size_of(cost.device_peak_bytes)} GPU"
    stored = size_of(cost.stored_bytes or None)
    return [duration(cost.distil_s), duration(cost.evaluate_s or None), memory, stored]


def metrics(compared: Compared, entry: Entry, slug: Callable[[str], str]) -> Mapping[str, float]:
    """Numbers of a row as MLflow takes them, by network; `slug` makes names of columns fit for that."""
    found: dict[str, float] = {}
    for network in compared.networks:
        pairs = compared.against_random(entry, network)
        told: Iterable[tuple[str, Any]] = (
            ("acc_mean", entry.mean(network)),
            ("acc_std", entry.std(network)),
            ("minus_random", pairs and pairs.mean),
            ("minus_random_low", pairs and pairs.low),
            ("minus_random_high", pairs and pairs.high),
        )
        found |= {f"eval/{slug(network)}/{name}": value for name, value in told if value is not None}
    cost = entry.cost
    told = (
        ("time/distill_worker_s", cost.distil_s),
        ("time/evaluate_worker_s", cost.evaluate_s),
        ("cost/stored_bytes", cost.stored_bytes),
        ("cost/peak_bytes", cost.peak_bytes),
        ("cost/device_peak_bytes", cost.device_peak_bytes),
    )
    return found | {name: float(value) for name, value in told if value is not None}


__all__ = [
    "accuracy_of",
    "cost_of",
    "difference_of",
    "findings",
    "metrics",
    "own_trainings",
    "remarks",
    "signed",
    "size_of",
    "table_rows",
]
