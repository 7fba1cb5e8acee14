"""The classes of a step through the same Ray actors as `pipelines.distill`: same checkpoints, same retries.

A class that is distilled alone does not depend on the class order, so all orders share its images.
"""

# M stored images of a class, C channels, H height, W width

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.continual.budget import by_images
from atom.methods.lookup import find_method, images_version, method_identity
from atom.methods.method import Part, Unit
from atom.methods.registry import short_name
from atom.methods.settings import DistillSettings
from pipelines.distillation import distil_classes
from pipelines.incremental.plan import distils_by
from pipelines.incremental.preprocessed import ALL
from pipelines.loss_curves import stored_curves
from pipelines.output.checkpoints import Checkpoints
from pipelines.output.expert_files import EXPERTS_FOLDER, ExpertFiles, experts_identity
from pipelines.output.ownership import CHECKPOINTS_VERSION, claim, settings_hash
from pipelines.output.records import DISTILL_WORKER_S, add_seconds, note_maker, times
from pipelines.output.store import Store
from pipelines.real_images import network_identity
from pipelines.workers.remote import Problem
from pipelines.workers.resources import ActorSize
from pipelines.workers.works import Spent

if TYPE_CHECKING:
    from pipelines.incremental.case import ContinualCase
    from pipelines.tracking import Tracker


@dataclass(frozen=True)
class Recipe:
    """How classes of a stream are distilled; those of one recipe share an output.

    Attributes:
        preprocessing: name of that of the real images, see `Preprocessed`.
        method: of distillation.
        ipc: stored images a class.
        order: the class order, where several classes are distilled together; else None, for all orders.
        part: of their classes, see `apps.continual.stream`; 0 where they come whole.
    """

    preprocessing: str
    method: str
    ipc: int
    order: int | None = None
    part: int = 0

    @property
    def name(self) -> str:
        """For directories and runs."""
        parts = [short_name(self.method), f"ipc{self.ipc}"]
        if self.preprocessing != ALL:
            parts.append(self.preprocessing)
        elif self.order is not None:
            parts.append(f"order{self.order}")
        if self.part:
            parts.append(f"part{self.part}")
        return "-".join(parts)


