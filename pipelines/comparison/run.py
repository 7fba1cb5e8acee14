"""The work of a comparison through one pool: a set is judged as soon as it is there."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from atom.coreset import METHODS
from atom.methods.experts import Expert
from atom.methods.lookup import find_method
from pipelines.comparison.asked import Asked
from pipelines.comparison.case import Comparison
from pipelines.comparison.comparing import Comparing
from pipelines.comparison.report import conclude
from pipelines.console.command import stopped
from pipelines.console.progress import Progress
from pipelines.console.signals import StopSignal
from pipelines.output.records import add_seconds, dotted, log_real
from pipelines.tracking import Tracker
from pipelines.workers.works import Task, poll, run_pool


def useful_workers(
    asked: Sequence[Asked], num_classes: int, trainings: int, taught_by: Sequence[Expert]
) -> int:
    """More workers than these would idle all the time.

    First there are preparations, experts and teachers among them, each once for all; then units of all sets, and
    trainings of each row.
    """
    methods = [(find_method(one.settings.method), one.settings) for one in asked]
    units = sum(len(method.units(settings, range(num_classes))) for method, settings in methods)
    needed = [{*method.preparations(settings)} for method, settings in methods]
    shared = {*taught_by}.union(*({one for one in of if isinstance(one, Expert)} for of in needed))
    preparations = len(shared) + sum(len(of - shared) for of in needed)
    return max(preparations, units + trainings * (len(asked) + len(METHODS)))


def run(comparison: Comparison, tracker: Tracker, stop: StopSignal) -> int:
    """Everything after the decisions; returns the exit code."""
    log_real(tracker, comparison.real)
    with ExitStack() as stack:
        trackers = {
            one.name: stack.enter_context(
                tracker.child(one.name, params=dotted("distill", one.case.settings.model_dump(mode="json")))
            )
            for one in comparison.candidates
        }
        comparing = Comparing(comparison, trackers)
        started_s = time.monotonic()
        with stop.polling():
            was_stopped = work_off(comparing, stop)
        wall_s = time.monotonic() - started_s
        if comparing.busy_s:
            add_seconds(comparison.store, "compare_s", wall_s)
        for name, making in comparing.makings.items():
            if name not in comparing.sets:
                making.conclude()
        if was_stopped:
            for child in trackers.values():
                child.mark("KILLED")
            return stopped(tracker, stop.signal_name)
        return conclude(comparing.finished(wall_s), tracker, trackers)


def work_off(comparing: Comparing, stop: StopSignal) -> bool:
    """All of it through the pool; whether it was stopped."""
    comparison, tasks = comparing.comparison, comparing.tasks()
    done, total = comparing.parts()
    num_rows = len(comparison.candidates)
    shown = {"num_items": num_rows, "unit": "parts", "item": "sets", "done": done}
    with Progress("comparing", total, **shown) as progress, ExitStack() as stack:

        def show() -> None:
            done, total = comparing.parts()
            progress.update(done, items_done=len(comparing.sets), total=total)

        def tick(actors: Mapping[Task, Any]) -> None:
            for making in comparing.makings.values():
                making.tick()
            poll(actors)
            show()

        show()
        # However it ends: the output may be another driver's a moment later.
        for making in comparing.makings.values():
            stack.callback(making.wait)
        outcome = run_pool(
            tasks,
            size=comparison.size,
            limits=comparison.command.cluster.limits(),
            on_change=show,
            on_tick=tick,
            stop=stop,
        )
    return outcome.stopped


__all__ = ["run", "useful_workers"]
