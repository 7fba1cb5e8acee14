"""Train networks on a distilled set and test them on real images, architecture by architecture.

python pipelines/evaluate.py --set runs/atom-digits-ipc1-s0/set --eval-networks convnet alexnet vgg11 resnet18
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atom.settings import DeviceKind, EvaluateSettings
from pipelines.console.command import EXIT_FAILED, output_location, run_command, say, stopped
from pipelines.console.commands import EvaluateCommand

if TYPE_CHECKING:
    from atom.data import RealData
    from atom.distilled import DistilledSet
    from atom.methods.experts import Expert
    from pipelines.console.signals import StopSignal
    from pipelines.evaluation import Evaluation, SmallSet
    from pipelines.output.store import Store
    from pipelines.real_classes import RealClasses
    from pipelines.teaching import Taught
    from pipelines.tracking import Tracker
    from pipelines.workers.resources import ActorSize


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(EvaluateCommand, evaluate, argv)


@dataclass(frozen=True)
class Case:
    """One run of the command with everything decided.

    Attributes:
        command: as given.
        settings: of the common protocol, resolved.
        distilled: the set, called `name` in tables.
        real: the images.
        store: the output.
        size: the workers, on `device_kind`.
        digest: of what the output belongs to.
        shared: where teachers are kept; None: in the output.
    """

    command: EvaluateCommand
    settings: EvaluateSettings
    distilled: "DistilledSet"
    name: str
    real: "RealData"
    store: "Store"
    size: "ActorSize"
    device_kind: DeviceKind
    digest: str
    shared: "Store | None"


def evaluate(command: EvaluateCommand) -> int:
    """Load the set and the real images, train, test, record; see `run_command` for what it returns."""
    from atom import resolve
    from atom.distilled import DistilledSet
    from atom.rivals import name_beside
    from pipelines.evaluation import check_baselines, check_networks, judges
    from pipelines.output.expert_place import experts_place
    from pipelines.own_networks import try_networks
    from pipelines.real_images import load_real
    from pipelines.session import Session
    from pipelines.sets import check_same_source, fingerprint, local_set, own_network, real_source

    command = command.shrunk() if command.smoke else command
    check_baselines(command.baselines)
    with local_set(command.set, command.tracking.tracking_uri) as directory:
        distilled = DistilledSet.load(directory)
        data = real_source(distilled, command.set, command.data)
        real = load_real(data, smoke=command.smoke, given=distilled)
        check_same_source(distilled, real)
        networks = judges(command.judges.eval_networks, own_network(distilled), command.evaluate)
        command = command.changed(eval_networks=networks)
        try_networks(networks, real, timeout_s=command.cluster.timeout_s)
        notes = check_networks(networks, real, settings=command.evaluate)
        digest = fingerprint(distilled)
        name = f"{distilled.method}-{real.name}-{distilled.size_slug}-{digest[:8]}"
        location = output_location(command, f"evaluate-{name}")
        num_trials = (
            command.judges.eval_seeds
            * len(networks)
            * (
                1
                + bool(distilled.training)
                + len(command.baselines) * (1 + (distilled.soft_labels is not None))
            )
        )
        shared = experts_place(
            command.experts,
            teachers_of(distilled, real) if is_judged(command) and command.baselines else (),
            real,
            smoke=command.smoke,
            unasked="the set tells of no teachers that real images could be labelled by, or there are no --baselines to"
            " label",
        )
        with Session(command) as session:
            size, device_kind = session.workers(threads=1, num_units=max(1, num_trials))
            settings = resolve.resolve_evaluation(
                command.evaluate, device_kind=device_kind, symbols=real.symbols
            )
            identity = {"set": digest, "test": real.test.fingerprint, "device": device_kind}
            shown = {**identity, **settings.model_dump(mode="json"), "networks": networks}
            store = session.take(location, identity, size=size, shown=shown, notes=notes)
            called = name_beside(distilled.method, command.baselines)
            case = Case(
                command,
                settings,
                distilled,
                called,
                real,
                store,
                size,
                device_kind,
                session.digest,
                shared,
            )
            with start_tracking(case, name) as tracker:
                return run(case, tracker, session.stop)


def start_tracking(case: Case, name: str) -> "Tracker":
    """The MLflow run of this output: a new one, or that of an earlier driver continued."""
    from pipelines.output.records import dotted, start_tracker

    command = case.command
    params: dict[str, object] = {
        **dotted("evaluate", case.settings.model_dump(mode="json")),
        "evaluate.networks": " ".join(command.judges.eval_networks or ()),
        "evaluate.statistics_images": command.judges.statistics_images,
        "evaluate.seeds": command.judges.eval_seeds,
        "evaluate.seed": command.seed,
        "data.spec": case.real.spec,
        "set.path": command.set,
        "set.method": case.distilled.method,
        "set.ipc": case.distilled.ipc,
        "set.images": len(case.distilled.labels),
        "set.factor": case.distilled.factor,
        **dotted("set.training", case.distilled.training),
    }
    return start_tracker(command, case.store, experiment="evaluate", name=name, params=params)


def run(case: Case, tracker: "Tracker", stop: "StopSignal") -> int:
    """Everything after the decisions; returns the exit code."""
    from pipelines.evaluation import print_evaluation, remarks, row_dicts
    from pipelines.output.records import log_accuracies, log_distilled, log_real, report_failures
    from pipelines.real_classes import RealClasses

    log_real(tracker, case.real)
    log_distilled(tracker, case.distilled, source=case.command.set)
    classes = RealClasses(case.real.train, case.distilled.preprocess)
    rivals = baselines(case, classes)
    with stop.polling():
        taught = label(case, rivals, classes, stop)
    if taught.stopped:
        return stopped(tracker, stop.signal_name)
    code = report_failures(taught.failed, tracker) if taught.failed else 0
    judged = judge(case, [*rivals, *taught.rivals], stop)
    if judged.stopped:
        return stopped(tracker, stop.signal_name)
    title = f"{case.distilled.method}, {case.distilled.size}: accuracy on {case.real.source.title}, %"
    print_evaluation(judged, title=title)
    log_accuracies(tracker, judged, own=case.name, title=title)
    case.store.write_json("results.json", row_dicts(judged.rows))
    tracker.log_dict({"results": row_dicts(judged.rows)}, "results.json")
    if judged.failed:
        tracker.mark("FAILED", reason=f"{len(judged.failed)} trainings failed")
    for remark in [*remarks(judged.rows, case.name), *on_labels(case, taught)]:
        say(remark)
    say(case.store.where("results.json"))
    return EXIT_FAILED if judged.failed else code


def judge(case: Case, rivals: "Sequence[SmallSet]", stop: "StopSignal") -> "Evaluation":
    """All networks on the set and its rivals."""
    from atom.pixels import as_stored
    from pipelines.evaluation import evaluate_sets, judged_sets, statistics_images

    command, preprocess = case.command, case.distilled.preprocess
    chosen = statistics_images(case.real.train.checked(), command.judges.statistics_images)
    with stop.polling():
        return evaluate_sets(
            [*judged_sets(case.distilled, case.name, smoke=command.smoke), *rivals],
            (as_stored(case.real.test.checked(), preprocess), case.real.test.labels),
            case.store,
            networks=command.judges.eval_networks or (),
            seeds=seeds_of(command),
            num_classes=case.real.train.num_classes,
            settings=case.settings,
            identity={"test": case.real.test.fingerprint},
            device_kind=case.device_kind,
            size=case.size,
            limits=command.cluster.limits(),
            stop=stop,
            statistics_NCHW=None if chosen is None else preprocess.apply(chosen).numpy(),
        )


def seeds_of(command: EvaluateCommand) -> range:
    """Of the trainings."""
    return range(command.seed, command.seed + command.judges.eval_seeds)


def baselines(case: Case, classes: "RealClasses") -> "list[SmallSet]":
    """Coresets of equal storage from the source's training images."""
    from pipelines.baselines import coresets

    if not is_judged(case.command):
        return []
    return coresets(
        case.command.baselines,
        classes.rows,
        case.real.train.labels,
        ipc=case.distilled.per_class,
        num_classes=case.real.train.num_classes,
        seed=case.command.seed,
        seeds=seeds_of(case.command),
    )


