"""One version of a learner from new images: planned, remembered, learned, judged, written.

Everything lies in work/KEY until it is whole, so that a killed command goes on. Then files that nothing names yet are
written, the version's directory appears, learner.json names them, and last of all `current` moves.
"""

# K classes

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from apps.continual.exemplars import Exemplars
from apps.continual.memory import Memory
from apps.continual.settings import LearnerSettings
from apps.continual.state import LearnerState
from apps.learner.card import readme, report
from apps.learner.directory import (
    CURRENT,
    INITIAL,
    LEARNER,
    PREPROCESS,
    TESTS,
    WORK,
    class_file,
    folder_of,
    learner_json,
    read_current,
    read_learner,
    read_state,
    state_files,
    unused_files,
    work_folders,
)
from apps.learner.gate import COLUMNS, accuracy_rows, fallen, refusal
from apps.learner.growth import Weights
from apps.learner.record import Accuracy, Kept, Learner, Version
from apps.learner.serving import body_of, load_version
from apps.learner.settings import DISTILLED, StepImages
from apps.learner.step import Pixels, StepJob, StepOutcome
from apps.served import Served, torchscript
from atom.methods.lookup import images_version
from atom.preprocess import Preprocess
from atom.resolve import resolve_evaluation
from atom.settings import EvaluateSettings
from atom.train import TRAINING_VERSION
from pipelines.console.command import EXIT_FAILED, say, stopped
from pipelines.console.learner_commands import AddCommand, InitCommand, OnLearner
from pipelines.console.progress import print_table
from pipelines.learning.images import StepReal, joined
from pipelines.learning.memories import Plan, chosen, distilled, mixed_tests, read_memory
from pipelines.learning.remote import learn_version
from pipelines.output.ownership import CHECKPOINTS_VERSION, settings_hash
from pipelines.output.records import RUN_NAME, report_failures, start_tracker
from pipelines.output.store import Store
from pipelines.serving import served_model
from pipelines.session import Session
from pipelines.tracking import Model, Registered, Tracker, default_tracking_uri, point_current, replace_models
from pipelines.workers.faults import Failure
from pipelines.workers.remote import network_slug
from pipelines.workers.resources import ActorSize
from pipelines.workers.tasks import run_tasks


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
        _drop_work(step.directory, but=key)
        known = next((one for one in step.learner.versions if one.key == key and not one.removed), None)
        if known is not None:
            code = _judge_again(step, known, key)
            if code == 0:
                use_model(step.command, step.directory, step.learner, known)
            return code
        plan = step.plan(device_kind)
        number = {label: plan.to_keep(label, step.kind) for label in step.real.train}
        if step.kind == DISTILLED:
            plan.settings(1)  # what it refuses is refused before any work
        shown = {
            "data": step.images.data,
            "version": step.number,
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
            _drop_empty(step.directory / WORK)
            raise
        with _tracker(step, work, key, step.number) as tracker:
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
            _log(tracker, learner, version)
            at = registered(step.directory, learner, version)
            model = making.model(version)
            if model is not None:
                tracker.log_model(model, at)
            code = judge(step, learner, version)
            if model is not None and code == 0:
                tracker.use_model(at)
            return code


def _judge_again(step: Step, version: Version, key: str) -> int:
    """As `judge`, of a version that is there; its run in MLflow ends, where the command that made it was killed."""
    work = step.store.inside(f"{WORK}/{key}")
    if not work.exists(RUN_NAME):
        return judge(step, step.learner, version)
    with _tracker(step, work, key, version.number) as tracker:
        _log(tracker, step.learner, version)
        return judge(step, step.learner, version)


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
                num_cpus=self.size.cpus,
                num_gpus=self.size.gpus,
                limits=limits,
                on_result=lambda _, value: found.append(value),
                stop=self.session.stop,
            )
        if outcome.stopped:
            raise _StoppedError
        if outcome.failed:
            raise _FailedError(outcome.failed)
        return found[0]

    def model(self, version: Version) -> Model | None:
        """What MLflow serves of the version, or None."""
        learner = self.step.learner
        height, width = learner.image_size
        preprocess = self.step.preprocess.tensors()
        with self.session.stop.polling():
            return served_model(
                partial(body_of(learner, self.step.network).build, len(version.classes)),
                read_state(self.step.directory, version).weights,
                {name: tensor.contiguous().numpy() for name, tensor in preprocess.items()},
                classes=version.classes,
                shape=(learner.channels, height, width),
                resize=learner.resize,
                num_cpus=self.size.cpus,
                limits=self.step.command.cluster.limits(),
                stop=self.session.stop,
            )


def registered(directory: Path, learner: Learner, version: Version) -> Registered:
    """Where MLflow's registry has a version."""
    name = network_slug(experiment_of(directory))
    return Registered(name, owner=learner.versions[0].key, version=f"{version.number}-{version.key}")


