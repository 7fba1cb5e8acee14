"""What a distillation will hold in memory, reckoned before it begins, and refused where it cannot be had.

A driver that takes more than there is is ended by the system without a word, and workers by Ray one after another.
"""

# N training images, M images to test on, P bytes of one as pixels, K classes, n images of the largest, G classes of a
# group, I stored images of a class, A workers on this machine

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from atom.errors import ClusterError
from atom.free_memory import free_memory
from pipelines.workers.cluster import store_bytes


@dataclass(frozen=True)
class Load:
    """Sizes of a distillation, and what it does with all images at once.

    Attributes:
        num_train, num_test: N, M; without a judgement M = 0.
        image_bytes: P.
        num_classes, largest_class: K, n.
        group: G, of the largest unit.
        ipc: I.
        workers: A.
        whitened: every image is whitened in the driver, and stored so.
        whole: all classes are stored preprocessed: the method is a joint one, or trains networks on them.
        copied: flag that asks the driver for all training images preprocessed; empty if none does.
    """

    num_train: int
    num_test: int
    image_bytes: int
    num_classes: int
    largest_class: int
    group: int
    ipc: int
    workers: int
    whitened: bool = False
    whole: bool = False
    copied: str = ""


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


_STORE = "store"


def terms(load: Load) -> list[Term]:
    """What is held at once, at least: libraries, the test of a network and temporary copies come to it."""
    train, test = 4 * load.num_train * load.image_bytes, 4 * load.num_test * load.image_bytes
    of_group = load.group * load.largest_class * load.image_bytes
    fewer = "pass a smaller --num-actors or --classes-per-group"
    found = [
        Term("driver", "8·K·I·P", 8 * load.num_classes * load.ipc * load.image_bytes, "pass a smaller --ipc")
    ]
    if load.whitened:
        found.append(Term("driver", "4·N·P", train, "pass --zca off"))
    elif load.copied:
        found.append(Term("driver", "4·N·P", train, f"leave out what {load.copied} asks for"))
    if load.num_test:
        remedy = "pass --eval-seeds 0, and judge the set elsewhere with atom-evaluate"
        found += [Term("driver", "4·M·P", test, remedy), Term(_STORE, "4·M·P", test, remedy)]
    if load.whole:
        found.append(Term(_STORE, "4·N·P", train, "pass a --method that distils classes in groups"))
        return found
    each = 4 if load.whitened else 1
    stored = f"{each}·A·G·n·P" if each > 1 else "A·G·n·P"
    found.append(Term(_STORE, stored, each * load.workers * of_group, fewer))
    if not load.whitened:
        found.append(Term("workers", "4·A·G·n·P", 4 * load.workers * of_group, fewer))
    return found


def check_memory(load: Load) -> None:
    """Refuse what neither memory nor, for the object store, the disk behind it has room for.

    Raises:
        ClusterError: one sentence with the terms, what there is, and what to pass instead.
    """
    found = terms(load)
    in_store = sum(term.num_bytes for term in found if term.place == _STORE)
    capacity = store_bytes()
    # Ray puts what does not fit the store into files.
    spilled = 0 if capacity is None else max(0, in_store - capacity)
    disk = shutil.disk_usage(tempfile.gettempdir()).free
    if spilled > disk:
        raise ClusterError(_sentence(load, [t for t in found if t.place == _STORE], (capacity or 0) + disk))
    free = free_memory()
    if free is not None and sum(term.num_bytes for term in found) - spilled > free:
        raise ClusterError(_sentence(load, found, free))


def _sentence(load: Load, found: Sequence[Term], free: int) -> str:
    told = " + ".join(f"{term.place} {term.formula} = {_told(term.num_bytes)}" for term in found)
    total, largest = sum(term.num_bytes for term in found), max(found, key=lambda term: term.num_bytes)
    what = "memory and disk for Ray's object store" if {t.place for t in found} == {_STORE} else "memory"
    return (
        f"At least {_told(total)} of {what} are needed and {_told(free)} are free: {told}, where N = {load.num_train}"
        f" training images, M = {load.num_test} to test on, P = {load.image_bytes} bytes of one, K = {load.num_classes}"
        f" classes of n = {load.largest_class} at most, G = {load.group} of a group, I = {load.ipc} images per class,"
        f" A = {load.workers} workers here; {largest.remedy}, or take a machine with more."
    )


def _told(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"


__all__ = ["Load", "Term", "check_memory", "terms"]
