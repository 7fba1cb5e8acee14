"""Class-incremental streams: which classes arrive at which step, in an order decided by a seed."""

# K classes, S steps

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atom.errors import ConfigError

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
    """The classes of each step; steps are counted from 0, and a class keeps the label of its source.

    Example:
        >>> stream = ClassStream((3, 0, 2, 1), ((3, 0), (2, 1)))
        >>> stream.num_steps, stream.seen(0), stream.seen(1)
        (2, (3, 0), (3, 0, 2, 1))
    """

    order: tuple[int, ...]
    """All K classes in the order they arrive."""
    steps: tuple[tuple[int, ...], ...]
    """The same classes, cut into steps."""

    def __post_init__(self) -> None:
        joined = tuple(class_id for step in self.steps for class_id in step)
        if joined != self.order or sorted(self.order) != list(range(len(self.order))):
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
        return len(self.order)

    def seen(self, step: int) -> tuple[int, ...]:
        """Classes that have arrived once `step` is over, 0 <= step < S, in the order of their arrival.

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
    "DEFAULT_STEPS",
    "ClassStream",
    "class_order",
    "class_stream",
    "cut",
    "parse_order",
    "parse_stream",
    "step_sizes",
]
