"""One continual experiment with everything decided: step after step, distillation, memories, cells."""

import io
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from apps.continual.settings import LearnerSettings
from atom.data import ImageSet, RealData
from atom.resolve import resolve_evaluation
from atom.settings import DeviceKind, DistillSettings, EvaluateSettings, Settings
from pipelines.console.options import ContinualCommand
from pipelines.console.signals import StopSignal
from pipelines.incremental.cells import Cells
from pipelines.incremental.distillation import Ahead, Distiller, distil_settings
from pipelines.incremental.memories import Memories
from pipelines.incremental.plan import SET, Plan
from pipelines.incremental.preprocessed import ALL, Views
from pipelines.output.records import add_seconds, log_distilled, log_real, start_tracker
from pipelines.output.store import Store
from pipelines.real_images import say_unwhitened, whitening_flaw
from pipelines.tracking import Tracker
from pipelines.workers.pool import Limits
from pipelines.workers.resources import ActorSize

if TYPE_CHECKING:
    from atom.distilled import DistilledSet


class ContinualJob:
    """One run of the command with everything decided.

    Raises:
        ConfigError: an unusable network, a set that does not fit, or too few workers for --overlap.
    """

    def __init__(
        self,
        command: ContinualCommand,
        decided: Plan,
        given: "tuple[DistilledSet, float | None] | None",
        real: RealData,
        store: Store,
        size: ActorSize,
        learner_size: ActorSize,
        device_kind: DeviceKind,
    ) -> None:
        self.command = command
        self.plan = decided
        self.given = given
        self.real = real
        self.store = store
        self.size = size
        self.learner_size = learner_size
        self.device_kind: DeviceKind = device_kind
        self.limits = Limits(command.max_retries, chunk_timeout_s=command.timeout_s)
        asked = command.part(EvaluateSettings)
        self.train_settings = resolve_evaluation(asked, device_kind=device_kind, symbols=real.symbols)
        # Asked for again and again, and always the same.
        self.learner_settings = cache(self._learner_settings)
        self.flaw = whitening_flaw(real, command.part(DistillSettings))
        # Only the whitening counts here: the mode that asks least of the network.
        self.preprocess_settings = distil_settings(self, mode="dm", ipc=1)
        self.views = Views(
            real,
            self.judged,
            settings=self.preprocess_settings,
            streams=decided.streams,
            shared=command.preprocess_on == ALL,
            store=store,
            cache=command.data_dir / "cache",
        )
        self.distiller = Distiller(self)
        self.distil_settings = self.distiller.all_settings()
        self.memories = Memories(self, self.distiller)
        if SET in decided.memories:
            self.memories.given(self.views.name(decided.first))
        self.cells = Cells(self, self.memories)

    @property
    def judged(self) -> ImageSet:
        """The images that accuracies are measured on."""
        if self.command.score_on == "validation" and self.real.validation is not None:
            return self.real.validation
        return self.real.test

    def _learner_settings(self, order: int, step: int) -> LearnerSettings:
        """Settings of the learners in a step of a class order, resolved: where it has few images, more epochs."""
        counts_K = self.real.train.per_class_counts()
        return self.command.part(LearnerSettings).resolved(
            device_kind=self.device_kind,
            step_images=int(counts_K[list(self.plan.streams[order].steps[step])].sum()),
            seen_images=len(self.real.train.labels),
            symbols=self.real.symbols,
        )

    def all_learner_settings(self) -> dict[str, str]:
        """Settings of the learners in all steps and class orders, as of `together`."""
        places = [(order, step) for order in self.plan.streams for step in range(self.plan.num_steps)]
        return together([self.learner_settings(*place) for place in places])

    def data_key(self, order: int) -> dict[str, Any]:
        """The images of a class order, as keys of results hold them."""
        return {
            "train": self.real.train.fingerprint,
            "judged": self.judged.fingerprint,
            "preprocess": self.views.digest(self.views.name(order)),
        }

    def add_seconds(self, name: str, seconds: float) -> None:
        """Add to a wall time of the output."""
        add_seconds(self.store, name, seconds)

    def tracker(self, name: str) -> Tracker:
        """The MLflow run of this output: a new one, or that of an earlier driver continued."""
        command = self.command
        params: dict[str, object] = {
            **{f"learner.{k}": v for k, v in self.all_learner_settings().items()},
            **{f"train.{k}": v for k, v in self.train_settings.model_dump().items()},
            "preprocess.zca": self.preprocess_settings.zca,
            **{f"distill.{name}": value for name, value in together(self.distil_settings).items()},
            "continual.memories": " ".join(command.memories),
            "continual.learners": " ".join(command.learners),
            "continual.network": command.network,
            "continual.steps": self.plan.num_steps,
            "continual.orders": orders_text(command),
            "continual.step_classes": " ".join(map(str, self.plan.step_sizes)),
            "continual.seeds": command.seeds,
            "continual.budget": command.budget,
            "continual.storage": command.storage,
            "continual.compress": command.compress,
            "continual.preprocess_on": command.preprocess_on,
            "continual.score_on": command.score_on,
            "data.spec": self.real.spec,
            "data.fingerprint": self.real.train.fingerprint,
            "data.validation_frac": command.validation_frac,
            "cluster.num_actors": self.size.num_actors,
            "cluster.device": self.device_kind,
        }
        return start_tracker(command, self.store, experiment="continual", name=name, params=params)

    def log_inputs(self, tracker: Tracker) -> None:
        """The real images and a given set as inputs of the run."""
        log_real(tracker, self.real)
        say_unwhitened(self.flaw)
        if self.given is not None:
            log_distilled(tracker, self.given[0], source=self.command.set)

    def run(self, tracker: Tracker, stop: StopSignal) -> bool:
        """All steps of all cells, and the pictures of the memories; whether it was stopped."""
        if not self.cells.open and not self._pictures_missing():
            self.distiller.log_curves(tracker)
            return False
        for order in self.plan.streams:
            # Before any thread: what is made at first use must not be made twice.
            self.views.view(self.views.name(order))
        if self.memories.choices.make(stop):
            return True
        ahead, beside, alone = self._shares()
        stream = _Lines() if self.command.overlap else None
        with Ahead(self.distiller, size=ahead, tracker=tracker, stop=stop) as thread:
            for step in range(self.plan.num_steps):
                begun_s = time.monotonic()
                with stop.polling():
                    thread.wait()
                    if self.distiller.run(step, size=alone, tracker=tracker, stop=stop) or stop.is_set():
                        return True
                self.add_seconds("distil_wait_s", time.monotonic() - begun_s)
                if self.command.overlap and step + 1 < self.plan.num_steps:
                    thread.begin(step + 1)
                self.memories.advance(step)
                with stop.polling():
                    if self.cells.run(step, size=beside, stop=stop, stream=stream):
                        return True
                self._log_step(tracker, step)
        return False

    def _pictures_missing(self) -> bool:
        return self.command.pictures and any(
            not self.store.exists(self.memories.picture_name(memory, step))
            for memory in self.plan.memories
            for step in range(self.plan.num_steps)
        )

    def _shares(self) -> tuple[ActorSize, ActorSize, ActorSize]:
        """Workers that distil ahead, those that train beside them, and those that distil when nothing trains."""
        size, learners = self.size, self.learner_size
        if not self.command.overlap:
            return size, learners, size
        half = size.num_actors // 2
        beside = learners.num_actors - (half if size.gpus else int(half * size.cpus))
        return (
            replace(size, num_actors=half),
            replace(learners, num_actors=max(1, beside)),
            size,
        )

    def _log_step(self, tracker: Tracker, step: int) -> None:
        """Mean accuracy on the classes seen, by memory and learner: how the run stands while it goes on."""
        found: dict[str, list[float]] = {}
        for cell, steps in self.cells.steps.items():
            if len(steps) > step:
                name = f"{cell.memory}/{metric_name(cell.learner)}/acc_seen"
                found.setdefault(name, []).append(steps[step].accuracy_on_seen)
        means = {name: sum(values) / len(values) for name, values in found.items()}
        tracker.log_metrics(means, step=step)


def together(settings: Sequence[Settings]) -> dict[str, str]:
    """Settings of one kind as one: where they differ, all values in order, once each."""
    dumps = [one.model_dump(mode="json") for one in settings]
    return {
        name: " ".join(dict.fromkeys(str(dump[name]) for dump in dumps))
        for dump in dumps[:1]
        for name in dump
    }


def orders_text(command: ContinualCommand) -> str:
    """Which class orders are run, for people."""
    if command.class_order is not None:
        return "1, given by --class-order"
    seeds = range(command.orders) if command.order_seeds is None else command.order_seeds
    return f"{len(seeds)}, NumPy's permutations of the seeds {' '.join(map(str, seeds))}"


def metric_name(learner: str) -> str:
    """A learner's name as MLflow takes it in names of metrics: der++ has signs it refuses."""
    return learner.replace("+", "p")


class _Lines(io.TextIOWrapper):
    """Standard output that is never a terminal: two live displays at once would draw over each other."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())

    def write(self, text: str) -> int:
        return sys.stdout.write(text)

    def flush(self) -> None:
        sys.stdout.flush()

    def isatty(self) -> bool:
        return False
