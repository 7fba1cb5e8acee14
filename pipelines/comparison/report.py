"""What a comparison tells: the tables on the screen, the JSON, the HTML page, the cards of the sets, and MLflow."""

from collections.abc import Mapping

import torch

from apps.compare.findings import findings, metrics, own_trainings, remarks, table_rows
from apps.compare.pictures import Strips, strips
from apps.compare.report import render_comparison
from apps.compare.results import Compared
from atom.artifact import SET_NAME
from atom.distilled import DistilledSet, without_folders
from atom.rivals import WITH_TEACHER
from pipelines.comparison.case import Candidate
from pipelines.comparison.tables import Finished, compared, labelled
from pipelines.console.command import EXIT_FAILED, say
from pipelines.console.progress import format_duration, format_table, print_table
from pipelines.distill import publish
from pipelines.evaluation import SmallSet, row_dicts
from pipelines.output.provenance import command_line
from pipelines.output.records import log_artifact, maker_facts, run_facts, times
from pipelines.tracking import Tracker
from pipelines.workers.remote import network_slug

REPORT, TABLES = "report.html", "compare.json"


def conclude(finished: Finished, tracker: Tracker, trackers: Mapping[str, Tracker]) -> int:
    """Print, write and record everything; returns the exit code."""
    comparison = finished.comparison
    known = compared(finished, facts(finished))
    sets = {
        one.name: with_results(finished, one) for one in comparison.candidates if one.name in finished.sets
    }
    for candidate in comparison.candidates:
        if candidate.name in sets:
            publish(candidate.case, sets[candidate.name])
    html = render_comparison(known, title=f"{known.dataset}: methods compared", pictures=pictures(finished))
    comparison.store.write_json(TABLES, known.to_dict())
    comparison.store.write_text(REPORT, html)
    tables = tell(known)
    failures = finished.failures()
    if failures:
        print_table("Failed", ["what", "reason"], [(what, why.reason) for what, why in failures.items()])
    for sentence in [*remarks(known), *own_trainings(known), *on_steps(finished), *on_labels(finished)]:
        say(sentence)
    if finished.busy_s:
        say(known.facts["this driver"])
    record(finished, known, tracker, trackers, sets, html=html, tables=tables)
    lost = len(failures) + len(comparison.refused)
    if lost:
        tracker.mark("FAILED", reason=f"{lost} parts of the work failed")
        details = "\n\n".join(f"{what}:\n{why.details}" for what, why in failures.items())
        tracker.log_text(details, "failures.txt")
    say(comparison.store.where(REPORT))
    return EXIT_FAILED if lost else 0


def on_steps(finished: Finished) -> list[str]:
    """Which distillations left many steps out."""
    return [
        f"{one.title}: {remark}"
        for one in finished.comparison.candidates
        for remark in finished.outcomes[one.name].remarks(one.case.settings)
    ]


def on_labels(finished: Finished) -> list[str]:
    """Whose labels random images have; or which sets have soft labels that nobody gives to random images."""
    if finished.whose:
        return [f"({WITH_TEACHER.strip()}): random real images with the labels of {finished.whose}."]
    soft = [one.label for one in finished.comparison.candidates if _is_soft(finished, one)]
    if not soft:
        return []
    learnt = ", ".join(dict.fromkeys(soft))
    return [f"The labels of {learnt} were learned; pass --teacher-epoch for random images with soft labels."]


def _is_soft(finished: Finished, candidate: Candidate) -> bool:
    distilled = finished.sets.get(candidate.name)
    return distilled is not None and distilled.soft_labels is not None


def tell(known: Compared) -> str:
    """The tables on the screen, and as text."""
    texts = []
    for ipc in known.ipcs:
        title = f"ipc {ipc}: accuracy on {known.dataset}, %, paired difference to random [95 %], and cost"
        print_table(title, *table_rows(known, ipc))
        say()
        texts.append(format_table(title, *table_rows(known, ipc)))
    return "\n\n".join(texts)


def with_results(finished: Finished, candidate: Candidate) -> DistilledSet:
    """A set whose card tells its accuracies beside those of real images, as atom-distill would."""
    made_by = run_facts(candidate.case.store)
    about = {"distill_s": made_by["distill_s"], "distill_hardware": made_by["hardware"]}
    own = row_dicts(finished.judged[candidate.name].rows)
    rows = [{**row, **about} if row["method"] == candidate.label else row for row in own]
    rows += row_dicts(finished.judged[candidate.ipc].rows)
    if _is_soft(finished, candidate) and candidate.ipc in finished.labelled:
        rows += row_dicts(finished.judged[labelled(candidate.ipc)].rows)
    told = [{**row, "network": without_folders(row["network"])} for row in rows]
    return finished.sets[candidate.name].with_results(told)


