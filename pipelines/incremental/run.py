"""A continual experiment step after step: distillation, memories, cells, and what is told of them on the way."""

import io
import sys
import time
from dataclasses import replace

from pipelines.console.signals import StopSignal
from pipelines.incremental.case import ContinualCase, metric_name, orders_text, together
from pipelines.incremental.cells import Cells
from pipelines.incremental.distillation import Ahead, Distiller
from pipelines.incremental.memories import Memories
from pipelines.incremental.plan import SET
from pipelines.output.records import log_distilled, log_real, start_tracker
from pipelines.real_images import say_unwhitened
from pipelines.tracking import Tracker
from pipelines.workers.resources import ActorSize


class ContinualRun:
    """The work of a case: its distiller, memories and cells, from wherever the output stands.

    Raises:
        ConfigError: an unusable network, or a set that does not fit.
    """

    def __init__(self, case: ContinualCase) -> None:
        self.case = case
        self.distiller = Distiller(case)
        self.distil_settings = self.distiller.all_settings()
        self.memories = Memories(case, self.distiller)
        if SET in case.plan.memories:
            self.memories.given(case.views.name(case.plan.first))
        self.cells = Cells(case, self.memories)

    def tracker(self, name: str) -> Tracker:
        """The MLflow run of this output: a new one, or that of an earlier driver continued."""
        command = self.case.command
        params: dict[str, object] = {
            **{f"learner.{k}": v for k, v in self.case.all_learner_settings().items()},
            **{f"train.{k}": v for k, v in self.case.train_settings.model_dump().items()},
            "preprocess.zca": self.case.preprocess_settings.zca,
            **{f"distill.{name}": value for name, value in together(self.distil_settings).items()},
            "continual.memories": " ".join(command.memories),
            "continual.learners": " ".join(command.learners),
            "continual.network": command.network,
            "continual.steps": self.case.plan.num_steps,
            "continual.orders": orders_text(command),
            "continual.step_classes": " ".join(map(str, self.case.plan.step_sizes)),
            "continual.seeds": command.seeds,
            "continual.budget": command.budget,
            "continual.storage": command.storage,
            "continual.compress": command.compress,
            "continual.preprocess_on": command.preprocess_on,
            "continual.score_on": command.score_on,
            "data.spec": self.case.real.spec,
            "data.fingerprint": self.case.real.train.fingerprint,
            "data.validation_frac": command.validation_frac,
            "cluster.num_actors": self.case.size.num_actors,
            "cluster.device": self.case.device_kind,
        }
        return start_tracker(command, self.case.store, experiment="continual", name=name, params=params)

    def log_inputs(self, tracker: Tracker) -> None:
        """The real images and a given set as inputs of the run."""
        log_real(tracker, self.case.real)
        say_unwhitened(self.case.flaw)
        if self.case.given is not None:
            log_distilled(tracker, self.case.given[0], source=self.case.command.set)

    def run(self, tracker: Tracker, stop: StopSignal) -> bool:
        """All steps of all cells, and the pictures of the memories; whether it was stopped."""
        if not self.cells.open and not self._pictures_missing():
            self.distiller.log_curves(tracker)
            return False
        for order in self.case.plan.streams:
            # Before any thread: what is made at first use must not be made twice.
            self.case.views.view(self.case.views.name(order))
        if self.memories.choices.make(stop):
            return True
        ahead, beside, alone = self._shares()
        stream = _Lines() if self.case.command.overlap else None
        with Ahead(self.distiller, size=ahead, tracker=tracker, stop=stop) as thread:
            for step in range(self.case.plan.num_steps):
                begun_s = time.monotonic()
                with stop.polling():
                    thread.wait()
                    if self.distiller.run(step, size=alone, tracker=tracker, stop=stop) or stop.is_set():
                        return True
                self.case.add_seconds("distil_wait_s", time.monotonic() - begun_s)
                if self.case.command.overlap and step + 1 < self.case.plan.num_steps:
                    thread.begin(step + 1)
                self.memories.advance(step)
                with stop.polling():
                    if self.cells.run(step, size=beside, stop=stop, stream=stream):
                        return True
                self._log_step(tracker, step)
        return False

    def _pictures_missing(self) -> bool:
        return self.case.command.pictures and any(
            not self.case.store.exists(self.memories.picture_name(memory, step))
            for memory in self.case.plan.memories
            for step in range(self.case.plan.num_steps)
        )

    def _shares(self) -> tuple[ActorSize, ActorSize, ActorSize]:
        """Workers that distil ahead, those that train beside them, and those that distil when nothing trains."""
        size, learners = self.case.size, self.case.learner_size
        if not self.case.command.overlap:
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
