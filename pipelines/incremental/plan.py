"""What a continual experiment comes to before any work: class orders, cells, sizes of memories; and what it refuses."""

# S steps, K classes

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from apps.continual import lossless
from apps.continual.budget import Budget, apportion, num_distilled, parse_budget
from apps.continual.exemplars import Storage, expected_bytes, image_bytes
from apps.continual.learner import LEARNERS
from apps.continual.lots import Lots
from apps.continual.results import WITHOUT_MEMORY, Cell
from apps.continual.selection import KINDS
from apps.continual.stream import ClassStream, parse_stream
from atom.data import RealData
from atom.distilled import DistilledSet
from atom.errors import ConfigError
from atom.methods.lookup import find_method
from atom.methods.registry import NAMES as METHODS
from atom.settings import INITS
from atom.soundness import check_even
from pipelines.console.commands import ContinualCommand
from pipelines.incremental.protocol import (
    DISTILLED,
    NONE,
    RESERVOIR,
    SET,
    by_step,
    check_protocol,
    streams_of,
)

_REPLAYS_NOTHING = ("er", "der++")
"""Learners that are finetune, bit for bit, where the memory is empty; er-ace is not, it masks its logits."""
MOST_ORDERS = 100
"""Most class orders that a number can ask for. Chosen: published experiments have 1 to 10, and 1993 is a seed."""
_KNOWN = (NONE, RESERVOIR, *KINDS, DISTILLED, *(f"{DISTILLED}-{method}" for method in METHODS), SET)


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        streams: by class order, which is the seed of a random one, and 0 for one that the user gave.
        cells: without those that would repeat another.
        budget: of every memory.
        shape: (C, H, W) of the images.
        lots: of the images, see `apps.continual.stream`.
        counts: training images of each lot.
        most: images that the real ones of each lot suffice to distil, whatever the budget.
        storage: of distilled images.
        compress: whether all memories keep lossless files.
        expected: bytes that a distilled image of each class is expected to take in such a file; empty where they do
            not decide.
        label_bytes: by memory, of the soft label of an image, where it has some.
        notes: what was left out and why, for people.
    """

    streams: Mapping[int, ClassStream]
    cells: tuple[Cell, ...]
    budget: Budget
    shape: tuple[int, int, int]
    lots: Lots
    counts: Mapping[int, int]
    most: Mapping[int, int]
    storage: Storage
    compress: bool = False
    expected: tuple[int, ...] = ()
    label_bytes: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> int:
        """The first class order."""
        return next(iter(self.streams))

    @property
    def num_steps(self) -> int:
        """S."""
        return self.streams[self.first].num_steps

    @property
    def step_sizes(self) -> tuple[int, ...]:
        """Lots of each step, the same in all orders but where borders are blurred."""
        return tuple(len(classes) for classes in self.streams[self.first].steps)

    @property
    def memories(self) -> tuple[str, ...]:
        """Memories of the cells that hold images, each once."""
        return tuple(dict.fromkeys(cell.memory for cell in self.cells if cell.memory != NONE))

    @property
    def distilled(self) -> tuple[str, ...]:
        """Those among them whose images are distilled here."""
        return tuple(memory for memory in self.memories if memory.startswith(DISTILLED))

    @property
    def by_class(self) -> tuple[str, ...]:
        """Memories that choose or make images of each class; a given set has what it has."""
        return tuple(memory for memory in self.memories if memory not in (RESERVOIR, SET))

    def bytes_per_image(self, memory: str) -> int:
        """Of one stored image that is not compressed, the most it can take: real ones are uint8 pixels."""
        of_real = memory in (RESERVOIR, *KINDS)
        of_image = image_bytes(self.shape, storage="uint8" if of_real else self.storage)
        return of_image + self.label_bytes.get(memory, 0)

    def quota(self, memory: str, order: int, step: int) -> int:
        """Images a class may keep after `step`; compressed ones only as far as they fit into `room`."""
        stream = self.streams[order]
        return self.budget.quota(len(stream.classes_of(stream.seen(step))), self._least_bytes(memory))

    def kept(self, memory: str, order: int, step: int) -> dict[int, int]:
        """Images each lot seen may keep after `step`: its class's quota, shared by the lots as `apportion` has it."""
        stream, quota = self.streams[order], self.quota(memory, order, step)
        limits = self.most if memory in self.distilled else self.counts
        found: dict[int, int] = {}
        of_class: dict[int, list[int]] = {}
        for lot in stream.seen(step):
            of_class.setdefault(lot % stream.num_classes, []).append(lot)
        for lots in of_class.values():
            if len(lots) == 1:
                # Of whole classes the quota is part of keys, whatever they have.
                found[lots[0]] = quota if self.lots.plain else min(quota, limits[lots[0]])
            else:
                shares = apportion(quota, [self.counts[lot] for lot in lots], [limits[lot] for lot in lots])
                found |= zip(lots, shares, strict=True)
        return found

    def room(self, memory: str, order: int, step: int) -> int | None:
        """Bytes that the compressed images of a class, or those of a reservoir, may take; None: `quota` decides."""
        if not self.compress:
            return None
        if memory == RESERVOIR:
            return self.budget.all_bytes(self.streams[self.first].num_classes)
        return self.budget.share(len(self.streams[order].seen(step)))

    def largest_room(self, memory: str, lot: int) -> int | None:
        """The room of a lot at its arrival in the class order that gives it most."""
        rooms = [self.room(memory, order, step) for order, step in self.arrivals(lot).items()]
        return max((room for room in rooms if room is not None), default=None)

    def ipc(self, memory: str, order: int, step: int, lot: int) -> int:
        """Images that a lot of `step` is distilled into: what it may keep when it arrives, as far as it has them."""
        room = self.room(memory, order, step)
        expected = 0 if room is None else self.expected[lot] + self.label_bytes.get(memory, 0)
        quota = self.quota(memory, order, step)
        number = self.kept(memory, order, step).get(lot, quota) if room is None else room // expected
        return min(number, self.most[lot])

    def arrivals(self, lot: int) -> dict[int, int]:
        """The step at which a lot comes, by class order."""
        return {
            order: next(step for step, lots in enumerate(stream.steps) if lot in lots)
            for order, stream in self.streams.items()
        }

    def largest_quota(self, memory: str, lot: int) -> int:
        """Images of a lot that any class order keeps at its arrival."""
        return max(self.kept(memory, order, step)[lot] for order, step in self.arrivals(lot).items())

    def capacity(self) -> int:
        """Images of a reservoir."""
        return self.budget.capacity(self.streams[self.first].num_classes, self._least_bytes(RESERVOIR))

    def _least_bytes(self, memory: str) -> int:
        """Of one image, for the largest number of them; compressed ones are counted when they are there."""
        return lossless.least_bytes(self.shape) if self.compress else self.bytes_per_image(memory)


