"""What proxies are made of: the sets as the user named them, coresets of equal storage, the real images around them."""

# N images, C channels, H height, W width

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from apps.nas.latency import BATCH as LATENCY_BATCH
from apps.nas.proxies import (
    DISTILLED,
    EARLY_SECONDS,
    EARLY_STEPS,
    FITTED,
    KNOWN,
    WHOLE,
    Kind,
    Proxy,
    is_own,
    members_of,
    part_rows,
    percent_of,
    timed,
)
from apps.nas.space import Space
from apps.nas.trial import ZERO_COST_BATCH, Recipe, Unit
from atom import nets
from atom.coreset import METHODS as CORESETS
from atom.data import RealData
from atom.distilled import DistilledSet
from atom.pixels import Pixels, as_stored
from atom.preprocess import Preprocess
from atom.settings import DeviceKind
from atom.train import TRAINING_VERSION
from pipelines.architecture.remote import RealArrays
from pipelines.baselines import coresets
from pipelines.console.command import say
from pipelines.evaluation import SmallSet, small_set
from pipelines.output.ownership import settings_hash
from pipelines.sets import held_out

_AT_ONCE = 1000
"""Images whose numbers are digested together. Chosen."""
MAIN = "main"
"""The preprocessing of the first set, which every proxy without a set of its own takes."""
_ON_ALL: Mapping[str, Kind] = {EARLY_STEPS: "steps", EARLY_SECONDS: "seconds", WHOLE: "whole"}
"""Proxies that train on the whole set."""


@dataclass(frozen=True, eq=False)
class Material:
    """All proxies of a run and the images they use.

    Attributes:
        proxies: in the order asked for, whole included.
        small: tiny sets by proxy.
        real: the real images by preprocessing.
        seeds: trainings of each network on each tiny set.
        contents: digest of the images of each tiny set and of each preprocessing of the real ones, by name.
    """

    proxies: tuple[Proxy, ...]
    small: Mapping[str, SmallSet]
    real: Mapping[str, RealArrays]
    seeds: int = 1
    contents: Mapping[Any, str] = field(default_factory=dict)

    def named(self, name: str) -> Proxy:
        """The proxy of that name."""
        return next(proxy for proxy in self.proxies if proxy.name == name)

    @property
    def first_set(self) -> str | None:
        """The first proxy that is a tiny set."""
        return next((proxy.name for proxy in self.proxies if proxy.kind == "set"), None)

    @property
    def prepare_seconds(self) -> float:
        """What the first tiny set cost before the first network; 0 where unknown."""
        return (self.named(self.first_set).prepare_seconds or 0.0) if self.first_set else 0.0

    @property
    def without_whole(self) -> tuple[Proxy, ...]:
        """All but the reference."""
        return tuple(proxy for proxy in self.proxies if proxy.kind != "whole")

    def draws(self) -> dict[str, dict[int | None, tuple[np.ndarray, np.ndarray]]]:
        """The tiny sets as workers take them."""
        return {name: dict(small.draws) for name, small in self.small.items()}


def gather(
    names: Sequence[str],
    sets: Sequence[DistilledSet],
    set_seconds: Sequence[float | None],
    real: RealData,
    preprocess: Preprocess,
    *,
    ipc: int,
    seeds: int,
    seed: int,
    own_digests: Mapping[str, str],
) -> Material:
    """The proxies of these names, "distilled" standing for all the sets, in a name that joins several too.

    Args:
        names: as given to --proxies.
        sets: the distilled sets; each is a proxy of its own, named by its method.
        set_seconds: what each took to distil; None where unknown.
        real: with a validation part.
        preprocess: of every proxy without a set of its own.
        ipc: of coresets.
        seeds: trainings of a network, for each of which random coresets are drawn anew.
        seed: of the coresets.
        own_digests: of the sources of a user's own proxies, by their names.
    """
    arrays: dict[str, RealArrays] = {MAIN: _arrays(real, preprocess)}
    prepared = {preprocess.digest: MAIN}
    small: dict[str, SmallSet] = {}
    found: dict[str, list[Proxy]] = {}
    num_train = len(real.train.labels)
    taken = [MAIN, *names]
    for name in [one for one in names if one != FITTED and not members_of(one)]:
        proxies = found[name] = []
        source, epochs = timed(name)
        if source == DISTILLED:
            for distilled, spent in zip(sets, set_seconds, strict=True):
                own = _free_name(_with_epochs(distilled.method, epochs), taken)
                taken.append(own)
                where = prepared.setdefault(distilled.preprocess.digest, own)
                if where not in arrays:
                    arrays[where] = _arrays(real, distilled.preprocess)
                small[own] = small_set(distilled, own)
                proxies.append(
                    Proxy(own, "set", where, len(distilled.images_NCHW), spent, epochs, of_set=True)
                )
        elif source in CORESETS:
            white, labels = arrays[MAIN]["train"]
            begun_s = time.perf_counter()
            made = coresets(
                [source],
                white,
                labels,
                ipc=ipc,
                num_classes=real.train.num_classes,
                seed=seed,
                seeds=range(seeds),
            )
            small[name] = made[0]
            spent = time.perf_counter() - begun_s
            proxies.append(Proxy(name, "set", MAIN, made[0].stored_images, spent, epochs))
        elif epochs is not None:
            percent = percent_of(source) or 100
            part = len(part_rows(real.train.labels, percent))
            proxies.append(Proxy(name, "real", MAIN, part, epochs=epochs, percent=percent))
        elif is_own(name):
            # Not a known one's name either, so that another --proxies does not change whose it is.
            short = _free_name(name.rpartition(":")[2], [*KNOWN, *taken])
            taken.append(short)
            proxies.append(Proxy(short, "own", MAIN, 0, source=name, digest=own_digests[name]))
        else:
            kind = _ON_ALL.get(name, "zero-cost")
            proxies.append(Proxy(name, kind, MAIN, num_train if name in _ON_ALL else 0))
    contents = {name: _content_of(parts) for name, parts in arrays.items()}
    draws = {(n, s): _content(*draw) for n, each in small.items() for s, draw in each.draws.items()}
    return Material(tuple(_in_order(names, found)), small, arrays, seeds, {**contents, **draws})


