"""Learn classes that arrive step by step, with a few images of each class of the past: real ones or distilled ones.

python pipelines/continual.py --dataset seq-digits --memories random herding distilled
ray job submit --working-dir . -- python pipelines/continual.py --dataset seq-cifar10 --output /srv/atom/continual
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from atom.errors import ConfigError
from pipelines.console.command import EXIT_FAILED, output_location, run_command, say, stopped
from pipelines.console.commands import ContinualCommand

if TYPE_CHECKING:
    from atom.data import RealData
    from atom.distilled import DistilledSet
    from pipelines.console.signals import StopSignal
    from pipelines.incremental.plan import Plan
    from pipelines.incremental.run import ContinualRun
    from pipelines.output.store import Store
    from pipelines.tracking import Tracker


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(ContinualCommand, learn_stream, argv)


def learn_stream(command: ContinualCommand) -> int:
    """Load, distil, learn, report; see `run_command` for what it returns."""
    from atom.methods.lookup import check_read
    from pipelines.evaluation import check_networks
    from pipelines.incremental.case import ContinualCase
    from pipelines.incremental.plan import check_names, plan, source_of
    from pipelines.incremental.preprocessed import PREPROCESSED_NAME
    from pipelines.incremental.protocol import lots_of
    from pipelines.incremental.run import ContinualRun
    from pipelines.output.store import Store
    from pipelines.own_networks import try_networks
    from pipelines.real_images import PREPROCESS_NAME, load_real
    from pipelines.session import Session
    from pipelines.sets import check_same_source, real_source

    command = command.shrunk() if command.smoke else command
    check_read(command.distill)
    check_names(command)
    source, num_steps = source_of(command)
    data = command.data.model_copy(update={"dataset": source})
    with ExitStack() as stack:
        given = stack.enter_context(given_set(command))
        if given is not None:
            data = real_source(given[0], command.set, data)
        real = load_real(data, smoke=command.smoke, given=None if given is None else given[0])
        lots = lots_of(command, real, num_steps=num_steps)
        real = lots.real
        try_networks((command.network, command.distil_network), real, timeout_s=command.cluster.timeout_s)
        kept = check_networks(
            (command.network,), real, settings=command.evaluate, distils=command.distil_network
        )
        decided = plan(command, real, num_steps=num_steps, given=given and given[0], lots=lots)
        name = f"seq-{real.name}-{decided.num_steps}"
        location = output_location(command, f"continual-{name}")
        if given is not None:
            check_same_source(given[0], real)
        session = stack.enter_context(Session(command))
        units = max(len(decided.cells), real.train.num_classes)
        size, device_kind = session.workers(threads=command.distill.threads_per_actor, num_units=units)
        # Distillation takes --threads-per-actor, a learner one thread: there may be room for more of them.
        learner_size, _ = session.workers(threads=1, num_units=len(decided.cells))
        identity = identity_of(command, real, decided, device_kind=device_kind)
        check_pictures(command, Store.open(location))
        store = session.take(
            location,
            identity,
            size=size,
            shown=shown(command, decided, identity),
            notes=[*kept, *decided.notes, *notes_on(given, real, command.stream.learners)],
            # What is fitted before the last checks must not outlive a refusal.
            scratch=(PREPROCESS_NAME, PREPROCESSED_NAME),
        )
        case = ContinualCase(command, decided, given, real, store, size, learner_size, device_kind)
        work = ContinualRun(case)
        with work.tracker(name) as tracker:
            return run(work, tracker, session.stop)


def run(work: "ContinualRun", tracker: "Tracker", stop: "StopSignal") -> int:
    """Everything after the decisions; returns the exit code."""
    from pipelines.incremental.report import publish

    work.log_inputs(tracker)
    if work.run(tracker, stop):
        return stopped(tracker, stop.signal_name)
    failures = publish(work, tracker)
    if failures:
        tracker.mark("FAILED", reason=f"{failures} cells failed")
    say(work.case.store.where("report.html"))
    return EXIT_FAILED if failures else 0


@contextmanager
def given_set(command: ContinualCommand) -> "Iterator[tuple[DistilledSet, float | None] | None]":
    """The set that --set names and the seconds that it took to distil, None where unknown; None without --set.

    Raises:
        ConfigError, ArtifactError, StoreError: it cannot be found or read.
    """
    from atom.distilled import DistilledSet
    from pipelines.sets import distil_seconds, local_set

    if not command.set:
        yield None
        return
    with local_set(command.set, command.tracking.tracking_uri) as directory:
        distilled = DistilledSet.load(directory)
        yield distilled, distil_seconds(distilled, directory)


def identity_of(
    command: ContinualCommand, real: "RealData", decided: "Plan", *, device_kind: str
) -> dict[str, object]:
    """What an output belongs to; experiments that agree in it share its images and cells."""
    from apps.continual.stream import step_sizes
    from pipelines.output.ownership import CHECKPOINTS_VERSION

    own: dict[str, object] = {}
    if not decided.lots.plain:
        columns = decided.streams[decided.first].columns
        own = {"stream": decided.lots.protocol, "columns": tuple(map(len, columns)), **decided.lots.key}
    elif decided.step_sizes != step_sizes(real.train.num_classes, decided.num_steps):
        own["step_classes"] = decided.step_sizes
    if command.stream.class_order is not None:
        own["class_order"] = decided.streams[decided.first].order

    return {
        "train": real.train.fingerprint,
        "test": real.test.fingerprint,
        "preprocess_on": command.stream.preprocess_on,
        "num_steps": decided.num_steps,
        **own,
        "zca": command.distill.zca,
        "zca_eps": command.distill.zca_eps,
        "device": device_kind,
        **CHECKPOINTS_VERSION,
    }


def check_pictures(command: ContinualCommand, store: "Store") -> None:
    """Refuse to promise that there are no pictures where an earlier run has left some.

    Raises:
        ConfigError: --no-pictures on such an output.
    """
    if not command.stream.pictures and store.list("pictures"):
        raise ConfigError(
            f"--no-pictures: an earlier run left pictures in {store.where('pictures')}, in report.html beside it, and"
            " in its MLflow run; pass another --output, or delete all three."
        )


def notes_on(
    given: "tuple[DistilledSet, float | None] | None", real: "RealData", learners: Sequence[str]
) -> list[str]:
    """What a reader should know of a set that was distilled elsewhere."""
    from pipelines.incremental.plan import on_factor
    from pipelines.sets import held_out

    if given is None:
        return []
    notes = list(on_factor(given[0].factor, learners))
    if not held_out(given[0], real):
        notes.append(
            "the set was distilled from other training images than those of this run; it may have seen validation"
            " images."
        )
    return notes


def shown(command: ContinualCommand, decided: "Plan", identity: Mapping[str, object]) -> dict[str, object]:
    """Settings for the head of the output."""
    skipped = {"config", "output", "smoke", "tracking_uri", "experiment"}
    asked = {
        name: flag.value
        for name, flag in command.flags().items()
        if name not in skipped and flag.value is not None and flag.value != ""
    }
    if not {"order_seeds", "class_order"}.isdisjoint(asked):
        del asked["orders"]
    return {**asked, **identity, "cells": len(decided.cells)}


if __name__ == "__main__":
    sys.exit(main())