class Distiller:
    """The distilled images of a run, made step by step, from wherever the checkpoints stand.

    Attributes:
        parts: by recipe and class, images float32 [M, C, H, W], preprocessed, and their soft labels, if any.
        failed: why a class of a recipe has none.
    """

    def __init__(self, case: "ContinualCase") -> None:
        self._case = case
        self.parts: dict[tuple[Recipe, int], Part] = {}
        self.failed: dict[tuple[Recipe, int], str] = {}
        self._settings: dict[tuple[str, int], DistillSettings] = {}

    def recipe(self, memory: str, order: int, step: int, lot: int) -> Recipe:
        """Where the images of a lot that comes at a step are from; it may be none of them, `ipc` 0."""
        method = distils_by(memory, self._case.command)
        ipc, part = self._case.plan.ipc(memory, order, step, lot), lot // self._case.real.train.num_classes
        if not ipc:
            return Recipe(self._case.preprocessed.name(order), method, ipc, part=part)
        # Alone a class does not depend on the order; one unit of two classes tells that it would not be alone, and
        # preparations are made from all classes of the step.
        prepared = find_method(method).preparations(self._resolved(method, ipc))
        together = bool(prepared) or len(self._units(method, ipc, (0, 1))) == 1
        return Recipe(self._case.preprocessed.name(order), method, ipc, order if together else None, part)

    def recipes_of(self, memory: str, order: int, step: int) -> dict[Recipe, list[Unit]]:
        """The recipes of a step's classes, and the units of each: a rare class has fewer images, so another recipe.

        So have the parts of a class. A unit holds classes, whatever the part: methods draw and label by class.
        """
        plan, num_classes = self._case.plan, self._case.real.train.num_classes
        ipc = {lot: plan.ipc(memory, order, step, lot) for lot in plan.streams[order].steps[step]}
        found = {}
        for part in sorted({lot // num_classes for lot in ipc}):
            number = {lot: images for lot, images in ipc.items() if images and lot // num_classes == part}
            for lots in by_images(number).values():
                recipe = self.recipe(memory, order, step, lots[0])
                found[recipe] = self._units(recipe.method, recipe.ipc, [lot % num_classes for lot in lots])
        return found

    def settings(self, recipe: Recipe) -> DistillSettings:
        """Settings of a recipe, resolved."""
        return self._resolved(recipe.method, recipe.ipc)

    def _units(self, method: str, ipc: int, classes: Sequence[int]) -> list[Unit]:
        return find_method(method).units(self._resolved(method, ipc), classes)

    def _resolved(self, method: str, ipc: int) -> DistillSettings:
        if (method, ipc) not in self._settings:
            self._settings[method, ipc] = self._case.distil_settings(method=method, ipc=ipc)
        return self._settings[method, ipc]

    def identity(self, recipe: Recipe) -> dict[str, Any]:
        """All that decides the bits of a recipe's images, but for the other classes of a group."""
        case, settings = self._case, self.settings(recipe)
        return {
            **settings.model_dump(mode="json"),
            "method": method_identity(settings.method),
            "network": network_identity(settings.network, case.real),
            "dataset": case.real.name,
            "fingerprint": case.real.train.fingerprint,
            "preprocess": case.preprocessed.digest(recipe.preprocessing),
            "device": case.device_kind,
            "order": recipe.order,
            **({} if case.lots.plain else {"part": recipe.part, **case.lots.key}),
            "images_version": images_version(settings.method),
            **CHECKPOINTS_VERSION,
            **experts_identity(find_method(settings.method).preparations(settings)),
        }

    def recipes(self, step: int) -> dict[Recipe, list[Unit]]:
        """What has to be distilled for a step, over all class orders."""
        plan = self._case.plan
        found: dict[Recipe, dict[Unit, None]] = {}
        for memory in plan.distilled:
            for order in plan.streams:
                for recipe, groups in self.recipes_of(memory, order, step).items():
                    found.setdefault(recipe, {}).update(dict.fromkeys(groups))
        return {recipe: sorted(groups) for recipe, groups in found.items()}

    def run(self, step: int, *, size: ActorSize, tracker: "Tracker", stop: threading.Event) -> bool:
        """Distil the classes of a step; whether it was stopped.

        Raises:
            StoreError, ClusterError: see `distil_classes`.
        """
        for recipe, groups in self.recipes(step).items():
            left = [group for group in groups if any(not self._known(recipe, c) for c in group)]
            if left and self._distil(recipe, left, step=step, size=size, tracker=tracker, stop=stop):
                return True
        return False

    def log_curves(self, tracker: "Tracker") -> None:
        """The loss curves of all that is stored, each step and recipe in its run: MLflow may lack some."""
        known: set[tuple[Recipe, int]] = set()
        for step in range(self._case.plan.num_steps):
            for recipe, groups in self.recipes(step).items():
                left = [group for group in groups if any((recipe, c) not in known for c in group)]
                known |= {(recipe, class_id) for group in left for class_id in group}
                checkpoints = Checkpoints(self._store(recipe), settings_hash(self.identity(recipe)))
                points = stored_curves(checkpoints, left, self.settings(recipe).iterations or 0)
                if points:
                    with tracker.child(_run_name(recipe, step)) as child:
                        child.log_history(points)

    def worker_seconds(self, memory: str) -> float | None:
        """Seconds that workers spent on a memory's recipes, in whatever run on this output; None where unknown."""
        plan = self._case.plan
        steps = [(order, step) for order in plan.streams for step in range(plan.num_steps)]
        recipes = {recipe for place in steps for recipe in self.recipes_of(memory, *place)}
        spent = [times(self._store(recipe)).get(DISTILL_WORKER_S) for recipe in recipes]
        # Without one of them the sum would be too small.
        return None if None in spent else sum(seconds or 0.0 for seconds in spent)

    def all_settings(self) -> list[DistillSettings]:
        """Resolved settings of all recipes of the run, each once.

        Raises:
            ConfigError: one cannot be had, such as a network without what its method matches.
        """
        recipes = {recipe: None for step in range(self._case.plan.num_steps) for recipe in self.recipes(step)}
        return list({(recipe.method, recipe.ipc): self.settings(recipe) for recipe in recipes}.values())

    def _store(self, recipe: Recipe) -> Store:
        """Where the checkpoints of a recipe lie, and its time."""
        return self._case.store.inside(f"distilled/{recipe.name}-{settings_hash(self.identity(recipe))[:8]}")

    def _known(self, recipe: Recipe, class_id: int) -> bool:
        return (recipe, class_id) in self.parts or (recipe, class_id) in self.failed

    def _distil(
        self,
        recipe: Recipe,
        groups: list[Unit],
        *,
        step: int,
        size: ActorSize,
        tracker: "Tracker",
        stop: threading.Event,
    ) -> bool:
        case, store = self._case, self._store(recipe)
        checkpoints = Checkpoints(store, claim(store, self.identity(recipe)))
        problem = Problem(
            self.settings(recipe), *case.plan.shape, case.real.train.num_classes, case.device_kind
        )

        def worked(spent: Spent) -> None:
            note_maker(case.store, case.size)
            # Beside the images: another recipe of this output, such as that of another budget, has its own time.
            add_seconds(store, DISTILL_WORKER_S, spent.worker_s)

        classes = [class_id for group in groups for class_id in group]
        # Preparations see the step, whatever of it is done already.
        num_classes = case.real.train.num_classes
        seen = [recipe.part * num_classes + class_id for class_id in classes]
        if recipe.order is not None:
            seen = [
                lot
                for lot in case.plan.streams[recipe.order].steps[step]
                if lot // num_classes == recipe.part
            ]
        train = case.preprocessed.images(recipe.preprocessing).train
        # A run of its own for the losses: two steps, or two sizes, would write into one curve.
        with tracker.child(_run_name(recipe, step), params={"classes": len(classes)}) as child:
            outcome = distil_classes(
                problem,
                groups,
                {lot % num_classes: train[lot] for lot in seen},
                checkpoints,
                size=size,
                checkpoint_every=case.command.checkpoint_every,
                experts=ExpertFiles(
                    case.store.inside(EXPERTS_FOLDER),
                    case.real,
                    preprocess=case.preprocessed.digest(recipe.preprocessing),
                    device=case.device_kind,
                ),
                limits=case.limits,
                tracker=child,
                stop=stop,
                on_spent=worked,
            )
            if outcome.stopped:
                child.mark("KILLED")
            elif outcome.failed or outcome.failed_preparations:
                failed = len(outcome.failed) + len(outcome.failed_preparations)
                child.mark("FAILED", reason=f"{failed} parts of the work failed")
        for failure in outcome.failed_preparations.values():
            self.failed |= {(recipe, class_id): failure.reason for class_id in classes}
        for group, failure in outcome.failed.items():
            self.failed |= {(recipe, class_id): failure.reason for class_id in group}
        made = outcome.classes(self.settings(recipe))
        self.parts |= {(recipe, class_id): part for class_id, part in made.items()}
        return outcome.stopped


def _run_name(recipe: Recipe, step: int) -> str:
    return f"distil-{recipe.name}-step{step}"