def say_held_out(distilled: DistilledSet, real: RealData, *, validation_frac: float) -> None:
    """Say so if a set may have seen the images that proxies score on."""
    if not held_out(distilled, real):
        say(
            f"Note: the set {distilled.method} was distilled from other training images than those of this run;"
            " it may have seen the validation images. Distil it with the same --validation-frac"
            f" {validation_frac:g} and --train-per-class to rule that out."
        )


def keys_of(
    units: Sequence[Unit], material: Material, space: Space, recipe: Recipe, device_kind: DeviceKind
) -> dict[Unit, str]:
    """By unit, the digest of all that decides its score; the seconds of "early-seconds" are the clock's."""
    identities = {candidate.name: candidate.identity for candidate in space.candidates}
    costs = {candidate.name: candidate.multiply_adds for candidate in space.candidates}
    common = {"device": device_kind, "threads": recipe.threads}
    keys = {}
    for unit in units:
        proxy = material.named(unit.proxy)
        key: dict[str, Any] = {
            **common,
            "network": identities[unit.network],
            "proxy": unit.proxy,
            "kind": proxy.kind,
            "seed": unit.seed,
            "real": material.contents[proxy.real],
        }
        settings = {
            **recipe.settings.model_dump(mode="json", exclude={"initial_weights"}),
            "version": TRAINING_VERSION,
        }
        # By the name of the space: what is in a user's is code, which this process does not run.
        if nets.is_own(space.spec):
            key["initial_weights"] = recipe.settings.initial_weights
        if proxy.kind == "zero-cost":
            key |= {"batch": ZERO_COST_BATCH, "multiply_adds": costs[unit.network]}
        elif proxy.kind == "own":
            key |= {"batch": ZERO_COST_BATCH, "sources": proxy.digest}
        elif proxy.kind == "latency":
            key |= {"batch": LATENCY_BATCH}
        elif proxy.kind == "whole":
            key |= {**settings, "epochs": recipe.whole_epochs}
        elif proxy.kind == "real":
            key |= {**settings, "epochs": proxy.epochs, "percent": proxy.percent}
        else:
            key |= settings if proxy.epochs is None else {**settings, "epochs": proxy.epochs}
            if proxy.kind == "set":
                seeded = material.contents.get((proxy.name, unit.seed))
                key["train"] = seeded or material.contents[proxy.name, None]
            elif proxy.kind == "steps":
                key["steps"] = recipe.steps
            else:
                # What it takes its seconds from; the seconds themselves, those of coresets too, are the clock's.
                key["shared_by"] = [sorted(identities.values()), material.seeds]
                key["first"] = sorted(
                    content
                    for name, content in material.contents.items()
                    if isinstance(name, tuple) and name[0] == material.first_set
                )
        keys[unit] = settings_hash(key)
    return keys


def _arrays(real: RealData, preprocess: Preprocess) -> RealArrays:
    assert real.validation is not None, "the command asks for a validation part"
    parts = {"train": real.train, "validation": real.validation, "test": real.test}
    return {name: (as_stored(part.checked(), preprocess), part.labels) for name, part in parts.items()}


def _with_epochs(name: str, epochs: int | None) -> str:
    return name if epochs is None else f"{name}:{epochs}"


def _in_order(names: Sequence[str], found: Mapping[str, Sequence[Proxy]]) -> Iterator[Proxy]:
    """The proxies found by name, and those that are made of them, as they were asked for."""
    for name in names:
        yield from found.get(name, ())
        if name == FITTED:
            every = [proxy for each in found.values() for proxy in each if proxy.kind != "whole"]
            yield Proxy.made_of(every, "fitted", name=FITTED)
        if members := [proxy for member in members_of(name) for proxy in found.get(member, ())]:
            yield Proxy.made_of(members, "combined", name="+".join(proxy.name for proxy in members))


def _free_name(wanted: str, taken: Sequence[str]) -> str:
    """The name wanted, with a number where another proxy has it."""
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}-{number}", number + 1
    return name


def _content_of(parts: RealArrays) -> str:
    return "-".join(_content(*parts[name])[:16] for name in sorted(parts))


def _content(images: Pixels | np.ndarray, labels_N: np.ndarray) -> str:
    """Of the numbers that networks see, however they are stored."""
    digest = hashlib.sha256(repr(images.shape).encode())
    for start in range(0, len(images), _AT_ONCE):
        digest.update(np.ascontiguousarray(images[start : start + _AT_ONCE]).data)
    digest.update(np.ascontiguousarray(labels_N).data)
    return digest.hexdigest()
