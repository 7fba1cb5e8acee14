"""One run of Ray Tune inside a command: quiet, its signals left alone, every wait of it bounded."""

import faulthandler
import logging
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.exceptions import OutOfMemoryError, RayActorError

from atom.errors import ClusterError
from pipelines.workers.nodes import ACCELERATOR
from pipelines.workers.pool import Limits
from pipelines.workers.resources import ActorSize

logger = logging.getLogger(__name__)

# Tune's own defaults print, write logs nobody reads, change the directory, and wait ten minutes for a stop.
_TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "2",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "3600",
}
_SLOW_S = 600.0
"""After so long, what a worker is at is named. Chosen."""
_LOUD = ("ray.tune", "ray.train", "optuna")


class Watch(tune.Callback):
    """The driver's eye on one run of Tune: ends it when told to, or when nothing moves.

    Args:
        limits: how long no worker may be up, and how long none may answer.
        timeout_s: how long a worker may take for one step; then it ends itself, see `watchdog`.
        on_tick: called about once a second with what is under way, see `doing`.
        stop: ends the run when set.

    Attributes:
        problem: why nothing moved, or nothing.
        error: what taking a result raised in the driver; it ends the run, and `fit` raises it.
    """

    def __init__(
        self,
        *,
        limits: Limits,
        timeout_s: float,
        on_tick: Callable[[list[str]], None],
        stop: threading.Event | None,
    ) -> None:
        self._limits, self._on_tick, self._stop = limits, on_tick, stop
        self.timeout_s = timeout_s
        self._begun_s: dict[str, float] = {}
        self._told: set[tuple[str, float]] = set()
        self.problem = ""
        self.error: Exception | None = None
        self._answer_s = self._running_s = self._tick_s = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for a restore that never comes; locks and closures cannot be.
        return {}

    def answered(self, trial: Any = None) -> None:
        """A worker gave a sign of life; that of a trial begins its next step."""
        self._answer_s = time.monotonic()
        if trial is not None:
            self._begun_s[trial.trial_id] = self._answer_s

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its first step begins."""
        self._begun_s[trial.trial_id] = time.monotonic()

    def too_long(self, trial: Any) -> bool:
        """Whether a trial that was lost had used up the time of a step. Ray tells a hang as it tells a crash."""
        return time.monotonic() - self._begun_s.get(trial.trial_id, math.inf) >= self.timeout_s

    def doing(self, trial: Any) -> str:
        """What a trial is at, for people."""
        return str(trial)

    def ended(self) -> bool:
        """Whether the run is to be ended."""
        return (
            bool(self.problem) or self.error is not None or (self._stop is not None and self._stop.is_set())
        )

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look at the clock."""
        now_s = time.monotonic()
        running = [trial for trial in trials if trial.status == "RUNNING"]
        if running:
            self._running_s = now_s
        silent_s = self._limits.chunk_timeout_s + self._limits.pending_timeout_s
        pending_s = self._limits.pending_timeout_s
        if now_s - self._running_s > pending_s:
            self.problem = (
                f"No worker could be started for {pending_s:g} s; free the cluster's"
                " resources, or pass a smaller --num-actors or --gpus-per-actor, then run the same command again."
            )
        elif now_s - self._answer_s > silent_s:
            shown = ", ".join(self.doing(trial) for trial in running[:3]) or "none is at work"
            self.problem = (
                f"No worker answered for {silent_s:g} s ({shown}); look into the cluster's log, or pass a larger"
                " --timeout-s, then run the same command again."
            )
        if now_s - self._tick_s >= 1.0:
            self._tick_s = now_s
            self._tell_slow(running, now_s)
            self._on_tick([self.doing(trial) for trial in running])

    def _tell_slow(self, running: list[Any], now_s: float) -> None:
        for trial in running:
            begun_s = self._begun_s.get(trial.trial_id, now_s)
            step = trial.trial_id, begun_s
            if now_s - begun_s >= min(_SLOW_S, self.timeout_s / 2) and step not in self._told:
                self._told.add(step)
                logger.warning(
                    "waiting for %s, %.0f s so far; at %g s (--timeout-s) it is given up",
                    self.doing(trial),
                    now_s - begun_s,
                    self.timeout_s,
                )


