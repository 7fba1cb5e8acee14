"""What runs on the cluster for a search: processes that fetch the images once, and find scores."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import ray

from apps.nas.proxies import Proxy
from apps.nas.space import Space
from apps.nas.trial import Images, Recipe, Score, Unit, run_unit
from atom.errors import AtomError
from atom.pixels import Pixels
from atom.settings import DeviceKind
from pipelines.workers.cluster import as_images, as_tensor
from pipelines.workers.faults import Failure, is_machine_fault
from pipelines.workers.remote import FETCH_TIMEOUT_S

T = TypeVar("T")

RealArrays = Mapping[str, tuple[Pixels | np.ndarray, np.ndarray]]
"""Real images, see `atom.pixels.as_stored`, and labels by part: train, validation, test."""


@dataclass(frozen=True)
class Shared:
    """What every process needs; small but for the references.

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


class ImageHolder:
    """A process that holds all images, on its device."""

    def __init__(self, shared: Shared) -> None:
        from atom.device import resolve_device

        self.shared = shared
        self.device = resolve_device(shared.device_kind)
        self.small, arrays = ray.get([shared.small, shared.real], timeout=FETCH_TIMEOUT_S)
        self.real = {name: _images(parts, self.device) for name, parts in arrays.items()}

    def given(self) -> dict[str, Any]:
        """What `run_unit` and `train_unit` take besides a unit and its proxy."""
        return {
            "space": self.shared.space,
            "small": self.small,
            "real": self.real,
            "recipe": self.shared.recipe,
            "device": self.device,
        }

    def attempt(self, work: Callable[[], T]) -> "T | Failure":
        """What `work` comes to, or why it fails; a fault of the machine is raised."""
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
            if self.device.type == "cuda":
                # Processes share the GPU, and what this one keeps in reserve its neighbours cannot have.
                import torch

                torch.cuda.empty_cache()


class ScoreWorker(ImageHolder):
    """An actor that finds scores, one a call."""

    def score(self, unit: Unit) -> tuple[Score | Failure, float]:
        """The unit's score, or the reason why it has none, and the seconds it took."""
        begun_s = time.perf_counter()
        return self.attempt(lambda: self._score(unit)), time.perf_counter() - begun_s

    def _score(self, unit: Unit) -> Score:
        proxy, seconds = self.shared.proxies[unit.proxy], self.shared.seconds.get(unit.network)
        return run_unit(unit, proxy, **self.given(), seconds=seconds)


RemoteScoreWorker: Any = ray.remote(ScoreWorker)


def _images(parts: RealArrays, device: Any) -> Images:
    tensors = {
        name: (as_images(images).to(device), as_tensor(labels).to(device))
        for name, (images, labels) in parts.items()
    }
    return Images(**tensors)
