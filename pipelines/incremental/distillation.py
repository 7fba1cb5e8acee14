"""The classes of a step through the same Ray actors as `pipelines.distill`: same checkpoints, same retries.

A class that is distilled alone does not depend on the class order, so all orders share its images.
"""

# M stored images of a class, C channels, H height, W width

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.continual.budget import equal_groups
from atom.distill import IMAGES_VERSION
from atom.settings import DistillSettings
from pipelines.distillation import Group, distil_classes, stored_curves
from pipelines.incremental.plan import DISTILLED
from pipelines.incremental.preprocessed import ALL
from pipelines.output.checkpoints import Checkpoints
from pipelines.output.ownership import claim, settings_hash
from pipelines.output.records import DISTILL_WORKER_S, add_seconds, note_maker, times
from pipelines.output.store import Store
from pipelines.real_images import network_identity
from pipelines.workers.remote import Problem
from pipelines.workers.resources import ActorSize

if TYPE_CHECKING:
    from pipelines.console.signals import StopSignal
    from pipelines.incremental.case import ContinualCase
    from pipelines.tracking import Tracker


@dataclass(frozen=True)
class Lot:
    """Classes that are distilled by one recipe, and share an output.

    Attributes:
        view: of the real images.
        mode: of the matching.
        ipc: stored images a class.
        order: the class order, where several classes are distilled together; else None, for all orders.
    """

    view: str
    mode: str
    ipc: int
    order: int | None = None

    @property
    def name(self) -> str:
        """For directories and runs."""
        parts = [self.mode, f"ipc{self.ipc}"]
        if self.view != ALL:
            parts.append(self.view)
        elif self.order is not None:
            parts.append(f"order{self.order}")
        return "-".join(parts)


