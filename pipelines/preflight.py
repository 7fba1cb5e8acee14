"""What a distillation will hold in memory, reckoned before it begins, and refused where it cannot be had.

A driver that takes more than there is is ended by the system without a word, and workers by Ray one after another.
"""

# N training images, M images to test on, P bytes of one as pixels, K classes, n images of the largest, I stored images
# of a class, A workers, S images of the A largest groups

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from atom.data.mapped import is_large
from atom.errors import ClusterError
from atom.free_memory import free_memory
from pipelines.console.progress import format_bytes
from pipelines.workers.cluster import is_client, spill_folder, store_bytes


@dataclass(frozen=True)
class Load:
    """Sizes of a distillation, and what it does with all images at once.

    Attributes:
        num_train, num_test: N, M; without a judgement M = 0.
        image_bytes: P.
        num_classes, largest_class: K, n.
        in_work: S; 0 for a joint method.
        ipc: I.
        workers: A.
        here: the workers run on the driver's machine; of several machines it may have none.
        on_cuda: workers bring one class after another to the device, and hold them there.
        whitened: every image is whitened in the driver, and stored so.
        whole: when all classes are stored preprocessed, if they are: while a joint method distils or one that trains
            networks on them, or afterwards, for teachers.
    """

    num_train: int
    num_test: int
    image_bytes: int
    num_classes: int
    largest_class: int
    in_work: int
    ipc: int
    workers: int
    here: bool = True
    on_cuda: bool = False
    whitened: bool = False
    whole: Literal["", "distilling", "judging"] = ""


@dataclass(frozen=True)
class Term:
    """A part of what is held.

    Attributes:
        place: who holds it.
        formula: in the letters above.
        num_bytes: what that comes to.
        remedy: what to do where it is the largest part.
    """

    place: str
    formula: str
    num_bytes: int
    remedy: str


_DRIVER, _STORE, _WORKERS = "driver", "store", "workers"
_GROUPED = "pass a --method that distils classes in groups"


def images_in_work(unit_counts: Sequence[int], num_workers: int) -> int:
    """Images of the groups that are in work at once, at most: units have unequal classes, and the last one is smaller.

    Example:
        >>> images_in_work([30, 500, 20, 40], 2)
        540
    """
    return sum(sorted(unit_counts, reverse=True)[:num_workers])


def terms(load: Load) -> dict[str, list[Term]]:
    """What each phase holds at once, at least: libraries, the test of a network and temporary copies come to it."""
    of_all = 4 * load.num_train * load.image_bytes
    whitened = [Term(_DRIVER, "4·N·P", of_all, "pass --zca off")] if load.whitened else []
    # Once there they stay to the end.
    stored = [Term(_STORE, "4·N·P", of_all, _GROUPED)] if load.whole == "distilling" else []
    return {
        "to distil": [_of_set(load, 8), *whitened, *stored, *_of_groups(load)],
        "to judge": [_of_set(load, 4), *whitened, *stored, *_of_judgement(load)],
    }


def _of_set(load: Load, each: int) -> Term:
    """The distilled images, while they are distilled with their momentum."""
    num_bytes = each * load.num_classes * load.ipc * load.image_bytes
    return Term(_DRIVER, f"{each}·K·I·P", num_bytes, "pass a smaller --ipc")


def _of_groups(load: Load) -> list[Term]:
    if not load.in_work:
        return []
    fewer = "pass a smaller --num-actors or --classes-per-group"
    pixels = load.in_work * load.image_bytes
    if load.whitened:
        return [Term(_STORE, "4·S·P", 4 * pixels, fewer)]
    found = [Term(_STORE, "S·P", pixels, fewer)]
    if load.here and load.on_cuda:
        of_class = 4 * load.workers * load.largest_class * load.image_bytes
        # Smaller groups, or classes, may be in work.
        found.append(Term(_WORKERS, "4·A·n·P", min(of_class, 4 * pixels), "pass a smaller --num-actors"))
    elif load.here:
        found.append(Term(_WORKERS, "4·S·P", 4 * pixels, fewer))
    return found


