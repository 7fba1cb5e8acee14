"""What runs on the cluster: an actor of the pool and an evaluation task, thin shells over `atom`.

Workers decide nothing and know no MLflow: settings arrive resolved, results leave as NumPy arrays and numbers.
torch is imported inside, so that importing this module in a driver is cheap.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from atom.methods.settings import DistillSettings
from atom.pixels import Pixels
from atom.settings import DeviceKind, EvaluateSettings
from pipelines.workers import memory
from pipelines.workers.cluster import as_images, as_tensor
from pipelines.workers.memory import Peak
from pipelines.workers.replicas import Arrays, Helpers
from pipelines.workers.resources import ActorSize

if TYPE_CHECKING:
    from atom.methods.experts import Expert
    from atom.methods.method import Method, State

FETCH_TIMEOUT_S = 600.0
"""Limit on fetching real images from the object store, seconds; they may have to cross the network."""

NOTHING_PREPARED: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Problem:
    """What a worker has to know besides the images; small, sent with every chunk."""

    settings: DistillSettings
    channels: int
    height: int
    width: int
    num_classes: int
    device_kind: DeviceKind

    def __getstate__(self) -> dict[str, Any]:
        # A user's method is imported when it is asked for: then a file that a worker lacks is a sentence.
        return {**vars(self), "settings": self.settings.model_dump(mode="json")}

    def __setstate__(self, told: dict[str, Any]) -> None:
        vars(self).update(told)


class DistillWorker:
    """Distils units of classes of one problem; its memory is a cache, the driver's checkpoints are the truth."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._method: Method | None = None
        self._real: dict[int, Any] = {}
        self._prepared: dict[str, Mapping[str, np.ndarray]] = {}
        self._helpers: Helpers | None = None
        self._helped: tuple[int, ...] = ()
        self._iteration = 0

    def advance(
        self,
        unit: Sequence[int],
        real: Mapping[int, Any],
        state: "State | None",
        until: int,
        given: np.ndarray | None = None,
        prepared: Mapping[str, Any] = NOTHING_PREPARED,
        helpers: ActorSize | None = None,
    ) -> "State":
        """State of the unit at iteration `until`, from `state`, or from the start where that is None.

        Args:
            unit: its classes.
            real: a reference to the images of each class, preprocessed, float32 [n, C, H, W], or `Pixels`.
            state: the unit's last stored state.
            until: iterations done in the result.
            given: see `Method.start`.
            prepared: a reference to what each preparation gave.
            helpers: further workers to start for the unit's replicas.
        """
        from atom.methods.soundness import check_state
        from atom.nets.custom import call

        # First of all, or `progress` would answer for the unit before.
        self._note(0 if state is None else state.iteration)
        method, known = self._made(), self._known(unit, real, prepared)
        method.elsewhere = self._further(unit, real, prepared, helpers)
        if state is None:
            state = call(method.start, given=given, **known)
        state = call(method.advance, state=state, until=until, on_iteration=self._note, **known)
        check_state(state, unit, until)
        return state

    def replicas(
        self,
        arrays: Arrays,
        iteration: int,
        numbers: Sequence[int],
        *,
        unit: Sequence[int],
        real: Mapping[int, Any],
        prepared: Mapping[str, Any],
    ) -> list[Arrays]:
        """What these replicas of an iteration give, see `Method.replica`; the rest as in `advance`."""
        from atom.nets.custom import call

        method, known = self._made(), self._known(unit, real, prepared)
        return [
            call(method.replica, arrays=arrays, iteration=iteration, number=number, **known)
            for number in numbers
        ]

    def prepare(
        self,
        item: "str | Expert",
        real: Mapping[int, Any],
        before: Mapping[str, np.ndarray] | None = None,
        seconds: float = float("inf"),
    ) -> Mapping[str, np.ndarray]:
        """One preparation of the method, or an expert some epochs later.

        Args:
            item: see `Method.preparations`.
            real: as in `advance`, of all classes.
            before: where an expert stands.
            seconds: see `atom.methods.experts.train`.
        """
        from atom.methods.experts import Expert, epochs_done, train
        from atom.nets.custom import call

        self._note(epochs_done(before))
        method, images = self._made(), self._images(sorted(real), real)
        if isinstance(item, Expert):
            known = {"num_classes": method.num_classes, "device": method.device, "on_epoch": self._note}
            return train(item, images, before, seconds=seconds, **known)
        return call(method.prepare, name=item, real=images)

    def progress(self) -> int:
        """Iterations done of the unit in work, or epochs of the expert."""
        return self._iteration

    def _known(
        self, unit: Sequence[int], real: Mapping[int, Any], prepared: Mapping[str, Any]
    ) -> dict[str, Any]:
        images = self._images(unit, real)
        if self._prepared.keys() != prepared.keys():
            self._prepared = dict(zip(prepared, _fetch(list(prepared.values())), strict=True))
        return {"unit": unit, "real": images, "prepared": self._prepared}

    def _further(
        self,
        unit: Sequence[int],
        real: Mapping[int, Any],
        prepared: Mapping[str, Any],
        size: ActorSize | None,
    ) -> Helpers | None:
        """Further workers, kept from chunk to chunk of a unit; they end with this one."""
        if size is None or self._helped != tuple(unit):
            self.close()
        if size is not None and self._helpers is None:
            problem = replace(self._problem, settings=self._made().settings)
            make = RemoteDistillWorker.options(**size.options).remote
            known = {"unit": tuple(unit), "real": dict(real), "prepared": dict(prepared)}
            self._helpers = Helpers(lambda: make(problem), size.num_actors, known)
            self._helped = tuple(unit)
        return self._helpers

    def close(self) -> None:
        """End what it started."""
        if self._helpers is not None:
            self._helpers.close()
            self._helpers = None

    def _note(self, iteration: int) -> None:
        self._iteration = iteration

    def _made(self) -> "Method":
        from atom.device import resolve_device
        from atom.methods.lookup import find_method

        if self._method is None:
            problem, settings = self._problem, DistillSettings.model_validate(self._problem.settings)
            self._method = find_method(settings.method)(
                settings,
                channels=problem.channels,
                height=problem.height,
                width=problem.width,
                num_classes=problem.num_classes,
                device=resolve_device(problem.device_kind),
            )
        return self._method

    def _images(self, class_ids: Sequence[int], real: Mapping[int, Any]) -> Mapping[int, Any]:
        """Those of these classes, on the device; kept until others are asked for."""
        if set(self._real) != set(class_ids):
            device = self._made().device
            # First of all, or there would be two units' images at once.
            self._real = {}
            found = _fetch([real[c] for c in class_ids])
            self._real = {
                c: (one[:] if isinstance(one, Pixels) else as_tensor(one)).to(device)
                for c, one in zip(class_ids, found, strict=True)
            }
        return self._real


