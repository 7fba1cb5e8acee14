"""Streams: what arrives at which step, in an order decided by a seed.

What arrives is a *lot*, images of one class that come together. Its number is part * K + class: in the simplest stream,
class-incremental, a class is one lot, part 0, and lots are classes. `apps.continual.lots` says which image is in which
lot, the makers here when each lot comes: under other looks (`domain_stream`), across a blurred border
(`blurred_stream`) or in a second half (`returning_stream`).
"""

# K classes, S steps

import difflib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atom.errors import ConfigError

PLAIN, DOMAINS, BLURRED, RETURNING = (
    "class-incremental",
    "domain-incremental",
    "blurred borders",
    "returning classes",
)
"""Protocols, by what arrives at a step: classes; all classes, one part of each; classes and parts of others; classes
and second halves of others."""
PREFIX = "seq-"
DEFAULT_STEPS = {
    "cifar10": 5,
    "cifar100": 10,
    "digits": 5,
    "fashionmnist": 5,
    "mnist": 5,
    "svhn": 5,
    "tinyimagenet": 10,
}
"""Steps of the streams known by name. Source: Mammoth's for both CIFAR, MNIST and TinyImageNet, looked up; the other
sources have ten classes and get two a step likewise."""


@dataclass(frozen=True)
class ClassStream:
    """The lots of each step; steps are counted from 0, and a class keeps the label of its source.

    Example:
        >>> stream = ClassStream((3, 0, 2, 1), ((3, 0), (2, 1)))
        >>> stream.num_steps, stream.seen(0), stream.seen(1)
        (2, (3, 0), (3, 0, 2, 1))
    """

    order: tuple[int, ...]
    """All lots in the order they arrive: of a class-incremental stream the K classes."""
    steps: tuple[tuple[int, ...], ...]
    """The same lots, cut into steps."""
    classes: int | None = None
    """K where lots are not classes; None: every class is one lot."""
    judged: tuple[tuple[int, ...], ...] | None = None
    """Lots of the test images that a step is asked about, its column of the accuracy matrix; None: those of `steps`."""

    def __post_init__(self) -> None:
        joined = tuple(lot for step in self.steps for lot in step)
        whole = len(set(self.order)) == len(self.order) and all(self.steps)
        if self.classes is None:
            whole = sorted(self.order) == list(range(len(self.order)))
        if joined != self.order or not whole:
            raise ConfigError(
                f"class stream: steps {self.steps} do not cut the order {self.order} of the classes 0 to"
                f" {len(self.order) - 1} into parts; make streams with class_stream."
            )

    @property
    def num_steps(self) -> int:
        """S."""
        return len(self.steps)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.order) if self.classes is None else self.classes

    @property
    def columns(self) -> tuple[tuple[int, ...], ...]:
        """Lots of the test images of each step."""
        return self.steps if self.judged is None else self.judged

    def classes_of(self, lots: Iterable[int]) -> tuple[int, ...]:
        """Classes of some lots, each once, in that order."""
        return tuple(dict.fromkeys(lot % self.num_classes for lot in lots))

    def seen(self, step: int) -> tuple[int, ...]:
        """Lots that have arrived once `step` is over, 0 <= step < S, in the order of their arrival.

        Raises:
            ConfigError: there is no such step.
        """
        if not 0 <= step < self.num_steps:
            raise ConfigError(f"class stream: step {step} is not one of its steps 0 to {self.num_steps - 1}.")
        return tuple(class_id for classes in self.steps[: step + 1] for class_id in classes)


def parse_stream(spec: str, steps: int | None) -> tuple[str, int]:
    """Data source and number of steps of a stream as a user writes it.

    Args:
        spec: "seq-" and a source of `atom.data`, with its path if it has one, such as "seq-cifar10" or
            "seq-cifar10:/srv/cifar"; the names in DEFAULT_STEPS know their number of steps. Any source, with
            "seq-" or without, is taken with `steps`.
        steps: number of steps, or None for that of the name. Goes before that of the name.

    Raises:
        ConfigError: no source, no number of steps, or one below 1.

    Example:
        >>> parse_stream("seq-cifar10", None), parse_stream("seq-cifar100:/srv/cifar", 20)
        (('cifar10', 5), ('cifar100:/srv/cifar', 20))
    """
    text = spec.strip()
    named = text.lower().startswith(PREFIX)
    source = text[len(PREFIX) :] if named else text
    name = source.partition(":")[0].strip().lower()
    if not name:
        raise ConfigError(f"stream {spec!r} names no data source; write for example {PREFIX}cifar10.")
    if steps is None:
        if not named or name not in DEFAULT_STEPS:
            known = ", ".join(PREFIX + known for known in DEFAULT_STEPS)
            raise ConfigError(
                f"stream {spec!r} has no number of steps of its own; pass --steps, or one of {known}."
            )
        return source, DEFAULT_STEPS[name]
    if steps < 1:
        raise ConfigError(f"--steps {steps} is below 1; pass 1 or more.")
    return source, steps


