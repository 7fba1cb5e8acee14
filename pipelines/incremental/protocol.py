"""What a stream is made of, by its protocol: lots of images and when each comes; and what a protocol refuses."""

from collections.abc import Sequence

from apps.continual.lots import Lots, blurred, by_session, returning, under_looks
from apps.continual.stream import (
    BLURRED,
    DOMAINS,
    PREFIX,
    ClassStream,
    blurred_stream,
    class_order,
    cut,
    domain_stream,
    parse_order,
    returning_stream,
    step_sizes,
)
from atom.data import RealData
from atom.data.sources import SESSIONS
from atom.errors import ConfigError
from pipelines.console.commands import ContinualCommand

NONE, RESERVOIR, SET, DISTILLED = "none", "reservoir", "set", "distilled"
DRAWN = ("random", RESERVOIR)
"""Memories drawn anew for every class order and training seed, so that their spread holds that of the draw."""


def lots_of(command: ContinualCommand, real: RealData, *, num_steps: int) -> Lots:
    """The lots of the images by the protocol that was asked for.

    Raises:
        ConfigError: see `apps.continual.lots`.
    """
    stream = command.stream
    if by_step(command) == SESSIONS:
        return by_session(real)
    if stream.looks is not None:
        return under_looks(real, stream.looks)
    if stream.blurred:
        return blurred(real, share=stream.blurred, num_steps=num_steps)
    return Lots(real) if stream.return_after is None else returning(real)


def by_step(command: ContinualCommand) -> str | None:
    """What says what the steps are, where that is not the classes: sessions or --looks."""
    if _source(command) == SESSIONS:
        return SESSIONS
    return None if command.stream.looks is None else "--looks"


def _source(command: ContinualCommand) -> str:
    return command.data.dataset.strip().lower().removeprefix(PREFIX).partition(":")[0].strip()


def check_protocol(command: ContinualCommand) -> None:
    """Refuse protocols that exclude each other, and what makes no sense under one.

    Raises:
        ConfigError: which, and what to pass.
    """
    stream, steps_from = command.stream, by_step(command)
    asked = {
        "sessions": steps_from == SESSIONS,
        "--looks": stream.looks is not None,
        "--blurred": bool(stream.blurred),
        "--return-after": stream.return_after is not None,
    }
    chosen = [name for name, given in asked.items() if given]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)}: each is a protocol of its own; pass one of them.")
    steps = {
        "--steps": stream.steps,
        "--step-classes": stream.step_classes,
        "--class-order": stream.class_order,
    }
    superfluous = [flag for flag, value in steps.items() if value is not None]
    if steps_from is not None and superfluous:
        raise ConfigError(
            f"{superfluous[0]}: a step brings all classes of one of the {steps_from.removeprefix('--')}, in the order"
            " in which they are named; leave it out (--order-seeds shuffles them)."
        )
    if chosen and SET in stream.memories:
        raise ConfigError(
            f"--set with {chosen[0]}: a set holds a class whole, but it comes in parts here; leave it out."
        )
    if chosen and stream.compress:
        raise ConfigError(
            f"--compress with {chosen[0]}: how the parts of a class share its bytes is known for images of one size"
            " only; leave it out."
        )
    if stream.online:
        _check_online(command)


def _check_online(command: ContinualCommand) -> None:
    at_once = [m for m in command.stream.memories if m not in (NONE, *DRAWN)]
    if at_once:
        raise ConfigError(
            f"--online: {at_once[0]} is made of all images of a class at once, but every image passes once here; pass"
            f" --memories {' '.join(DRAWN)}, which take images in as they pass."
        )
    if command.stream.compress:
        raise ConfigError(
            "--online with --compress: what the next image takes is not known before it is there; leave one out."
        )
    if command.learner.step_epochs not in (None, 1):
        raise ConfigError(
            f"--step-epochs {command.learner.step_epochs}: with --online every image passes once; leave it out."
        )


def streams_of(
    command: ContinualCommand, lots: Lots, *, num_steps: int
) -> tuple[dict[int, ClassStream], tuple[str, ...]]:
    """The stream of each order, and what is to be said of the orders."""
    asked, class_names = command.stream, lots.real.train.class_names
    if lots.protocol == DOMAINS:
        return _domains(command, lots)
    num_classes = len(class_names)
    sizes = asked.step_classes or step_sizes(num_classes, num_steps)
    if asked.class_order is not None:
        streams = {0: cut(parse_order(asked.class_order, class_names), sizes)}
    else:
        seeds = range(asked.orders) if asked.order_seeds is None else asked.order_seeds
        streams = {seed: cut(class_order(num_classes, order_seed=seed), sizes) for seed in seeds}
    if lots.protocol == BLURRED:
        present = set(lots.counts())
        streams = {seed: blurred_stream(stream, present) for seed, stream in streams.items()}
    if asked.return_after is not None:
        streams = {
            seed: returning_stream(stream, after=asked.return_after) for seed, stream in streams.items()
        }
    return streams, ()


def _domains(command: ContinualCommand, lots: Lots) -> tuple[dict[int, ClassStream], tuple[str, ...]]:
    """Looks and sessions have an order of their own: as they are named."""
    asked, number = command.stream, len(lots.names)

    def of(order: Sequence[int]) -> ClassStream:
        return domain_stream(lots.counts(), lots.real.train.num_classes, order=order)

    if asked.order_seeds is not None:
        return {seed: of(class_order(number, order_seed=seed)) for seed in asked.order_seeds}, ()
    note = (
        f"the steps come in one order, {', '.join(lots.names[:5])}{', ...' if number > 5 else ''}; --order-seeds gives"
        " others, --seeds repeats the trainings."
    )
    return {0: of(range(number))}, (note,)