def _of_judgement(load: Load) -> list[Term]:
    found = []
    of_all = 4 * load.num_train * load.image_bytes
    if load.whole == "judging":
        found.append(Term(_STORE, "4·N·P", of_all, "leave out --teacher-epoch"))
    if load.num_test:
        remedy = "pass --eval-seeds 0, and judge the set elsewhere with atom-evaluate"
        pixels = load.num_test * load.image_bytes
        if load.whitened or not is_large(pixels):
            found += [Term(place, "4·M·P", 4 * pixels, remedy) for place in (_DRIVER, _STORE)]
        else:
            found.append(Term(_STORE, "M·P", pixels, remedy))
    return found


def check_memory(load: Load) -> None:
    """Refuse what neither memory nor, for the object store, the disk behind it has room for.

    Raises:
        ClusterError: one sentence with the terms, what there is, and what to pass instead.
    """
    client = is_client()
    # A client's store and workers are on other machines.
    phases = {
        phase: [term for term in found if not client or term.place == _DRIVER]
        for phase, found in terms(replace(load, here=load.here and not client)).items()
    }
    capacity, folder = (None, None) if client else (store_bytes(), spill_folder())
    _check_store(load, phases, capacity, folder)
    free = free_memory()
    if free is None:
        return
    # Ray puts what does not fit the store into files.
    held = {phase: _total(found) - _spilled(found, capacity) for phase, found in phases.items()}
    largest = max(held, key=lambda phase: held[phase])
    if held[largest] > free:
        raise ClusterError(_sentence(load, largest, phases[largest], "memory", free))


def _check_store(
    load: Load, phases: dict[str, list[Term]], capacity: int | None, folder: Path | None
) -> None:
    if capacity is None or folder is None:
        return
    try:
        disk = shutil.disk_usage(folder).free
    except OSError:  # of another machine, perhaps
        return
    largest = max(phases, key=lambda phase: _spilled(phases[phase], capacity))
    if _spilled(phases[largest], capacity) > disk:
        found = [term for term in phases[largest] if term.place == _STORE]
        what = f"memory for Ray's object store and disk at {folder}, where it spills,"
        raise ClusterError(_sentence(load, largest, found, what, capacity + disk))


def told_terms(load: Load) -> dict[str, str]:
    """The terms of each phase for people."""
    return {
        phase: f"{format_bytes(_total(found))} = {_sum(found)}, where {_letters(load, found)}"
        for phase, found in terms(load).items()
    }


def _total(found: Sequence[Term]) -> int:
    return sum(term.num_bytes for term in found)


def _spilled(found: Sequence[Term], capacity: int | None) -> int:
    in_store = _total([term for term in found if term.place == _STORE])
    return 0 if capacity is None else max(0, in_store - capacity)


def _sentence(load: Load, phase: str, found: Sequence[Term], what: str, free: int) -> str:
    largest = max(found, key=lambda term: term.num_bytes)
    return (
        f"At least {format_bytes(_total(found))} of {what} are needed {phase} and {format_bytes(free)} are free:"
        f" {_sum(found)}, where {_letters(load, found)}; {largest.remedy}, or take a machine with more."
    )


def _sum(found: Sequence[Term]) -> str:
    return " + ".join(f"{term.place} {term.formula} = {format_bytes(term.num_bytes)}" for term in found)


def _letters(load: Load, found: Sequence[Term]) -> str:
    """What the letters of these terms are."""
    known = {
        "N": f"{load.num_train} training images",
        "M": f"{load.num_test} to test on",
        "P": f"{load.image_bytes} bytes of one",
        "K": f"{load.num_classes} classes",
        "n": f"{load.largest_class} images of the largest class",
        "S": f"{load.in_work} images of the groups that {load.workers} workers are at, the largest",
        "I": f"{load.ipc} images per class",
        "A": f"{load.workers} workers",
    }
    used = {letter for term in found for letter in term.formula.split("·")}
    return ", ".join(f"{letter} = {what}" for letter, what in known.items() if letter in used)


__all__ = ["Load", "Term", "check_memory", "images_in_work", "terms", "told_terms"]
