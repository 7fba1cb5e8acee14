"""Distil a real image set on Ray, unit of classes by unit, and measure the result beside coresets of equal storage.

python pipelines/distill.py --dataset digits
ray job submit --working-dir . -- python pipelines/distill.py --dataset cifar10 --output /shared/cifar10
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from atom.errors import ConfigError
from atom.methods.settings import DistillSettings
from atom.settings import FROM_SET, INITS, rows_of
from pipelines.console.command import EXIT_FAILED, output_location, run_command, say, say_header, stopped
from pipelines.console.commands import DistillCommand
from pipelines.distill_case import (
    Case,
    expert_files,
    given_images,
    identity_of,
    is_judged,
    load_of,
    problem_of,
    run_name,
)

if TYPE_CHECKING:
    from atom.data import RealData
    from atom.distilled import DistilledSet
    from atom.methods.method import Part, Unit
    from atom.preprocess import Preprocess
    from pipelines.console.signals import StopSignal
    from pipelines.distillation import Distillation
    from pipelines.evaluation import Evaluation, SmallSet
    from pipelines.output.store import Store
    from pipelines.real_classes import RealClasses
    from pipelines.teaching import Taught
    from pipelines.tracking import Tracker
    from pipelines.workers.faults import Failure
    from pipelines.workers.works import Spent


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(DistillCommand, distill, argv)


def distill(command: DistillCommand) -> int:
    """Load, distil, evaluate, record; the work of the command, see `run_command` for what it returns."""
    from atom import resolve
    from atom.methods.lookup import check_read, find_method
    from atom.methods.method import Shape
    from atom.methods.teachers import check_teachers, teachers
    from pipelines.baselines import note_on, usual
    from pipelines.distillation import workers_of_use
    from pipelines.dry_run import dry_run
    from pipelines.evaluation import check_baselines, check_networks, judges
    from pipelines.output.expert_place import experts_place
    from pipelines.output.store import Store
    from pipelines.own_networks import try_networks
    from pipelines.preflight import check_memory
    from pipelines.real_images import check_ipc, judging_images, load_real, not_whitened, whitening_flaw
    from pipelines.session import Session
    from pipelines.sets import fingerprint

    command = command.shrunk() if command.smoke else command
    asked = command.distill
    check_read(asked, taught=command.teacher.teacher_epoch is not None)
    check_baselines(command.baselines)
    real = load_real(command.data, smoke=command.smoke)
    judging_images(real, command.judge_on)
    asked = asked.fitted(real.train.num_classes)
    judged, unnamed = command.judges.eval_seeds > 0, command.baselines is None
    beside = note_on(real.train.num_classes) if judged and unnamed else []
    baselines = usual(real.train.num_classes) if command.baselines is None else command.baselines
    command = command.changed(baselines=baselines)
    check_ipc(
        real,
        ipc=asked.ipc,
        factor=asked.factor,
        init=asked.init,
        baselines=baselines if judged else (),
        images_in_all=asked.images_in_all,
    )
    channels, height, width = real.train.images.shape[1:]
    num_classes = real.train.num_classes
    first = None
    if asked.init not in INITS:
        first = first_set(asked, real, command.tracking.tracking_uri)
        asked = asked.changed(init=f"{FROM_SET}{fingerprint(first)[:16]}")
    command = command.changed(
        eval_networks=judges(command.judges.eval_networks, asked.network, command.evaluate)
    )
    networks = command.judges.eval_networks or ()
    try_networks((asked.network, *networks), real, timeout_s=command.cluster.timeout_s)
    check_teachers(command.teacher, asked, Shape(channels, height, width, num_classes))
    notes = check_networks(networks, real, settings=command.evaluate, distils=asked.network)
    name = run_name(asked, real.name)
    location = output_location(command, name)
    flaw = whitening_flaw(real, asked)
    settle = partial(
        resolve.resolve_settings,
        asked,
        channels=channels,
        height=height,
        width=width,
        num_classes=num_classes,
        symbols=real.symbols,
        whitenable=flaw is None,
    )
    # Once for whatever device, to be refused before Ray has started.
    likely = settle(device_kind="cpu")
    shared = experts_place(
        command.experts,
        [*find_method(likely.method).preparations(likely), *teachers(command.teacher, likely)],
        real,
        smoke=command.smoke,
        unasked=f"the method {likely.method} asks for no experts, and there is no --teacher-epoch",
    )
    with Session(command) as session:
        most, device_kind = session.workers(threads=asked.threads_per_actor, num_units=sys.maxsize)
        settings = settle(device_kind=device_kind)
        method = find_method(settings.method)
        units = method.units(settings, range(num_classes))
        taught_by = teachers(command.teacher, settings)
        of_use = max(workers_of_use(settings, units), len(taught_by))
        size = most.at_most(of_use)
        evaluation = resolve.resolve_evaluation(
            command.evaluate, device_kind=device_kind, symbols=real.symbols
        )
        identity = identity_of(settings, real, device_kind, taught_by)
        load = load_of(command, settings, real, units, size, device_kind, taught=bool(taught_by))
        # Of several machines this one may have no worker.
        load = replace(load, here=session.cluster.num_nodes == 1)
        if not is_begun(location):
            check_memory(load)
        shown = {**identity, **evaluation.model_dump(mode="json")}
        case = Case(
            command,
            settings,
            evaluation,
            real,
            Store.open(location),
            size,
            device_kind,
            "",
            units,
            first,
            shared,
        )
        if command.dry_run:
            say_header(command.prog, shown, session.cluster, size, case.store)
            return dry_run(case, load)
        store = session.take(
            location,
            identity,
            size=size,
            shown=shown,
            notes=[
                *not_whitened(flaw),
                *on_units(units, command.cluster.num_actors, num_classes, replicas=method.replicas(settings)),
                *notes,
                *beside,
                *on_credit(first, asked),
            ],
        )
        case = replace(case, store=store, digest=session.digest)
        with start_tracking(case, name) as tracker:
            return run(case, tracker, session.stop)


def is_begun(location: str) -> bool:
    """Whether a run has stored something there: what it has done needs no memory again, and it fitted once."""
    from pipelines.output.checkpoints import FOLDER
    from pipelines.output.store import Store

    store = Store.open(location)
    return store.exists(FOLDER) and bool(store.list(FOLDER))


def first_set(asked: DistillSettings, real: "RealData", tracking_uri: str | None) -> "DistilledSet":
    """The set that --init names, fit to start from.

    Raises:
        ConfigError, ArtifactError, StoreError: it cannot be found or read, or does not fit the real images.
    """
    from atom.distilled import DistilledSet
    from atom.initial import check_start
    from pipelines.sets import local_set

    with local_set(asked.init, tracking_uri, flag="--init") as directory:
        if not directory.exists():
            raise ConfigError(
                f"--init {asked.init}: no such set; expected {', '.join(INITS)}, or the place of a distilled set."
            )
        distilled = DistilledSet.load(directory)
    check_start(
        distilled,
        class_names=real.train.class_names,
        image_shape=real.train.images.shape[1:],
        ipc=asked.ipc,
        factor=asked.factor,
    )
    return distilled


def on_credit(first: "DistilledSet | None", asked: DistillSettings) -> list[str]:
    """A note where images that another method made, and no step moves, would be called this one's."""
    from atom.methods.lookup import find_method
    from atom.methods.registry import NAMES

    if first is None or asked.iterations != 0 or first.method == asked.method or first.method not in NAMES:
        return []
    if "init" in find_method(first.method).unread:
        return []
    return [
        f"the images stay as {first.method} made them, and the set will be called {asked.method}'s; pass --method"
        f" {first.method} to give it the credit."
    ]


