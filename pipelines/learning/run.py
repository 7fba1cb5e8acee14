"""One version of a learner from new images: planned, remembered, learned, judged, written.

Everything lies in work/KEY until it is whole, so that a killed command goes on. Then files that nothing names yet are
written, the version's directory appears, learner.json names them, and last of all `current` moves.
"""

# N images

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import ray

from apps.continual.exemplars import Exemplars
from apps.continual.memory import Memory
from apps.continual.settings import LearnerSettings
from apps.continual.state import LearnerState
from apps.learner.directory import TESTS, WORK, class_file, read_state, state_files, unused_files
from apps.learner.record import Accuracy, Kept, Learner, Version
from apps.learner.serving import body_of
from apps.learner.settings import DISTILLED
from apps.learner.step import StepJob, StepOutcome
from atom.resolve import resolve_evaluation
from atom.settings import EvaluateSettings
from pipelines.console.command import say, stopped
from pipelines.learning.memories import Plan, chosen, distilled
from pipelines.learning.remote import learn_version
from pipelines.learning.step import Step, comparable, judging, kept_tests, notes_on, other_kind
from pipelines.learning.tracking import log_curves, registered, use_model, version_tracker
from pipelines.learning.verdict import judge, say_rivals
from pipelines.learning.versions import delete, digests, drop_empty, drop_work, write_version
from pipelines.output.ownership import settings_hash
from pipelines.output.records import RUN_NAME, report_failures
from pipelines.output.store import Store
from pipelines.serving import served_model
from pipelines.session import Session
from pipelines.tracking import Model, Tracker
from pipelines.workers.faults import Failure
from pipelines.workers.resources import ActorSize
from pipelines.workers.tasks import run_tasks


class _StoppedError(Exception):
    """A signal ended the work early."""


class _FailedError(Exception):
    """Parts of the work failed, by name."""

    def __init__(self, failed: Mapping[str, Failure]) -> None:
        super().__init__()
        self.failed = failed


def make_version(step: Step, begin: Mapping[str, bytes]) -> int:
    """The version, current if the gate lets it through; returns the exit code.

    Args:
        step: decided.
        begin: further files of the directory, that the first version comes with.

    Raises:
        AtomError: on bad input, a full disk and the like; `current` is what it was.
    """
    delete(unused_files(step.directory, step.learner))
    with Session(step.command) as session:
        size, device_kind = session.workers(threads=1, num_units=len(step.real.train))
        identity = step.identity(device_kind)
        key = settings_hash(identity)
        # Of steps that went on from another version, or of other images: their classes may be forgotten by now.
        drop_work(step.directory, but=key)
        known = next((one for one in step.learner.versions if one.key == key and not one.removed), None)
        if known is not None and not step.store.inside(f"{WORK}/{key}").exists(RUN_NAME):
            code = judge(step, step.learner, known)
            if code == 0:
                use_model(step.command, step.directory, step.learner, known)
            return code
        plan = step.plan(device_kind)
        number = {label: plan.to_keep(label, step.kind) for label in step.real.train}
        if step.kind == DISTILLED:
            plan.settings(1)  # what it refuses is refused before any work
        version_number = step.number if known is None else known.number
        shown = {
            "data": step.images.data,
            "version": version_number,
            "memory": step.kind,
            "images": len(step.real.current.labels_N),
            "classes": len(step.real.classes),
        }
        place = str(step.directory / WORK / key)
        try:
            work = session.take(
                place, identity, size=size, shown=shown, notes=notes_on(step), flag="directory"
            )
        except BaseException:
            drop_empty(step.directory / WORK)
            raise
        with version_tracker(step, work, key, version_number) as tracker:
            if known is not None:
                # Killed between its files and the end of its run in MLflow.
                return _publish(step, step.learner, known, tracker, session, size)
            making = _Making(step, plan, work, session, size, tracker)
            try:
                memory, rivals = making.memory(number)
                outcome = making.learn(memory, rivals)
            except _StoppedError:
                return stopped(tracker, session.stop.signal_name)
            except _FailedError as error:
                return report_failures(error.failed, tracker)
            say_rivals(rivals, outcome)
            learner, version = _write(step, plan, key, memory, outcome, begin)
            return _publish(step, learner, version, tracker, session, size)