def _fetch(references: list[Any]) -> list[Any]:
    return ray.get(references, timeout=FETCH_TIMEOUT_S) if references else []


@dataclass(frozen=True)
class Trial:
    """One training of one network on one small set.

    Attributes:
        set_name: which small set.
        network: name of the network.
        seed: of the training.
    """

    set_name: str
    network: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the trial's record in the store."""
        return f"{network_slug(self.set_name)}-{network_slug(self.network)}-s{self.seed}"


MAX_SLUG_BYTES = 100
"""A file's name may have 255 bytes, and a key, a seed and an ending follow."""


def network_slug(network: str) -> str:
    """A network's name as files and metrics can carry it, a user's own `path.py:function` included.

    A long one is cut, and a digest makes it unique.

    Example:
        >>> network_slug("net.py:make"), len(network_slug("sep_conv_3x3 " * 20))
        ('net.py_make', 100)
    """
    slug = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in network)
    content = slug.encode()
    if len(content) <= MAX_SLUG_BYTES:
        return slug
    digest = hashlib.blake2b(network.encode(), digest_size=8).hexdigest()
    return f"{content[: MAX_SLUG_BYTES - 17].decode(errors='ignore')}-{digest}"


@dataclass(frozen=True)
class TrialContext:
    """What all trials of an evaluation share besides the images."""

    num_classes: int
    settings: Mapping[str, EvaluateSettings]
    """By set."""
    device_kind: DeviceKind
    threads: int
    compiled: frozenset[tuple[str, str]] = frozenset()
    """Sets and networks whose trainings are compiled: decided once by the driver, since it decides bits."""


