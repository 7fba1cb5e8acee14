"""A step of a learner with everything decided: what it goes on from, its images, and what it is judged by."""

# N images, C channels, H height, W width

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.continual.exemplars import Exemplars
from apps.learner.growth import Weights
from apps.learner.record import Kept, Learner, Version
from apps.learner.settings import DISTILLED, StepImages
from apps.learner.step import Pixels
from atom.methods.lookup import images_version
from atom.preprocess import Preprocess
from atom.train import TRAINING_VERSION
from pipelines.console.learner_commands import AddCommand, InitCommand
from pipelines.learning.images import StepReal, joined
from pipelines.learning.memories import Plan, mixed_tests, read_memory
from pipelines.output.ownership import CHECKPOINTS_VERSION
from pipelines.output.store import Store


@dataclass(frozen=True, eq=False)
class Step:
    """A step with everything decided.

    Attributes:
        command: that asks for it.
        store: of the learner's directory.
        learner: as it stands.
        parent: the version that it goes on from; None in the first step.
        network: the name that the learner's network is built by.
        images: what was asked for.
        real: images of the step.
        preprocess: of all images.
        initial: given weights, or None.
        kind: of memory for this step's classes.
        max_drop: of the gate.
    """

    command: InitCommand | AddCommand
    store: Store
    learner: Learner
    parent: Version | None
    network: str
    images: StepImages
    real: StepReal
    preprocess: Preprocess
    initial: Weights | None
    kind: str
    max_drop: float

    @property
    def directory(self) -> Path:
        """Of the learner."""
        assert self.store.local_path is not None
        return self.store.local_path

    @property
    def number(self) -> int:
        """Of the version that it makes."""
        return 1 + max((one.number for one in self.learner.versions), default=0)

    def kept(self, part: str) -> dict[str, Kept]:
        """Files of the version before."""
        return {} if self.parent is None else dict(getattr(self.parent, part))

    def plan(self, device_kind: Any) -> Plan:
        """How its classes are remembered."""
        memory = self.kept("memory")
        labels = {name: label for label, name in enumerate(self.real.classes)}
        old = {} if self.parent is None else read_memory(self.store, self.learner, memory, self.parent)
        return Plan(
            learner=self.learner,
            real=self.real,
            old=old,
            stands_for={labels[name]: one.stands_for for name, one in memory.items()},
            kinds={labels[name]: one.kind for name, one in memory.items()},
            preprocess=self.preprocess,
            device_kind=device_kind,
        )

    def identity(self, device_kind: str) -> dict[str, Any]:
        """All that decides the version, and where images are distilled what their checkpoints belong to.

        So a step that was killed before the project was upgraded begins anew instead of meeting checkpoints of before.
        """
        told = self.learner.model_dump(mode="json", exclude={"versions"})
        distils = self.kind == DISTILLED or self.images.validation_frac > 0
        method = self.learner.settings["distill"]["method"]
        made = {"images_version": images_version(method), **CHECKPOINTS_VERSION}
        return {
            **told,
            "parent": None if self.parent is None else self.parent.key,
            "train": self.real.fingerprint,
            "judged": self.real.judged_fingerprint,
            "validation_frac": self.images.validation_frac,
            "memory": self.kind,
            "device": device_kind,
            "training_version": TRAINING_VERSION,
            **(made if distils else {}),
        }


def other_kind(kind: str) -> str:
    """The form of memory that is compared with one."""
    return "herding" if kind == DISTILLED else DISTILLED


def comparable(step: Step, plan: Plan) -> list[int]:
    """Classes of the step that can be remembered in either form."""
    return [label for label in step.real.train if plan.takes_real(label)]


def kept_tests(step: Step) -> dict[str, tuple[Exemplars, int]]:
    """Test images of each class that are kept after the step, and the real images of its class behind them."""
    if step.parent is None:
        old, before = {}, {}
    else:
        before = step.kept("tests")
        old = read_memory(step.store, step.learner, before, step.parent)
    found: dict[str, tuple[Exemplars, int]] = {}
    for label, name in enumerate(step.real.classes):
        now = len(step.real.train.get(label, ()))
        new_NCHW = step.real.kept_tests.get(label)
        if label in old and new_NCHW is not None:
            then = before[name].stands_for
            most = int(step.learner.settings["choices"]["keep_tests"])
            mixed = mixed_tests(old[label], new_NCHW, old_weight=then, new_weight=now, most=most)
            found[name] = mixed, then + now
        elif label in old:
            found[name] = old[label], before[name].stands_for
        elif new_NCHW is not None:
            found[name] = Exemplars(new_NCHW), now
    return found


def judging(step: Step) -> tuple[Pixels | None, str]:
    """The images to judge by, and where they are from: of each class those given, else those kept.

    Where there are none of either, those put aside. Of a class that comes back they are those kept before the step: the
    version before knows no other look, so new ones among them would hide what is lost of the old one.
    """
    kept = dict(step.real.kept_tests)
    if step.parent is not None:
        before = read_memory(step.store, step.learner, step.kept("tests"), step.parent)
        kept |= {label: one.images_NCHW for label, one in before.items() if one.num_images}
    given = step.real.judged
    if given is not None:
        shown = {
            int(label): given.images_NCHW[given.labels_N == label] for label in np.unique(given.labels_N)
        }
        more = "" if kept.keys() <= shown.keys() else ", and kept of classes that it does not show"
        return joined(kept | shown), f"given by --test{more}"
    if kept:
        return joined(kept), "kept of every class"
    if step.real.validation is not None:
        return step.real.validation, "put aside of the images of this step, so none of other classes"
    return None, ""


def notes_on(step: Step) -> list[str]:
    """What a user should know before the work starts."""
    notes = [f"{remark}." for remark in step.real.remarks]
    returned = [step.real.classes[label] for label in step.real.returned]
    if returned:
        notes.append(
            f"{', '.join(returned)}: known already, so remembered anew from new images and old memory."
        )
    return notes


__all__ = ["Step", "comparable", "judging", "kept_tests", "notes_on", "other_kind"]
