"""Checkpoints of groups of classes: one file a class, and a group always resumes from one common iteration.

A kill may come between two files of a group. So a file's name carries its iteration, and older
generations are removed only when the whole group's new one is on disk.
"""

# M stored images a class, C channels, H height, W width, T iterations so far

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from atom.errors import StoreError
from pipelines.output.provenance import UNKNOWN_PROGRAM, distinct, program
from pipelines.output.store import Store

logger = logging.getLogger(__name__)

_FOLDER = "checkpoints"
_NAME = re.compile(rf"^{_FOLDER}/class_(\d+)\.it(\d+)\.safetensors$")


@dataclass(frozen=True)
class ClassState:
    """What one class needs to go on.

    Attributes:
        images: the optimised images, float32 (M, C, H, W).
        momentum: the optimiser's momentum, of the same shape.
        losses: the class's loss at every iteration so far, float32 (T,).
        failure: why the class failed, or nothing.
    """

    images: np.ndarray
    momentum: np.ndarray
    losses: np.ndarray
    failure: str = ""


def _name(class_id: int, iteration: int) -> str:
    return f"{_FOLDER}/class_{class_id:04d}.it{iteration:08d}.safetensors"


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Checksum of the arrays: safetensors itself notices a short file, not a flipped or zeroed byte."""
    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(arrays):
        digest.update(f"{key} {arrays[key].dtype} {arrays[key].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[key]).data)
    return digest.hexdigest()


class Checkpoints:
    """The checkpoints of one output.

    Args:
        store: where they lie, under checkpoints/.
        settings: what `store.claim` returned; a file of other settings counts as absent.
    """

    def __init__(self, store: Store, settings: str) -> None:
        self._store = store
        self._settings = settings
        self._programs: dict[int, list[dict[str, Any]]] = {}

    def save(self, iteration: int, states: Mapping[int, ClassState]) -> None:
        """Write the states of a group at `iteration`, with the programs that computed them, then remove its older ones.

        Raises:
            StoreError: the disk is full, or the like; the group's older generation stays usable.
        """
        for class_id, state in states.items():
            made_by = distinct([*self._programs.get(class_id, []), self._program])
            arrays = {"images": state.images, "momentum": state.momentum, "losses": state.losses}
            arrays = {key: np.ascontiguousarray(value, dtype=np.float32) for key, value in arrays.items()}
            metadata = {
                "class": str(class_id),
                "iteration": str(iteration),
                "settings": self._settings,
                "digest": _digest(arrays),
                "failure": state.failure,
                "programs": json.dumps(made_by),
            }
            self._store.write_bytes(_name(class_id, iteration), save(arrays, metadata))
            self._programs[class_id] = made_by
        self.prune(list(states), keep=iteration)

    @cached_property
    def _program(self) -> dict[str, Any]:
        return program()

    def programs(self, class_ids: Sequence[int]) -> list[dict[str, Any]]:
        """All programs that computed a part of what `save` and `latest` have seen of these classes."""
        return distinct(one for class_id in class_ids for one in self._programs.get(class_id, []))

    def prune(self, class_ids: Sequence[int], *, keep: int) -> None:
        """Remove the checkpoints of these classes at iterations before `keep`."""
        for class_id, iterations in self._iterations(class_ids).items():
            for iteration in iterations:
                if iteration < keep:
                    self._store.delete(_name(class_id, iteration))

    def latest(self, class_ids: Sequence[int]) -> tuple[int, dict[int, ClassState]] | None:
        """Newest iteration at which every one of these classes has a readable checkpoint.

        Returns:
            The iteration and the states by class, or None if there is no such iteration. A truncated or
            garbled file counts as absent, with a warning in the log.
        """
        found = self._iterations(class_ids)
        common = set.intersection(*found.values()) if found else set()
        for iteration in sorted(common, reverse=True):
            states = {class_id: self._read(class_id, iteration) for class_id in class_ids}
            whole = {class_id: state for class_id, state in states.items() if state is not None}
            if len(whole) == len(class_ids):
                return iteration, whole
        return None

    def _iterations(self, class_ids: Sequence[int]) -> dict[int, set[int]]:
        found: dict[int, set[int]] = {class_id: set() for class_id in class_ids}
        for name in self._store.list(_FOLDER):
            match = _NAME.match(name)
            if match and int(match[1]) in found:
                found[int(match[1])].add(int(match[2]))
        return found

    def _read(self, class_id: int, iteration: int) -> ClassState | None:
        name = _name(class_id, iteration)
        try:
            data = self._store.read_bytes(name)
            arrays = load(data)
            metadata = _metadata(data)
            failure = metadata.get("failure", "")
            state = ClassState(arrays["images"], arrays["momentum"], arrays["losses"], failure)
            made_by = json.loads(metadata.get("programs", "null")) or [UNKNOWN_PROGRAM]
        except (StoreError, SafetensorError, ValueError, KeyError) as error:
            logger.warning("Checkpoint %s is unreadable and is ignored: %s", self._store.where(name), error)
            return None
        if metadata.get("settings") != self._settings or metadata.get("digest") != _digest(arrays):
            logger.warning(
                "Checkpoint %s is damaged or of other settings and is ignored.", self._store.where(name)
            )
            return None
        self._programs[class_id] = made_by
        return state


def _metadata(data: bytes) -> dict[str, str]:
    """String metadata of a safetensors file's bytes: an 8-byte length, then JSON. `load` has checked both."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]).get("__metadata__", {})
