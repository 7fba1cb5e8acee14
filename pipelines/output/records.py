"""What a run leaves behind besides its images: the MLflow run, source and versions, times and hardware."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from atom.data import RealData
from atom.data.place import lasting
from atom.device import describe_hardware
from atom.distilled import DistilledSet
from atom.redact import without_secrets
from pipelines.console.command import EXIT_FAILED, say
from pipelines.console.options import CommandSettings
from pipelines.console.progress import format_table, print_table
from pipelines.evaluation import SCORED, Evaluation, Row, remarks, tables
from pipelines.output.provenance import program
from pipelines.output.store import Store
from pipelines.real_images import notes_on_images
from pipelines.tracking import Tracker, default_tracking_uri
from pipelines.workers.faults import Failure
from pipelines.workers.memory import Peak
from pipelines.workers.remote import network_slug
from pipelines.workers.resources import ActorSize

RUN_NAME = "mlflow_run.json"
TIMES_NAME = "times.json"
_SOURCE_NAME = "source.json"
_MAKERS_NAME = "made_by.json"
_MEMORY_NAME = "memory.json"
DISTILL_WORKER_S = "distill_worker_s"
"""Distillation's wall time times its workers, seconds: to be compared with times that are summed over workers."""


def start_tracker(
    command: CommandSettings, store: Store, *, experiment: str, name: str, params: dict[str, object]
) -> Tracker:
    """The MLflow run of an output; a rerun of the command continues it.

    Raises:
        ConfigError: MLflow cannot be reached.
    """
    asked = command.tracking
    uri = asked.tracking_uri or default_tracking_uri(store.local_path)
    known = read_record(store, RUN_NAME)
    tracker = Tracker.start(
        tracking_uri=uri,
        experiment=asked.experiment,
        command=experiment,
        run_name=name,
        params=params,
        resume_run_id=known.get("run_id") if known.get("tracking_uri") == without_secrets(uri) else None,
    )
    try:
        store.write_json(RUN_NAME, {"tracking_uri": uri, "run_id": tracker.run_id})
    except BaseException as error:
        # Without its id on disk the run would be continued by nobody: end it here.
        with tracker:
            raise error
    say(f"MLflow: run {tracker.run_id} at {uri}")
    if tracker.took_over:
        say(
            "Note: the driver before this one left that run RUNNING: it was killed without a word, perhaps for memory;"
            " the run goes on."
        )
    return tracker


def dotted(prefix: str, values: Mapping[str, Any]) -> dict[str, object]:
    """Nested values as MLflow's parameters.

    Example:
        >>> dotted("distill", {"ipc": 1, "options": {"power": 4}})
        {'distill.ipc': 1, 'distill.options.power': 4}
    """
    found: dict[str, object] = {}
    for name, value in values.items():
        key = f"{prefix}.{name}" if prefix else name
        found |= dotted(key, value) if isinstance(value, Mapping) else {key: value}
    return found


def log_real(tracker: Tracker, real: RealData) -> None:
    """The training images as an input of the run; skipped files are listed, and what is odd about the set is said."""
    tracker.log_dataset(
        real.name,
        real.train.images,
        real.train.labels,
        context="real",
        source=real.spec,
        fingerprint=real.train.fingerprint,
    )
    if real.skipped:
        say(f"Skipped {len(real.skipped)} broken images, the first: {real.skipped[0]}")
        tracker.log_text("\n".join(real.skipped), "skipped.txt")
    for note in notes_on_images(real):
        say(f"Note: {note}.")


def log_distilled(tracker: Tracker, distilled: DistilledSet, *, source: str) -> None:
    """The distilled images as an input of the run."""
    tracker.log_dataset(
        f"{distilled.method}-{distilled.size_slug}",
        distilled.images_NCHW.numpy(),
        (distilled.labels if distilled.soft_labels is None else distilled.soft_labels).numpy(),
        context="distilled",
        source=source,
    )


def log_accuracies(tracker: Tracker, judged: Evaluation, *, own: str, title: str, part: str = "eval") -> None:
    """Mean and spread of every set and network, named by `part` first, and the tables as the run's note."""
    tracker.log_metrics(
        {
            f"{part}/{network_slug(row.network)}/{_prefix(row, own)}{key}": value
            for row in judged.rows
            for key, value in (
                ("acc_mean", row.mean),
                ("acc_std", row.std),
                *((name, getattr(row, name)) for name in SCORED),
            )
            if value is not None
        }
    )
    if judged.rows:
        said = "".join(f"\n\n{remark}" for remark in remarks(judged.rows, own))
        shown = "\n\n".join(format_table(*table) for table in tables(judged.rows, title))
        tracker.set_note(f"```\n{shown}\n```{said}")