def is_judged(command: EvaluateCommand) -> bool:
    """Whether anything is to be trained on the set."""
    return bool(command.judges.eval_seeds and command.judges.eval_networks)


def teachers_of(distilled: "DistilledSet", real: "RealData") -> "Sequence[Expert]":
    """The set's teachers, if it tells of them and these are the images that they were trained on."""
    from atom.methods.method import Shape
    from atom.methods.teachers import retold

    same = distilled.source.get("fingerprint") == real.train.fingerprint
    channels, height, width = real.train.images.shape[1:]
    shape = Shape(channels, height, width, real.train.num_classes)
    return retold(distilled.settings.get("teacher"), shape) if same else ()


def label(case: Case, rivals: "Sequence[SmallSet]", classes: "RealClasses", stop: "StopSignal") -> "Taught":
    """Labels of the set's teachers for its rivals."""
    from atom.methods.settings import DistillSettings
    from atom.resolve import resolve_settings
    from pipelines.output.checkpoints import Checkpoints
    from pipelines.output.expert_files import EXPERTS_FOLDER, ExpertFiles
    from pipelines.real_images import put_classes
    from pipelines.teaching import Taught, teach
    from pipelines.workers.remote import Problem

    found, num_classes = teachers_of(case.distilled, case.real), case.real.train.num_classes
    if not found or not rivals:
        return Taught()
    shape = dict(zip(("channels", "height", "width"), case.real.train.images.shape[1:], strict=True))
    shape["num_classes"] = num_classes
    # Workers train the teachers, and distil nothing: any method would do.
    settings = resolve_settings(
        DistillSettings(method="random"), device_kind=case.device_kind, symbols=case.real.symbols, **shape
    )
    return teach(
        found,
        None,
        rivals,
        factor=1,
        problem=Problem(settings, device_kind=case.device_kind, **shape),
        real=put_classes(classes.preprocessed, case.real.train.labels, num_classes),
        checkpoints=Checkpoints(case.store, case.digest),
        experts=ExpertFiles(
            case.shared or case.store.inside(EXPERTS_FOLDER),
            case.real,
            preprocess=case.distilled.preprocess.digest,
            device=case.device_kind,
        ),
        size=case.size,
        limits=case.command.cluster.limits(),
        stop=stop,
    )


def on_labels(case: Case, taught: "Taught") -> list[str]:
    """What has to be said under the table of a set with soft labels."""
    from atom.methods.teachers import MOST_RETOLD
    from atom.rivals import WITH_TEACHER

    if case.distilled.soft_labels is None or not (is_judged(case.command) and case.command.baselines):
        return []
    if not taught.rivals:
        return [
            "The set has soft labels, and the real images beside it hard ones: it tells of no teachers that can be"
            f" trained here in {MOST_RETOLD} epochs, or they were trained on other images than these, or failed."
        ]
    epoch = teachers_of(case.distilled, case.real)[0].epochs
    return [
        f"({WITH_TEACHER.strip()}): real images with the labels of the set's teachers after epoch {epoch}."
    ]


if __name__ == "__main__":
    sys.exit(main())
