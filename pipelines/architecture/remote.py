"""The processes that Ray Tune starts: they fetch the images once, and find scores, one a step."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import ray
from ray import tune

from apps.nas.proxies import Proxy
from apps.nas.space import Space
from apps.nas.trial import Images, Recipe, Score, Unit, run_unit
from atom.errors import AtomError
from atom.settings import DeviceKind
from pipelines.architecture.tune_round import watchdog
from pipelines.workers.cluster import as_tensor
from pipelines.workers.faults import Failure, is_machine_fault
from pipelines.workers.remote import FETCH_TIMEOUT_S

T = TypeVar("T")

RealArrays = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Preprocessed real images and labels by part: train, validation, test."""


@dataclass(frozen=True)
class Shared:
    """What every trial needs; small but for the references.

    Attributes:
        proxies: by name.
        space, recipe, device_kind: see `apps.nas.trial.run_unit`.
        small: reference to the tiny sets, by proxy and training seed.
        real: reference to the `RealArrays` by preprocessing.
        timeout_s: a unit that takes longer ends its worker.
        seconds: training time by network, of the proxy of equal seconds.
    """

    proxies: Mapping[str, Proxy]
    space: Space
    recipe: Recipe
    device_kind: DeviceKind
    small: Any
    real: Any
    timeout_s: float
    seconds: Mapping[str, float] = field(default_factory=dict)


class ImagesTrial(tune.Trainable):
    """A process that holds all images, on its device."""

    def fetch(self, shared: Shared) -> None:
        """Fetch the images; once a process."""
        from atom.device import resolve_device

        self._shared = shared
        self._device = resolve_device(shared.device_kind)
        self._small, arrays = ray.get([shared.small, shared.real], timeout=FETCH_TIMEOUT_S)
        self._real = {name: _images(parts, self._device) for name, parts in arrays.items()}

    def attempt(self, work: Callable[[], T]) -> "T | Failure":
        """What `work` comes to, or why it fails; a fault of the machine is raised, and ends the process if it hangs."""
        with watchdog(self._shared.timeout_s):
            try:
                return work()
            except AtomError as error:
                return Failure(" ".join(str(error).split()), "")
            except Exception as error:
                if is_machine_fault(error):
                    raise
                text = " ".join(str(error).split())
                return Failure(f"{type(error).__name__}: {text}".removesuffix(": "), "")
            finally:
                if self._device.type == "cuda":
                    # Trials share the GPU, and what this one keeps in reserve its neighbours cannot have.
                    import torch

                    torch.cuda.empty_cache()


class PackTrial(ImagesTrial):
    """Finds the scores of one pack, one a step; the process is reused for the next pack."""

    def setup(  # pyrefly: ignore[bad-override]
        self, config: dict[str, Any], shared: Shared, packs: Sequence[Sequence[Unit]]
    ) -> None:
        """Fetch the images once a process."""
        self._packs = packs
        self.fetch(shared)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another pack."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """The next unit's score, or the reason why it has none."""
        unit = self._units[self._next]
        self._next += 1
        begun_s = time.perf_counter()
        value = self.attempt(lambda: self._score(unit))
        return {
            "unit": unit,
            "value": value,
            "unit_seconds": time.perf_counter() - begun_s,
            tune.result.DONE: self._next == len(self._units),
        }

    def _begin(self, config: dict[str, Any]) -> None:
        self._units, self._next = self._packs[config["pack"]], 0

    def _score(self, unit: Unit) -> Score:
        return run_unit(
            unit,
            self._shared.proxies[unit.proxy],
            space=self._shared.space,
            small=self._small,
            real=self._real,
            recipe=self._shared.recipe,
            device=self._device,
            seconds=self._shared.seconds.get(unit.network),
        )


def _images(parts: RealArrays, device: Any) -> Images:
    tensors = {
        name: (as_tensor(images).to(device), as_tensor(labels).to(device))
        for name, (images, labels) in parts.items()
    }
    return Images(**tensors)