def _publish(
    step: Step, learner: Learner, version: Version, tracker: Tracker, session: Session, size: ActorSize
) -> int:
    """Tell MLflow of a version that is written, and make it current if the gate lets it; returns the exit code."""
    log_curves(tracker, learner, version)
    at = registered(step.directory, learner, version)
    model = _model(step, version, session, size)
    if session.stop.is_set():
        return stopped(tracker, session.stop.signal_name)
    if model is not None:
        tracker.log_model(model, at)
    # `current` moves when MLflow has the model: a command that finds it moved makes none.
    tracker.flush()
    code = judge(step, learner, version)
    if model is not None and code == 0:
        tracker.use_model(at)
    return code


@dataclass(frozen=True, eq=False)
class _Making:
    """The work of a step on Ray."""

    step: Step
    plan: Plan
    work: Store
    session: Session
    size: ActorSize
    tracker: Tracker

    def memory(
        self, number: Mapping[int, int]
    ) -> tuple[dict[int, Exemplars], dict[str, dict[int, Exemplars]]]:
        """The memory after the step, and if asked the step's classes in both forms, at equal bytes."""
        step, plan = self.step, self.plan
        made = self._remembered(step.kind, number)
        rivals: dict[str, dict[int, Exemplars]] = {}
        if step.real.validation is not None and comparable(step, plan):
            other = other_kind(step.kind)
            most = {label: one.num_bytes for label, one in made.items() if label in comparable(step, plan)}
            wanted = {label: plan.within(label, other, num_bytes) for label, num_bytes in most.items()}
            rival = self._remembered(other, wanted)
            fitting = {label: one.head(one.num_images, most[label]) for label, one in rival.items()}
            # Where not one fits, its bytes are told as they are.
            rivals = {
                step.kind: {label: made[label] for label in most},
                other: {
                    label: one if one.num_images else rival[label].head(1) for label, one in fitting.items()
                },
            }
        old = {label: plan.shrunk(label) for label in plan.old}
        return dict(sorted((old | made).items())), rivals

    def _remembered(self, kind: str, number: Mapping[int, int]) -> dict[int, Exemplars]:
        if kind != DISTILLED:
            return chosen(self.plan, kind, number)
        command = self.step.command
        with self.session.stop.polling():
            made = distilled(
                self.plan,
                self.work,
                number=number,
                size=self.size,
                checkpoint_every=command.checkpoint_every,
                limits=command.cluster.limits(),
                tracker=self.tracker,
                stop=self.session.stop,
            )
        if made.stopped:
            raise _StoppedError
        if made.failed:
            raise _FailedError(made.failed)
        return dict(made.exemplars)

    def learn(
        self, memory: Mapping[int, Exemplars], rivals: Mapping[str, Mapping[int, Exemplars]]
    ) -> StepOutcome:
        """What comes of the learning, on a worker."""
        job = _job(self.step, self.plan, memory, rivals)
        say(f"learning version {self.step.number}")
        found: list[StepOutcome] = []
        limits = self.step.command.cluster.limits()
        with self.session.stop.polling():
            outcome = run_tasks(
                learn_version,
                [f"version {self.step.number}"],
                shared=(ray.put(job), self.plan.device_kind),
                size=self.size,
                limits=limits,
                on_result=lambda _, value: found.append(value),
                stop=self.session.stop,
            )
        if outcome.stopped:
            raise _StoppedError
        if outcome.failed:
            raise _FailedError(outcome.failed)
        return found[0]


