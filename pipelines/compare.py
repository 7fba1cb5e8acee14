"""Distil by several methods, judge all sets by one protocol beside real images, and tell accuracy and cost.

python pipelines/compare.py --methods atom dm rat-bptt --ipc 1 10 --network convnet-w32-d2
ray job submit --working-dir . -- python pipelines/compare.py --dataset cifar10 --output /shared/compare
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.console.command import output_location, run_command
from pipelines.console.commands import CompareCommand

if TYPE_CHECKING:
    from pipelines.comparison.case import Comparison
    from pipelines.tracking import Tracker


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(CompareCommand, compare, argv)


def compare(command: CompareCommand) -> int:
    """Load, decide, distil, judge, report; see `run_command` for what it returns."""
    from atom import resolve
    from atom.coreset import METHODS
    from atom.methods.lookup import find_method
    from atom.methods.method import Shape
    from pipelines.comparison.asked import asked_sets, unread_notes
    from pipelines.comparison.case import Comparison, candidates, decided
    from pipelines.comparison.labels import check_teacher, notes_on_rivals, teachers_of
    from pipelines.comparison.run import run, useful_workers
    from pipelines.evaluation import check_networks, judges
    from pipelines.output.expert_place import experts_place
    from pipelines.output.store import EXPERTS_FOLDER
    from pipelines.own_networks import try_networks
    from pipelines.real_images import check_ipc, load_real, not_whitened, whitening_flaw
    from pipelines.session import Session

    command = command.shrunk() if command.smoke else command
    asked = asked_sets(command)
    real = load_real(command.data, smoke=command.smoke)
    for one in asked:
        settings = one.settings
        check_ipc(
            real,
            ipc=settings.ipc,
            factor=settings.factor,
            init=settings.init,
            baselines=METHODS,
            whose="stands in every table; pass a smaller --ipc",
        )
    channels, height, width = real.train.images.shape[1:]
    check_teacher(command, Shape(channels, height, width, real.train.num_classes))
    networks = judges(command.judges.eval_networks, command.distill.network, command.evaluate)
    distilling = dict.fromkeys(one.settings.network for one in asked)
    try_networks((*distilling, *networks), real, timeout_s=command.cluster.timeout_s)
    notes = unread_notes(command)
    for network in distilling:
        notes += check_networks(networks, real, settings=command.evaluate, distils=network)
    name = f"compare-{real.name}"
    location = output_location(command, name)
    flaw = whitening_flaw(real, asked[0].settings)
    # Once for whatever device, to be refused before Ray has started.
    likely, _ = decided(asked, real, "cpu", whitenable=flaw is None)
    notes += notes_on_rivals(command, likely, symbols=real.symbols)
    prepared = [
        item for one in likely for item in find_method(one.settings.method).preparations(one.settings)
    ]
    elsewhere = experts_place(
        command.experts,
        [*prepared, *teachers_of(command, likely, symbols=real.symbols)[0]],
        real,
        smoke=command.smoke,
        unasked=f"none of the methods {' '.join(command.methods)} asks for experts, and there is no --teacher-epoch",
    )
    with Session(command) as session:
        threads = command.distill.threads_per_actor
        most, device_kind = session.workers(threads=threads, num_units=sys.maxsize)
        left, refused = decided(asked, real, device_kind, whitenable=flaw is None)
        evaluation = resolve.resolve_evaluation(
            command.evaluate, device_kind=device_kind, symbols=real.symbols
        )
        trainings = len(networks) * command.judges.eval_seeds
        taught_by, _ = teachers_of(command, left, symbols=real.symbols)
        of_use = useful_workers(left, real.train.num_classes, trainings, taught_by)
        size = most.at_most(of_use)
        identity = {
            "train": real.train.fingerprint,
            "test": real.test.fingerprint,
            "zca": left[0].settings.zca,
            "zca_eps": left[0].settings.zca_eps,
            "seed": command.distill.seed,
            "device": device_kind,
        }
        store = session.take(
            location,
            identity,
            size=size,
            shown={
                "methods": tuple(dict.fromkeys(one.label for one in left)),
                **identity,
                **evaluation.model_dump(mode="json"),
                "networks": networks,
            },
            notes=[*not_whitened(flaw), *dict.fromkeys(notes), *(one.note for one in refused)],
        )
        experts = elsewhere or store.inside(EXPERTS_FOLDER)
        about = {"size": size, "device_kind": device_kind, "evaluation": evaluation, "experts": experts}
        made = candidates(session, left, real, **about)
        comparison = Comparison(
            command, real, store, candidates=made, refused=refused, networks=networks, **about
        )
        with start_tracking(comparison, name) as tracker:
            return run(comparison, tracker, session.stop)


def start_tracking(comparison: "Comparison", name: str) -> "Tracker":
    """The MLflow run of this output: a new one, or that of an earlier driver continued."""
    from pipelines.output.records import dotted, start_tracker

    command, real = comparison.command, comparison.real
    params: dict[str, object] = {
        "compare.methods": " ".join(command.methods),
        "compare.ipc": " ".join(map(str, command.ipc)),
        "compare.settings": " ".join(command.settings),
        "compare.networks": " ".join(comparison.networks),
        "compare.seeds": command.judges.eval_seeds,
        **dotted("teacher", command.teacher.model_dump(mode="json")),
        **dotted("evaluate", comparison.evaluation.model_dump(mode="json")),
        "data.spec": real.spec,
        "data.fingerprint": real.train.fingerprint,
        "cluster.num_actors": comparison.size.num_actors,
        "cluster.device": comparison.device_kind,
    }
    return start_tracker(command, comparison.store, experiment="compare", name=name, params=params)


if __name__ == "__main__":
    sys.exit(main())