def class_order(num_classes: int, *, order_seed: int) -> tuple[int, ...]:
    """The classes 0 to K - 1 in a random order.

    NumPy's older generator, because seeds 0 to 4 then give the five class orders of DM's continual learning
    experiment. Source: DM (Zhao and Bilen, 2023), published code, looked up: the permutation drawn right
    after seeding.

    Raises:
        ConfigError: the seed is not one NumPy's older generator takes, or there are no classes.

    Example:
        >>> class_order(5, order_seed=0)
        (2, 0, 1, 3, 4)
    """
    if not 0 <= order_seed < 2**32:
        raise ConfigError(f"class order seed {order_seed} is out of range; pass 0 to {2**32 - 1}.")
    if num_classes < 1:
        raise ConfigError(f"class order of {num_classes} classes; expected 1 class or more.")
    # An object of its own: the global generator stays as it is.
    return tuple(np.random.RandomState(order_seed).permutation(num_classes).tolist())


def class_stream(num_classes: int, *, num_steps: int, order_seed: int) -> ClassStream:
    """The classes in the order of the seed, cut into steps of equal size, see `step_sizes`.

    Raises:
        ConfigError: see `step_sizes` and `class_order`.
    """
    return cut(class_order(num_classes, order_seed=order_seed), step_sizes(num_classes, num_steps))


def step_sizes(num_classes: int, num_steps: int) -> tuple[int, ...]:
    """Classes of each step where all are to be equal; where the number does not divide, the first get one more.

    Raises:
        ConfigError: fewer than one step, or more steps than classes.
    """
    if not 1 <= num_steps <= num_classes:
        raise ConfigError(
            f"--steps {num_steps}: the source has {num_classes} classes, and every step brings one or more; pass"
            f" 1 to {num_classes}."
        )
    each, larger = divmod(num_classes, num_steps)
    return tuple(each + (step < larger) for step in range(num_steps))


def cut(order: Sequence[int], sizes: Sequence[int]) -> ClassStream:
    """The classes in an order, so many in each step.

    Raises:
        ConfigError: the sizes do not add up to the classes.

    Example:
        >>> cut((3, 0, 2, 1), (3, 1)).steps
        ((3, 0, 2), (1,))
    """
    if sum(sizes) != len(order) or min(sizes, default=0) < 1:
        raise ConfigError(
            f"--step-classes {' '.join(map(str, sizes))}: these are {sum(sizes)} classes, but the source has"
            f" {len(order)}; pass one positive number a step, {len(order)} in all."
        )
    ends = np.cumsum(sizes).tolist()
    return ClassStream(
        tuple(order), tuple(tuple(order[end - size : end]) for end, size in zip(ends, sizes, strict=True))
    )