def on_units(
    units: "Sequence[Unit]", num_actors: int | None, num_classes: int, *, replicas: int = 1
) -> list[str]:
    """A note where fewer units than workers keep some idle."""
    if len(units) >= min(num_actors or 0, num_classes):
        return []
    if len(units) == 1:
        shared = (
            f"their {replicas} replicas an iteration on up to {replicas} workers"
            if replicas > 1
            else "on one worker"
        )
        return [f"the classes are distilled together, {shared}."]
    return [
        f"{len(units)} groups of classes keep {len(units)} workers busy; a smaller --classes-per-group makes more, and"
        " other bits."
    ]


def start_tracking(case: Case, name: str) -> "Tracker":
    """The MLflow run of this output: a new one, or that of an earlier driver continued."""
    from pipelines.output.records import dotted, start_tracker

    params: dict[str, object] = {
        **dotted("distill", case.settings.model_dump(mode="json")),
        **dotted("evaluate", case.evaluation.model_dump(mode="json")),
        "evaluate.judge_on": case.command.judge_on,
        **dotted("teacher", case.command.teacher.model_dump(mode="json")),
        "data.spec": case.real.spec,
        "data.fingerprint": case.real.train.fingerprint,
        "cluster.num_actors": case.size.num_actors,
        "cluster.device": case.device_kind,
    }
    return start_tracker(case.command, case.store, experiment="distill", name=name, params=params)


