"""Which sets a comparison asks for: a method and a number of images each, with settings that the method reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from atom.coreset import METHODS as CORESETS
from atom.errors import ConfigError
from atom.methods.lookup import check_read, find_method
from atom.methods.registry import check_name, options_of, short_name
from atom.methods.settings import DistillSettings
from atom.settings import INITS
from pipelines.console.commands import CompareCommand, DistillCommand, shrunk_distillation
from pipelines.console.options import Words

ALIKE = ("ipc", "seed", "zca", "zca_eps", "threads_per_actor")
"""Settings that no single method may have for itself: rows would not be of the same images, or not fit the pool."""


@dataclass(frozen=True)
class Asked:
    """One set to distil.

    Attributes:
        label: what tables call it.
        command: of atom-distill that asks for the same set, but for its output.
        plain: the same without what --settings says for the method; None where it says nothing.
    """

    label: str
    command: DistillCommand
    plain: DistillSettings | None = None

    @property
    def settings(self) -> DistillSettings:
        """Of the distillation, not resolved."""
        return self.command.distill


def asked_sets(command: CompareCommand) -> list[Asked]:
    """All of them, table by table.

    Raises:
        ConfigError: a method or setting is unknown, or nobody reads it.
    """
    methods = {short_name(name): name for name in command.methods}
    _check_methods(command, methods)
    own = own_settings(command.settings, methods)
    _check_common(command, methods)
    found = []
    for ipc in command.ipc:
        for short, name in methods.items():
            made = _command(command, name, ipc, own.get(short, {}))
            plain = _command(command, name, ipc, {}).distill if short in own else None
            found.append(Asked(_label(made.distill), made, plain))
    return found


def _label(settings: DistillSettings) -> str:
    factor = f" f{settings.factor}" if settings.factor > 1 else ""
    return short_name(settings.method) + factor


def _check_methods(command: CompareCommand, methods: Mapping[str, str]) -> None:
    if not command.methods:
        raise ConfigError("--methods: there is none; name one or more, such as atom dm.")
    if not command.ipc or len(set(command.ipc)) < len(command.ipc):
        raise ConfigError(f"--ipc {' '.join(map(str, command.ipc))}: pass one number or more, none twice.")
    if len(methods) < len(command.methods):
        raise ConfigError(f"--methods {' '.join(command.methods)}: one is there twice; leave it out.")
    for name in command.methods:
        if name in CORESETS:
            raise ConfigError(
                f"--methods {name}: {', '.join(CORESETS)} stand in every table already; leave it out."
            )
        check_name(name, flag="--methods")
        find_method(name)
    if not command.judges.eval_seeds:
        raise ConfigError("--eval-seeds 0: there would be nothing to compare; pass 1 or more.")
    if command.judges.eval_networks == ():
        raise ConfigError(
            "--eval-networks: there would be nothing to compare; name one or more, or leave it out."
        )
    if command.distill.init not in INITS:
        raise ConfigError(
            f"--init {command.distill.init}: expected one of {', '.join(INITS)}; only atom-distill starts from a set."
        )


def own_settings(given: tuple[str, ...], methods: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Values by method and name, of METHOD.NAME=VALUE each.

    Args:
        given: as --settings has them.
        methods: by what they are called.

    Raises:
        ConfigError: one is not of this form, of another method, or not a single method's to have.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in given:
        place, equals, value = text.partition("=")
        method, dot, name = place.partition(".")
        if not (equals and dot and method and name):
            raise ConfigError(f"--settings {text}: expected METHOD.NAME=VALUE, such as mtt.syn_steps=30.")
        if method not in methods:
            raise ConfigError(
                f"--settings {text}: {method} is not among --methods {' '.join(methods)}; name it there, or leave this"
                " out."
            )
        name = name.replace("-", "_")
        if name in CompareCommand.refused:
            raise ConfigError(f"--settings {text}: {CompareCommand.refused[name]}")
        if name in ALIKE:
            raise ConfigError(
                f"--settings {text}: {name} is the same for all methods; pass --{name.replace('_', '-')} instead."
            )
        if name in found.setdefault(method, {}):
            raise ConfigError(f"--settings {text}: {method}.{name} is there twice; leave one of them out.")
        try:
            found[method][name] = yaml.load(value, Loader=Words)
        except (yaml.YAMLError, ValueError) as error:
            problem = " ".join(str(error).split())
            raise ConfigError(
                f"--settings {text}: the value is not valid YAML ({problem}); expected one such as mtt.syn_steps=30."
            ) from None
    return found


def _check_common(command: CompareCommand, methods: Mapping[str, str]) -> None:
    for name in given_common(command):
        if all(name in find_method(method).unread for method in methods.values()):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag}: none of the methods {', '.join(methods)} reads it; leave it out.")


def given_common(command: CompareCommand) -> list[str]:
    """Settings for all methods that are not at their default."""
    fields = type(command.distill).model_fields
    return [name for name, value in command.distill if name in fields and value != fields[name].default]


def unread_notes(command: CompareCommand) -> list[str]:
    """A note where a setting for all methods means nothing to some."""
    notes = []
    for name in given_common(command):
        deaf = [short_name(method) for method in command.methods if name in find_method(method).unread]
        if deaf:
            notes.append(f"--{name.replace('_', '-')} means nothing to {', '.join(deaf)}.")
    return notes


def _command(command: CompareCommand, method: str, ipc: int, own: Mapping[str, Any]) -> DistillCommand:
    left_out = {*find_method(method).unread, "method", "ipc", "options"}
    common = {name: value for name, value in command.distill if name not in left_out}
    base = DistillCommand(
        baselines=CORESETS,
        checkpoint_every=command.checkpoint_every,
        experts=command.experts,
        data=command.data,
        judges=command.judges,
        evaluate=command.evaluate,
        cluster=command.cluster,
        tracking=command.tracking,
    )
    try:
        of_distilling = {*DistillSettings.model_fields, *options_of(method).model_fields} - {"options"}
        if strange := sorted(own.keys() - of_distilling):
            raise ConfigError(f"{strange[0]!r} is not a setting of {short_name(method)}.")
        made = base.changed(**{**common, **own}, method=method, ipc=ipc)
        check_read(made.distill)
        if command.smoke:
            made = made.changed(**shrunk_distillation(made.distill))
    except ConfigError as error:
        if not own:
            raise
        raise ConfigError(f"--settings of {short_name(method)}: {error}") from None
    return made


__all__ = ["ALIKE", "Asked", "asked_sets", "given_common", "own_settings", "unread_notes"]
