"""The memories of a run, step by step: real images chosen by Ray tasks, distilled ones put in order, all as bytes.

What a memory holds after a step follows from its identity, so nothing of it has to be carried from one driver to the
next but the choice of rows, which takes time.
"""

# N images, M stored images of a class, C channels, H height, W width

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray
import torch

from apps.continual import lossless
from apps.continual.memory import Exemplars, Memory, Reservoir, from_distilled, keep_distilled, select
from atom.device import use_threads
from atom.errors import AtomError, StoreError
from pipelines.incremental.distillation import Distiller
from pipelines.incremental.picture import memory_picture
from pipelines.incremental.protocol import DISTILLED, DRAWN, RESERVOIR, SET
from pipelines.incremental.remote import PassingMemory, StoredMemory
from pipelines.incremental.selection import Selections
from pipelines.output.ownership import settings_hash
from pipelines.real_images import network_identity
from pipelines.sets import fingerprint

if TYPE_CHECKING:
    from pipelines.incremental.case import ContinualCase

Key = tuple[str, int, int]
"""Memory, class order, training seed it was drawn for: 0 where one draw serves all."""


class Memories:
    """All memories of a run.

    Attributes:
        before, after: memories at the beginning and the end of the step of the last `advance`.
        failed: why a memory of a class order cannot be had, from some step on.
    """

    def __init__(self, case: "ContinualCase", distiller: Distiller) -> None:
        self._case, self._distiller = case, distiller
        self.before: dict[Key, StoredMemory] = {}
        self.after: dict[Key, StoredMemory] = {}
        self.failed: dict[tuple[str, int], str] = {}
        self.selections = Selections(case)
        self._ordered: dict[tuple[Any, ...], Exemplars] = {}
        self._reservoirs: dict[Key, Reservoir] = {}
        given = case.given[0] if case.given is not None else None
        self._set_digest = given and fingerprint(given)
        draws = range(case.command.stream.seeds)
        self.keys: list[Key] = [
            (memory, order, draw)
            for memory in case.plan.memories
            for order in case.plan.streams
            for draw in (draws if memory in DRAWN else (0,))
        ]

    def key(self, memory: str, order: int, seed: int) -> Key:
        """The memory that a cell uses."""
        return memory, order, seed if memory in DRAWN else 0

    def identity(self, key: Key, step: int) -> dict[str, Any]:
        """All that decides what is in a memory after a step, besides the stream and the real images."""
        case, (memory, order, _) = self._case, key
        found: dict[str, Any] = {"memory": memory, "seed": self._seed(key)}
        if case.plan.compress:
            found |= {"files": lossless.codec(), "room": case.plan.room(memory, order, step)}
        if memory == RESERVOIR:
            return {**found, "capacity": case.plan.capacity()}
        found |= {
            "quota": case.plan.quota(memory, order, step),
            "embedding": network_identity(case.command.distil_network, case.real),
        }
        if not case.lots.plain:
            found["kept"] = sorted(case.plan.kept(memory, order, step).items())
        if memory == SET:
            return {**found, "set": self._set_digest, "storage": case.plan.storage}
        if memory.startswith(DISTILLED):
            recipes = [self._distiller.recipes_of(memory, order, earlier) for earlier in range(step + 1)]
            identities = [
                settings_hash(self._distiller.identity(recipe)) for of_step in recipes for recipe in of_step
            ]
            return {**found, "memory": DISTILLED, "lots": identities, "storage": case.plan.storage}
        return found

    def passing(self, key: Key, step: int) -> PassingMemory:
        """How a memory takes in the images of a step while they pass."""
        memory, order, _ = key
        kept = {} if memory == RESERVOIR else self._case.plan.kept(memory, order, step)
        return PassingMemory(self._seed(key), kept)

    def advance(self, step: int) -> None:
        """Take the lots of a step into every memory; steps come in order."""
        self.before, self.after = self.after, {}
        for key in self.keys:
            memory, order, _ = key
            if (memory, order) in self.failed:
                continue
            # Whatever is wrong with the images of a memory, the others go on without it.
            try:
                kept = self._made(key, step)
                if self._case.command.stream.pictures and order == self._case.plan.first and key[2] == 0:
                    self._draw(key, step, kept)
            except StoreError:
                raise
            except AtomError as error:
                self.failed[memory, order] = str(error)
                continue
            content = ray.put(kept.to_bytes())
            self.after[key] = StoredMemory(content, memory == RESERVOIR, kept.num_images, kept.num_bytes)

    def picture_name(self, memory: str, step: int) -> str:
        """Where the picture of a memory of the first class order lies."""
        case, order = self._case, self._case.plan.first
        steps = case.plan.streams[order].steps[: step + 1]
        key = settings_hash(
            {**self.identity((memory, order, 0), step), "data": case.data_key(order), "steps": steps}
        )
        return f"pictures/{memory}-step{step}-{key[:8]}.png"

    def _draw(self, key: Key, step: int, kept: Memory | Reservoir) -> None:
        preprocess = self._case.preprocessed.preprocess(self._case.preprocessed.name(key[1]))
        names = {lot: self._case.lots.name(lot) for lot in kept.classes}
        png = memory_picture(kept, preprocess, names)
        self._case.store.write_bytes(self.picture_name(key[0], step), png)

    def _made(self, key: Key, step: int) -> Memory | Reservoir:
        memory, order, _ = key
        stream = self._case.plan.streams[order]
        if memory == RESERVOIR:
            capacity = self._case.plan.capacity()
            limits = {
                "compress": self._case.plan.compress,
                "max_bytes": self._case.plan.room(memory, order, step),
            }
            kept = self._reservoirs.setdefault(key, Reservoir(capacity, seed=self._seed(key), **limits))
            for lot in stream.steps[step]:
                kept.add(lot, Exemplars(self._pixels(lot)))
            return kept
        numbers, room = self._case.plan.kept(memory, order, step), self._case.plan.room(memory, order, step)
        return Memory(
            {
                lot: self._exemplars(key, earlier, lot).head(numbers[lot], room)
                for earlier, lots in enumerate(stream.steps[: step + 1])
                for lot in lots
                if numbers[lot]
            }
        )

    def _exemplars(self, key: Key, step: int, class_id: int) -> Exemplars:
        """A lot as it was when it came, at `step`, or with more images: in order, so that a head is enough."""
        memory, order, _ = key
        preprocessing = self._case.preprocessed.name(order)
        if memory == SET:
            place: tuple[Any, ...] = (SET, preprocessing, class_id)
            if place not in self._ordered:
                for given_id, given in self.given(preprocessing).items():
                    self._ordered[SET, preprocessing, given_id] = self._stored(given, SET, given_id)
        elif memory.startswith(DISTILLED):
            place = (self._distiller.recipe(memory, order, step, class_id), class_id)
            if place not in self._ordered:
                self._ordered[place] = self._stored(self._distilled(*place), memory, class_id)
        else:
            place = (memory, preprocessing, self._seed(key), class_id)
            if place not in self._ordered:
                chosen = Exemplars(self._pixels(class_id)[self._chosen(key, preprocessing, class_id)])
                self._ordered[place] = self._stored(chosen, memory, class_id)
        return self._ordered[place]

    def _stored(self, exemplars: Exemplars, memory: str, class_id: int) -> Exemplars:
        """As they are kept: compressed, the most that any class order has room for."""
        plan = self._case.plan
        return exemplars.compressed(plan.largest_room(memory, class_id)) if plan.compress else exemplars

    def given(self, preprocessing: str) -> Mapping[int, Exemplars]:
        """The set of --set in the order in which its images are kept.

        Raises:
            ConfigError: it does not fit the stream, see `from_distilled`.
        """
        case = self._case
        assert case.given is not None, "checked by the plan"
        with use_threads(1):
            return from_distilled(
                case.given[0],
                range(case.real.train.num_classes),
                storage=case.plan.storage,
                class_names=case.real.train.class_names,
                image_shape=case.plan.shape,
                preprocess=case.preprocessed.preprocess(preprocessing),
                seed=case.command.distill.seed,
                network=case.command.distil_network,
                device=torch.device("cpu"),
            )

    def _distilled(self, recipe: Any, lot: int) -> Exemplars:
        case, name = self._case, self._case.lots.name(lot)
        class_id = lot % case.real.train.num_classes
        if (recipe, class_id) not in self._distiller.parts:
            reason = self._distiller.failed.get((recipe, class_id), "it was not distilled")
            raise _MissingError(f"class {name!r} has no distilled images: {reason}")
        part = self._distiller.parts[recipe, class_id]
        soft_MK = None if part.soft_labels is None else torch.from_numpy(part.soft_labels)
        white_MCHW = torch.from_numpy(part.images.copy())
        try:
            with use_threads(1):
                return keep_distilled(
                    white_MCHW,
                    case.plan.storage,
                    preprocess=case.preprocessed.preprocess(recipe.preprocessing),
                    seed=case.command.distill.seed,
                    factor=case.command.distill.factor,
                    soft_NK=soft_MK,
                    network=case.command.distil_network,
                    device=torch.device("cpu"),
                )
        except AtomError as error:
            # Images that grew without bound are finite still, but their embeddings are not.
            raise _MissingError(f"the distilled images of class {name!r} cannot be kept: {error}") from error

    def _chosen(self, key: Key, preprocessing: str, class_id: int) -> Any:
        kind = key[0]
        if kind == "random":
            pixels = torch.from_numpy(self._pixels(class_id))
            number = self._case.plan.largest_quota(kind, class_id)
            return select(kind, pixels, number=number, seed=self._seed(key), class_id=class_id)
        selection = self.selections.of(kind, preprocessing, class_id)
        if selection not in self.selections.rows:
            reason = self.selections.failed.get(selection, "they were not chosen")
            raise _MissingError(f"class {self._case.lots.name(class_id)!r} has no images: {reason}")
        return self.selections.rows[selection]

    def _pixels(self, lot: int) -> Any:
        return self._case.real.train.images[self._case.lots.train() == lot]

    def _seed(self, key: Key) -> int:
        # Distinct run seeds far apart, so that no draw of one run is a draw of the next.
        seed = self._case.command.distill.seed
        return 10**6 * seed + 10**3 * key[1] + key[2] if key[0] in DRAWN else seed


class _MissingError(AtomError):
    """A class has no images for a memory."""