REAL_STATISTICS = "with_real_statistics"
"""Of a trial's result: the accuracy with BatchNorm statistics re-estimated on real images."""
SCORES = {"accuracy": "scores", REAL_STATISTICS: "scores_with_real_statistics"}
"""Of a trial's result, by the accuracy beside it: `atom.scores.Scores`; results of before have none."""


def run_trial(
    trial: Trial,
    sets: Mapping[str, Mapping[int | None, tuple[np.ndarray, np.ndarray]]],
    test: Pixels | np.ndarray,
    test_labels_N: np.ndarray,
    context: TrialContext,
    statistics_NCHW: np.ndarray | None = None,
) -> dict[str, Any]:
    """Test accuracy in percent, other scores, the seconds of training and test, and the hardware that took them.

    Args:
        trial: what to train.
        sets: by set name and training seed (None: all seeds), preprocessed float32 images and labels, soft ones too.
        test, test_labels_N: test images and labels, see `atom.pixels.as_stored`.
        context: settings and where to compute.
        statistics_NCHW: see `atom.evaluate.evaluate`.
    """
    from atom.device import describe_hardware, resolve_device
    from atom.evaluate import evaluate

    draws = sets[trial.set_name]
    images_NCHW, labels_N = draws[None] if None in draws else draws[trial.seed]
    started = time.perf_counter()
    result = evaluate(
        as_tensor(images_NCHW),
        as_tensor(labels_N),
        test_images=as_images(test),
        test_labels=as_tensor(test_labels_N),
        network=trial.network,
        num_classes=context.num_classes,
        seeds=[trial.seed],
        settings=context.settings[trial.set_name],
        device=resolve_device(context.device_kind),
        threads=context.threads,
        compile="on" if (trial.set_name, trial.network) in context.compiled else "off",
        statistics_images=None if statistics_NCHW is None else as_tensor(statistics_NCHW),
    )
    value: dict[str, Any] = {"accuracy": result.accuracies[0], "seconds": time.perf_counter() - started}
    value |= {SCORES["accuracy"]: asdict(result.scores[0]), "hardware": describe_hardware()}
    if result.with_real_statistics is not None and result.scores_with_real_statistics is not None:
        value[REAL_STATISTICS] = result.with_real_statistics[0]
        value[SCORES[REAL_STATISTICS]] = asdict(result.scores_with_real_statistics[0])
    return value


@dataclass(frozen=True)
class Done:
    """What a worker of the pool gave, and the most memory that it held meanwhile."""

    value: Any
    peak: Peak


class PoolWorker:
    """An actor of the pool: works at one thing at a time, of whatever problem it is handed."""

    def __init__(self) -> None:
        self._problem: Problem | None = None
        self._worker: DistillWorker | None = None

    def advance(self, problem: Problem, *arguments: Any) -> Done:
        """See `DistillWorker.advance`."""
        return _measured(lambda: self._of(problem).advance(*arguments))

    def prepare(self, problem: Problem, *arguments: Any) -> Done:
        """See `DistillWorker.prepare`."""
        return _measured(lambda: self._of(problem).prepare(*arguments))

    def call(self, function: Callable[..., Any], *arguments: Any) -> Done:
        """What a function of this project gives, such as `run_trial`."""
        return _measured(lambda: function(*arguments))

    @ray.method(concurrency_group="control")
    def progress(self) -> int:
        """Iterations done of the unit in work, or epochs of the expert; answers meanwhile."""
        return 0 if self._worker is None else self._worker.progress()

    def _of(self, problem: Problem) -> DistillWorker:
        """The same as before for the same problem, with all that it keeps."""
        if self._worker is None or problem != self._problem:
            if self._worker is not None:
                self._worker.close()
            self._problem, self._worker = problem, DistillWorker(problem)
        return self._worker


def _measured(work: Callable[[], Any]) -> Done:
    memory.begin()
    return Done(work(), memory.peak())


RemoteDistillWorker: Any = ray.remote(DistillWorker)
"""For replicas."""
# Ray's annotations do not know this keyword of theirs.
RemoteWorker: Any = ray.remote(concurrency_groups={"control": 1})(PoolWorker)  # pyrefly: ignore
