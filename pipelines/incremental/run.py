"""A continual experiment step after step: distillation, memories, cells, and what is told of them on the way."""

import time

from pipelines.console.command import say
from pipelines.console.signals import StopSignal
from pipelines.incremental.case import ContinualCase, metric_name, orders_text, together
from pipelines.incremental.distillation import Distiller
from pipelines.incremental.memories import Memories
from pipelines.incremental.protocol import SET
from pipelines.incremental.trainings import Trainings
from pipelines.output.records import log_distilled, log_real, start_tracker
from pipelines.real_images import not_whitened
from pipelines.tracking import Tracker


class ContinualRun:
    """The work of a case: its distiller, memories and trainings, from wherever the output stands.

    Raises:
        ConfigError: an unusable network, or a set that does not fit.
    """

    def __init__(self, case: ContinualCase) -> None:
        self.case = case
        self.distiller = Distiller(case)
        self.distil_settings = self.distiller.all_settings()
        self.memories = Memories(case, self.distiller)
        if SET in case.plan.memories:
            self.memories.given(case.preprocessed.name(case.plan.first))
        self.trainings = Trainings(case, self.memories)

    def tracker(self, name: str) -> Tracker:
        """The MLflow run of this output: a new one, or that of an earlier driver continued."""
        command = self.case.command
        params: dict[str, object] = {
            **{f"learner.{k}": v for k, v in self.case.all_learner_settings().items()},
            **{f"train.{k}": v for k, v in self.case.train_settings.model_dump().items()},
            "preprocess.zca": self.case.preprocess_settings.zca,
            **{f"distill.{name}": value for name, value in together(self.distil_settings).items()},
            "continual.memories": " ".join(command.stream.memories),
            "continual.learners": " ".join(command.stream.learners),
            "continual.network": command.network,
            "continual.steps": self.case.plan.num_steps,
            "continual.orders": orders_text(command, self.case.lots),
            "continual.step_classes": " ".join(map(str, self.case.plan.step_sizes)),
            "continual.protocol": self.case.protocol,
            "continual.seeds": command.stream.seeds,
            "continual.budget": command.stream.budget,
            "continual.storage": command.stream.storage,
            "continual.compress": command.stream.compress,
            "continual.preprocess_on": command.stream.preprocess_on,
            "continual.score_on": command.stream.score_on,
            "data.spec": self.case.real.spec,
            "data.fingerprint": self.case.real.train.fingerprint,
            "data.validation_frac": command.data.validation_frac,
            "cluster.num_actors": self.case.size.num_actors,
            "cluster.device": self.case.device_kind,
        }
        return start_tracker(command, self.case.store, experiment="continual", name=name, params=params)

    def log_inputs(self, tracker: Tracker) -> None:
        """The real images and a given set as inputs of the run."""
        log_real(tracker, self.case.real)
        for note in not_whitened(self.case.flaw):
            say(f"Note: {note}")
        if self.case.given is not None:
            log_distilled(tracker, self.case.given[0], source=self.case.command.set)

    def run(self, tracker: Tracker, stop: StopSignal) -> bool:
        """All steps of all cells, and the pictures of the memories; whether it was stopped."""
        if not self.trainings.open and not self._pictures_missing():
            self.distiller.log_curves(tracker)
            return False
        for order in self.case.plan.streams:
            # At first use it would be made inside `polling`, where a signal interrupts nothing.
            self.case.preprocessed.images(self.case.preprocessed.name(order))
        if self.memories.selections.make(stop):
            return True
        for step in range(self.case.plan.num_steps):
            begun_s = time.monotonic()
            with stop.polling():
                stopped = self.distiller.run(step, size=self.case.size, tracker=tracker, stop=stop)
                if stopped or stop.is_set():
                    return True
            self.case.add_seconds("distil_wait_s", time.monotonic() - begun_s)
            self.memories.advance(step)
            with stop.polling():
                if self.trainings.run(step, size=self.case.learner_size, stop=stop):
                    return True
            self._log_step(tracker, step)
        return False

    def _pictures_missing(self) -> bool:
        return self.case.command.stream.pictures and any(
            not self.case.store.exists(self.memories.picture_name(memory, step))
            for memory in self.case.plan.memories
            for step in range(self.case.plan.num_steps)
        )

    def _log_step(self, tracker: Tracker, step: int) -> None:
        """Mean accuracy on the classes seen, by memory and learner: how the run stands while it goes on."""
        found: dict[str, list[float]] = {}
        for cell, steps in self.trainings.steps.items():
            if len(steps) > step:
                name = f"{cell.memory}/{metric_name(cell.learner)}/acc_seen"
                found.setdefault(name, []).append(steps[step].accuracy_on_seen)
        means = {name: sum(values) / len(values) for name, values in found.items()}
        tracker.log_metrics(means, step=step)