def report_failures(failed: Mapping[str, Failure], tracker: Tracker) -> int:
    """Table of what failed and why."""
    print_table(
        "Failed; all else is kept, and a rerun goes on from there",
        ["what", "reason"],
        [(what, failure.reason) for what, failure in failed.items()],
    )
    tracker.mark("FAILED", reason=f"{len(failed)} parts of the work failed")
    tracker.log_text("\n\n".join(f"{what}:\n{why.details}" for what, why in failed.items()), "failures.txt")
    return EXIT_FAILED


def log_artifact(tracker: Tracker, distilled: DistilledSet, name: str) -> None:
    """The whole artifact, so that `runs:/RUN_ID/set` is a set wherever the output lies."""
    tracker.log_artifacts(lambda folder: distilled.save(folder / name))


def note_source(store: Store, real: RealData) -> None:
    """Keep where the real images lie, if they have a place of their own: the set beside it is passed on without it."""
    kind, colon, place = real.spec.partition(":")
    if colon:
        store.write_json(_SOURCE_NAME, {"spec": f"{kind}:{lasting(place)}"})


def noted_source(store: Store) -> str:
    """The spec that `note_source` kept, or an empty string."""
    return str(read_record(store, _SOURCE_NAME).get("spec", ""))


def add_seconds(store: Store, name: str, seconds: float) -> None:
    """Add to a wall time of the output; restarts add up."""
    known = times(store)
    store.write_json(TIMES_NAME, {**known, name: known.get(name, 0.0) + seconds})


def times(store: Store) -> dict[str, float]:
    """Wall times of the output so far, seconds by name."""
    return {key: float(value) for key, value in read_record(store, TIMES_NAME).items()}


def note_peak(store: Store, peak: Peak) -> None:
    """Keep the most memory that a worker of the output held, over all drivers."""
    known = peak_of(store)
    most = peak.or_more(known)
    if most != known:
        store.write_json(_MEMORY_NAME, asdict(most))


def peak_of(store: Store) -> Peak | None:
    """The most memory that a worker of the output held; None where nobody noted it."""
    known = read_record(store, _MEMORY_NAME)
    return Peak(int(known["host"]), known.get("device")) if "host" in known else None


def note_maker(store: Store, size: ActorSize) -> None:
    """Keep with what is computed which program computed it, on what: later drivers find it and are others."""
    maker = {**program(), "hardware": f"{describe_hardware()} (driver), {size.num_actors} workers"}
    known = makers(store)
    if maker not in known:
        store.write_json(_MAKERS_NAME, {"makers": [*known, maker]})


def makers(store: Store) -> list[dict[str, Any]]:
    """Commit, libraries and hardware of all drivers that computed what an output holds, in order."""
    found = read_record(store, _MAKERS_NAME).get("makers", [])
    return [maker for maker in found if isinstance(maker, dict)] if isinstance(found, list) else []


def maker_facts(store: Store) -> dict[str, str]:
    """Hardware, versions and commits of all that computed what an output holds, for its report."""
    known = makers(store)
    versions = [", ".join(f"{k} {v}" for k, v in dict(one.get("versions", {})).items()) for one in known]
    return {
        "hardware": _joined(str(one.get("hardware", "")) for one in known),
        "versions": _joined(versions),
        "commit": _joined(str(one.get("git_commit") or "not known") for one in known),
    }


def run_facts(store: Store) -> dict[str, Any]:
    """Hardware and wall time of a distillation, to stand beside every accuracy."""
    return {
        "hardware": maker_facts(store)["hardware"],
        "distill_s": round(times(store).get("distill_s", 0.0), 1),
    }


def _joined(texts: Iterable[str]) -> str:
    return "; then ".join(dict.fromkeys(text for text in texts if text)) or "not known"


def read_record(store: Store, name: str) -> dict[str, Any]:
    """A JSON file of an output; empty if it is missing or damaged."""
    if not store.exists(name):
        return {}
    try:
        value = json.loads(store.read_bytes(name))
    except ValueError:
        # Nothing depends on these records but continuity; a damaged one is begun anew.
        return {}
    return value if isinstance(value, dict) else {}


def _prefix(row: Row, own: str) -> str:
    of_set = "" if row.method == own else f"{network_slug(row.method)}/"
    return f"real_statistics/{of_set}" if row.statistics_images else of_set
