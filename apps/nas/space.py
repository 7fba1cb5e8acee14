"""Search spaces: the 720 ConvNets of the literature, parts of them, NAS-Bench-201's cells, and a user's own networks.

The 720 differ in width, depth, normalisation, activation and pooling (Zhao et al., DC, and the papers after it), the
15,625 networks of NAS-Bench-201 in the operations on the six edges of a cell (Dong and Yang, 2020). Their parameters
and multiply-adds are computed by arithmetic, without building a network.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import combinations

import numpy as np
from torch import nn

from apps.nas.user_space import Builder, user_entries
from atom import nets
from atom.errors import AtomError, ConfigError
from atom.nets.shapes import Size
from atom.streams import stream

NAMED = ("all", "pooled", "small", "nasbench201", "nasbench201-n1")
"""all: the 720; pooled: the 480 with pooling; small: the 240 of these with width 32 or 64; nasbench201: its 15,625
networks; nasbench201-n1: the same with one cell a stage."""

SAMPLE_SEED = 0
"""Of a command's sample: the same networks whatever --seed is, so that searches of several seeds can be compared."""


@dataclass(frozen=True)
class Candidate:
    """One network of a space.

    Attributes:
        name: unique in the space.
        parameters: number of them; None where the network cannot be built.
        multiply_adds: of one image's forward pass; a user's own number, or counted; None where unknown.
        axes: its choices by axis, such as {"width": 64}; empty for a network of a user's list.
        identity: what a stored result depends on: the name, and for a user's network the digest of its sources and
            of what they build.
        problem: why it cannot be built; then every proxy reports it as failed.
    """

    name: str
    parameters: int | None
    multiply_adds: int | None
    axes: Mapping[str, bool | int | float | str | None] = field(default_factory=dict, hash=False)
    identity: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Space:
    """Networks to choose from, for one image shape.

    Attributes:
        spec: what the user asked for, such as "pooled" or "my_space:networks"; workers rebuild from it.
        candidates: in a fixed order.
        channels, image_size, num_classes: of the images.
    """

    spec: str
    candidates: tuple[Candidate, ...]
    channels: int
    image_size: Size
    num_classes: int

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the networks, in order."""
        return tuple(candidate.name for candidate in self.candidates)

    @cached_property
    def by_name(self) -> Mapping[str, Candidate]:
        """The networks by their names."""
        return {candidate.name: candidate for candidate in self.candidates}

    def is_own(self, name: str) -> bool:
        """Whether the network of that name is built by a user's function.

        Raises:
            ConfigError: the user's list has lost it.
        """
        builder = name if self.spec in NAMED else self.builder(name)
        return not isinstance(builder, str) or nets.is_own(builder)

    def build(self, name: str, *, seed: int = 0) -> nn.Module:
        """The network of that name, always the same; arguments and weights as of `atom.nets.build`.

        Raises:
            ConfigError: it cannot be built, does not fit the images, or the user's list has lost it.
        """
        shape = {
            "channels": self.channels,
            "image_size": self.image_size,
            "num_classes": self.num_classes,
        }
        if self.spec in NAMED:
            return nets.build(name, **shape)
        builder = self.builder(name)
        if isinstance(builder, str):
            return nets.build(builder, **shape, seed=seed)
        return nets.build_from(partial(nets.build_with, builder, name), **shape, seed=seed)

    def builder(self, name: str) -> Builder | str:
        """Of a user's space the function that builds a network, or its known name.

        Raises:
            ConfigError: it cannot be imported, or the user's list has lost it.
        """
        entries = user_entries(self.spec)
        if name not in entries:
            raise ConfigError(
                f"--space {self.spec}: no longer lists {name!r}; give the same networks at every call, in every"
                " process, and draw none at random."
            )
        return entries[name].builder()

    def with_candidates(self, candidates: Sequence[Candidate]) -> "Space":
        """The same space with some of its networks only."""
        return Space(self.spec, tuple(candidates), self.channels, self.image_size, self.num_classes)


def load_space(spec: str, *, channels: int, image_size: Size, num_classes: int) -> Space:
    """The networks of a named space, or of a user's `module:object` or `path/to/file.py:object`.

    The user's object is a list of (name, builder, multiply-adds), or a function without arguments that returns
    one. A builder is a function as in docs/own-network.md, a name that `atom.nets.build` knows, or a function or its
    name with more arguments, ("module:function", {...}); the cost may be None, and is then counted. Or the object is a
    function of `trial`, Optuna's, which suggests parameters and returns a builder: see `apps.nas.define_by_run`.

    Raises:
        ConfigError: the space is unknown, cannot be imported, is empty, or is not such a list.
    """
    shape = {"channels": channels, "image_size": image_size, "num_classes": num_classes}
    if spec in NAMED:
        return Space(spec, tuple(_named_candidate(s, **shape) for s in _named(spec)), **shape)
    if ":" not in spec:
        raise ConfigError(
            f"--space {spec}: unknown; known are {', '.join(NAMED)}, and your own as module:object or"
            " path/to/file.py:object."
        )
    empty = Space(spec, (), **shape)
    return empty.with_candidates([describe(name, empty) for name in user_entries(spec)])


def within_limits(space: Space, *, max_parameters: int | None, max_multiply_adds: int | None) -> Space:
    """The space without the networks that are larger, or whose size is not known; one that failed stays and says why.

    Args:
        space: any.
        max_parameters, max_multiply_adds: None for no limit.

    Raises:
        ConfigError: no network is left.
    """
    limits = {"parameters": max_parameters, "multiply_adds": max_multiply_adds}

    def fits(candidate: Candidate) -> bool:
        sizes = [(getattr(candidate, name), most) for name, most in limits.items() if most is not None]
        return bool(candidate.problem) or all(size is not None and size <= most for size, most in sizes)

    kept = [candidate for candidate in space.candidates if fits(candidate)]
    if not any(not candidate.problem for candidate in kept):
        name = "parameters" if max_parameters is not None else "multiply_adds"
        known = [size for c in space.candidates if (size := getattr(c, name)) is not None]
        flags = " ".join(
            f"--max-{key.replace('_', '-')} {most}" for key, most in limits.items() if most is not None
        )
        raise ConfigError(
            f"{flags}: leaves none of the {len(space.candidates)} networks of --space {space.spec}; the smallest has"
            f" {min(known, default=0):,} {name.replace('_', '-')}; pass more, or another space."
        )
    return space.with_candidates(kept)


def sample(space: Space, number: int, *, seed: int) -> Space:
    """A stratified random sample of a space, in the space's order.

    Of networks with axes, every choice of an axis appears about equally often, and so do pairs of choices as far as
    that leaves room; with one seed, a smaller sample is part of a larger one. Of others, one out of each of `number`
    equal parts of the list sorted by multiply-adds.

    Raises:
        ConfigError: the space has fewer networks than asked for.
    """
    total = len(space.candidates)
    if not 1 <= number <= total:
        raise ConfigError(
            f"--sample {number}: the space {space.spec} has {total} networks; pass 1 to {total}."
        )
    order = stream(seed, "nas/sample").permutation(total).tolist()
    if number == total:
        chosen = order
    elif all(candidate.axes for candidate in space.candidates):
        chosen = _balanced(space.candidates, order, number)
    else:
        by_cost = sorted(order, key=lambda i: space.candidates[i].multiply_adds or 0)
        ranks = {place: rank for rank, place in enumerate(order)}
        parts = np.array_split(np.array(by_cost), number)
        chosen = [min(part.tolist(), key=ranks.__getitem__) for part in parts]
    return space.with_candidates([space.candidates[place] for place in sorted(chosen)])


def _balanced(candidates: Sequence[Candidate], order: Sequence[int], number: int) -> list[int]:
    """Greedy: always the network whose choices, then pairs of choices, have been taken least; of equals the first."""
    levels = [list(candidates[place].axes.items()) for place in order]
    singles, pairs = _numbered(levels), _numbered([list(combinations(chosen, 2)) for chosen in levels])
    taken, taken_pairs = np.zeros(singles.max() + 1, np.int64), np.zeros(pairs.max(initial=0) + 1, np.int64)
    left, chosen = np.arange(len(order)), []
    for _ in range(number):
        counts, paired = taken[singles[left]], taken_pairs[pairs[left]].sum(1)
        # The largest count first: a sum alone would buy one overused choice with several rare ones.
        cost = (counts.max(1) * (counts.sum(1).max() + 1) + counts.sum(1)) * (paired.max() + 1) + paired
        best = int(cost.argmin())
        place = left[best]
        left = np.delete(left, best)
        chosen.append(order[place])
        taken[singles[place]] += 1
        taken_pairs[pairs[place]] += 1
    return chosen


def _numbered(rows: Sequence[Sequence[Hashable]]) -> np.ndarray:
    """The same things with a number for each that differs: int64, as many rows and columns."""
    numbers: dict[Hashable, int] = {}
    return np.array([[numbers.setdefault(thing, len(numbers)) for thing in row] for row in rows], np.int64)


def _named(spec: str) -> Sequence[nets.ConvNetSpec | nets.CellSpec]:
    if spec.startswith("nasbench201"):
        return nets.cell_space(1) if spec.endswith("-n1") else nets.cell_space()
    return [
        s
        for s in nets.convnet_space()
        if (spec == "all" or s.pooling != "none") and (spec != "small" or s.width <= 64)
    ]


def _named_candidate(
    spec: nets.ConvNetSpec | nets.CellSpec, *, channels: int, image_size: Size, num_classes: int
) -> Candidate:
    return Candidate(
        name=spec.name,
        parameters=nets.count_parameters(spec, channels, image_size, num_classes=num_classes),
        multiply_adds=nets.count_multiply_adds(spec, channels, image_size, num_classes=num_classes),
        axes=_axes(spec),
        identity=spec.name,
    )


def _axes(spec: nets.ConvNetSpec | nets.CellSpec) -> dict[str, int | str]:
    if isinstance(spec, nets.CellSpec):
        return {f"{a}-{b}": chosen for (a, b), chosen in zip(nets.EDGES, spec.operations, strict=True)}
    return {
        "width": spec.width,
        "depth": spec.depth or 0,
        "norm": spec.norm,
        "activation": spec.activation,
        "pooling": spec.pooling,
    }


def describe(name: str, space: Space) -> Candidate:
    """A user's network with what building it shows; one that cannot be built stays in the space, and says why."""
    entry = user_entries(space.spec)[name]
    cost = entry.multiply_adds
    shape = {"channels": space.channels, "image_size": space.image_size}
    try:
        builder = space.builder(name)
        net = space.build(name)
        parameters = nets.count_parameters(net, **shape)
        if cost is None:
            cost = nets.count_multiply_adds(net, **shape)
        if isinstance(builder, str):
            built = nets.identity(builder, **shape, num_classes=space.num_classes)
        else:
            # A partial or a closure takes numbers from the space's own file, whatever file its code is in.
            listed = nets.import_module(space.spec.rpartition(":")[0], what=f"--space {space.spec}")
            other = space.build(name, seed=1)
            built = f"{nets.sources_digest(listed, builder)}-{nets.network_digest(net, **shape, other=other)}"
    except (Exception, SystemExit) as error:  # whatever the user's function does
        text = " ".join(str(error).split())
        problem = text if isinstance(error, AtomError) else f"{type(error).__name__}: {text}"
        return Candidate(name, None, cost, entry.axes, identity=name, problem=problem)
    return Candidate(name, parameters, cost, entry.axes, identity=f"{name}@{built}")