def source_of(command: ContinualCommand) -> tuple[str, int]:
    """Data source and number of steps that --dataset and --steps name.

    Raises:
        ConfigError: see `parse_stream`, or --step-classes has another number of steps.
    """
    sizes = command.stream.step_classes
    if by_step(command) is not None:
        # Nothing but a source: the steps are known when the images are.
        return parse_stream(command.data.dataset, 1)[0], 1
    if sizes is not None and command.stream.steps not in (None, len(sizes)):
        raise ConfigError(
            f"--steps {command.stream.steps}: --step-classes has {len(sizes)} steps; leave --steps out."
        )
    return parse_stream(command.data.dataset, command.stream.steps if sizes is None else len(sizes))


def check_names(command: ContinualCommand) -> Budget:
    """Refuse, before any image is loaded, what no images could make right; the budget.

    Raises:
        ConfigError: an unknown memory or learner, --set without its memory or the other way round, a budget
            that is none or has a rival, validation scores without validation images, class orders that contradict each
            other, or more than anyone wants.
    """
    for flag, given, known in (
        ("--memories", command.stream.memories, _KNOWN),
        ("--learners", command.stream.learners, LEARNERS),
    ):
        for name in given:
            if name not in known:
                raise ConfigError(f"{flag} {name}: unknown; known are {', '.join(known)}.")
        if not given:
            raise ConfigError(f"{flag} names none; pass some of {', '.join(known)}.")
    if bool(command.set) != (SET in command.stream.memories):
        missing = f"add {SET} to --memories" if command.set else "pass --set PATH"
        raise ConfigError(
            f"--set {command.set or 'is missing'}: the memory {SET!r} and --set go together; {missing}."
        )
    check_protocol(command)
    if command.distill.init not in INITS:
        raise ConfigError(
            f"--init {command.distill.init}: memories start from one of {', '.join(INITS)}; only atom-distill starts"
            " from a set."
        )
    if command.distill.images_in_all is not None:
        raise ConfigError(
            f"--images-in-all {command.distill.images_in_all}: --budget says how many images a memory has, as many of"
            " each class; leave it out."
        )
    if command.stream.class_order is not None and command.stream.order_seeds is not None:
        raise ConfigError("--class-order and --order-seeds both say in which order classes come; pass one.")
    for flag, values in (
        ("--order-seeds", command.stream.order_seeds),
        ("--class-order", command.stream.class_order),
    ):
        if values is not None and (not values or len(set(values)) < len(values)):
            raise ConfigError(f"{flag}: names {'one twice' if values else 'none'}; name each once.")
    orders = command.stream.orders
    if orders > MOST_ORDERS and command.stream.order_seeds is None and command.stream.class_order is None:
        raise ConfigError(
            f"--orders {orders}: would run {orders:,} class orders, those of the seeds 0 to {orders - 1}; for that of"
            f" one seed pass --order-seeds {orders}, for many of them list theirs there; --orders goes to"
            f" {MOST_ORDERS}."
        )
    made = [memory for memory in command.stream.memories if memory == SET or memory.startswith(DISTILLED)]
    if command.stream.compress and made and command.stream.storage == "float32":
        raise ConfigError(
            f"--compress: float32 images, as {made[0]} would keep them, fit no lossless image file; pass --storage"
            " uint8-scaled or uint8."
        )
    if command.stream.compress:
        lossless.codec()
    if command.stream.score_on == "validation" and not command.data.validation_frac:
        raise ConfigError("--score-on validation: there are no validation images; pass --validation-frac.")
    return parse_budget(command.stream.budget)


