"""From what a comparison left on disk to its rows: accuracies by seed, costs, and why there are none."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apps.compare.published import NETWORK, Published, published
from apps.compare.results import RANDOM, Compared, Cost, Entry
from atom.data.imagenet_subsets import IMAGE_SIZE, SUBSETS
from atom.data.official import is_official
from atom.distilled import DistilledSet
from atom.methods.registry import short_name
from atom.rivals import WITH_TEACHER
from pipelines.comparison.case import Candidate, Comparison
from pipelines.distillation import Distillation
from pipelines.evaluation import OWN_TRAINING, SCORED, Row, SmallSet, Trials
from pipelines.output.records import DISTILL_WORKER_S, peak_of, read_record, times
from pipelines.output.store import Store
from pipelines.workers.faults import Failure
from pipelines.workers.memory import Peak
from pipelines.workers.remote import Trial
from pipelines.workers.works import Spent


class ExpertTimes:
    """What the training of each expert took, by its file, whoever of the comparison's drivers trained it."""

    _NAME = "expert_times.json"

    def __init__(self, store: Store) -> None:
        self._store = store

    def begin(self, name: str, epochs: int) -> None:
        """An expert goes on from so many stored epochs, or begins anew, perhaps since somebody deleted it.

        Where others trained these epochs, or a kill came between them and their time, its time stays unknown: a part
        of it would look like all.
        """
        known = self._known()
        if epochs and known.get(name, {}).get("epochs") != epochs:
            known[name] = {"worker_s": None, "epochs": epochs}
        elif not epochs:
            known.pop(name, None)
        self._store.write_json(self._NAME, known)

    def add(self, name: str, spent: Spent, *, epochs: int) -> None:
        """Count a chunk, after which so many epochs are stored."""
        known = self._known()
        one = known.get(name, {"worker_s": 0.0})
        peak, before = spent.peak.or_more(_peak(one)), one.get("worker_s")
        seconds = None if before is None else before + spent.worker_s
        known[name] = {"worker_s": seconds, "epochs": epochs, "host": peak.host, "device": peak.device}
        self._store.write_json(self._NAME, known)

    def seconds(self, names: Iterable[str]) -> float | None:
        """Of these together; None where one was trained elsewhere, were it in part."""
        known = self._known()
        found = [known.get(name, {}).get("worker_s") for name in names]
        return None if None in found else float(sum(found))

    def peak(self, names: Iterable[str]) -> Peak | None:
        """The most memory of these."""
        known, most = self._known(), None
        for name in names:
            one = _peak(known.get(name, {}))
            most = most if one is None else one.or_more(most)
        return most

    def _known(self) -> dict[str, Any]:
        return read_record(self._store, self._NAME)


def _peak(record: Mapping[str, Any]) -> Peak | None:
    return Peak(int(record["host"]), record.get("device")) if "host" in record else None


@dataclass(frozen=True)
class Judged:
    """Trainings of a row, or of the real images of a table.

    Attributes:
        trials: all of them.
        failures: why one came to no accuracy.
    """

    trials: Trials
    failures: Mapping[Trial, Failure]

    @property
    def rows(self) -> list[Row]:
        """Mean and spread of those that are done."""
        return self.trials.rows(self.failures)

    def seconds(self, name: str) -> float:
        """Of all trainings on the set of that name, summed over workers."""
        found = self.trials.found
        return sum(value["seconds"] for trial, value in found.items() if trial.set_name == name)

    def reason(self, name: str) -> str:
        """Of trainings that failed, the first one's; empty where none did."""
        failed = [failure.reason for trial, failure in self.failures.items() if trial.set_name == name]
        return f"{len(failed)} trainings failed, the first one with: {failed[0]}" if failed else ""