def run(case: Case, tracker: "Tracker", stop: "StopSignal") -> int:
    """Everything after the decisions; returns the exit code."""
    from atom.methods.soundness import joined
    from pipelines.output.provenance import distinct
    from pipelines.output.records import log_real, report_failures
    from pipelines.real_classes import RealClasses
    from pipelines.real_images import preprocessing

    log_real(tracker, case.real)
    preprocess = preprocessing(case.real, case.settings, case.store, case.command.data.data_dir / "cache")
    classes = RealClasses(case.real.train, preprocess)
    with stop.polling():
        outcome = distil(case, classes, preprocess, tracker, stop)
    if outcome.stopped:
        return stopped(tracker, stop.signal_name)
    if outcome.failed or outcome.failed_preparations:
        return report_failures(failures_of(case, outcome), tracker)
    for remark in outcome.remarks(case.settings):
        say(remark)
    part, is_taught = joined(outcome.parts(case.settings)), case.command.teacher.teacher_epoch is not None
    if not is_taught:
        # Before anything that only compares: what fails or is killed there leaves a set behind.
        publish(case, assemble(case, part, outcome.programs, preprocess))
    rivals = rivals_of(case, classes)
    with stop.polling():
        taught = label(case, part, rivals, classes, preprocess, stop)
    if taught.stopped:
        return stopped(tracker, stop.signal_name)
    code = report_failures(taught.failed, tracker) if taught.failed else 0
    if code and is_taught:
        return code
    programs = outcome.programs
    if taught.soft_labels is not None:
        part = part.labelled(taught.soft_labels)
        programs = distinct([*taught.programs, *programs])
    distilled = assemble(case, part, programs, preprocess)
    publish(case, distilled)
    judged = evaluate(case, distilled, [*rivals, *taught.rivals], classes, stop)
    if judged.stopped:
        return stopped(tracker, stop.signal_name)
    return conclude(case, distilled, judged, tracker, unlabelled=bool(code)) or code


def distil(
    case: Case,
    classes: "Mapping[int, Any]",
    preprocess: "Preprocess",
    tracker: "Tracker",
    stop: "StopSignal",
) -> "Distillation":
    """All units through the workers, from wherever the checkpoints stand."""
    from pipelines.distillation import distil_classes
    from pipelines.output.checkpoints import Checkpoints

    return distil_classes(
        problem_of(case),
        case.units,
        classes,
        Checkpoints(case.store, case.digest),
        size=case.size,
        checkpoint_every=case.command.checkpoint_every,
        experts=expert_files(case, preprocess),
        limits=case.command.cluster.limits(),
        tracker=tracker,
        stop=stop,
        # On disk with every chunk, so that a killed driver's time counts as well.
        on_spent=partial(note_spent, case),
        given=given_images(case, preprocess),
    )


def note_spent(case: Case, spent: "Spent") -> None:
    """Note who works, count wall time and its sum over workers, which other work is compared with, and memory."""
    from pipelines.output.records import DISTILL_WORKER_S, add_seconds, note_maker, note_peak

    note_maker(case.store, case.size)
    add_seconds(case.store, "distill_s", spent.wall_s)
    add_seconds(case.store, DISTILL_WORKER_S, spent.worker_s)
    note_peak(case.store, spent.peak)


def label(
    case: Case,
    part: "Part",
    rivals: "Sequence[SmallSet]",
    classes: "Mapping[int, Any]",
    preprocess: "Preprocess",
    stop: "StopSignal",
) -> "Taught":
    """Soft labels of --teacher-epoch for the set, and of its teachers for the rivals that stand beside it.

    A method that learned labels itself has its experts for the rivals, if it has any.
    """
    from atom.methods.teachers import own_teachers, teachers
    from pipelines.output.checkpoints import Checkpoints
    from pipelines.teaching import teach

    asked = teachers(case.command.teacher, case.settings)
    return teach(
        asked or (own_teachers(case.settings) if rivals else ()),
        part.images.reshape(-1, *part.images.shape[2:]) if asked else None,
        rivals,
        factor=case.settings.factor,
        problem=problem_of(case),
        real=classes,
        checkpoints=Checkpoints(case.store, case.digest),
        experts=expert_files(case, preprocess),
        size=case.size,
        limits=case.command.cluster.limits(),
        stop=stop,
        # What only labels rivals is no cost of the set.
        on_spent=partial(note_spent, case) if asked else None,
    )