class Distiller:
    """The distilled images of a run, made step by step, from wherever the checkpoints stand.

    Attributes:
        images: by lot and class, float32 [M, C, H, W], preprocessed.
        failed: why a class of a lot has none.
    """

    def __init__(self, case: "ContinualCase") -> None:
        self._case = case
        self.images: dict[tuple[Lot, int], np.ndarray] = {}
        self.failed: dict[tuple[Lot, int], str] = {}
        self._settings: dict[tuple[str, int], DistillSettings] = {}

    def lot(self, memory: str, order: int, step: int, class_id: int) -> Lot:
        """Where the images of a class that comes at a step are from."""
        mode = memory.removeprefix(DISTILLED).removeprefix("-") or self._case.command.mode
        together = self._case.command.classes_per_group > 1
        return Lot(
            self._case.views.name(order),
            mode,
            self._case.plan.ipc(memory, order, step, class_id),
            order if together else None,
        )

    def lots_of(self, memory: str, order: int, step: int) -> dict[Lot, list[Group]]:
        """The lots of a step's classes, and the groups of each: a rare class has fewer images, so another lot."""
        plan = self._case.plan
        number = {c: plan.ipc(memory, order, step, c) for c in plan.streams[order].steps[step]}
        groups = equal_groups(number, size=self._case.command.classes_per_group).values()
        return {self.lot(memory, order, step, found[0][0]): found for found in groups}

    def settings(self, lot: Lot) -> DistillSettings:
        """Settings of a lot, resolved."""
        key = lot.mode, lot.ipc
        if key not in self._settings:
            self._settings[key] = self._case.distil_settings(mode=lot.mode, ipc=lot.ipc)
        return self._settings[key]

    def identity(self, lot: Lot) -> dict[str, Any]:
        """All that decides the bits of a lot's images, but for the other classes of a group."""
        case, settings = self._case, self.settings(lot)
        return {
            **settings.model_dump(mode="json"),
            "network": network_identity(settings.network, case.real),
            "dataset": case.real.name,
            "fingerprint": case.real.train.fingerprint,
            "preprocess": case.views.digest(lot.view),
            "device": case.device_kind,
            "order": lot.order,
            "images_version": IMAGES_VERSION,
        }

    def lots(self, step: int) -> dict[Lot, list[Group]]:
        """What has to be distilled for a step, over all class orders."""
        plan = self._case.plan
        found: dict[Lot, dict[Group, None]] = {}
        for memory in plan.distilled:
            for order in plan.streams:
                for lot, groups in self.lots_of(memory, order, step).items():
                    found.setdefault(lot, {}).update(dict.fromkeys(groups))
        return {lot: sorted(groups) for lot, groups in found.items()}

    def run(self, step: int, *, size: ActorSize, tracker: "Tracker", stop: threading.Event) -> bool:
        """Distil the classes of a step; whether it was stopped.

        Raises:
            StoreError, ClusterError: see `distil_classes`.
        """
        for lot, groups in self.lots(step).items():
            left = [group for group in groups if any(not self._known(lot, c) for c in group)]
            if left and self._distil(lot, left, step=step, size=size, tracker=tracker, stop=stop):
                return True
        return False

    def log_curves(self, tracker: "Tracker") -> None:
        """The loss curves of all that is stored, each step and lot in its run: MLflow may lack some."""
        known: set[tuple[Lot, int]] = set()
        for step in range(self._case.plan.num_steps):
            for lot, groups in self.lots(step).items():
                left = [group for group in groups if any((lot, c) not in known for c in group)]
                known |= {(lot, class_id) for group in left for class_id in group}
                checkpoints = Checkpoints(self._store(lot), settings_hash(self.identity(lot)))
                points = stored_curves(checkpoints, left, self.settings(lot).iterations or 0)
                if points:
                    with tracker.child(_run_name(lot, step)) as child:
                        child.log_history(points)

    def worker_seconds(self, memory: str) -> float | None:
        """Seconds that workers spent on a memory's lots, in whatever run on this output; None where unknown."""
        plan = self._case.plan
        steps = [(order, step) for order in plan.streams for step in range(plan.num_steps)]
        lots = {lot for place in steps for lot in self.lots_of(memory, *place)}
        spent = [times(self._store(lot)).get(DISTILL_WORKER_S) for lot in lots]
        # Without one of them the sum would be too small.
        return None if None in spent else sum(seconds or 0.0 for seconds in spent)

    def all_settings(self) -> list[DistillSettings]:
        """Resolved settings of all lots of the run, each once.

        Raises:
            ConfigError: one cannot be had, such as a network without what its mode matches.
        """
        lots = {lot: None for step in range(self._case.plan.num_steps) for lot in self.lots(step)}
        return list({(lot.mode, lot.ipc): self.settings(lot) for lot in lots}.values())

    def _store(self, lot: Lot) -> Store:
        """Where the checkpoints of a lot lie, and its time."""
        return self._case.store.inside(f"distilled/{lot.name}-{settings_hash(self.identity(lot))[:8]}")

    def _known(self, lot: Lot, class_id: int) -> bool:
        return (lot, class_id) in self.images or (lot, class_id) in self.failed

    def _distil(
        self,
        lot: Lot,
        groups: list[Group],
        *,
        step: int,
        size: ActorSize,
        tracker: "Tracker",
        stop: threading.Event,
    ) -> bool:
        case, store = self._case, self._store(lot)
        checkpoints = Checkpoints(store, claim(store, self.identity(lot)))
        problem = Problem(self.settings(lot), *case.plan.shape, case.real.train.num_classes, case.device_kind)

        def worked(_: float, worker_seconds: float) -> None:
            note_maker(case.store, case.size)
            # Beside the images: another lot of this output, such as that of another budget, has its own time.
            add_seconds(store, DISTILL_WORKER_S, worker_seconds)

        classes = [class_id for group in groups for class_id in group]
        train = case.views.view(lot.view).train
        # A run of its own for the losses: two steps, or two sizes, would write into one curve.
        with tracker.child(_run_name(lot, step), params={"classes": len(classes)}) as child:
            outcome = distil_classes(
                problem,
                groups,
                {class_id: train[class_id] for class_id in classes},
                checkpoints,
                size=size,
                checkpoint_every=case.command.checkpoint_every,
                limits=case.limits,
                tracker=child,
                stop=stop,
                on_seconds=worked,
            )
            if outcome.stopped:
                child.mark("KILLED")
            elif outcome.failed:
                child.mark("FAILED", reason=f"{len(outcome.failed)} groups of classes failed")
        for group, failure in outcome.failed.items():
            self.failed |= {(lot, class_id): failure.reason for class_id in group}
        self.images |= {(lot, class_id): state.images for class_id, state in outcome.states.items()}
        return outcome.stopped


def _run_name(lot: Lot, step: int) -> str:
    return f"distil-{lot.name}-step{step}"


class Ahead:
    """Distils the next step in a thread while the driver has cells of this one trained; a context manager."""

    def __init__(
        self, distiller: Distiller, *, size: ActorSize, tracker: "Tracker", stop: "StopSignal"
    ) -> None:
        self._distiller, self._size, self._tracker, self._stop = distiller, size, tracker, stop
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._thread is not None:
            # Left early: the thread's loop looks at the same event.
            self._stop.set()
            self._thread.join()

    def begin(self, step: int) -> None:
        """Start with a step, and come back at once."""

        def work() -> None:
            try:
                self._distiller.run(step, size=self._size, tracker=self._tracker, stop=self._stop)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, name=f"distil-step{step}", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the step that was begun is done.

        Raises:
            AtomError: that of the thread.
        """
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(0.25)
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise error
