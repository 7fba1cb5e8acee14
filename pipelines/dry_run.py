"""What a distillation would do, hold and take: its plan, and the speed of a few iterations that nobody keeps."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from atom.free_memory import free_memory
from atom.methods.lookup import find_method
from atom.methods.method import Unit
from pipelines.console.command import counted, say
from pipelines.console.progress import format_bytes, format_duration
from pipelines.distill_case import Case, given_images, problem_of
from pipelines.output.store import Store
from pipelines.preflight import Load, told_terms
from pipelines.real_classes import RealClasses, whole
from pipelines.real_images import preprocessing
from pipelines.workers.faults import reason_of
from pipelines.workers.pool import Limits, kill
from pipelines.workers.remote import Problem, RemoteWorker
from pipelines.workers.resources import ActorSize

LEAST_S = 5.0
"""Iterations are timed for so long, or to the end. Chosen: a step of a small network takes milliseconds."""


def dry_run(case: Case, load: Load) -> int:
    """Print the units, the workers, memory by place, and the time as far as it can be told; leaves nothing behind.

    Args:
        case: with everything decided, and an output that nobody has taken.
        load: sizes of all.

    Returns:
        The exit code.
    """
    command, settings, units, size = case.command, case.settings, case.units, case.size
    iterations = settings.iterations or 0
    chunks = len(units) * math.ceil(iterations / command.checkpoint_every)
    of = (
        f"{min(map(len, units))} to {max(map(len, units))}"
        if len({*map(len, units)}) > 1
        else f"{len(units[0])}"
    )
    say(
        f"plan: {load.num_classes} classes in {counted(len(units), 'unit')} of {of}, {iterations} iterations each, "
        f"{counted(chunks, 'checkpoint')}; {counted(min(size.num_actors, len(units)), 'worker')} at work"
    )
    for phase, told in told_terms(load).items():
        say(f"memory {phase}, at least: {told}")
    free = free_memory()
    if free is not None:
        say(f"memory free: {format_bytes(free)}")
    pixels = (load.num_train + load.num_test) * load.image_bytes
    say(f"images: {load.num_train} to train on, {format_bytes(pixels)} decoded, each class read once")
    if iterations:
        # What the output holds decides in a run; here it is left alone.
        with TemporaryDirectory(prefix="atom-plan-") as folder:
            cache = command.data.data_dir / "cache"
            preprocess = preprocessing(case.real, settings, Store.open(folder), cache)
        classes, given = RealClasses(case.real.train, preprocess), given_images(case, preprocess)
        told = _time(problem_of(case), units, classes, given, size=size, limits=command.cluster.limits())
        say(told)
    say("the output was left alone; leave out --dry-run to begin")
    return 0


def _time(
    problem: Problem,
    units: Sequence[Unit],
    real: Mapping[int, Any],
    given: Mapping[int, np.ndarray] | None,
    *,
    size: ActorSize,
    limits: Limits,
) -> str:
    """How long the iterations will take, after some of the largest unit."""
    total = problem.settings.iterations or 0
    if find_method(problem.settings.method).preparations(problem.settings):
        return f"time: not told, {problem.settings.method} trains networks on the real images first"
    unit = max(units, key=len)
    images = whole(real) if len(units) == 1 else real
    actor = RemoteWorker.options(**size.options).remote()
    try:
        ray.get(actor.__ray_ready__.remote(), timeout=limits.pending_timeout_s)
        own = None if given is None else np.stack([given[c] for c in unit])
        advance = partial(actor.advance.remote, problem, unit, {c: images[c] for c in unit})
        seconds, done = _timed(advance, own, total, limits.chunk_timeout_s)
    except RayError as error:
        return f"time: not told, {reason_of(error).reason}"
    finally:
        kill(actor)
    each_s = seconds / done
    rounds = math.ceil(len(units) / max(1, size.num_actors))
    return (
        f"time: {each_s:.3g} s an iteration of a unit ({counted(done, 'iteration')} timed on one worker), so about"
        f" {format_duration(rounds * total * each_s)} to distil; what judges the set comes to it"
    )


def _timed(
    begin: Callable[..., Any], given: np.ndarray | None, total: int, timeout_s: float
) -> tuple[float, int]:
    """Seconds of some iterations, and how many; of the first one, which compiles, only where there is no other."""

    def advance(state: Any, until: int) -> tuple[Any, float]:
        begun_s = time.monotonic()
        reference = begin(state, until, given, {}, None)
        return ray.get(reference, timeout=timeout_s).value, time.monotonic() - begun_s

    state, seconds = advance(None, 1)
    done, steps, spent = 1, 1, 0.0
    while done < total and spent < LEAST_S:
        steps = min(2 * steps, total - done)
        state, seconds = advance(state, done + steps)
        done, spent = done + steps, spent + seconds
    # The last stretch is the longest, and the least disturbed by calls.
    return seconds, steps
