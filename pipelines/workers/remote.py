"""What runs on the cluster: a distillation actor and an evaluation task, thin shells over `atom`.

Workers decide nothing and know no MLflow: settings arrive resolved, results leave as NumPy arrays and numbers.
torch is imported inside, so that importing this module in a driver is cheap.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from atom.settings import DeviceKind, DistillSettings, EvaluateSettings
from pipelines.workers.cluster import as_tensor

if TYPE_CHECKING:
    from atom.distill import GroupDistiller, GroupState

FETCH_TIMEOUT_S = 600.0
"""Limit on fetching real images from the object store, seconds; they may have to cross the network."""


@dataclass(frozen=True)
class Problem:
    """What a worker has to know besides the images; small, sent with every actor."""

    settings: DistillSettings
    channels: int
    height: int
    width: int
    num_classes: int
    device_kind: DeviceKind


class DistillWorker:
    """Distils groups of classes, chunk by chunk; its memory is a cache, the driver's checkpoints are the truth."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._distiller: GroupDistiller | None = None
        self._real: dict[int, Any] = {}
        self._iteration = 0

    def advance(
        self, class_ids: Sequence[int], real: Mapping[int, Any], state: "GroupState | None", until: int
    ) -> "GroupState":
        """State of the group at iteration `until`, from `state`, or from the start where that is None.

        Args:
            class_ids: the group's classes.
            real: a reference to the preprocessed images of each class, float32 [n, C, H, W].
            state: the group's last stored state.
            until: iterations done in the result.
        """
        # First of all, or `progress` would answer for the group before.
        self._note(0 if state is None else state.iteration)
        if self._distiller is None:
            self._distiller = _make_distiller(self._problem)
        if set(self._real) != set(class_ids):
            arrays = ray.get([real[c] for c in class_ids], timeout=FETCH_TIMEOUT_S)
            device = self._distiller.device
            self._real = {c: as_tensor(array).to(device) for c, array in zip(class_ids, arrays, strict=True)}
        if state is None:
            state = self._distiller.start(class_ids, self._real)
        return self._distiller.advance(
            state, until, class_ids=class_ids, real=self._real, on_iteration=self._note
        )

    @ray.method(concurrency_group="control")
    def progress(self) -> int:
        """Iterations done of the group in work; answers while `advance` runs."""
        return self._iteration

    def _note(self, iteration: int) -> None:
        self._iteration = iteration


# Ray's annotations do not know this keyword of theirs.
RemoteDistillWorker: Any = ray.remote(concurrency_groups={"control": 1})(DistillWorker)  # pyrefly: ignore


def _make_distiller(problem: Problem) -> "GroupDistiller":
    from atom.device import resolve_device
    from atom.distill import GroupDistiller

    return GroupDistiller(
        problem.settings,
        channels=problem.channels,
        height=problem.height,
        width=problem.width,
        num_classes=problem.num_classes,
        device=resolve_device(problem.device_kind),
    )


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
        return f"{self.set_name}-{network_slug(self.network)}-s{self.seed}"


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
    settings: EvaluateSettings
    device_kind: DeviceKind
    threads: int
    compiled: frozenset[tuple[str, str]] = frozenset()
    """Sets and networks whose trainings are compiled: decided once by the driver, since it decides bits."""


REAL_STATISTICS = "with_real_statistics"
"""Of a trial's result: the accuracy with BatchNorm statistics re-estimated on real images."""


def run_trial(
    trial: Trial,
    sets: Mapping[str, Mapping[int | None, tuple[np.ndarray, np.ndarray]]],
    test_NCHW: np.ndarray,
    test_labels_N: np.ndarray,
    context: TrialContext,
    statistics_NCHW: np.ndarray | None = None,
) -> dict[str, Any]:
    """Test accuracy in percent, the seconds of training and test, and the hardware that took them.

    Args:
        trial: what to train.
        sets: by set name and training seed (None: all seeds), preprocessed float32 images and labels, soft ones too.
        test_NCHW, test_labels_N: preprocessed test images and labels.
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
        test_images=as_tensor(test_NCHW),
        test_labels=as_tensor(test_labels_N),
        network=trial.network,
        num_classes=context.num_classes,
        seeds=[trial.seed],
        settings=context.settings,
        device=resolve_device(context.device_kind),
        threads=context.threads,
        compile="on" if (trial.set_name, trial.network) in context.compiled else "off",
        statistics_images=None if statistics_NCHW is None else as_tensor(statistics_NCHW),
    )
    value: dict[str, Any] = {"accuracy": result.accuracies[0], "seconds": time.perf_counter() - started}
    value["hardware"] = describe_hardware()
    if result.with_real_statistics is not None:
        value[REAL_STATISTICS] = result.with_real_statistics[0]
    return value