class _EndWith(tune.Stopper):
    """Ends a run when its watch says so."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._watch.ended()


def fit(
    trainable: Any,
    watch: Watch,
    *,
    size: ActorSize,
    **tune_config: Any,
) -> None:
    """Run Tune until all trials are done or the watch ends it. Tune keeps nothing and tries nothing again.

    Args:
        trainable: of every trial.
        watch: takes the results.
        size: trials at once, at most, and the CPUs and GPUs of each.
        tune_config: see `ray.tune.TuneConfig`.

    Raises:
        ClusterError: it was ended because nothing moved.
        Exception: what taking a result raised.
    """
    names, options = {"num_cpus": "cpu", "num_gpus": "gpu"}, size.options
    if accelerator := options.pop("accelerator_type", ""):
        # Tune takes resources alone; so much of it Ray itself asks for.
        options[f"{ACCELERATOR}{accelerator}"] = 0.001
    resources = {names.get(name, name): n for name, n in options.items() if n}
    # Scratch: nothing is read from it again, and it need not be shared between nodes.
    with (
        tempfile.TemporaryDirectory(prefix="atom-tune-", ignore_cleanup_errors=True) as folder,
        tune_environment(),
        memory_kills_are_deaths(),
    ):
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(max_concurrent_trials=max(size.num_actors, size.most), **tune_config),
            run_config=tune.RunConfig(
                name="nas",
                storage_path=folder,
                stop=_EndWith(watch),
                callbacks=[watch],
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except RuntimeError as error:
            if not isinstance(error.__cause__, OutOfMemoryError):
                raise
            raise ClusterError(
                "A worker was killed by Ray, since its node ran low on memory, and Ray Tune ended with it. What is"
                " finished is kept; pass a smaller --num-actors, or leave the network out that takes so much, and run"
                " the same command again."
            ) from error
    if watch.error is not None:
        raise watch.error
    if watch.problem:
        raise ClusterError(watch.problem)


def error_of(trial: Any) -> Exception | None:
    """What ended a trial. Tune's `get_pickled_error` looks in the storage, where the file is copied to only later."""
    try:
        with open(trial.pickled_error_file, "rb") as file:
            return ray.cloudpickle.load(file)
    except Exception as error:  # whatever an exception of somebody's own does when it is read
        logger.debug("error of %s: %s", trial, error)
        return None


@contextmanager
def tune_environment() -> Iterator[None]:
    """Tune as part of a command: quiet, no logs of its own, signals left to the command."""
    before = {name: os.environ.get(name) for name in _TUNE_ENVIRONMENT}
    levels = {name: logging.getLogger(name).level for name in _LOUD}
    os.environ.update({name: value for name, value in _TUNE_ENVIRONMENT.items() if before[name] is None})
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextmanager
def memory_kills_are_deaths() -> Iterator[None]:
    """A worker that Ray's memory monitor killed is a trial's error, as any other that died.

    Tune knows two errors of a worker, and takes the third that Ray raises for a fault of its own, which ends it. Where
    a version of Ray keeps that elsewhere, nothing is changed.
    """
    try:
        from ray.air.execution._internal import RayActorManager

        handle = RayActorManager._actor_task_failed
    except (ImportError, AttributeError):
        yield
        return

    def told(value: Any) -> Any:
        return RayActorError(error_msg=str(value)) if isinstance(value, OutOfMemoryError) else value

    def as_death(*values: Any, **named: Any) -> None:
        handle(*map(told, values), **{name: told(value) for name, value in named.items()})

    RayActorManager._actor_task_failed = as_death
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = handle


@contextmanager
def watchdog(timeout_s: float) -> Iterator[None]:
    """End this process if the block takes too long; not even a stuck extension can stop that."""
    faulthandler.dump_traceback_later(timeout_s, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