@dataclass(frozen=True)
class Finished:
    """All that came of a comparison.

    Attributes:
        comparison: what was asked for.
        sets: by name of the candidate, those that are whole.
        outcomes: what came of each distillation.
        judged: of each candidate whose set is whole, and of the real images by their number a class.
        reals: real images of each number a class.
        labelled: random images with a teacher's labels, of each number a class.
        taught_by, whose: files of the teachers, and how people call them.
        unlabelled: why there are no such labels, if they failed; the first reason.
        experts: files of the experts of each candidate.
        times: of experts.
        wall_s, busy_s: of this driver's pool, and of its workers together while they had work.
    """

    comparison: Comparison
    sets: Mapping[str, DistilledSet]
    outcomes: Mapping[str, Distillation]
    judged: Mapping[str | int, Judged]
    reals: Mapping[int, Sequence[SmallSet]]
    labelled: Mapping[int, SmallSet]
    taught_by: Sequence[str]
    whose: str
    unlabelled: Failure | None
    experts: Mapping[str, Sequence[str]]
    times: ExpertTimes
    wall_s: float
    busy_s: float

    def failures(self) -> dict[str, Failure]:
        """Why parts of the work failed, by what people call them: of each set the first reason."""
        found: dict[str, Failure] = {}
        for candidate in self.comparison.candidates:
            outcome = self.outcomes[candidate.name]
            prepared, failed = outcome.failed_preparations, outcome.failed
            if prepared:
                found[f"{candidate.title}: preparations ({len(prepared)})"] = next(iter(prepared.values()))
            if failed:
                classes = sum(len(unit) for unit in failed)
                found[f"{candidate.title}: classes ({classes})"] = next(iter(failed.values()))
        if self.unlabelled is not None:
            found[f"labels of random images, by {self.whose}"] = self.unlabelled
        for one in self.judged.values():
            found |= {f"training {trial.name}": why for trial, why in one.failures.items()}
        return found


def compared(finished: Finished, facts: Mapping[str, str]) -> Compared:
    """The rows of all tables: real images, then the methods in the order in which they were asked for."""
    comparison, entries = finished.comparison, []
    networks: dict[str, None] = {}
    for ipc in dict.fromkeys(comparison.command.ipc):
        for one in finished.judged.values():
            networks |= dict.fromkeys(row.column for row in one.rows)
        entries += [_real_entry(finished, small, ipc) for small in finished.reals[ipc]]
        if ipc in finished.labelled:
            entries.append(_labelled_entry(finished, finished.labelled[ipc], ipc))
        elif finished.unlabelled is not None:
            entries.append(Entry(f"{RANDOM}{WITH_TEACHER}", ipc, reason=finished.unlabelled.reason))
        for candidate in comparison.candidates:
            if candidate.ipc == ipc:
                entries += _entries(finished, candidate)
        entries += [Entry(one.label, ipc, reason=one.reason) for one in comparison.refused if one.ipc == ipc]
    return Compared(comparison.real.source.title, list(networks), entries, facts)


def _real_entry(finished: Finished, small: SmallSet, ipc: int) -> Entry:
    judged, images = finished.judged[ipc], finished.comparison.real.train.images
    cost = Cost(
        distil_s=0.0,
        evaluate_s=judged.seconds(small.name),
        stored_bytes=small.stored_images * images[0].size,
    )
    return _undistilled(finished, judged, small, ipc, cost)


def _undistilled(
    finished: Finished, judged: Judged, small: SmallSet, ipc: int, cost: Cost, *, soft_labels: bool = False
) -> Entry:
    return Entry(
        small.name,
        ipc,
        _accuracies(judged, small.name),
        cost,
        small.stored_images,
        reason=judged.reason(small.name),
        scores=_scores(judged, small.name),
        published=_published(finished.comparison, small.name, ipc, 1, None),
        soft_labels=soft_labels,
    )


def labelled(ipc: int) -> str:
    """Where trainings on random images with a teacher's labels are, in `Finished.judged`."""
    return f"labelled {ipc}"


def _labelled_entry(finished: Finished, small: SmallSet, ipc: int) -> Entry:
    """Its teachers are its cost; they may be the experts of a method."""
    judged, train = finished.judged[labelled(ipc)], finished.comparison.real.train
    peak, seconds = finished.times.peak(finished.taught_by), finished.times.seconds(finished.taught_by)
    others = {file for files in finished.experts.values() for file in files}
    cost = Cost(
        distil_s=seconds,
        shared_s=finished.times.seconds(name for name in finished.taught_by if name in others) or 0.0,
        evaluate_s=judged.seconds(small.name),
        stored_bytes=small.stored_images * (train.images[0].size + 4 * train.num_classes),
        peak_bytes=None if peak is None else peak.host,
        device_peak_bytes=None if peak is None else peak.device,
    )
    return _undistilled(finished, judged, small, ipc, cost, soft_labels=True)