def _model(step: Step, version: Version, session: Session, size: ActorSize) -> Model | None:
    """What MLflow serves of the version, or None."""
    learner = step.learner
    height, width = learner.image_size
    preprocess = step.preprocess.tensors()
    with session.stop.polling():
        return served_model(
            partial(body_of(learner, step.network).build, len(version.classes)),
            read_state(step.directory, version).weights,
            {name: tensor.contiguous().numpy() for name, tensor in preprocess.items()},
            classes=version.classes,
            shape=(learner.channels, height, width),
            resize=learner.resize,
            num_cpus=size.cpus,
            limits=step.command.cluster.limits(),
            stop=session.stop,
        )


def _job(
    step: Step,
    plan: Plan,
    memory: Mapping[int, Exemplars],
    rivals: Mapping[str, Mapping[int, Exemplars]],
) -> StepJob:
    settings = step.learner.settings
    asked = EvaluateSettings.model_validate(settings["evaluate"])
    state = None if step.parent is None else read_state(step.directory, step.parent)
    tests, _ = judging(step)
    named = {name: tensor.contiguous().numpy() for name, tensor in step.preprocess.tensors().items()}
    return StepJob(
        number=step.number,
        learner=plan.choices.learner,
        body=body_of(step.learner, step.network),
        num_classes=len(step.real.classes),
        num_old=step.real.num_old,
        current=step.real.current,
        memory_before=Memory(plan.old).to_bytes(),
        memory_after=Memory(memory).to_bytes(),
        preprocess=named,
        state=None if state is None else state.to_bytes(),
        initial=step.initial,
        settings=LearnerSettings.model_validate(settings["training"]),
        train_settings=resolve_evaluation(asked, device_kind=plan.device_kind, symbols=step.learner.symbols),
        symbols=step.learner.symbols,
        seed=plan.seed,
        tests=tests,
        validation=step.real.validation,
        rivals={name: Memory({**memory, **rival}).to_bytes() for name, rival in rivals.items()},
    )


def _write(
    step: Step,
    plan: Plan,
    key: str,
    memory: Mapping[int, Exemplars],
    outcome: StepOutcome,
    begin: Mapping[str, bytes],
) -> tuple[Learner, Version]:
    """The version's files, and learner.json that names it."""
    classes, before = step.real.classes, step.kept("memory")
    files: dict[str, bytes] = dict(begin)
    kept: dict[str, Kept] = {}
    for label, exemplars in memory.items():
        name = classes[label]
        behind = before[name].stands_for if name in before else 0
        behind += len(step.real.train.get(label, ()))
        kind = step.kind if label in step.real.train else before[name].kind
        kept[name], content = class_file(exemplars, name, kind=kind, stands_for=behind)
        files[kept[name].file] = content
    tests: dict[str, Kept] = {}
    for name, (exemplars, behind) in kept_tests(step).items():
        tests[name], content = class_file(exemplars, name, kind="tests", stands_for=behind, folder=TESTS)
        files[tests[name].file] = content
    pixels, judged_by = judging(step)
    counts = {} if pixels is None else dict(zip(*np.unique(pixels.labels_N, return_counts=True), strict=True))
    states = state_files(LearnerState.from_bytes(outcome.state))
    version = Version(
        number=step.number,
        parent=None if step.parent is None else step.parent.number,
        step="init" if step.parent is None else "add",
        classes=list(classes),
        learned={classes[label]: len(images) for label, images in step.real.train.items()},
        images=step.real.fingerprint,
        key=key,
        memory=kept,
        tests=tests,
        accuracies={
            name: Accuracy(
                before=outcome.before.get(label), after=outcome.after[label], images=int(counts[label])
            )
            for label, name in enumerate(classes)
            if label in outcome.after
        },
        judged_by=judged_by,
        sha256=digests(states),
    )
    learner = write_version(step.store, step.learner, version, files=files, states=states)
    return learner, version


__all__ = ["make_version"]
