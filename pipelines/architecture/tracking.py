"""A search in MLflow: the parent run's metrics and artifacts, and one child run a proxy."""

from collections.abc import Sequence
from pathlib import Path

from apps.nas.plots import cost_quality_figure, rank_flow_figure, scatter_figure
from apps.nas.proxies import FITTED
from apps.nas.summary import summary
from apps.nas.verdict import Verdict, table, to_dict
from pipelines.architecture.case import TABLE, NasCase
from pipelines.architecture.scores import Scores
from pipelines.console.progress import format_table
from pipelines.output.records import times
from pipelines.output.store import Store
from pipelines.sets import held_out
from pipelines.tracking import Tracker

REPORT = "report.html"
VERDICT = "verdict.json"
REFERENCE = "reference.csv"
"""The whole-set accuracies, as a table that `--reference` takes."""


def record(case: NasCase, scored: Scores, verdict: Verdict | None, tracker: Tracker, *, html: str) -> None:
    """The parent run's metrics and artifacts, and one child run a proxy."""
    tracker.log_text(html, REPORT)
    tracker.log_metrics({f"time/{name}": seconds for name, seconds in times(case.store).items()})
    if scored.wall_seconds:
        share = scored.unit_seconds / (scored.wall_seconds * case.size.num_actors)
        tracker.log_metrics({"time/work_share": share})
    log_stored(case.store, tracker, [TABLE, *([REFERENCE] if case.store.exists(REFERENCE) else [])])
    unsure = [distilled.method for distilled, _ in case.given if not held_out(distilled, case.real)]
    tracker.set_tags({"sets_may_have_seen_validation": " ".join(unsure) or "none"})
    if verdict is not None:
        tracker.log_dict(to_dict(verdict), VERDICT)
        for draw, name in (
            (scatter_figure, "scatter"),
            (rank_flow_figure, "rank_flow"),
            (cost_quality_figure, "cost_quality"),
        ):
            tracker.log_figure(draw(verdict), f"plots/{name}.png")
        note = format_table(f"Against {verdict.reference_name}", *table(verdict))
        tracker.set_note(f"```\n{note}\n```\n\n" + " ".join(summary(verdict)))
    for proxy in case.material.proxies:
        params = {"proxy": proxy.name, "kind": proxy.kind, "images": proxy.images}
        with tracker.child(f"{proxy.name}", params=params) as child:
            child.log_metrics(_proxy_metrics(scored, proxy.name, verdict))


def log_stored(store: Store, tracker: Tracker, names: Sequence[str], *, path: str | None = None) -> None:
    """Files of the output as artifacts, wherever the output lies."""

    def write(folder: Path) -> None:
        for name in names:
            (folder / Path(name).name).write_bytes(store.read_bytes(name))

    tracker.log_artifacts(write, path=path)


def _proxy_metrics(scored: Scores, name: str, verdict: Verdict | None) -> dict[str, float]:
    """Numbers of one proxy, under the names of the verdict."""
    rows = scored.of(name)
    found = {
        "networks": float(len({row.network for row in rows})),
        "failed": float(sum(row.proxy == name for row in scored.failed)),
        "time/train_s": sum(row.train_seconds for row in rows),
        "time/score_s": sum(row.score_seconds for row in rows),
    }
    judged = next((p for p in (verdict.proxies if verdict else ()) if p.name == name), None)
    if judged is None:
        return found
    if name == FITTED and scored.fit is not None:
        found |= {"fit/rmse": scored.fit.rmse, "fit/rmse_of_mean": scored.fit.rmse_of_mean}
    for part in judged.agreement:
        slug = part.subset.replace(" %", "").replace(" ", "")
        for coefficient, estimate in (("kendall", part.kendall), ("spearman", part.spearman)):
            for suffix, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high)):
                if value is not None:
                    found[f"{coefficient}/{slug}{suffix}"] = value
    for top in judged.top:
        for label, estimate in (
            ("precision", top.precision),
            ("best_rank", top.best_rank),
            ("regret", top.regret),
        ):
            if estimate.value is not None:
                found[f"{label}/at_{top.k}"] = estimate.value
    return found