def failures_of(case: Case, outcome: "Distillation") -> "dict[str, Failure]":
    """Why parts of a distillation failed, by what people call them."""
    names = case.real.train.class_names
    failed = {", ".join(names[c] for c in unit): why for unit, why in outcome.failed.items()}
    return failed | {f"preparation {name}": why for name, why in outcome.failed_preparations.items()}


def assemble(
    case: Case, whole: "Part", programs: "Sequence[dict[str, Any]]", preprocess: "Preprocess"
) -> "DistilledSet":
    """The artifact, from the parts of all units and the programs that made them."""
    import torch

    from atom.distilled import DistilledSet, describe_source, without_folders
    from atom.methods.lookup import told_about
    from atom.methods.teachers import teachers, told_of
    from pipelines.output.provenance import UNKNOWN_PROGRAM

    *earlier, last = programs or [UNKNOWN_PROGRAM]
    num_classes = case.real.train.num_classes
    counts = case.settings.per_class(num_classes)
    rows, soft = rows_of(counts, whole.images.shape[1]), whole.soft_labels
    taught_by = teachers(case.command.teacher, case.settings)
    return DistilledSet(
        images_NCHW=torch.from_numpy(whole.images).flatten(0, 1)[rows],
        labels=torch.arange(num_classes).repeat_interleave(torch.tensor(counts)),
        soft_labels=None if soft is None else torch.from_numpy(soft).flatten(0, 1)[rows],
        training=whole.training,
        class_names=case.real.train.class_names,
        ipc=case.settings.ipc,
        factor=case.settings.factor,
        method=without_folders(case.settings.method),
        about=told_about(case.settings.method),
        preprocess=preprocess,
        settings={
            **case.settings.model_dump(mode="json"),
            "method": without_folders(case.settings.method),
            "network": without_folders(case.settings.network),
            "device": case.device_kind,
            **({"teacher": told_of(taught_by)} if taught_by else {}),
        },
        source=describe_source(case.real, image_size=case.command.data.image_size)
        | ({} if case.first is None else {"started_from": case.first.sources}),
        **last,
        earlier_programs=earlier,
        **standing(case.store),
    )


def standing(store: "Store") -> dict[str, Any]:
    """Accuracies and audit of the set that stands in the output: true of the same images until there are newer ones."""
    from atom.artifact import MANIFEST, SET_NAME
    from pipelines.output.records import read_record

    known = read_record(store, f"{SET_NAME}/{MANIFEST}")
    rows, audit = known.get("results"), known.get("audit")
    sound = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    return {"results": rows if sound else (), "audit": audit if isinstance(audit, dict) else {}}


def publish(case: Case, distilled: "DistilledSet") -> None:
    """Write the artifact into the output, on a disk or a URI; an audit of the set that stands there stays in it."""
    from atom.artifact import SET_NAME
    from pipelines.output.records import note_source

    note_source(case.store, case.real)
    # Of now: an audit may have come while the set was judged, for hours.
    distilled = replace(distilled, audit=standing(case.store)["audit"] or distilled.audit)
    if case.store.local_path is not None:
        distilled.save(case.store.local_path / SET_NAME)
        return
    with case.store.publish_directory(SET_NAME) as staging:
        distilled.save(staging)


def rivals_of(case: Case, classes: "RealClasses") -> "list[SmallSet]":
    """Coresets of equal storage, if the set is judged."""
    from pipelines.baselines import coresets

    if not is_judged(case.command) or not case.command.baselines:
        return []
    return coresets(
        case.command.baselines,
        classes.rows,
        case.real.train.labels,
        ipc=case.settings.per_class(case.real.train.num_classes),
        num_classes=case.real.train.num_classes,
        seed=case.settings.seed,
        seeds=range(case.command.judges.eval_seeds),
    )


