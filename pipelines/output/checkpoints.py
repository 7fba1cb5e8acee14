"""Checkpoints of a distillation: one file a unit of classes, replaced as a whole, and one a preparation.

A file holds the named arrays of a state and a digest of all that decides them. Its name follows from the unit, so
the folder is listed once, when a run begins, and a kill leaves the last whole state.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np

from atom.errors import StoreError
from atom.methods.method import State, Unit
from pipelines.output.array_files import pack, unpack
from pipelines.output.provenance import UNKNOWN_PROGRAM, distinct, program
from pipelines.output.store import Store

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
_READS = 8
"""Files that are asked for at once; chosen: an object store's answer takes tens of milliseconds."""
_STATE = "state/"
"""Before the names of a method's arrays in a file, which its losses are none of."""


def unit_name(unit: Unit) -> str:
    """File of a unit: its first class, and of several how many, with a digest of which.

    Example:
        >>> unit_name((3,)), unit_name((0, 1, 2))
        ('checkpoints/unit_0003.safetensors', 'checkpoints/unit_0000_of_3_22f61ab1.safetensors')
    """
    several = f"_of_{len(unit)}_{_which(unit)}" if len(unit) > 1 else ""
    return f"{FOLDER}/unit_{unit[0]:04d}{several}.safetensors"


class Checkpoints:
    """The checkpoints of one output.

    Args:
        store: where they lie, under checkpoints/.
        settings: what `ownership.claim` returned; a file of other settings counts as absent.
    """

    def __init__(self, store: Store, settings: str) -> None:
        self._store = store
        self._settings = settings
        self._programs: dict[Unit, list[dict[str, Any]]] = {}
        self._preparing: list[dict[str, Any]] = []

    def save(self, unit: Unit, state: State) -> None:
        """Store a unit's state in the place of its last one, and with it which programs computed it so far.

        Raises:
            StoreError: as `Store.write_bytes`; the last state stays.
        """
        self.save_all({unit: state})

    def save_all(self, states: Mapping[Unit, State]) -> None:
        """`save` for several units, in less time than one by one.

        Raises:
            StoreError: as `Store.write_all`; of each unit the last state stays, or the new one is there.
        """
        self._store.write_all(self._file(unit, state) for unit, state in states.items())

    def _file(self, unit: Unit, state: State) -> tuple[str, bytes]:
        made_by = distinct([*self._programs.get(unit, []), self._program])
        about = {
            "unit": json.dumps(unit),
            "iteration": str(state.iteration),
            "failures": json.dumps({str(class_id): why for class_id, why in state.failures.items()}),
            "programs": json.dumps(made_by),
            "prepared_by": json.dumps(distinct(self._preparing)),
        }
        arrays = {f"{_STATE}{name}": array for name, array in state.arrays.items()}
        self._programs[unit] = made_by
        return unit_name(unit), self._packed({**arrays, "losses": state.losses}, about)

    def load(self, unit: Unit) -> State | None:
        """The unit's last state, or None: a truncated or garbled file counts as absent, with a warning in the log."""
        found = self._read(unit_name(unit))
        return None if found is None else self._state(unit, *found)

    def load_all(self, units: Sequence[Unit]) -> dict[Unit, State]:
        """`load` for several units, by one listing and several reads at once; those without a state are left out."""
        there = set(self._store.list(FOLDER))
        stored = [unit for unit in units if unit_name(unit) in there]
        with ThreadPoolExecutor(_READS) as pool:
            found = list(pool.map(self._content, map(unit_name, stored)))
        return {u: self._state(u, *one) for u, one in zip(stored, found, strict=True) if one is not None}

    def _state(self, unit: Unit, arrays: dict[str, np.ndarray], about: Mapping[str, str]) -> State:
        self._programs[unit] = json.loads(about.get("programs", "null")) or [UNKNOWN_PROGRAM]
        self._preparing = distinct([*self._preparing, *json.loads(about.get("prepared_by", "[]"))])
        losses = arrays.pop("losses")
        arrays = {name.removeprefix(_STATE): array for name, array in arrays.items()}
        failures = {int(class_id): why for class_id, why in json.loads(about["failures"]).items()}
        return State(int(about["iteration"]), arrays, losses, failures)

    def save_prepared(self, name: str, classes: Unit, arrays: Mapping[str, np.ndarray]) -> None:
        """Store what a preparation gave for these classes; errors as for `save`."""
        about = {"programs": json.dumps([self._program])}
        self._store.write_bytes(_prepared_name(name, classes), self._packed(arrays, about))
        self._preparing.append(self._program)

    def load_prepared(self, name: str, classes: Unit) -> dict[str, np.ndarray] | None:
        """What a preparation gave for these classes, or None, as `load`."""
        found = self._read(_prepared_name(name, classes))
        if found is None:
            return None
        arrays, about = found
        self._preparing += json.loads(about["programs"])
        return arrays

    def reads(self, programs: Iterable[dict[str, Any]]) -> None:
        """Take note of programs that made what the units are made from, but which is kept elsewhere, such as experts.

        They are stored with every unit from now on: a later driver, which finds all units, asks for no experts any
        more, and these may be gone.
        """
        self._preparing += programs

    def programs(self, units: Iterable[Unit]) -> list[dict[str, Any]]:
        """All programs that computed a part of what was saved and loaded of these units, preparations first."""
        return distinct([*self._preparing, *(one for unit in units for one in self._programs.get(unit, []))])

    @cached_property
    def _program(self) -> dict[str, Any]:
        return program()

    def _packed(self, arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> bytes:
        return pack(arrays, {**about, "settings": self._settings})

    def _read(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]] | None:
        return self._content(name) if self._store.exists(name) else None

    def _content(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]] | None:
        where = self._store.where(name)
        try:
            arrays, about = unpack(self._store.read_bytes(name))
        except (StoreError, ValueError) as error:
            logger.warning("Checkpoint %s is unreadable and is ignored: %s", where, error)
            return None
        if about.get("settings") != self._settings:
            logger.warning("Checkpoint %s is of other settings and is ignored.", where)
            return None
        return arrays, about


def _prepared_name(name: str, classes: Unit) -> str:
    return f"{FOLDER}/prepared_{name}_of_{len(classes)}_{_which(classes)}.safetensors"


def _which(classes: Unit) -> str:
    return hashlib.blake2b(json.dumps(classes).encode(), digest_size=4).hexdigest()


__all__ = ["FOLDER", "Checkpoints", "unit_name"]