def pictures(finished: Finished) -> dict[int, list[Strips]]:
    """Images of all sets and real images of each table."""
    comparison, found = finished.comparison, {}
    for ipc in dict.fromkeys(comparison.command.ipc):
        of_table = [one for one in comparison.candidates if one.ipc == ipc and one.name in finished.sets]
        shown = [strips(finished.sets[one.name], one.label) for one in of_table]
        if of_table:
            like = finished.sets[of_table[0].name]
            shown = [strips(_as_set(small, like, ipc), small.name) for small in finished.reals[ipc]] + shown
        found[ipc] = shown
    return found


def _as_set(small: SmallSet, like: DistilledSet, ipc: int) -> DistilledSet:
    """Real images as a set; of random ones the first draw."""
    images_NCHW, labels_N = next(iter(small.draws.values()))
    return DistilledSet(
        images_NCHW=torch.from_numpy(images_NCHW),
        labels=torch.from_numpy(labels_N),
        class_names=like.class_names,
        ipc=ipc,
        method=small.name,
        preprocess=like.preprocess,
    )


def facts(finished: Finished) -> dict[str, str]:
    """What a reader needs to judge and repeat the run."""
    comparison = finished.comparison
    command, real, settings = comparison.command, comparison.real, comparison.evaluation
    made_by = [maker_facts(one.case.store) for one in comparison.candidates]
    distil = comparison.candidates[0].case.settings
    found = {
        "command": command_line(command.prog),
        "images": f"{real.source.title}: {len(real.train.labels)} training, {len(real.test.labels)} test images,"
        f" ZCA {distil.zca}",
        "distilled with": f"{command.distill.network}, seed {distil.seed}, one synthesis a row",
        "settings of single methods": " ".join(command.settings) or "none",
        "judged by": (
            f"{', '.join(comparison.networks)}: {settings.told}; seeds 0 to {len(comparison.seeds) - 1}"
        ),
    }
    if finished.whose:
        found["labels of random images"] = finished.whose
    for name in ("hardware", "versions", "commit"):
        found[name] = "; then ".join(dict.fromkeys(one[name] for one in made_by))
    if finished.busy_s:
        share = finished.busy_s / (finished.wall_s * comparison.size.num_actors)
        found["this driver"] = (
            f"{comparison.size.num_actors} workers were busy {100 * share:.0f} % of"
            f" {format_duration(finished.wall_s)}, their start included"
        )
    found["wall time of all drivers, but of killed ones"] = format_duration(
        times(comparison.store).get("compare_s")
    )
    return found


def record(
    finished: Finished,
    known: Compared,
    tracker: Tracker,
    trackers: Mapping[str, Tracker],
    sets: Mapping[str, DistilledSet],
    *,
    html: str,
    tables: str,
) -> None:
    """The parent run's report and tables, and a child run a row."""
    tracker.log_text(html, REPORT)
    tracker.log_dict(known.to_dict(), TABLES)
    tracker.log_metrics({"time/compare_s": times(finished.comparison.store).get("compare_s", 0.0)})
    if finished.busy_s:
        share = finished.busy_s / (finished.wall_s * finished.comparison.size.num_actors)
        tracker.log_metrics({"time/work_share": share})
    tracker.set_note(f"```\n{tables}\n```\n\n" + " ".join(findings(known)))
    by_label = {(one.label, one.ipc): one for one in finished.comparison.candidates}
    for entry in known.entries:
        candidate = by_label.get((entry.method, entry.ipc))
        if candidate is None:
            params = {"compare.method": entry.method, "compare.ipc": entry.ipc}
            with tracker.child(f"{entry.method}-ipc{entry.ipc}", params=params) as child:
                child.log_metrics(metrics(known, entry, network_slug))
                if not entry.accuracies:
                    child.mark("FAILED", reason=entry.reason)
            continue
        child = trackers[candidate.name]
        child.log_metrics(metrics(known, entry, network_slug))
        if candidate.name in sets:
            log_artifact(child, sets[candidate.name], SET_NAME)
        if entry.reason:
            child.mark("FAILED", reason=entry.reason)


__all__ = ["REPORT", "TABLES", "conclude"]