def domain_stream(lots: Collection[int], num_classes: int, *, order: Sequence[int]) -> ClassStream:
    """Domain-incremental: at every step all there is of one part, a look or a session, classes ascending.

    Args:
        lots: those that hold images.
        num_classes: K.
        order: the parts, each once.

    Example:
        >>> domain_stream({0, 1, 2, 3}, 2, order=(1, 0)).steps
        ((2, 3), (0, 1))
    """
    steps = tuple(tuple(sorted(lot for lot in lots if lot // num_classes == part)) for part in order)
    return _of_lots(steps, num_classes)


def blurred_stream(stream: ClassStream, lots: Collection[int]) -> ClassStream:
    """A class-incremental stream whose classes come in other steps too: part p of a class, p steps after its own.

    After the last step the first one follows. A step's test images are those of its own classes. Source of the
    protocol: *Rainbow Memory* (Bang et al., CVPR 2021), whose tasks share classes.

    Args:
        stream: of classes.
        lots: those that hold images; part 0 of a class comes at the class's own step.

    Example:
        >>> blurred_stream(cut((0, 1), (1, 1)), {0, 1, 2, 3}).steps
        ((0, 3), (1, 2))
    """
    steps: list[list[int]] = [list(classes) for classes in stream.steps]
    for part in range(1, stream.num_steps):
        for step, classes in enumerate(stream.steps):
            of_part = (part * stream.num_classes + class_id for class_id in classes)
            steps[(step + part) % stream.num_steps] += [lot for lot in of_part if lot in lots]
    return _of_lots(steps, stream.num_classes, judged=stream.steps)


def returning_stream(stream: ClassStream, *, after: int) -> ClassStream:
    """A class-incremental stream in which every class comes back, its part 1, so many steps after its first part.

    The stream is `after` steps longer. A step's test images are those of all its classes, so those of a class are asked
    for in two columns. Chosen; a fixed gap, where *class-incremental with repetition* (Hemati et al., 2023) draws.

    Raises:
        ConfigError: a gap that would leave a step empty.

    Example:
        >>> returning_stream(cut((0, 1), (1, 1)), after=1).steps
        ((0,), (1, 2), (3,))
    """
    if not 1 <= after <= stream.num_steps:
        raise ConfigError(
            f"--return-after {after}: between 1 and the {stream.num_steps} steps of the stream; later ones would be"
            " empty."
        )
    steps: list[list[int]] = [[] for _ in range(stream.num_steps + after)]
    for part in range(2):
        for step, classes in enumerate(stream.steps):
            steps[step + part * after] += [part * stream.num_classes + class_id for class_id in classes]
    judged = tuple(tuple(lot % stream.num_classes for lot in step) for step in steps)
    return _of_lots(steps, stream.num_classes, judged=judged)


def _of_lots(
    steps: Iterable[Iterable[int]], num_classes: int, *, judged: tuple[tuple[int, ...], ...] | None = None
) -> ClassStream:
    cut_steps = tuple(tuple(step) for step in steps)
    return ClassStream(sum(cut_steps, ()), cut_steps, num_classes, judged)


def parse_order(given: Sequence[str], class_names: Sequence[str]) -> tuple[int, ...]:
    """A class order as a user writes it, as labels.

    Args:
        given: every class once, by its name; or by its label, a number from 0, where these are no names. Or the path
            of one file with a class a line.
        class_names: by label.

    Raises:
        ConfigError: the file cannot be read, or a class is unknown, missing or named twice.

    Example:
        >>> parse_order(["dog", "cat"], ("cat", "dog")), parse_order(["1", "0"], ("cat", "dog"))
        ((1, 0), (1, 0))
    """
    flag, wanted, names = "--class-order", list(given), {name: c for c, name in enumerate(class_names)}
    if len(wanted) == 1 and wanted[0] not in names:
        flag, wanted = f"{flag} {wanted[0]}", _lines(Path(wanted[0]))
    if all(name.isdecimal() for name in wanted) and not set(wanted) <= set(names):
        names = {str(c): c for c in range(len(class_names))}
    unknown = next((name for name in wanted if name not in names), None)
    if unknown is not None:
        close = difflib.get_close_matches(unknown, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"classes are {', '.join(list(names)[:5])}, ..."
        raise ConfigError(f"{flag}: the source has no class {unknown!r}; {hint}")
    twice = next((name for name in wanted if wanted.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{flag}: names the class {twice!r} twice; every class comes once.")
    missing = [name for name in names if name not in wanted]
    if missing:
        few = ", ".join(map(repr, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise ConfigError(
            f"{flag}: names {len(wanted)} of {len(names)} classes, without {few}; name every class once."
        )
    return tuple(names[name] for name in wanted)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"--class-order {path}: neither a class nor a file that can be read ({why}); pass every class once, or"
            " a text file with one a line."
        ) from None
    return [line.strip() for line in text.splitlines() if line.strip()]


__all__ = [
    "BLURRED",
    "DEFAULT_STEPS",
    "DOMAINS",
    "PLAIN",
    "PREFIX",
    "RETURNING",
    "ClassStream",
    "blurred_stream",
    "class_order",
    "class_stream",
    "cut",
    "domain_stream",
    "parse_order",
    "parse_stream",
    "returning_stream",
    "step_sizes",
]
