"""Ask what a distilled set gives away: which real images it was made from, and whether it shows copies of them.

python pipelines/distill.py --dataset digits --validation-frac 0.5 --output runs/half
python pipelines/audit.py --set runs/half
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atom.errors import AtomError
from atom.settings import DeviceKind, EvaluateSettings
from pipelines.console.command import EXIT_FAILED, output_location, run_command, say, stopped
from pipelines.console.commands import AuditCommand

if TYPE_CHECKING:
    from atom.data import RealData
    from atom.distilled import DistilledSet
    from pipelines.console.signals import StopSignal
    from pipelines.membership.attacks import Images
    from pipelines.membership.parts import Parts
    from pipelines.membership.trainings import AuditedSet
    from pipelines.output.store import Store
    from pipelines.tracking import Tracker
    from pipelines.workers.resources import ActorSize


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(AuditCommand, audit, argv)


@dataclass(frozen=True)
class Case:
    """One run of the command with everything decided.

    Attributes:
        command: as given.
        network: that is trained.
        settings: of its training, resolved.
        distilled: the set, called `name` in tables.
        real: its source, whole.
        parts: members and non-members of it.
        store: the output.
        size: the workers, on `device_kind`.
    """

    command: AuditCommand
    network: str
    settings: EvaluateSettings
    distilled: "DistilledSet"
    name: str
    real: "RealData"
    parts: "Parts"
    store: "Store"
    size: "ActorSize"
    device_kind: DeviceKind


def audit(command: AuditCommand) -> int:
    """Find members, train, attack, record; see `run_command` for what it returns."""
    from atom import resolve
    from atom.data.sources import decoded_folder
    from atom.distilled import DistilledSet
    from atom.rivals import name_beside
    from pipelines.evaluation import check_baselines, check_networks
    from pipelines.membership.parts import find_parts
    from pipelines.own_networks import try_networks
    from pipelines.real_images import check_ipc, load_real
    from pipelines.session import Session
    from pipelines.sets import check_same_source, fingerprint, local_set, own_network, real_source

    command = command.shrunk() if command.smoke else command
    check_baselines(command.baselines)
    with local_set(command.set, command.tracking.tracking_uri) as directory:
        distilled = DistilledSet.load(directory)
        data = real_source(distilled, command.set, command.data)
        real = load_real(data, smoke=command.smoke, given=distilled)
        check_same_source(distilled, real)
        parts = find_parts(distilled, real, command.set, folder=decoded_folder(data.dataset, data.data_dir))
        seen = replace(real, train=parts.members)
        if command.baselines:
            check_ipc(
                seen,
                ipc=distilled.ipc,
                factor=1,
                init="noise",
                baselines=command.baselines,
                images_in_all=None if distilled.is_even else len(distilled.labels),
                asked=f"--set {command.set}, of {distilled.size}",
            )
        network = command.network or own_network(distilled)
        try_networks([network], real, timeout_s=command.cluster.timeout_s)
        notes = check_networks([network], real, settings=command.evaluate)
        notes += [parts.caveat] if parts.caveat else []
        digest = fingerprint(distilled)
        name = f"{distilled.method}-{real.name}-{distilled.size_slug}-{digest[:8]}"
        location = output_location(command, f"audit-{name}")
        with Session(command) as session:
            num_trials = command.eval_seeds * (1 + len(command.baselines))
            size, device_kind = session.workers(threads=1, num_units=num_trials)
            settings = resolve.resolve_evaluation(
                command.evaluate, device_kind=device_kind, symbols=real.symbols
            )
            identity = {
                "set": digest,
                "members": parts.members.fingerprint,
                "non_members": parts.non_members.fingerprint,
                "device": device_kind,
            }
            shown = {**identity, **settings.model_dump(mode="json"), "network": network}
            store = session.take(location, identity, size=size, shown=shown, notes=notes)
            called = name_beside(distilled.method, command.baselines)
            case = Case(command, network, settings, distilled, called, real, parts, store, size, device_kind)
            with start_tracking(case, name) as tracker:
                return run(case, tracker, session.stop, directory)


def start_tracking(case: Case, name: str) -> "Tracker":
    """The MLflow run of this output: a new one, or that of an earlier driver continued."""
    from pipelines.output.records import dotted, start_tracker

    command = case.command
    params: dict[str, object] = {
        **dotted("evaluate", case.settings.model_dump(mode="json")),
        "audit.network": case.network,
        "audit.seeds": command.eval_seeds,
        "audit.seed": command.seed,
        "audit.images": command.audit_images,
        "audit.held_out": case.parts.held_out,
        "data.spec": case.real.spec,
        "set.path": command.set,
        "set.method": case.distilled.method,
        "set.ipc": case.distilled.ipc,
        "set.images": len(case.distilled.labels),
        "set.factor": case.distilled.factor,
    }
    return start_tracker(command, case.store, experiment="audit", name=name, params=params)


def run(case: Case, tracker: "Tracker", stop: "StopSignal", directory: Path) -> int:
    """Everything after the decisions; returns the exit code. `directory` is that of the set."""
    from pipelines.membership.attacks import Images, attack
    from pipelines.membership.report import metrics, note, print_audit, record
    from pipelines.membership.trainings import losses_of_trainings
    from pipelines.output.records import log_distilled, log_real

    log_real(tracker, case.real)
    log_distilled(tracker, case.distilled, source=case.command.set)
    command, num_classes = case.command, case.real.train.num_classes
    images = Images.of(case.parts, case.distilled.preprocess, most=command.audit_images, seed=command.seed)
    sets = audited_sets(case, images)
    with stop.polling():
        losses = losses_of_trainings(
            sets,
            (images.asked, images.asked_labels),
            case.store,
            network=case.network,
            seeds=range(command.seed, command.seed + command.eval_seeds),
            num_classes=num_classes,
            settings=case.settings,
            device_kind=case.device_kind,
            size=case.size,
            limits=command.cluster.limits(),
            stop=stop,
        )
    if losses.stopped:
        return stopped(tracker, stop.signal_name)
    found = attack(sets, images, losses, seed=command.seed)
    title = f"{case.distilled.method}, {case.distilled.size}: what it gives away of {case.real.source.title}"
    print_audit(found, losses, case.parts, title=title)
    written = record(
        found, case.parts, network=case.network, settings=case.settings, programs=losses.programs
    )
    case.store.write_json("audit.json", written)
    tracker.log_metrics(metrics(found))
    tracker.log_dict(written, "audit.json")
    tracker.set_note(note(found, case.parts, title=title))
    if losses.failed:
        tracker.mark("FAILED", reason=f"{len(losses.failed)} trainings failed")
    tell_the_card(case, written, directory)
    say(case.store.where("audit.json"))
    return EXIT_FAILED if losses.failed else 0


def audited_sets(case: Case, images: "Images") -> "list[AuditedSet]":
    """The set, and coresets of equal storage from the images that it was made from, one draw each."""
    from atom.coreset import METHODS
    from pipelines.baselines import coresets
    from pipelines.evaluation import judged_sets
    from pipelines.membership.trainings import AuditedSet

    distilled, command = case.distilled, case.command
    # By its own training where it carries one: it is the last of the two.
    own = replace(judged_sets(distilled, case.name, smoke=command.smoke)[-1], name=case.name)
    # Cut out of a grid, real images are no longer what they were.
    real = distilled.method in METHODS and distilled.factor == 1
    sets = [AuditedSet(own, distilled.decoded_labels().numpy(), holds_real=real)]
    if not command.baselines:
        return sets
    rivals = coresets(
        command.baselines,
        images.members,
        images.member_labels,
        ipc=distilled.per_class,
        num_classes=case.real.train.num_classes,
        seed=command.seed,
        seeds=[command.seed],
    )
    for rival in rivals:
        (drawn,) = rival.draws.values()
        sets.append(AuditedSet(replace(rival, draws={None: drawn}), drawn[1], holds_real=True))
    return sets


def tell_the_card(case: Case, written: dict[str, Any], directory: Path) -> None:
    """Put what was found into the set, so that its card says it; a set on a URI, and one of a smoke run, stay."""
    from atom.artifact import MANIFEST, SET_NAME
    from atom.distilled import DistilledSet
    from pipelines.sets import fingerprint

    if case.command.smoke or ":/" in case.command.set:
        return
    if not (directory / MANIFEST).exists():
        directory /= SET_NAME
    try:
        # As it stands now: others may have judged it since the audit began.
        now = DistilledSet.load(directory)
        if fingerprint(now) != fingerprint(case.distilled):
            say(f"Note: {directory.absolute()} holds another set by now, whose card stays as it is.")
            return
        replace(now, audit=written).save(directory)
    except AtomError as error:
        say(f"Note: the card of the set stays as it was: {error}")
        return
    say(f"{directory.absolute()}: its card tells it")


if __name__ == "__main__":
    sys.exit(main())