def evaluate(
    case: Case,
    distilled: "DistilledSet",
    rivals: "Sequence[SmallSet]",
    classes: "RealClasses",
    stop: "StopSignal",
) -> "Evaluation":
    """Networks trained on the set and on its rivals, tested on the real test images."""
    from atom.pixels import as_stored
    from pipelines.evaluation import Evaluation, evaluate_sets, judged_sets, statistics_images
    from pipelines.real_images import judging_images

    if not is_judged(case.command):
        return Evaluation()
    asked, tested = case.command.judges, judging_images(case.real, case.command.judge_on)
    count = asked.statistics_images
    statistics = statistics_images(classes.rows, count) if count else None
    with stop.polling():
        return evaluate_sets(
            [*judged_sets(distilled, own_name(case, distilled), smoke=case.command.smoke), *rivals],
            (as_stored(tested.checked(), distilled.preprocess), tested.labels),
            case.store,
            networks=asked.eval_networks or (),
            seeds=range(asked.eval_seeds),
            num_classes=case.real.train.num_classes,
            settings=case.evaluation,
            identity={"test": tested.fingerprint},
            device_kind=case.device_kind,
            size=case.size,
            limits=case.command.cluster.limits(),
            stop=stop,
            statistics_NCHW=statistics,
        )


def on_labels(case: Case, distilled: "DistilledSet", *, unlabelled: bool) -> list[str]:
    """What has to be said under the table of a set with soft labels; `unlabelled` as for `conclude`."""
    from atom.methods.teachers import own_teachers, teachers
    from atom.rivals import WITH_TEACHER

    if distilled.soft_labels is None or not (is_judged(case.command) and case.command.baselines):
        return []
    asked, own = teachers(case.command.teacher, case.settings), own_teachers(case.settings)
    if unlabelled:
        return ["The set has soft labels, and the real images beside it hard ones: labelling them failed."]
    if not asked and not own and not distilled.is_even:
        return [
            f"The labels of {distilled.method} were learned, and it has no experts that could label real images as"
            " well; a set of --method datm with the same --images-in-all has, and shows them."
        ]
    if not asked and not own:
        return [
            f"The labels of {distilled.method} were learned, and it has no experts that could label real images as"
            " well; compare with a set of --method random --teacher-epoch, see docs/soft-labels.md."
        ]
    whose, (first, *_) = (
        ("the set's teachers", asked) if asked else (f"the experts of {distilled.method}", own)
    )
    return [f"({WITH_TEACHER.strip()}): real images with the labels of {whose} after epoch {first.epochs}."]


def own_name(case: Case, distilled: "DistilledSet") -> str:
    """How the table calls the set."""
    from atom.rivals import name_beside

    return name_beside(distilled.method, case.command.baselines or ())


def conclude(
    case: Case,
    distilled: "DistilledSet",
    judged: "Evaluation",
    tracker: "Tracker",
    *,
    unlabelled: bool = False,
) -> int:
    """Print the table, put it into the card and MLflow, and name the artifact.

    Unlabelled: whether the real images beside it lack the soft labels that they were to have.
    """
    from atom.artifact import SET_NAME
    from atom.distilled import without_folders
    from pipelines.evaluation import print_evaluation, remarks, row_dicts
    from pipelines.output.records import log_accuracies, log_artifact, log_distilled, run_facts, times

    facts, own = run_facts(case.store), own_name(case, distilled)
    distillation = {"distill_s": facts["distill_s"], "distill_hardware": facts["hardware"]}
    rows = [
        {**row, "network": without_folders(row["network"])} | (distillation if row["method"] == own else {})
        for row in row_dicts(judged.rows)
    ]
    on_test = case.command.judge_on == "test"
    # A rerun that judges nothing keeps the accuracies that stand.
    distilled = distilled.with_results(rows) if rows and on_test else distilled
    publish(case, distilled)
    tested = "" if on_test else "training images put aside of "
    title = f"{distilled.method}, {distilled.size}: accuracy on {tested}{case.real.source.title}, %"
    print_evaluation(judged, title=title)
    log_distilled(tracker, distilled, source=case.store.where(SET_NAME))
    log_accuracies(tracker, judged, own=own, title=title, part="eval" if on_test else "validation")
    tracker.log_metrics({f"time/{name}": seconds for name, seconds in times(case.store).items()})
    log_artifact(tracker, distilled, SET_NAME)
    if judged.failed:
        tracker.mark("FAILED", reason=f"{len(judged.failed)} trainings failed")
    for remark in [*remarks(judged.rows, own), *on_labels(case, distilled, unlabelled=unlabelled)]:
        say(remark)
    say(f"distilled in {facts['distill_s']:.0f} s on {facts['hardware']}")
    say(case.store.where(SET_NAME))
    return EXIT_FAILED if judged.failed else 0


if __name__ == "__main__":
    sys.exit(main())
