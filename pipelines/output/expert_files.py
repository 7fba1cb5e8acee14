"""Experts on disk: one file an expert, in a folder named by all that decides its bits but how far it is trained.

So a run that reads more epochs goes on from what another run stored, one that reads fewer takes the first of them, and
runs of other images or recipes meet other folders. Two drivers may write the same file: it is replaced as a whole, and
both write the same bits.
"""

# E epochs done, P weights

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from atom.data import RealData
from atom.errors import StoreError
from atom.methods.experts import EXPERTS_VERSION, Arrays, Expert, epochs_done
from atom.methods.lookup import SHARED_VERSION
from atom.methods.method import Unit
from atom.settings import DeviceKind
from pipelines.output.array_files import metadata, pack, unpack
from pipelines.output.ownership import settings_hash
from pipelines.output.provenance import distinct, program
from pipelines.output.store import EXPERTS_FOLDER, Store, check_lasting
from pipelines.real_images import network_identity

EXPERTS_FLAG = "--experts"

FILE_NAME = re.compile(r"(?P<folder>[0-9a-f]{16})/expert_(?P<number>\d{4,})\.safetensors")
"""Of an expert within its place, see `ExpertFiles.name`."""


def shared_experts(location: str | None) -> Store | None:
    """The place that --experts names, if any.

    Raises:
        ConfigError, StoreError: it cannot be one, see `check_lasting` and `Store.check_writable`.
    """
    if location is None:
        return None
    check_lasting(location, flag=EXPERTS_FLAG)
    store = Store.open(location, flag=EXPERTS_FLAG)
    if store.local_path is not None and store.local_path.exists() and not store.local_path.is_dir():
        raise StoreError(
            f"{EXPERTS_FLAG} {location}: it is a file, expected a directory; pass another place."
        )
    store.check_writable()
    return store


def experts_identity(items: Iterable[object]) -> dict[str, int]:
    """What an output that reads experts belongs to besides; nothing where there are none among `items`."""
    return {"experts_version": EXPERTS_VERSION} if any(isinstance(one, Expert) for one in items) else {}


class ExpertFiles:
    """The experts of one place for one set of real images.

    Args:
        store: where they lie.
        real: the images.
        preprocess: digest of their preprocessing.
        device: where experts are trained.
    """

    def __init__(self, store: Store, real: RealData, *, preprocess: str, device: DeviceKind) -> None:
        self._store, self._real = store, real
        self._known = {
            "images": real.train.fingerprint,
            "preprocess": preprocess,
            "device": device,
            "version": f"{SHARED_VERSION}.{EXPERTS_VERSION}",
        }
        self._programs: dict[str, list[dict[str, Any]]] = {}

    @property
    def programs(self) -> list[dict[str, Any]]:
        """All that computed a part of what was loaded and saved, see `provenance.program`."""
        return distinct(one for found in self._programs.values() for one in found)

    def programs_of(self, expert: Expert, classes: Unit) -> list[dict[str, Any]]:
        """Of these those that trained this expert."""
        return self._programs.get(self.name(expert, classes), [])

    def name(self, expert: Expert, classes: Unit) -> str:
        """File of an expert of these classes' images.

        Raises:
            ConfigError: its network is a user's own and cannot be built.
        """
        return file_of(self._about(expert, classes))

    def load(self, expert: Expert, classes: Unit) -> dict[str, np.ndarray] | None:
        """What is stored of an expert, for as many epochs as it is; None where nothing is.

        Raises:
            StoreError: the file is damaged, or holds another expert than its place says.
        """
        name = self.name(expert, classes)
        if not self._store.exists(name):
            return None
        arrays, told, programs = read_expert(self._store, name)
        _check_same(told, self._about(expert, classes), self._store.where(name))
        self._programs[name] = programs
        return arrays

    def save(self, expert: Expert, classes: Unit, arrays: Arrays) -> None:
        """Store an expert in the place of what was stored of it, unless that is as far already.

        Raises:
            StoreError: as `Store.write_bytes`; what was stored stays.
        """
        name = self.name(expert, classes)
        self._programs[name] = distinct([*self._programs.get(name, []), self._program])
        if self._epochs_at(name) >= epochs_done(arrays):
            return
        about = {
            "expert": json.dumps(self._about(expert, classes)),
            # For people: the digest of the images says it, but not what they are called.
            "source": self._real.name,
            "epochs": str(epochs_done(arrays)),
            "programs": json.dumps(self._programs[name]),
        }
        self._store.write_bytes(name, pack(arrays, about))

    def _epochs_at(self, name: str) -> int:
        """Of the file of that name; -1 where there is none to be read. Another driver may have written it since."""
        try:
            if not self._store.exists(name):
                return -1
            return int(metadata(self._store.read_bytes(name))["epochs"])
        except (StoreError, ValueError, KeyError):
            return -1

    def _recipe(self, expert: Expert, classes: Unit) -> dict[str, Any]:
        """All that decides the bits, but the number of the expert and its epochs."""
        return {**recipe_of(expert, self._real), "classes": list(classes), **self._known}

    def _about(self, expert: Expert, classes: Unit) -> dict[str, Any]:
        return {"number": expert.number, **self._recipe(expert, classes)}

    @cached_property
    def _program(self) -> dict[str, Any]:
        return program()


def recipe_of(expert: Expert, real: RealData) -> dict[str, Any]:
    """What an expert is asked to be, whatever it is trained on and where.

    Raises:
        ConfigError: its network is a user's own and cannot be built.
    """
    return {**asdict(expert.recipe), "network": network_identity(expert.recipe.network, real)}


def file_of(told: Mapping[str, Any]) -> str:
    """Where the expert lies that says that of itself."""
    recipe = {name: value for name, value in told.items() if name != "number"}
    return f"{settings_hash(recipe)}/expert_{told['number']:04d}.safetensors"


def read_expert(
    store: Store, name: str
) -> tuple[dict[str, np.ndarray], dict[str, Any], list[dict[str, Any]]]:
    """Arrays of a stored expert, what it says of itself, and which programs trained it.

    Raises:
        StoreError: the file is damaged.
    """
    try:
        arrays, about = unpack(store.read_bytes(name))
        told, programs = json.loads(about["expert"]), json.loads(about["programs"])
        _check(arrays)
    except (ValueError, KeyError) as error:
        raise damaged(store.where(name), error) from error
    return arrays, told, programs


def damaged(where: str, error: Exception) -> StoreError:
    """What to say of a file that cannot be read as an expert."""
    return StoreError(f"{where} is damaged ({error}); delete it to have this expert trained anew.")


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    weights_EP = arrays["epochs"]
    if weights_EP.ndim != 2 or weights_EP.dtype != np.float32:
        raise ValueError(
            f"its epochs are {weights_EP.dtype} {weights_EP.shape}, expected float32 [epochs + 1, weights]"
        )


def _check_same(told: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    names = [name for name in {**told, **expected} if told.get(name) != expected.get(name)]
    if names:
        shown = ", ".join(
            f"{name} (found {json.dumps(told.get(name))}, expected {json.dumps(expected.get(name))})"
            for name in names
        )
        raise StoreError(
            f"{where} holds another expert than its place says: {shown}; put it back where it was, or delete it."
        )


__all__ = [
    "EXPERTS_FLAG",
    "EXPERTS_FOLDER",
    "FILE_NAME",
    "ExpertFiles",
    "damaged",
    "experts_identity",
    "file_of",
    "read_expert",
    "recipe_of",
    "shared_experts",
]
