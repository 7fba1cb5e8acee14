"""Scores of networks, found by actors that hold the images: one a call, the costliest first."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from apps.nas.trial import Score, Unit
from pipelines.architecture.remote import RemoteScoreWorker, Shared
from pipelines.workers.dispatch import dispatch
from pipelines.workers.faults import Failure
from pipelines.workers.pool import Limits
from pipelines.workers.resources import ActorSize, Width


@dataclass
class Ranked:
    """What became of the units.

    Attributes:
        failed: why a unit has no score, after retries.
        stopped: whether the stop event ended it early.
        retries: units that were tried again after a worker was lost.
        unit_seconds: summed wall time of all units, on all workers.
        too_long: why a network is tried no more, under any proxy: one of its units passed the time limit.
        hanging: the same of a user's own proxy, with any network.
    """

    failed: dict[Unit, Failure] = field(default_factory=dict)
    stopped: bool = False
    retries: int = 0
    unit_seconds: float = 0.0
    too_long: dict[str, str] = field(default_factory=dict)
    hanging: dict[str, str] = field(default_factory=dict)


def run_units(
    units: Sequence[Unit],
    shared: Shared,
    *,
    cost: Callable[[Unit], float],
    size: ActorSize,
    limits: Limits,
    on_score: Callable[[Unit, Score], None],
    on_tick: Callable[[Sequence[Unit]], None],
    stop: threading.Event | None = None,
) -> Ranked:
    """Find the scores of all units.

    The costliest are begun first: the last one to end then began when no worker was busy for less (Graham, 1969).

    Args:
        units: what to score, all different.
        shared: what the workers need.
        cost: predicted time of a unit, in any unit, not negative.
        size: workers at once, and the CPUs and GPUs of each.
        limits: retries and time limits; a unit may take `shared.timeout_s`.
        on_score: takes every score as it comes, in the driver.
        on_tick: called about once a second with the units under way.
        stop: ends it early when set.

    Raises:
        ClusterError: no worker could be had or started.
        Exception: whatever `on_score` raises.
    """
    result = Ranked()

    def start(actor: Any, unit: Unit) -> Any:
        reason = result.too_long.get(unit.network) or result.hanging.get(unit.proxy)
        return actor.score.remote(unit) if reason is None else ray.put((Failure(reason, ""), 0.0))

    def finish(unit: Unit, told: tuple[Score | Failure, float]) -> bool:
        value, seconds = told
        result.unit_seconds += seconds
        if isinstance(value, Failure):
            result.failed[unit] = value
        else:
            on_score(unit, value)
        return False

    def fail(unit: Unit, failure: Failure, error: Exception) -> None:
        if type(error) is TimeoutError:
            # The user's function is the newer of the two, and would hang with the next network.
            own = shared.proxies[unit.proxy].kind == "own"
            blamed, name = (result.hanging, unit.proxy) if own else (result.too_long, unit.network)
            blamed.setdefault(name, f"not tried, since {unit} {failure.reason}")

    outcome = dispatch(
        sorted(units, key=cost, reverse=True),
        lambda: RemoteScoreWorker.options(**size.options).remote(shared),
        start=start,
        finish=finish,
        num_actors=Width(size),
        # One that hangs mostly hangs again, and those of its network with it.
        limits=replace(limits, chunk_timeout_s=shared.timeout_s, timeout_retries=0),
        on_tick=lambda actors: on_tick(list(actors)),
        on_failure=fail,
        stop=stop,
    )
    result.failed |= outcome.failed
    result.stopped, result.retries = outcome.stopped, outcome.retries
    return result