def use_model(command: OnLearner, directory: Path, learner: Learner, version: Version) -> None:
    """Let the registry's alias `current` name a version that is registered already, as far as MLflow is there."""
    uri = command.tracking.tracking_uri or default_tracking_uri(directory)
    point_current(uri, registered(directory, learner, version))


def replace_versions(command: OnLearner, directory: Path) -> None:
    """Delete the models of versions that are gone, and let MLflow serve the current one."""
    learner = read_learner(directory)
    version = read_current(directory, learner)
    gone = [one for one in learner.versions if one.removed]
    model = None
    # Code is never run because a directory names it.
    if ":" not in learner.network:
        net, preprocess, classes = load_version(directory, number=version.number)
        height, width = learner.image_size
        shape = (learner.channels, height, width)
        script = torchscript(Served(net, preprocess).eval(), shape)
        model = Model(script, tuple(classes), shape, learner.resize)
    replace_models(
        command.tracking.tracking_uri or default_tracking_uri(directory),
        [registered(directory, learner, one) for one in gone],
        experiment=command.tracking.experiment or experiment_of(directory),
        run_name=f"version {version.number}",
        model=model,
        at=registered(directory, learner, version),
    )


def experiment_of(directory: Path) -> str:
    """Name of the learner's experiment in MLflow, where none was asked for."""
    return f"learner-{directory.resolve().name}"


def other_kind(kind: str) -> str:
    """The form of memory that is compared with one."""
    return "herding" if kind == DISTILLED else DISTILLED


def comparable(step: Step, plan: Plan) -> list[int]:
    """Classes of the step that can be remembered in either form."""
    return [label for label in step.real.train if plan.takes_real(label)]


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


def _kept_tests(step: Step) -> dict[str, tuple[Exemplars, int]]:
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
    for name, (exemplars, behind) in _kept_tests(step).items():
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


def write_version(
    store: Store,
    learner: Learner,
    version: Version,
    *,
    files: Mapping[str, bytes],
    states: Mapping[str, bytes],
) -> Learner:
    """A version on disk, and learner.json that names it last; `current` stays.

    Args:
        store: of the learner's directory.
        learner: before.
        version: that is new.
        files: content by name, in the directory; those that are there are left alone, as their names hold digests.
        states: content of the tensor files of the version.

    Raises:
        StoreError: the disk is full or the like.
    """
    after = learner.model_copy(update={"versions": [*learner.versions, version]})
    for name, content in files.items():
        if name in (PREPROCESS, INITIAL) or not store.exists(name):
            store.write_bytes(name, content)
    with store.publish_directory(folder_of(version.number)) as staging:
        for name, content in states.items():
            (staging / name).write_bytes(content)
        accuracies = {name: one.model_dump() for name, one in version.accuracies.items()}
        (staging / "accuracies.json").write_text(
            json.dumps(accuracies, indent=2, ensure_ascii=False) + "\n", "utf-8"
        )
        (staging / "README.md").write_text(readme(after, version), encoding="utf-8")
        (staging / "report.html").write_text(report(after, version), encoding="utf-8")
    write_learner(store, after)
    return after


def judge(step: Step, learner: Learner, version: Version) -> int:
    """Make the version current unless an old class lost too much; returns the exit code."""
    old = version.classes[: step.real.num_old]
    lost = fallen({n: one for n, one in version.accuracies.items() if n in old}, max_drop=step.max_drop)
    if version.accuracies:
        print_table(
            f"Accuracy by class, test images {version.judged_by}",
            list(COLUMNS),
            [tuple(row) for row in accuracy_rows(version.classes, version.accuracies)],
        )
    untested = [name for name in old if version.accuracies.get(name, Accuracy()).before is None]
    if untested:
        say(
            f"Note: {', '.join(untested[:8])}: no test images, so the gate cannot see what they lost; pass --test, or"
            " begin a learner with --keep-tests."
        )
    note = refusal(lost, max_drop=step.max_drop)
    set_note(step.store, learner, version.number, f"refused: {note}" if note else "")
    where = step.store.where(folder_of(version.number))
    # Work goes last: it names the run in MLflow that a command goes on with which was killed before.
    if not note:
        move_current(step.store, version.number)
    _drop_work(step.directory)
    if note:
        current = "" if step.parent is None else f"; version {step.parent.number} stays current"
        say(
            f"Refused: version {version.number}: {note}{current}. Pass a larger --max-drop to take it all the same."
        )
        say(f"{where}/report.html")
        return EXIT_FAILED
    say(f"Version {version.number} is current: {len(version.classes)} classes.")
    say(f"{where}/report.html")
    return 0


