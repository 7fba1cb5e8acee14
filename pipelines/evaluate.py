"""Train networks on a distilled set and test them on real images, architecture by architecture.

python pipelines/evaluate.py --set runs/atom-digits-ipc1-s0/set --eval-networks convnet alexnet vgg11 resnet18
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from atom.settings import DeviceKind, EvaluateSettings
from pipelines.console.command import EXIT_FAILED, output_location, run_command, say, say_header, stopped
from pipelines.console.options import DataSettings, EvaluateCommand

if TYPE_CHECKING:
    from atom.data import RealData
    from atom.distilled import DistilledSet
    from pipelines.console.signals import StopSignal
    from pipelines.evaluation import Evaluation
    from pipelines.output.store import Store
    from pipelines.tracking import Tracker
    from pipelines.workers.resources import ActorSize


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(EvaluateCommand, evaluate, argv, prog="atom-evaluate")


def evaluate(command: EvaluateCommand) -> int:
    """Load the set and the real images, train, test, record; see `run_command` for what it returns."""
    from atom import resolve
    from atom.distilled import DistilledSet
    from pipelines.console.signals import stop_on_signals
    from pipelines.evaluation import check_baselines, check_networks, judges
    from pipelines.output.ownership import claim, lock
    from pipelines.output.store import Store
    from pipelines.own_networks import try_networks
    from pipelines.real_images import load_real
    from pipelines.sets import check_same_source, fingerprint, local_set, own_network, real_source
    from pipelines.workers.cluster import connect
    from pipelines.workers.resources import choose_size

    command = command.shrunk() if command.smoke else command
    check_baselines(command.baselines)
    with local_set(command.set, command.tracking_uri) as directory:
        distilled = DistilledSet.load(directory)
        data = real_source(distilled, command.set, command.part(DataSettings))
        real = load_real(data, smoke=command.smoke, given=distilled)
        check_same_source(distilled, real)
        networks = judges(command.eval_networks, own_network(distilled))
        command = command.model_copy(update={"eval_networks": networks})
        try_networks(networks, real, timeout_s=command.timeout_s)
        notes = check_networks(networks, real, settings=command.part(EvaluateSettings))
        digest = fingerprint(distilled)
        name = f"{distilled.method}-{real.name}-ipc{distilled.ipc}-{digest[:8]}"
        location = output_location(command, f"evaluate-{name}")
        num_trials = command.eval_seeds * len(networks) * (1 + len(command.baselines))
        with connect() as cluster:
            size, device_kind = choose_size(cluster, command, threads=1, num_units=max(1, num_trials))
            settings = resolve.resolve_evaluation(
                command.part(EvaluateSettings), device_kind=device_kind, symbols=real.symbols
            )
            store = Store.open(location)
            with lock(store):
                identity = {
                    "set": digest,
                    "test": real.test.fingerprint,
                    "device": device_kind,
                }
                claim(store, identity)
                shown = {**identity, **settings.model_dump(mode="json"), "networks": networks}
                say_header("atom-evaluate", shown, cluster, size, store)
                for note in notes:
                    say(f"Note: {note}")
                job = Job(command, settings, distilled, real, store, size, device_kind)
                with stop_on_signals() as stop, job.tracker(name) as tracker:
                    return job.run(tracker, stop)


class Job:
    """One run of the command with everything decided."""

    def __init__(
        self,
        command: EvaluateCommand,
        settings: EvaluateSettings,
        distilled: "DistilledSet",
        real: "RealData",
        store: "Store",
        size: "ActorSize",
        device_kind: DeviceKind,
    ) -> None:
        self.command = command
        self.settings = settings
        self.distilled = distilled
        self.real = real
        self.store = store
        self.size = size
        self.device_kind = device_kind
        from pipelines.evaluation import set_name

        self.name = set_name(distilled, command.baselines)

    def tracker(self, name: str) -> "Tracker":
        """The MLflow run of this output: a new one, or that of an earlier driver continued."""
        from pipelines.output.records import start_tracker

        params: dict[str, object] = {
            **{f"evaluate.{key}": value for key, value in self.settings.model_dump().items()},
            "evaluate.networks": " ".join(self.command.eval_networks or ()),
            "evaluate.statistics_images": self.command.statistics_images,
            "evaluate.seeds": self.command.eval_seeds,
            "evaluate.seed": self.command.seed,
            "data.spec": self.real.spec,
            "set.path": self.command.set,
            "set.method": self.distilled.method,
            "set.ipc": self.distilled.ipc,
            "set.factor": self.distilled.factor,
        }
        return start_tracker(self.command, self.store, experiment="evaluate", name=name, params=params)

    def run(self, tracker: "Tracker", stop: "StopSignal") -> int:
        """Everything after the decisions; returns the exit code."""
        from pipelines.evaluation import print_evaluation, remarks, row_dicts
        from pipelines.output.records import log_accuracies, log_distilled, log_real

        log_real(tracker, self.real)
        log_distilled(tracker, self.distilled, source=self.command.set)
        judged = self.evaluate(stop)
        if judged.stopped:
            return stopped(tracker, stop.signal_name)
        title = f"{self.distilled.method}, ipc {self.distilled.ipc}: accuracy on {self.real.source.title}, %"
        print_evaluation(judged, title=title)
        log_accuracies(tracker, judged, own=self.name, title=title)
        self.store.write_json("results.json", row_dicts(judged.rows))
        tracker.log_dict({"results": row_dicts(judged.rows)}, "results.json")
        if judged.failed:
            tracker.mark("FAILED", reason=f"{len(judged.failed)} trainings failed")
        for remark in remarks(judged.rows, self.name):
            say(remark)
        say(self.store.where("results.json"))
        return EXIT_FAILED if judged.failed else 0

    def evaluate(self, stop: "StopSignal") -> "Evaluation":
        """All networks on the set and its baselines."""
        from pipelines.evaluation import evaluate_sets, small_set, statistics_images
        from pipelines.workers.pool import Limits

        seeds = range(self.command.seed, self.command.seed + self.command.eval_seeds)
        white_test = self.distilled.preprocess.apply(self.real.test.images).numpy()
        chosen = statistics_images(self.real.train.images, self.command.statistics_images)
        with stop.polling():
            return evaluate_sets(
                [small_set(self.distilled, self.name), *self.baselines(seeds)],
                (white_test, self.real.test.labels),
                self.store,
                networks=self.command.eval_networks or (),
                seeds=seeds,
                num_classes=self.real.train.num_classes,
                settings=self.settings,
                identity={"test": self.real.test.fingerprint},
                device_kind=self.device_kind,
                gpus_per_task=self.size.gpus,
                max_in_flight=self.command.num_actors,
                limits=Limits(self.command.max_retries, chunk_timeout_s=self.command.timeout_s),
                stop=stop,
                statistics_NCHW=None if chosen is None else self.distilled.preprocess.apply(chosen).numpy(),
            )

    def baselines(self, seeds: Sequence[int]) -> list[Any]:
        """Coresets of equal storage from the source's training images."""
        from pipelines.baselines import coresets

        if not self.command.baselines:
            return []
        return coresets(
            self.command.baselines,
            self.distilled.preprocess.apply(self.real.train.images).numpy(),
            self.real.train.labels,
            ipc=self.distilled.ipc,
            num_classes=self.real.train.num_classes,
            seed=self.command.seed,
            seeds=seeds,
        )


if __name__ == "__main__":
    sys.exit(main())
