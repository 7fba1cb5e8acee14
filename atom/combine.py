"""Sets made of sets: fewer images of each class, or several sets as one.

What is no longer true of the new set is left behind: accuracies, and the program that computed the images of several.
"""

# N stored images, K classes

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from atom.distilled import DistilledSet
from atom.errors import ConfigError
from atom.soundness import check_even


def take(distilled: DistilledSet, ipc: int) -> DistilledSet:
    """The first `ipc` images of each class, without the accuracies of the whole; `settings` say what they are of.

    Of a set of images in all a class may have one fewer than `ipc`, where that is the set's own.

    Distilled images are made for each other, so fewer of them do less well than a set made at that size.

    Raises:
        ConfigError: the set has fewer images a class, or none is asked for.
    """
    if not 1 <= ipc <= distilled.ipc:
        raise ConfigError(f"take: ipc {ipc}, expected 1 to {distilled.ipc}, which the set has of each class.")
    rows_N = torch.cat([torch.arange(count) for count in distilled.per_class]) < ipc
    soft = distilled.soft_labels
    return replace(
        distilled,
        images_NCHW=distilled.images_NCHW[rows_N],
        labels=distilled.labels[rows_N],
        soft_labels=None if soft is None else soft[rows_N],
        training=distilled.training if ipc == distilled.ipc else _unordered(distilled),
        ipc=ipc,
        settings={"taken_from": {"ipc": distilled.ipc}, **distilled.settings},
        results=(),
        audit={},
    )


def merge(sets: Sequence[DistilledSet]) -> DistilledSet:
    """One set with the images of all: more images of the same classes, or more classes.

    Sets of the same classes give a set whose `ipc` is the sum of theirs; sets that share no class and have one `ipc`
    give a set of all classes, in the order of the sets. Accuracies are left behind; `settings["merged"]` lists the
    method, images a class, settings and programs of each. Of source and settings stays what all agree on. One set alone
    stays what it is.

    Raises:
        ConfigError: no set, a set of images in all, classes that overlap in part, another preprocessing, factor or
            image shape, symbols in some sets only, or soft labels in some sets only or over other classes.
    """
    if not sets:
        raise ConfigError("merge: no set was given; pass at least one.")
    first = sets[0]
    if len(sets) == 1:
        return first
    same_classes = all(one.class_names == first.class_names for one in sets)
    names = first.class_names if same_classes else tuple(name for one in sets for name in one.class_names)
    _check(sets, same_classes=same_classes, names=names)
    offsets = (
        [0] * len(sets) if same_classes else [sum(s.num_classes for s in sets[:i]) for i in range(len(sets))]
    )
    labels_N = torch.cat([one.labels + offset for one, offset in zip(sets, offsets, strict=True)])
    order_N = labels_N.argsort(stable=True)
    softs = [one.soft_labels for one in sets if one.soft_labels is not None]
    # What all agree on stays true of the whole; its symbols decide how it is trained on.
    source, settings = (_common([getattr(one, name) for one in sets]) for name in ("source", "settings"))
    starts = [start for one in sets for start in one.sources[1:]]
    if starts:
        source["started_from"] = starts
    return DistilledSet(
        images_NCHW=torch.cat([one.images_NCHW for one in sets])[order_N],
        labels=labels_N[order_N],
        soft_labels=torch.cat(softs)[order_N] if softs else None,
        class_names=names,
        ipc=sum(one.ipc for one in sets) if same_classes else first.ipc,
        factor=first.factor,
        method=first.method if all(one.method == first.method for one in sets) else "merged",
        preprocess=first.preprocess,
        settings={**settings, "merged": [_origin(one) for one in sets]},
        source={**source, "symbols": first.symbols},
        # A part of a training is none that any of them was made for.
        training=_unordered(first) if all(one.training == first.training for one in sets) else {},
        about=first.about if all(one.about == first.about for one in sets) else {},
    )


def _unordered(distilled: DistilledSet) -> Mapping[str, Any]:
    """The training that the set carries, nothing where its steps are for these very images."""
    return {} if distilled.training.get("step_sizes") else distilled.training


def _common(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = records[0]
    return {name: value for name, value in first.items() if all(one.get(name) == value for one in records)}


def _origin(distilled: DistilledSet) -> dict[str, Any]:
    return {
        "method": distilled.method,
        "ipc": distilled.ipc,
        "source": distilled.source.get("name"),
        "settings": dict(distilled.settings),
        "versions": dict(distilled.versions),
        "git_commit": distilled.git_commit,
        "earlier_programs": list(distilled.earlier_programs),
    }


def _check(sets: Sequence[DistilledSet], *, same_classes: bool, names: Sequence[str]) -> None:
    first = sets[0]
    if not same_classes and len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise ConfigError(
            f"merge: class {twice!r} is in several sets whose classes differ; pass sets of the same classes in one"
            " order, or sets that share none."
        )
    for number, one in enumerate(sets):
        check_even(one, f"merge: set {number}", "a merged set has")
        facts = {
            "preprocessing": (one.preprocess.digest[:8], first.preprocess.digest[:8]),
            "factor": (one.factor, first.factor),
            "symbols": (one.symbols, first.symbols),
            "image shape": (tuple(one.images_NCHW.shape[1:]), tuple(first.images_NCHW.shape[1:])),
            "number of images a class": (0, 0) if same_classes else (one.ipc, first.ipc),
        }
        soft = one.soft_labels is not None
        if soft != (first.soft_labels is not None) or (soft and not same_classes):
            raise ConfigError(
                f"merge: set {number} does not fit with its soft labels; pass sets that all have them over the same"
                " classes, or none."
            )
        for what, (own, expected) in facts.items():
            if own != expected:
                raise ConfigError(
                    f"merge: set {number} has {what} {own}, expected {expected} as set 0; pass sets distilled from one"
                    " source with one recipe."
                )


__all__ = ["merge", "take"]