def write_learner(store: Store, learner: Learner) -> None:
    """learner.json, replaced as a whole."""
    store.write_bytes(LEARNER, learner_json(learner))


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of each file, as learner.json has it."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def set_note(store: Store, learner: Learner, number: int, note: str) -> None:
    """Say in learner.json why a version did not become current, or that it did."""
    found = learner.version(number)
    if found is not None and found.note != note:
        versions = [
            one.model_copy(update={"note": note}) if one.number == number else one for one in learner.versions
        ]
        write_learner(store, learner.model_copy(update={"versions": versions}))


def move_current(store: Store, number: int) -> None:
    """Make a version the current one: the one write that decides."""
    store.write_bytes(CURRENT, f"{number:04d}\n".encode())


def say_rivals(rivals: Mapping[str, Mapping[int, Exemplars]], outcome: StepOutcome) -> None:
    """Which form stored more accuracy a byte, where that was asked."""
    if not outcome.rivals:
        return
    rows, worth = [], {}
    for name, accuracy in outcome.rivals.items():
        num_bytes = sum(one.num_bytes for one in rivals[name].values())
        images = sum(one.num_images for one in rivals[name].values())
        worth[name] = 1000 * accuracy / num_bytes
        rows.append((name, images, f"{num_bytes:,}", f"{accuracy:.1f}", f"{worth[name]:.2f}"))
    print_table(
        "Memory of this step's classes, and the accuracy on images put aside of a new network that learned from memory"
        " alone",
        ["memory", "images", "bytes", "accuracy, %", "points a kB"],
        rows,
    )
    best = max(worth, key=worth.__getitem__)
    say(f"{best} stored more accuracy a byte.")


def notes_on(step: Step) -> list[str]:
    """What a user should know before the work starts."""
    notes = [f"{remark}." for remark in step.real.remarks]
    returned = [step.real.classes[label] for label in step.real.returned]
    if returned:
        notes.append(
            f"{', '.join(returned)}: known already, so remembered anew from new images and old memory."
        )
    return notes


def _tracker(step: Step, work: Store, key: str, number: int) -> Tracker:
    uri = step.command.tracking.tracking_uri or default_tracking_uri(step.directory)
    params: dict[str, object] = {
        "version": number,
        "key": key,
        "network": step.learner.network,
        "learner": step.learner.settings["choices"]["learner"],
        "memory": step.kind,
        "classes": len(step.real.classes),
    }
    command = step.command.changed(tracking_uri=uri)
    return start_tracker(
        command, work, experiment=experiment_of(step.directory), name=f"version {number}", params=params
    )


def _log(tracker: Tracker, learner: Learner, version: Version) -> None:
    """The curves of the version and of those it goes on from, by their numbers: each run shows the whole history."""
    history = [version]
    while (parent := learner.version(history[-1].parent or 0)) is not None:
        history.append(parent)
    names = curve_names(history)
    tracker.log_dict({curve: name for name, curve in names.items()}, "classes.json")
    for one in reversed(history):
        found = {
            f"accuracy/{names[name]}": accuracy.after
            for name, accuracy in one.accuracies.items()
            if accuracy.after is not None
        }
        if not one.removed:
            found["memory_bytes"] = sum(kept.num_bytes for kept in one.memory.values())
        tracker.log_metrics(found, step=one.number)


def curve_names(history: Sequence[Version]) -> dict[str, str]:
    """What the curve of each class is called: its label in the first version, and what MLflow takes of its name.

    Names that differ only in what it does not take have curves of their own. Classes of older versions alone have the
    numbers after the labels.
    """
    names = dict.fromkeys(name for one in history for name in (*one.classes, *one.accuracies))
    return {
        name: f"{number:02d}-" + network_slug(name).encode("ascii", "replace").decode().replace("?", "_")
        for number, name in enumerate(names)
    }


def delete(paths: Iterable[Path]) -> list[Path]:
    """Files and directories, whether they are there or not; returns those that could not be deleted."""
    paths = list(paths)
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink(missing_ok=True)
    return [path for path in paths if os.path.lexists(path)]


def delete_unused(directory: Path, learner: Learner) -> list[Path]:
    """Delete what no version names, and the work of killed steps; returns what could not be deleted."""
    return [*delete(unused_files(directory, learner)), *_drop_work(directory)]


def _drop_work(directory: Path, *, but: str = "") -> list[Path]:
    """Delete what steps left on their way, but for one; returns what could not be deleted."""
    left = delete(work_folders(directory, but=but))
    _drop_empty(directory / WORK)
    return left


def _drop_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


__all__ = [
    "Step",
    "comparable",
    "curve_names",
    "delete",
    "delete_unused",
    "digests",
    "judging",
    "make_version",
    "move_current",
    "other_kind",
    "replace_versions",
    "set_note",
    "use_model",
    "write_learner",
    "write_version",
]