def plan(
    command: ContinualCommand,
    real: RealData,
    *,
    num_steps: int,
    given: DistilledSet | None = None,
    lots: Lots | None = None,
) -> Plan:
    """Check what was asked for against the images, and settle it.

    Args:
        command: what was asked for.
        real: the images, labels are classes.
        num_steps: in which all classes come, see `source_of`; of looks and sessions there are as many steps as these.
        given: the set of --set.
        lots: of the images; None: every class is one.

    Raises:
        ConfigError: steps or an order that do not fit the classes, a budget below one image a class, a class with too
            few real images to distil one, a set of images in all, or nothing left to run.
    """
    budget = check_names(command)
    if given is not None:
        check_even(given, f"--set {command.set}", "a memory keeps")
    lots = Lots(real) if lots is None else lots
    num_classes = real.train.num_classes
    channels, height, width = real.train.images.shape[1:]
    streams, on_orders = streams_of(command, lots, num_steps=num_steps)
    memories, same = _distinct(command.stream.memories, command.distill.method)
    cells, notes = _cells(
        memories, command.stream.learners, orders=tuple(streams), seeds=command.stream.seeds
    )
    soft = [memory for memory in memories if _has_soft_labels(memory, command, given)]
    counts = lots.counts()
    decided = Plan(
        streams=streams,
        cells=cells,
        budget=budget,
        shape=(channels, height, width),
        lots=lots,
        counts=counts,
        most={
            lot: num_distilled(n, n, factor=command.distill.factor, init=command.distill.init)
            for lot, n in counts.items()
        },
        storage=command.stream.storage,
        compress=command.stream.compress,
        expected=_expected(command, real) if command.stream.compress and budget.share(1) else (),
        label_bytes=dict.fromkeys(soft, 4 * num_classes),
        notes=(*on_orders, *same, *notes),
    )
    for memory in decided.memories:
        budget.check(num_classes, decided.bytes_per_image(memory))
    # A few images of a class that come apart may be too few, where others of it are not.
    largest = {
        c: max(n for lot, n in decided.most.items() if lot % num_classes == c) for c in range(num_classes)
    }
    if decided.distilled and not min(largest.values()):
        rare = next(c for c, n in largest.items() if not n)
        raise ConfigError(
            f"--memories {decided.distilled[0]}: class {real.train.class_names[rare]!r} of {real.spec} has"
            f" {counts[rare]} training images, but one distilled image with --factor {command.distill.factor} starts"
            f" from {command.distill.factor**2}; pass a smaller --factor, or --init noise."
        )
    limits = {memory: decided.most if memory in decided.distilled else counts for memory in decided.by_class}
    if not lots.plain:
        _check_preparations(decided, command)
    capped = _capped(decided, limits, lots)
    coarse = on_factor(command.distill.factor, command.stream.learners) if decided.distilled else ()
    classes_alone = _on_soft_labels(soft, command.stream.learners)
    told = (*decided.notes, *_on_sizes(decided), *coarse, *classes_alone, *dict.fromkeys(capped))
    return replace(decided, notes=told)


def _check_preparations(decided: Plan, command: ContinualCommand) -> None:
    """Refuse methods that train networks beforehand: theirs are known by their classes, not by parts of these.

    Raises:
        ConfigError: there is one.
    """
    for memory in decided.distilled:
        settings = command.distill.changed(method=distils_by(memory, command))
        if find_method(settings.method).preparations(settings):
            raise ConfigError(
                f"--memories {memory}: {settings.method} trains networks on whole classes first, but they come in parts"
                " here; pass another --method, such as atom."
            )


def distils_by(memory: str, command: ContinualCommand) -> str:
    """The method of a memory of distilled images: that of its name, else that of --method."""
    return memory.removeprefix(DISTILLED).removeprefix("-") or command.distill.method


