"""A user's search space, built by tasks of the cluster: code of theirs that hangs, ends its process or takes all memory
costs one network, not the command."""

import time
from dataclasses import replace

from apps.nas.space import SAMPLE_SEED, Candidate, Space, describe, load_space, sample
from apps.nas.user_space import user_entries
from atom.errors import ConfigError
from atom.nets.shapes import Size
from pipelines.console.command import say
from pipelines.console.progress import Progress, format_duration
from pipelines.own_networks import BUILD_TIMEOUT_S
from pipelines.workers.pool import Limits
from pipelines.workers.tasks import run_tasks

_TELL_EVERY_S = 60.0


def list_networks(spec: str) -> list[Candidate]:
    """A user's networks before they are built: what a Ray task does."""
    entries = user_entries(spec).items()
    return [Candidate(name, None, entry.multiply_adds, entry.axes, identity=name) for name, entry in entries]


def build_space(
    spec: str,
    *,
    channels: int,
    image_size: Size,
    num_classes: int,
    limits: Limits,
    number: int | None = None,
) -> Space:
    """The space of that name, as `apps.nas.space.load_space` gives it; a user's own is built on the cluster.

    Args:
        spec, channels, image_size, num_classes: see `load_space`.
        limits: of a score; a build has `BUILD_TIMEOUT_S` at most, and one more try after a machine fault, none after
            a time limit: what hangs mostly hangs again.
        number: of networks wanted, see `apps.nas.space.sample`; where parameters decide which, no others are built.

    Raises:
        ConfigError: the space is unknown, cannot be imported, is no list of networks, or none of them can be built.
    """
    shape = {"channels": channels, "image_size": image_size, "num_classes": num_classes}
    if ":" not in spec:
        return load_space(spec, **shape)
    limit_s = min(limits.chunk_timeout_s, BUILD_TIMEOUT_S)
    limits = replace(
        limits, max_retries=min(limits.max_retries, 1), chunk_timeout_s=limit_s, timeout_retries=0
    )
    say(f"listing the networks of {spec}")
    networks: list[Candidate] = []
    listed = run_tasks(
        list_networks, [spec], limits=limits, on_result=lambda _, found: networks.extend(found)
    )
    if listed.failed:
        reason = listed.failed[spec].reason.removeprefix("ConfigError: ")
        raise ConfigError(reason if reason.startswith("--space") else f"--space {spec}: {reason}.")
    space = Space(spec, tuple(networks), **shape)
    if number is not None and all(network.axes for network in networks):
        space = sample(space, number, seed=SAMPLE_SEED)
    say(f"building {len(space.names)} networks")
    built = _built(space, limits)
    if all(candidate.problem for candidate in built):
        raise ConfigError(
            f"--space {spec}: none of its {len(built)} networks can be built; {built[0].name!r}: {built[0].problem}"
        )
    return space.with_candidates(built)


def _built(space: Space, limits: Limits) -> list[Candidate]:
    names, empty = list(space.names), space.with_candidates([])
    found: dict[str, Candidate] = {}
    told_s = begun_s = time.monotonic()
    with Progress("building", len(names), num_items=len(names), unit="networks", item="networks") as progress:

        def keep(name: str, candidate: Candidate) -> None:
            nonlocal told_s
            found[name], told_s = candidate, time.monotonic()
            progress.update(len(found), items_done=len(found))

        def tick(_: int) -> None:
            nonlocal told_s
            if time.monotonic() - told_s >= _TELL_EVERY_S:
                told_s = time.monotonic()
                left = [name for name in names if name not in found]
                say(f"still building {', '.join(left[:3])} after {format_duration(told_s - begun_s)}")

        outcome = run_tasks(describe, names, shared=[empty], limits=limits, on_result=keep, on_tick=tick)
    for network in space.candidates:
        if network.name in outcome.failed:
            found[network.name] = replace(network, problem=outcome.failed[network.name].reason)
    return [found[name] for name in names]
