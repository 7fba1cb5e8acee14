"""The trainings of a run, cell by cell: what is on disk of each, and their next steps as Ray tasks.

A result is found again by a key that holds all that decides it, the steps before included. So a killed run goes
on after the last step of each cell, and an output may hold the cells of several experiments.
"""

# S steps

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import ray

from apps.continual.learner import RESTARTING, deciding
from apps.continual.results import Cell, CellResult, StepResult
from apps.continual.state import LearnerState
from atom.errors import ArtifactError, StoreError
from atom.train import TRAINING_VERSION
from pipelines.console.progress import Progress
from pipelines.evaluation import initial_key
from pipelines.incremental.memories import Memories
from pipelines.incremental.plan import NONE
from pipelines.incremental.remote import (
    CellStep,
    StepContext,
    StepInputs,
    StoredMemory,
    run_cell_step,
    training_seed,
)
from pipelines.output.ownership import settings_hash
from pipelines.output.records import note_maker
from pipelines.real_images import network_identity
from pipelines.workers.remote import network_slug
from pipelines.workers.resources import ActorSize
from pipelines.workers.tasks import run_tasks

if TYPE_CHECKING:
    from pipelines.incremental.case import ContinualCase


class Trainings:
    """One training of every cell, step after step, from wherever it stands on disk.

    Attributes:
        steps: results of each cell, step by step.
        failed: why a cell has no further steps.
    """

    def __init__(self, case: "ContinualCase", memories: Memories) -> None:
        self._case, self._memories = case, memories
        self.failed: dict[Cell, str] = {}
        self._names = {cell: self._names_of(cell) for cell in case.plan.cells}
        self._files = set(case.store.list("cells"))
        self._states: dict[Cell, Any] = {}
        self.steps: dict[Cell, list[StepResult]] = {cell: self._found(cell) for cell in case.plan.cells}

    @property
    def open(self) -> list[Cell]:
        """Cells with steps to do."""
        last = self._case.plan.num_steps
        return [cell for cell, steps in self.steps.items() if len(steps) < last and cell not in self.failed]

    def results(self) -> list[CellResult]:
        """All cells as they stand."""
        last = self._case.plan.num_steps
        return [CellResult(cell, tuple(steps), len(steps) == last) for cell, steps in self.steps.items()]

    def run(self, step: int, *, size: ActorSize, stop: threading.Event) -> bool:
        """One step of all cells that have done those before; whether it was stopped.

        Args:
            step: the memories stand at it.
            size: workers at once, and the GPUs of each.
            stop: ends it early when set.
        """
        items = self._ready(step)
        if not items:
            return False
        case, total = self._case, len(self.steps)
        note_maker(case.store, case.size)
        context = ray.put(self._context(items))
        begun_s, done = time.monotonic(), sum(len(steps) > step for steps in self.steps.values())
        with Progress(
            f"step {step + 1} of {case.plan.num_steps}",
            total,
            num_items=total,
            unit="trainings",
            item="trainings",
            done=done,
        ) as progress:

            def keep(item: CellStep, value: tuple[StepResult, bytes]) -> None:
                nonlocal done
                self._keep(item, *value)
                done += 1
                progress.update(done, items_done=done)

            outcome = run_tasks(
                run_cell_step,
                items,
                shared=(context,),
                size=size,
                kind=lambda item: (item.cell.memory, item.cell.learner),
                limits=case.limits,
                on_result=keep,
                on_tick=lambda _: progress.update(done, items_done=done),
                stop=stop,
            )
        case.add_seconds("learn_s", time.monotonic() - begun_s)
        self.failed |= {item.cell: failure.reason for item, failure in outcome.failed.items()}
        return outcome.stopped

    def _ready(self, step: int) -> list[CellStep]:
        """Cells whose next step it is; those whose memory cannot be had fail here."""
        ready = [cell for cell in self.open if len(self.steps[cell]) == step]
        for cell in ready:
            if (cell.memory, cell.order) in self._memories.failed:
                self.failed[cell] = self._memories.failed[cell.memory, cell.order]
        return [CellStep(cell, step) for cell in ready if cell not in self.failed]

    def _keep(self, item: CellStep, result: StepResult, state: bytes) -> None:
        """On disk: the state, the result, and only then the state before is let go."""
        cell, store = item.cell, self._case.store
        names, last = self._names[cell], self._case.plan.num_steps - 1
        if state and item.step < last:
            store.write_bytes(f"{names[item.step]}.safetensors", state)
            self._states[cell] = ray.put(state)
        store.write_json(f"{names[item.step]}.json", {**asdict(cell), "result": asdict(result)})
        self.steps[cell].append(result)
        if state and item.step:
            store.delete(f"{names[item.step - 1]}.safetensors")
        if item.step == last:
            self._states.pop(cell, None)

    def _context(self, items: Sequence[CellStep]) -> StepContext:
        case = self._case
        return StepContext(
            inputs={item.cell: self._inputs(item) for item in items},
            network=case.command.network,
            class_names=case.real.train.class_names,
            train_settings=case.train_settings,
            device_kind=case.device_kind,
        )

    def _inputs(self, item: CellStep) -> StepInputs:
        cell = item.cell
        images = self._case.preprocessed.images(self._case.preprocessed.name(cell.order))
        before = after = StoredMemory()
        if cell.memory != NONE:
            key = self._memories.key(cell.memory, cell.order, cell.seed)
            before, after = self._memories.before.get(key, before), self._memories.after[key]
        stream, passing = self._case.plan.streams[cell.order], None
        if self._case.command.stream.online and cell.memory != NONE:
            key = self._memories.key(cell.memory, cell.order, cell.seed)
            passing = self._memories.passing(key, item.step)
        return StepInputs(
            steps=stream.steps[: item.step + 1],
            columns=stream.columns[: item.step + 1],
            tensors=images.tensors,
            train=images.train,
            judged=images.judged,
            before=before,
            after=after,
            state=self._states.get(cell),
            settings=self._case.learner_settings(cell.order, item.step),
            passing=passing,
        )

    def _names_of(self, cell: Cell) -> list[str]:
        """Where the result and state of each step lie, without their endings."""
        case, names, key = self._case, [], ""
        common = {
            **case.data_key(cell.order),
            "device": case.device_kind,
            "network": network_identity(case.command.network, case.real),
            **initial_key(case.command.network, case.train_settings),
            "learner": cell.learner,
            "version": TRAINING_VERSION,
            # What is trained on the memory alone, at the end of a step, does not see how it came about.
            **({"online": True} if case.command.stream.online and cell.learner not in RESTARTING else {}),
        }
        for step in range(case.plan.num_steps):
            memory: dict[str, Any] = {"memory": NONE}
            if cell.memory != NONE:
                place = self._memories.key(cell.memory, cell.order, cell.seed)
                memory = self._memories.identity(place, step)
            steps = case.plan.streams[cell.order].steps[: step + 1]
            settings = case.learner_settings(cell.order, step)
            memory["settings"] = deciding(cell.learner, settings, case.train_settings)
            # The key before holds what the memory was when the step began.
            key = settings_hash(
                {**common, **memory, "training": training_seed(cell), "steps": steps, "before": key}
            )
            names.append(f"cells/{network_slug(cell.name)}/step{step:02d}-{key}")
        return names

    def _found(self, cell: Cell) -> list[StepResult]:
        """Results on disk, as far as the learner can go on from them."""
        found: list[StepResult] = []
        for step, name in enumerate(self._names[cell]):
            result = self._result(f"{name}.json", step) if f"{name}.json" in self._files else None
            if result is None:
                break
            found.append(result)
        self._let_go(cell, before=len(found) - 1)
        if cell.learner in RESTARTING or len(found) == self._case.plan.num_steps:
            return found
        # The states of older steps are gone: then the cell begins anew.
        while found and not self._read_state(cell, len(found) - 1):
            found.pop()
        return found

    def _result(self, name: str, step: int) -> StepResult | None:
        try:
            result = StepResult.from_dict(json.loads(self._case.store.read_bytes(name))["result"])
        except (StoreError, ValueError, KeyError, TypeError):
            return None
        return result if result.step == step and len(result.class_row) == step + 1 else None

    def _let_go(self, cell: Cell, *, before: int) -> None:
        """Delete states of steps before one: a driver that is killed in `_keep` leaves one behind."""
        for name in self._names[cell][: max(0, before)]:
            if f"{name}.safetensors" in self._files:
                self._case.store.delete(f"{name}.safetensors")

    def _read_state(self, cell: Cell, step: int) -> bool:
        name = f"{self._names[cell][step]}.safetensors"
        if name not in self._files:
            return False
        try:
            content = self._case.store.read_bytes(name)
            LearnerState.from_bytes(content)
        except (StoreError, ArtifactError):
            return False
        self._states[cell] = ray.put(content)
        return True