def _entries(finished: Finished, candidate: Candidate) -> Iterable[Entry]:
    """Rows of a candidate: by the common protocol, and by the training that its set carries; or why there are none."""
    settings, cost = candidate.case.settings, _cost(finished, candidate)
    about: dict[str, Any] = {
        "settings": settings.model_dump(mode="json"),
        "where": candidate.name,
    }
    distilled = finished.sets.get(candidate.name)
    about["soft_labels"] = distilled is not None and distilled.soft_labels is not None
    if distilled is None:
        failures = finished.outcomes[candidate.name]
        all_failed = [*failures.failed_preparations.values(), *failures.failed.values()]
        reason = all_failed[0].reason if all_failed else "not finished"
        yield Entry(candidate.label, candidate.ipc, cost=cost, reason=reason, **about)
        return
    judged = finished.judged[candidate.name]
    soft = 0 if distilled.soft_labels is None else distilled.soft_labels.numpy().nbytes
    stored = distilled.images_NCHW.numpy().nbytes + soft
    for small in judged.trials.sets:
        own = small.name.endswith(OWN_TRAINING)
        method = short_name(settings.method)
        known = {} if own else _published(
            finished.comparison, method, candidate.ipc, settings.factor, settings.network
        )  # fmt: skip
        yield Entry(
            small.name,
            candidate.ipc,
            _accuracies(judged, small.name),
            replace(cost, evaluate_s=judged.seconds(small.name), stored_bytes=stored),
            small.stored_images,
            training=small.training,
            reason=judged.reason(small.name),
            scores=_scores(judged, small.name),
            published=known,
            **about,
        )


def _accuracies(judged: Judged, name: str) -> dict[str, dict[int, float]]:
    return {row.column: judged.trials.by_seed(row) for row in judged.rows if row.method == name}


def _scores(judged: Judged, name: str) -> dict[str, dict[str, float]]:
    of = {
        row.column: vars(row) for row in judged.rows if row.method == name and row.balanced_mean is not None
    }
    return {network: {key: row[key] for key in SCORED if row[key] is not None} for network, row in of.items()}


def _cost(finished: Finished, candidate: Candidate) -> Cost:
    """Of the images: units in the candidate's output, and its experts wherever they were first needed."""
    store, names = candidate.case.store, finished.experts[candidate.name]
    own, experts = times(store).get(DISTILL_WORKER_S), finished.times.seconds(names)
    others = {file for other, files in finished.experts.items() if other != candidate.name for file in files}
    others |= {*finished.taught_by}
    shared = finished.times.seconds(name for name in names if name in others)
    peak, of_experts = peak_of(store), finished.times.peak(names)
    if of_experts is not None:
        peak = of_experts.or_more(peak)
    return Cost(
        distil_s=None if own is None or experts is None else own + experts,
        shared_s=shared or 0.0,
        peak_bytes=None if peak is None else peak.host,
        device_peak_bytes=None if peak is None else peak.device,
    )


def _published(
    comparison: Comparison, method: str, ipc: int, factor: int, network: str | None
) -> dict[str, Published]:
    """Of the whole data set at its own size, by network that judges; real images have a network of None, and smoke runs
    and images that only bear the set's name no published numbers."""
    data = comparison.command.data
    if (
        comparison.command.smoke
        or data.image_size not in (None, IMAGE_SIZE if comparison.real.name in SUBSETS else None)
        or data.train_per_class is not None
        or data.validation_frac
        or not is_official(comparison.real)
    ):
        return {}
    about = {"dataset": comparison.real.name, "ipc": ipc, "factor": factor}
    found = {
        judge: published(method, network=network or NETWORK, judge=judge, **about)
        for judge in comparison.networks
    }
    return {judge: one for judge, one in found.items() if one is not None}


__all__ = ["ExpertTimes", "Finished", "Judged", "compared", "labelled"]
