"""The verdict, and networks trained in full, as cells of text, for screens and pages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from apps.nas.findings import Estimate, ProxyVerdict, Verdict

NONE = "–"
_SYMBOLS = {"kendall": "τ-b", "spearman": "ρ"}
_SHOWN = ("all", "top 20 %")


def table(verdict: Verdict) -> tuple[list[str], list[list[str]]]:
    """Columns and rows, one row a proxy; regret is in points, and intervals are of `verdict.level`.

    "train s" is training and scoring, "prepare s" distilling or choosing the images.
    """
    columns = ["proxy", "n", "images", "train s", "prepare s"]
    columns += [f"{symbol} {subset}" for subset in _SHOWN for symbol in _SYMBOLS.values()]
    columns += ["regret@1", "regret@5", "P@10"]
    return columns, [_row(proxy) for proxy in verdict.proxies]


def difference_table(verdict: Verdict) -> tuple[list[str], list[list[str]]]:
    """Columns and rows, one row a pair of proxies: first minus second, and p."""
    columns = ["difference", "n"]
    for subset in _SHOWN:
        for symbol in _SYMBOLS.values():
            columns += [f"Δ{symbol} {subset}", "p"]
    known = {(row.first, row.second, row.subset, row.coefficient): row for row in verdict.differences}
    rows = []
    for first, second in dict.fromkeys((row.first, row.second) for row in verdict.differences):
        cells = [f"{first} − {second}", NONE]
        for subset in _SHOWN:
            for coefficient in _SYMBOLS:
                row = known.get((first, second, subset, coefficient))
                cells += (
                    [NONE, NONE] if row is None else [estimate_text(row.estimate, "+z.2f"), p_text(row.p)]
                )
                if row is not None and subset == "all":
                    cells[1] = str(row.n)
        rows.append(cells)
    return columns, rows


def estimate_text(estimate: Estimate, spec: str = "z.2f") -> str:
    """Such as "0.72 [0.68, 0.76]"; without interval the value alone, without value a dash."""
    if estimate.value is None:
        return NONE
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{spec}}"
    return f"{estimate.value:{spec}} [{estimate.low:{spec}}, {estimate.high:{spec}}]"


def p_text(p: float | None) -> str:
    """Three decimals below 0.1, two above, and "<0.001" for the smallest."""
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def trained_table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows, one row a network that was trained in full; accuracies with their spread over trainings.

    Args:
        rows: see `pipelines.architecture.winner_files.row_of`.
    """
    columns = [
        "network",
        "proxy score",
        "validation, %",
        "test, %",
        "trainings",
        "parameters",
        "multiply-adds",
    ]
    return [*columns, "delivered"], [
        [
            row["network"],
            f"{row['proxy score']:.4g}",
            *(_spread_text(row[f"{part} mean"], row[f"{part} std"]) for part in ("validation", "test")),
            str(row["n"]),
            *(NONE if row[cost] is None else f"{row[cost]:,}" for cost in ("parameters", "multiply_adds")),
            "yes" if row["delivered"] else "",
        ]
        for row in rows
    ]


def _spread_text(mean: float, std: float | None) -> str:
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"


def seconds_text(seconds: float | None) -> str:
    """Such as "1.5" or "5,169"."""
    return NONE if seconds is None else f"{seconds:.1f}" if seconds < 10 else f"{seconds:,.0f}"


def _row(proxy: ProxyVerdict) -> list[str]:
    cells = [proxy.name, str(proxy.n), f"{proxy.images:,}"]
    cells += [seconds_text(proxy.train_seconds), seconds_text(proxy.prepare_seconds)]
    agreement = {row.subset: row for row in proxy.agreement}
    for subset in _SHOWN:
        row = agreement.get(subset)
        cells += [NONE] * 2 if row is None else [estimate_text(row.kendall), estimate_text(row.spearman)]
    top = {row.k: row for row in proxy.top}
    shown: list[tuple[int, Callable[..., Estimate]]] = [
        (1, lambda row: row.regret),
        (5, lambda row: row.regret),
        (10, lambda row: row.precision),
    ]
    return cells + [estimate_text(pick(top[k])) if k in top else NONE for k, pick in shown]