def _has_soft_labels(memory: str, command: ContinualCommand, given: DistilledSet | None) -> bool:
    if memory == SET:
        return given is not None and given.soft_labels is not None
    if not memory.startswith(DISTILLED):
        return False
    settings = command.distill.changed(method=distils_by(memory, command))
    return find_method(settings.method).learns_labels(settings)


def _on_soft_labels(soft: Sequence[str], learners: Sequence[str]) -> Iterator[str]:
    others = [name for name in learners if name in ("er", "er-ace", "der++")]
    if soft and others:
        yield (
            f"{', '.join(soft)} {'have' if len(soft) > 1 else 'has'} soft labels, which gdumb trains on;"
            f" {', '.join(others)} {'take' if len(others) > 1 else 'takes'} the class of an image."
        )


def on_factor(factor: int, learners: Sequence[str]) -> tuple[str, ...]:
    """A note on memories of distilled images, where learners see them beside images of a step."""
    mixing = [name for name in learners if name in ("er", "er-ace", "der++")]
    if factor == 1 or not mixing:
        return ()
    return (
        f"distilled images of factor {factor} are coarser than those of a step, and {', '.join(mixing)} may learn that"
        " instead of the classes; gdumb sees distilled images alone.",
    )


def _expected(command: ContinualCommand, real: RealData) -> tuple[int, ...]:
    """Bytes of a distilled image of each class in its file."""
    classes = [real.train.images[real.train.indices_of(c)] for c in range(real.train.num_classes)]
    return tuple(
        expected_bytes(c, storage=command.stream.storage, factor=command.distill.factor) for c in classes
    )


def _distinct(memories: Sequence[str], method: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Memories without a second name of one that is there, and a note on it: `distilled` is by --method."""
    named = f"{DISTILLED}-{method}"
    if DISTILLED not in memories or named not in memories:
        return tuple(memories), ()
    return tuple(memory for memory in memories if memory != named), (
        f"{named} is {DISTILLED} with --method {method}: run once, as {DISTILLED}.",
    )


def _on_sizes(decided: Plan) -> Iterator[str]:
    """Where memories of one budget are not of one size, or it is not known beforehand."""
    if decided.distilled and decided.expected:
        yield (
            f"distilled images are expected to take {min(decided.expected)} to {max(decided.expected)} bytes, by their"
            " class, which decides how many are made; those that do not fit are left out, and the rest is counted."
        )
    stream = decided.streams[decided.first]
    grows = len(stream.classes_of(stream.steps[0])) < stream.num_classes
    if RESERVOIR in decided.memories and decided.budget.by_class and grows:
        yield (
            f"{RESERVOIR} holds {decided.capacity()} images from the first step on, more than the others until the"
            " last: its mean of the steps and its forgetting are not to be compared with theirs."
        )


def _capped(decided: Plan, limits: Mapping[str, Mapping[int, int]], lots: Lots) -> Iterator[str]:
    """Where classes have too few images for the budget, a line for each memory."""
    # Of compressed images at least as many fit.
    plain = replace(decided, compress=False)
    for memory, most in limits.items():
        wanted = {lot: plain.largest_quota(memory, lot) for lot in most}
        short = [c for c in wanted if most[c] < wanted[c]]
        if not short:
            continue
        kind = "distilled" if memory in decided.distilled else "real"
        few = ", ".join(f"{lots.name(c)} ({most[c]})" for c in short[:3])
        more = f" and {len(short) - 3} more" if len(short) > 3 else ""
        yield (
            f"the budget holds up to {max(wanted.values())} {kind} images of a class; classes whose own images are"
            f" enough for fewer keep these: {few}{more}."
        )


def _cells(
    memories: Sequence[str], learners: Sequence[str], *, orders: Sequence[int], seeds: int
) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    """The grid without repetitions, those of the first order and seed first, and notes on what was left out."""
    pairs: list[tuple[str, str]] = []
    notes: list[str] = []
    for learner in learners:
        for memory in memories:
            if learner in WITHOUT_MEMORY:
                pairs.append((NONE, learner))
            elif memory != NONE:
                pairs.append((memory, learner))
            elif learner == "gdumb":
                notes.append("gdumb trains on the memory alone: not run with memory none.")
            elif learner in _REPLAYS_NOTHING:
                notes.append(f"{learner} with memory none is finetune: run once, under that name.")
                pairs.append((NONE, "finetune"))
            else:
                pairs.append((memory, learner))
    if not pairs:
        raise ConfigError("--memories none --learners gdumb: nothing to train on; add a memory or a learner.")
    alone = [learner for learner in WITHOUT_MEMORY if learner in learners]
    if alone and len(memories) > 1:
        notes.append(f"{' and '.join(alone)}: no memory changes them, run once with memory none.")
    kept = dict.fromkeys(pairs)
    cells = [Cell(m, name, order, s) for order in orders for s in range(seeds) for m, name in kept]
    return tuple(cells), tuple(dict.fromkeys(notes))
