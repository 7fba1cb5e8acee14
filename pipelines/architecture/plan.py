"""What a search comes to before any work: which networks, which reference, which size of sets; and what it refuses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apps.nas.proxies import FITTED, MIN_TO_FIT, WHOLE
from apps.nas.reference import read_reference
from apps.nas.space import SAMPLE_SEED, Space, load_space, sample, within_limits
from atom.data import RealData
from atom.distilled import DistilledSet
from atom.errors import ConfigError
from atom.soundness import check_even
from pipelines.architecture.proxies import say_held_out
from pipelines.console.commands import NasCommand
from pipelines.real_images import check_ipc
from pipelines.sets import check_same_source
from pipelines.workers.remote import network_slug

Given = Sequence[tuple[DistilledSet, float | None]]
"""Distilled sets and the seconds that each took, None where unknown."""


@dataclass(frozen=True)
class Plan:
    """What a command comes to before any work: space, reference table, size of the sets, a user's own proxies by
    digest of their sources.
    """

    space: Space
    reference: Mapping[str, tuple[float, ...]]
    ipc: int
    seeds: int = 1
    own_proxies: Mapping[str, str] = field(default_factory=dict)

    @property
    def space_name(self) -> str:
        """For names of runs and directories."""
        return f"{network_slug(self.space.spec)}-{len(self.space.candidates)}"

    @property
    def num_units(self) -> int:
        """No more workers than this are of use."""
        return len(self.space.candidates) * self.seeds

    def shown(self, command: NasCommand, identity: Mapping[str, object]) -> dict[str, object]:
        """Settings for the head of the output."""
        skipped = {"config", "output", "smoke", "tracking_uri", "experiment", "set"}
        asked = {
            name: value
            for name, value in command.flat().items()
            if name not in skipped and value is not None and value != ""
        }
        return {**asked, **identity, "networks": len(self.space.candidates), "ipc": self.ipc}


def plan(
    command: NasCommand, given: Given, real: RealData, *, load: Callable[..., Space] = load_space
) -> Plan:
    """Check what was asked for against the images, and settle it.

    Args:
        command, given, real: what was asked for.
        load: finds the networks of a space, see `load_space`.

    Raises:
        ConfigError, DataError: it does not fit.
    """
    channels, height, width = real.train.images.shape[1:]
    for distilled, _ in given:
        check_same_source(distilled, real)
        check_even(distilled, "--set", "the coresets beside it have")
        say_held_out(distilled, real, validation_frac=command.data.validation_frac)
    ipc = given[0][0].ipc if given else command.nas.ipc
    check_ipc(real, ipc=ipc, factor=1, init="real")
    space = load(
        command.nas.space, channels=channels, image_size=(height, width), num_classes=real.train.num_classes
    )
    space = within_limits(
        space,
        max_parameters=command.nas.max_parameters,
        max_multiply_adds=command.nas.max_multiply_adds,
    )
    if command.nas.sample is not None:
        space = sample(space, command.nas.sample, seed=SAMPLE_SEED)
    reference: dict[str, tuple[float, ...]] = {}
    if command.nas.reference not in ("none", WHOLE):
        known = read_reference(Path(command.nas.reference))
        reference = {name: known[name] for name in space.names if name in known}
        if not reference:
            raise ConfigError(
                f"--reference {command.nas.reference}: knows none of the {len(space.names)} networks of"
                f" --space {command.nas.space}; its first is {next(iter(known))!r}, the space's {space.names[0]!r}."
            )
    known = len(reference) if reference else len(space.names)
    if FITTED in command.nas.proxies and known < MIN_TO_FIT:
        raise ConfigError(
            f"--proxies {FITTED}: learns from networks with a reference, at least {MIN_TO_FIT}, and here are {known};"
            f" take a larger --sample or table, or leave {FITTED} out."
        )
    seeds = max(command.nas.seeds, command.nas.reference_seeds, command.nas.retrain_seeds)
    return Plan(space, reference, ipc, seeds)
