"""Distil a real image set class by class on Ray, and measure the result beside coresets of equal storage.

python pipelines/distill.py --dataset digits
ray job submit --working-dir . -- python pipelines/distill.py --dataset cifar10 --output /shared/cifar10
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from atom.errors import ConfigError
from atom.settings import FROM_SET, INITS, DeviceKind, DistillSettings, EvaluateSettings
from pipelines.console.command import EXIT_FAILED, output_location, run_command, say, say_header, stopped
from pipelines.console.options import DataSettings, DistillCommand

if TYPE_CHECKING:
    import numpy as np

    from atom.data import RealData
    from atom.distilled import DistilledSet
    from atom.preprocess import Preprocess
    from pipelines.console.signals import StopSignal
    from pipelines.distillation import Distillation
    from pipelines.evaluation import Evaluation
    from pipelines.output.store import Store
    from pipelines.tracking import Tracker
    from pipelines.workers.resources import ActorSize


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(DistillCommand, distill, argv, prog="atom-distill")


def distill(command: DistillCommand) -> int:
    """Load, distil, evaluate, record; the work of the command, see `run_command` for what it returns."""
    from atom import resolve
    from atom.distill import IMAGES_VERSION
    from pipelines.console.signals import stop_on_signals
    from pipelines.distillation import group_classes
    from pipelines.evaluation import check_baselines, check_networks, judges
    from pipelines.output.ownership import claim, lock
    from pipelines.output.store import Store
    from pipelines.own_networks import try_networks
    from pipelines.real_images import (
        check_ipc,
        load_real,
        network_identity,
        say_unwhitened,
        whitening_flaw,
    )
    from pipelines.sets import fingerprint
    from pipelines.workers.cluster import connect
    from pipelines.workers.resources import choose_size

    command = command.shrunk() if command.smoke else command
    asked = command.part(DistillSettings)
    check_baselines(command.baselines)
    real = load_real(command.part(DataSettings), smoke=command.smoke)
    baselines = command.baselines if command.eval_seeds else ()
    check_ipc(real, ipc=asked.ipc, factor=asked.factor, init=asked.init, baselines=baselines)
    first = None
    if asked.init not in INITS:
        first = first_set(asked, real, command.tracking_uri)
        asked = asked.model_copy(update={"init": f"{FROM_SET}{fingerprint(first)[:16]}"})
    command = command.model_copy(update={"eval_networks": judges(command.eval_networks, asked.network)})
    try_networks((asked.network, *(command.eval_networks or ())), real, timeout_s=command.timeout_s)
    notes = check_networks(
        command.eval_networks or (),
        real,
        settings=command.part(EvaluateSettings),
        distils=asked.network,
    )
    name = run_name(asked, real.name)
    location = output_location(command, name)
    with connect() as cluster:
        most, device_kind = choose_size(
            cluster, command, threads=asked.threads_per_actor, num_units=real.train.num_classes
        )
        channels, height, width = real.train.images.shape[1:]
        shape = {
            "channels": channels,
            "height": height,
            "width": width,
            "num_classes": real.train.num_classes,
        }
        flaw = whitening_flaw(real, asked)
        settings = resolve.resolve_settings(
            asked, device_kind=device_kind, symbols=real.symbols, whitenable=flaw is None, **shape
        )
        groups = group_classes(real.train.num_classes, settings.classes_per_group)
        size = replace(most, num_actors=min(most.num_actors, len(groups)))
        evaluation = resolve.resolve_evaluation(
            command.part(EvaluateSettings), device_kind=device_kind, symbols=real.symbols
        )
        store = Store.open(location)
        with lock(store):
            identity = {
                **settings.model_dump(mode="json"),
                "network": network_identity(settings.network, real),
                "dataset": real.name,
                "fingerprint": real.train.fingerprint,
                "device": device_kind,
                "images_version": IMAGES_VERSION,
            }
            digest = claim(store, identity)
            job = Job(command, settings, evaluation, real, store, size, device_kind, digest, first)
            say_header(
                "atom-distill", {**identity, **evaluation.model_dump(mode="json")}, cluster, size, store
            )
            say_unwhitened(flaw)
            if len(groups) < min(command.num_actors or 0, real.train.num_classes):
                say(
                    f"Note: {len(groups)} groups of classes keep {len(groups)} workers busy; a smaller"
                    " --classes-per-group makes more, and other bits."
                )
            for note in notes:
                say(f"Note: {note}")
            with stop_on_signals() as stop, job.tracker(name) as tracker:
                return job.run(tracker, stop)


def first_set(asked: DistillSettings, real: "RealData", tracking_uri: str | None) -> "DistilledSet":
    """The set that --init names, fit to start from.

    Raises:
        ConfigError, ArtifactError, StoreError: it cannot be found or read, or does not fit the real images.
    """
    from atom.distilled import DistilledSet
    from atom.initial import check_start
    from pipelines.sets import local_set

    with local_set(asked.init, tracking_uri, flag="--init") as directory:
        if not directory.exists():
            raise ConfigError(
                f"--init {asked.init}: no such set; expected {', '.join(INITS)}, or the place of a distilled set."
            )
        distilled = DistilledSet.load(directory)
    check_start(
        distilled,
        class_names=real.train.class_names,
        image_shape=real.train.images.shape[1:],
        ipc=asked.ipc,
        factor=asked.factor,
    )
    return distilled


def run_name(settings: DistillSettings, source: str) -> str:
    """Name of a run, such as atom-cifar10-ipc10-s0."""
    factor = f"-f{settings.factor}" if settings.factor > 1 else ""
    return f"{settings.mode}-{source}-ipc{settings.ipc}{factor}-s{settings.seed}"


class Job:
    """One run of the command with everything decided: distil, assemble, evaluate, publish."""

    def __init__(
        self,
        command: DistillCommand,
        settings: DistillSettings,
        evaluation: EvaluateSettings,
        real: "RealData",
        store: "Store",
        size: "ActorSize",
        device_kind: DeviceKind,
        digest: str,
        first: "DistilledSet | None" = None,
    ) -> None:
        self.command = command
        self.settings = settings
        self.evaluation = evaluation
        self.real = real
        self.store = store
        self.size = size
        self.device_kind = device_kind
        self.digest = digest
        self.first = first

    def tracker(self, name: str) -> "Tracker":
        """The MLflow run of this output: a new one, or that of an earlier driver continued."""
        from pipelines.output.records import start_tracker

        params: dict[str, object] = {
            **{f"distill.{key}": value for key, value in self.settings.model_dump().items()},
            **{f"evaluate.{key}": value for key, value in self.evaluation.model_dump().items()},
            "data.spec": self.real.spec,
            "data.fingerprint": self.real.train.fingerprint,
            "cluster.num_actors": self.size.num_actors,
            "cluster.device": self.device_kind,
        }
        return start_tracker(self.command, self.store, experiment="distill", name=name, params=params)

    def run(self, tracker: "Tracker", stop: "StopSignal") -> int:
        """Everything after the decisions; returns the exit code."""
        from pipelines.output.records import log_real
        from pipelines.real_images import preprocessing

        log_real(tracker, self.real)
        preprocess = preprocessing(self.real, self.settings, self.store, self.command.data_dir / "cache")
        white_train = preprocess.apply(self.real.train.images).numpy()
        with stop.polling():
            outcome = self.distil(white_train, self.starts(preprocess), tracker, stop)
        if outcome.stopped:
            return stopped(tracker, stop.signal_name)
        if outcome.failed:
            return self.report_failures(outcome, tracker)
        distilled = self.assemble(outcome, preprocess)
        self.publish(distilled)
        judged = self.evaluate(distilled, white_train, stop)
        if judged.stopped:
            return stopped(tracker, stop.signal_name)
        return self.conclude(distilled, judged, tracker)

    def starts(self, preprocess: "Preprocess") -> "Mapping[int, np.ndarray] | None":
        """Stored images that each class starts from, where --init names a set."""
        from atom.initial import initial_from_set

        if self.first is None:
            return None
        images = initial_from_set(
            self.first,
            preprocess,
            class_names=self.real.train.class_names,
            ipc=self.settings.ipc,
            factor=self.settings.factor,
        )
        return dict(enumerate(images.numpy()))

    def distil(
        self,
        white_train: Any,
        starts: "Mapping[int, np.ndarray] | None",
        tracker: "Tracker",
        stop: "StopSignal",
    ) -> "Distillation":
        """All groups of classes through the workers, from wherever the checkpoints stand."""
        from pipelines.distillation import distil_classes, group_classes
        from pipelines.output.checkpoints import Checkpoints
        from pipelines.real_images import put_classes
        from pipelines.workers.pool import Limits
        from pipelines.workers.remote import Problem

        channels, height, width = self.real.train.images.shape[1:]
        num_classes = self.real.train.num_classes
        return distil_classes(
            Problem(self.settings, channels, height, width, num_classes, self.device_kind),
            group_classes(num_classes, self.settings.classes_per_group),
            put_classes(white_train, self.real.train.labels, num_classes),
            Checkpoints(self.store, self.digest),
            size=self.size,
            checkpoint_every=self.command.checkpoint_every,
            limits=Limits(self.command.max_retries, chunk_timeout_s=self.command.timeout_s),
            tracker=tracker,
            stop=stop,
            # On disk with every chunk, so that a killed driver's time counts as well.
            on_seconds=self.add_distill_seconds,
            starts=starts,
        )

    def add_distill_seconds(self, seconds: float, worker_seconds: float) -> None:
        """Note who works, and count wall time and its sum over workers, which other work is compared with."""
        from pipelines.output.records import DISTILL_WORKER_S, add_seconds, note_maker

        note_maker(self.store, self.size)
        add_seconds(self.store, "distill_s", seconds)
        add_seconds(self.store, DISTILL_WORKER_S, worker_seconds)

    def report_failures(self, outcome: "Distillation", tracker: "Tracker") -> int:
        """Table of the classes that failed and why."""
        from pipelines.console.progress import print_table

        names = self.real.train.class_names
        rows = [(names[c], failure.reason) for group, failure in outcome.failed.items() for c in group]
        print_table(
            "Failed classes; the others are kept, and a rerun goes on from there", ["class", "reason"], rows
        )
        tracker.mark("FAILED", reason=f"{len(rows)} classes failed")
        details = [f"classes {group}:\n{failure.details}" for group, failure in outcome.failed.items()]
        tracker.log_text("\n\n".join(details), "failures.txt")
        return EXIT_FAILED

    def assemble(self, outcome: "Distillation", preprocess: "Preprocess") -> "DistilledSet":
        """The artifact, from the last states of all classes."""
        import numpy as np
        import torch

        from atom.distilled import DistilledSet, describe_source, without_folders
        from pipelines.output.provenance import UNKNOWN_PROGRAM

        *earlier, last = outcome.programs or [UNKNOWN_PROGRAM]
        num_classes = self.real.train.num_classes
        images = np.concatenate([outcome.states[c].images for c in range(num_classes)])
        return DistilledSet(
            images_NCHW=torch.from_numpy(images),
            labels=torch.arange(num_classes).repeat_interleave(self.settings.ipc),
            class_names=self.real.train.class_names,
            ipc=self.settings.ipc,
            factor=self.settings.factor,
            method=self.settings.mode,
            preprocess=preprocess,
            settings={
                **self.settings.model_dump(mode="json"),
                "network": without_folders(self.settings.network),
                "device": self.device_kind,
            },
            source=describe_source(self.real, image_size=self.command.image_size)
            | ({} if self.first is None else {"started_from": self.first.sources}),
            **last,
            earlier_programs=earlier,
            results=self.standing_results(),
        )

    def standing_results(self) -> Sequence[Mapping[str, Any]]:
        """Accuracies of the set that stands in the output: true of the same images until there are newer ones."""
        from atom.artifact import MANIFEST, SET_NAME
        from pipelines.output.records import read_record

        rows = read_record(self.store, f"{SET_NAME}/{MANIFEST}").get("results")
        return rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else ()

    def publish(self, distilled: "DistilledSet") -> None:
        """Write the artifact into the output, on a disk or a URI."""
        from atom.artifact import SET_NAME
        from pipelines.output.records import note_source

        note_source(self.store, self.real)
        if self.store.local_path is not None:
            distilled.save(self.store.local_path / SET_NAME)
            return
        with self.store.publish_directory(SET_NAME) as staging:
            distilled.save(staging)

    def evaluate(self, distilled: "DistilledSet", white_train: Any, stop: "StopSignal") -> "Evaluation":
        """Networks trained on the set and on coresets of equal storage, tested on the real test images."""
        from pipelines.baselines import coresets
        from pipelines.evaluation import Evaluation, evaluate_sets, small_set, statistics_images
        from pipelines.workers.pool import Limits

        seeds = range(self.command.eval_seeds)
        if not seeds or not self.command.eval_networks:
            return Evaluation()
        num_classes = self.real.train.num_classes
        rivals = coresets(
            self.command.baselines,
            white_train,
            self.real.train.labels,
            ipc=self.settings.ipc,
            num_classes=num_classes,
            seed=self.settings.seed,
            seeds=seeds,
        )
        white_test = distilled.preprocess.apply(self.real.test.images).numpy()
        with stop.polling():
            return evaluate_sets(
                [small_set(distilled, distilled.method), *rivals],
                (white_test, self.real.test.labels),
                self.store,
                networks=self.command.eval_networks or (),
                seeds=seeds,
                num_classes=num_classes,
                settings=self.evaluation,
                identity={"test": self.real.test.fingerprint},
                device_kind=self.device_kind,
                gpus_per_task=self.size.gpus,
                max_in_flight=self.command.num_actors,
                limits=Limits(self.command.max_retries, chunk_timeout_s=self.command.timeout_s),
                stop=stop,
                statistics_NCHW=statistics_images(white_train, self.command.statistics_images),
            )

    def conclude(self, distilled: "DistilledSet", judged: "Evaluation", tracker: "Tracker") -> int:
        """Print the table, put it into the card and MLflow, and name the artifact."""
        from atom.artifact import SET_NAME
        from atom.distilled import without_folders
        from pipelines.evaluation import print_evaluation, remarks, row_dicts
        from pipelines.output.records import log_accuracies, log_artifact, log_distilled, run_facts, times

        facts = run_facts(self.store)
        distillation = {"distill_s": facts["distill_s"], "distill_hardware": facts["hardware"]}
        rows = [
            {**row, "network": without_folders(row["network"])}
            | (distillation if row["method"] == distilled.method else {})
            for row in row_dicts(judged.rows)
        ]
        # A rerun that judges nothing keeps the accuracies that stand.
        distilled = distilled.with_results(rows) if rows else distilled
        self.publish(distilled)
        title = f"{distilled.method}, ipc {distilled.ipc}: accuracy on {self.real.source.title}, %"
        print_evaluation(judged, title=title)
        log_distilled(tracker, distilled, source=self.store.where(SET_NAME))
        log_accuracies(tracker, judged, own=distilled.method, title=title)
        tracker.log_metrics({f"time/{name}": seconds for name, seconds in times(self.store).items()})
        log_artifact(tracker, distilled, SET_NAME)
        if judged.failed:
            tracker.mark("FAILED", reason=f"{len(judged.failed)} trainings failed")
        for remark in remarks(judged.rows, distilled.method):
            say(remark)
        say(f"distilled in {facts['distill_s']:.0f} s on {facts['hardware']}")
        say(self.store.where(SET_NAME))
        return EXIT_FAILED if judged.failed else 0


if __name__ == "__main__":
    sys.exit(main())
