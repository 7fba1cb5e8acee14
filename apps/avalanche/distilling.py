"""Distillation in this process, with a file for every experience that is done; nothing here knows Avalanche."""

# N real images of a class, I distilled ones, C channels, H height, W width

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.avalanche.sources import CLASSES_ALONE
from apps.continual.budget import by_images, num_distilled
from apps.continual.exemplars import Exemplars, Storage
from apps.continual.memory import Memory
from apps.continual.selection import keep_distilled
from atom import atomic, nets
from atom.device import kind_of, use_threads
from atom.errors import ArtifactError, ConfigError
from atom.methods.lookup import check_read, find_method, images_version, method_identity
from atom.methods.method import Method
from atom.methods.settings import DistillSettings
from atom.preprocess import Preprocess
from atom.resolve import resolve_settings
from atom.settings import settle_dsa_strategy

log = logging.getLogger(__name__)

FILE_VERSION = 2
"""Part of the name of every file, as `images_version` is; another one has all classes distilled anew."""


class DistilledHere:
    """Distils by a method of `atom.methods`, in this process; finished experiences are kept as files.

    Args:
        settings: as a user writes them; ipc, zca and zca_eps are not read.
        num_classes: of the whole benchmark.
        storage: one of `exemplars.STORAGES`.
        preprocess: what the space of the images is; read for the storage uint8 alone.
        device: where to distil.
        directory: of the files, or None to keep none.
        symbols: whether the images show written symbols, see `settle_dsa_strategy`.

    Raises:
        ConfigError: see there, or a number of images in all.
    """

    real_images: int | None = None
    again = True

    def __init__(
        self,
        settings: DistillSettings,
        *,
        num_classes: int,
        storage: Storage,
        preprocess: Preprocess,
        device: torch.device,
        directory: Path | None,
        symbols: bool | None,
    ) -> None:
        self.seconds = 0.0
        check_read(settings)
        if settings.images_in_all is not None:
            raise ConfigError(
                f"images_in_all {settings.images_in_all}: the size of the buffer says how many images a class has;"
                " leave it out."
            )
        strategy = settle_dsa_strategy(settings.dsa_strategy, symbols=symbols, flag="dsa_strategy")
        self._settings = settings.model_copy(update={"dsa_strategy": strategy})
        self._symbols, self._num_classes, self._storage = symbols, num_classes, storage
        self._preprocess, self._device, self._directory = preprocess, device, directory
        self._method: Method | None = None

    def take(
        self, real: Mapping[int, Tensor], *, quota: Mapping[int, int], experience: int
    ) -> dict[int, Exemplars]:
        """As `sources.Source.take`; from the file of the experience, where there is one for exactly this work.

        The name of a file holds a digest of the images, the settings, the kind of device and all else that
        decides its content. So a file of other images or settings is never read, nor touched: the classes are
        distilled again, into a file beside it. One that is damaged is refused.

        Raises:
            ConfigError: too few real images, or settings that do not fit them.
            ArtifactError: the file is damaged.
            StoreError: the file cannot be written.
        """
        settings = {c: self._resolved(c, images, quota[c]) for c, images in real.items()}
        path = None
        if self._directory is not None:
            key = self._key(settings, real)
            path = self._directory / f"experience-{experience:03}-{key[:16]}.safetensors"
            if path.exists():
                return _read(path, real)
        started = time.perf_counter()
        exemplars = self._distil(settings, real)
        seconds = time.perf_counter() - started
        self.seconds += seconds
        log.info(
            "experience %d: distilled in %.1f s, images of each class: %s",
            experience,
            seconds,
            {class_id: settings[class_id].ipc for class_id in sorted(real)},
        )
        if path is not None:
            atomic.write_file(path, Memory(exemplars).to_bytes())
        return exemplars

    def _resolved(self, class_id: int, real_NCHW: Tensor, quota: int) -> DistillSettings:
        channels, height, width = real_NCHW.shape[1:]
        factor = self._settings.factor
        ipc = num_distilled(quota, len(real_NCHW), factor=factor, init=self._settings.init)
        if not ipc:
            raise ConfigError(
                f"class {class_id} has {len(real_NCHW)} training images, but a distilled one with factor"
                f" {factor} starts from {factor**2}; pass a smaller factor, or init='noise'."
            )
        return resolve_settings(
            self._settings.model_copy(update={"ipc": ipc}),
            device_kind=kind_of(self._device),
            channels=channels,
            height=height,
            width=width,
            num_classes=self._num_classes,
            symbols=self._symbols,
        )

    def _distil(
        self, settings: Mapping[int, DistillSettings], real: Mapping[int, Tensor]
    ) -> dict[int, Exemplars]:
        exemplars = {}
        of_class = {class_id: images.to(self._device) for class_id, images in real.items()}
        # Those of the most images first, the common number, so that most classes share a compiled step.
        for classes in reversed(
            by_images({class_id: own.ipc for class_id, own in settings.items()}).values()
        ):
            own = settings[classes[0]]
            method = self._method_for(own, real[classes[0]])
            if method.learns_labels(own):
                log.warning(CLASSES_ALONE)
            prepared = method.prepare_all(of_class)
            for unit in method.units(own, classes):
                state = method.start(unit, of_class, prepared=prepared)
                state = method.advance(
                    state, own.iterations or 0, unit=unit, real=of_class, prepared=prepared
                )
                if state.failures:
                    raise ConfigError(" ".join(state.failures.values()))
                part = method.result(own, unit, state)
                for class_id, images_ICHW in zip(unit, part.images, strict=True):
                    exemplars[class_id] = self._ordered(torch.from_numpy(images_ICHW), own)
        return exemplars

    def _method_for(self, settings: DistillSettings, real_NCHW: Tensor) -> Method:
        shape = tuple(real_NCHW.shape[1:])
        known = self._method
        # The same one, where it fits: a compiled step is not compiled again.
        if known is None or (known.settings, known.shape) != (settings, shape):
            channels, height, width = shape
            known = self._method = find_method(settings.method)(
                settings,
                channels=channels,
                height=height,
                width=width,
                num_classes=self._num_classes,
                device=self._device,
            )
        return known

    @property
    def options(self) -> dict[str, Any]:
        """Settings and symbols as plain values, to make it once more."""
        return {"settings": self._settings.model_dump(mode="json"), "symbols": self._symbols}

    def identities(self, image_shape: tuple[int, ...]) -> dict[str, str]:
        """Of what is a user's own code, the network and the method, by the setting that names it.

        Args:
            image_shape: [C, H, W] of the images.

        Raises:
            ConfigError: it cannot be imported or built.
        """
        channels, height, width = image_shape
        shape = {"channels": channels, "image_size": (height, width), "num_classes": self._num_classes}
        found = {
            "network": nets.identity(self._settings.network, **shape),
            "method": method_identity(self._settings.method),
        }
        return {kind: name for kind, name in found.items() if ":" in name}

    def __getstate__(self) -> dict[str, Any]:
        # A compiled step is this process's own.
        return {**self.__dict__, "_method": None}

    def _ordered(self, white_ICHW: Tensor, settings: DistillSettings) -> Exemplars:
        with use_threads(1):
            return keep_distilled(
                white_ICHW,
                self._storage,
                preprocess=self._preprocess,
                seed=settings.seed,
                factor=settings.factor,
                network=settings.network,
            )

    def _key(self, settings: Mapping[int, DistillSettings], real: Mapping[int, Tensor]) -> str:
        channels, height, width = next(iter(real.values())).shape[1:]
        shape = {"channels": channels, "image_size": (height, width), "num_classes": self._num_classes}
        # In place of the network's name, whose folder decides nothing.
        network = nets.identity(self._settings.network, **shape)
        content = {
            "version": [FILE_VERSION, images_version(self._settings.method)],
            "settings": {
                class_id: settings[class_id].model_dump(mode="json", exclude={"zca", "zca_eps"})
                | {"network": network, "method": method_identity(self._settings.method)}
                for class_id in sorted(real)
            },
            "network": network,
            "num_classes": self._num_classes,
            "storage": self._storage,
            "preprocess": self._preprocess.digest if self._storage == "uint8" else None,
            "device": kind_of(self._device),
            "classes": {class_id: list(real[class_id].shape) for class_id in sorted(real)},
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
        for class_id in sorted(real):
            digest.update(np.ascontiguousarray(real[class_id].numpy()).tobytes())
        return digest.hexdigest()


def _read(path: Path, real: Mapping[int, Tensor]) -> dict[int, Exemplars]:
    try:
        memory = Memory.from_bytes(path.read_bytes())
    except (ArtifactError, OSError) as error:
        raise ArtifactError(f"{path}: {error}") from error
    if set(memory.classes) != set(real):
        raise ArtifactError(
            f"{path} holds the classes {list(memory.classes)}, expected {sorted(real)}; remove it to have them"
            " distilled again."
        )
    return {class_id: memory[class_id] for class_id in memory.classes}


__all__ = ["DistilledHere"]
