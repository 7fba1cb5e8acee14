"""Command lines: settings in parts become flags in groups, a YAML file sets any of them, mistakes get one sentence.

Nothing here imports torch, Ray or MLflow, so `--help` answers at once.
"""

import difflib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

import pydantic
import tyro
import yaml
from pydantic import Field, create_model
from pydantic.fields import FieldInfo

from atom.errors import ConfigError
from atom.methods.published import published
from atom.methods.registry import is_own, options_of, readers_of
from atom.methods.settings import DistillSettings, unread
from atom.settings import Settings, first_problem
from pipelines.workers.settings import ClusterSettings

C = TypeVar("C", bound="CommandSettings")

_BOOL = "tag:yaml.org,2002:bool"


@dataclass(frozen=True)
class Flag:
    """One setting of a command.

    Attributes:
        group: its part, such as "data"; nothing for those of the command itself.
        about: what the part is, for --help.
        info: how it is declared.
        value: as it stands.
    """

    group: str
    about: str
    info: FieldInfo
    value: Any


class TrackingSettings(Settings):
    """Where the run is recorded."""

    tracking_uri: str | None = None
    """MLflow tracking URI; default $MLFLOW_TRACKING_URI, else a SQLite file in the output directory."""
    experiment: str | None = None
    """MLflow experiment; default $MLFLOW_EXPERIMENT_NAME, else the command's name."""


class CommandSettings(Settings):
    """What every command takes; its other settings lie in parts, and all are flags by their names alone.

    Attributes:
        prog: what the command is called.
        first: flags at the top of --help, by name.
        decided: settings of parts, as "part.name", that the command decides itself, and that are no flags; with a
            method of distillation its options.
        refused: settings of single methods that such a command cannot use, and what ends the sentence that says so.
        hidden: settings and parts that all commands have and this one has no use for.
        positional: settings that are words of the line instead of flags, in order.
    """

    prog: ClassVar[str] = ""
    first: ClassVar[tuple[str, ...]] = ()
    decided: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[Mapping[str, str]] = {}
    hidden: ClassVar[frozenset[str]] = frozenset()
    positional: ClassVar[tuple[str, ...]] = ()

    config: Path | None = None
    """YAML file that sets any of these flags; flags on the command line win."""
    output: str | None = None
    """Directory or URI (s3://, gs://) for checkpoints and results; default runs/NAME. Rerunning resumes there."""
    smoke: bool = False
    """Shrink everything to seconds, to see that the command runs; the numbers mean nothing."""
    cluster: ClusterSettings = ClusterSettings()
    tracking: TrackingSettings = TrackingSettings()

    @classmethod
    def of(cls, **values: Any) -> Self:
        """The command with these values of whatever part, each by the name of its flag; errors as for `changed`."""
        return cls().changed(**values)

    def changed(self, **values: Any) -> Self:
        """The command with other values, each by the name of its flag.

        Raises:
            ConfigError: a value is out of range, or there is no such flag.
        """
        own = {name: value for name, value in values.items() if name in self._names()}
        found = set(own)
        try:
            for name, part in self._parts():
                names = _names_of(part, values)
                of_part = {n: v for n, v in values.items() if n in names and not self._decides(name, part, n)}
                found |= of_part.keys()
                own |= {name: part.changed(**of_part)} if of_part else {}
            if lost := sorted(values.keys() - found):
                raise ConfigError(self._unknown(lost[0], str(values.get("method", ""))))
            return super().changed(**own)
        except pydantic.ValidationError as error:
            raise ConfigError(first_problem(error)) from None

    def flags(self) -> dict[str, Flag]:
        """All settings by the names of their flags."""
        fields = type(self).model_fields
        found = {name: Flag("", "", fields[name], getattr(self, name)) for name in self._names()}
        for group, part in self._parts():
            of_part = _flags_of(group, part)
            of_part = {n: flag for n, flag in of_part.items() if not self._decides(group, part, n)}
            for name in sorted(found.keys() & of_part.keys()):
                raise ConfigError(
                    f"method {self._method()!r}: its option {name!r} is a flag of {self.prog}; rename it."
                )
            found |= of_part
        return found

    def flat(self) -> dict[str, Any]:
        """The value of every flag, by its name."""
        return {name: flag.value for name, flag in self.flags().items()}

    def _names(self) -> list[str]:
        return [name for name, value in self if not isinstance(value, Settings) and name not in self.hidden]

    def _parts(self) -> list[tuple[str, Settings]]:
        parts = [
            (name, value) for name, value in self if isinstance(value, Settings) and name not in self.hidden
        ]
        # What only this command has comes first.
        return sorted(parts, key=lambda part: part[0] in CommandSettings.model_fields)

    def _decides(self, group: str, part: Settings, name: str) -> bool:
        if f"{group}.{name}" in self.decided:
            return True
        options = options_of(part.method).model_fields if isinstance(part, DistillSettings) else {}
        return name in options and f"{group}.method" in self.decided

    @property
    def _many(self) -> bool:
        """Whether the command has methods of distillation, and none of them chosen."""
        return "distill.method" in self.decided

    def _method(self) -> str:
        """The chosen one; nothing where the command has none to choose."""
        return next((part.method for _, part in self._parts() if isinstance(part, DistillSettings)), "")

    def _unknown(self, name: str, method: str) -> str:
        if self._many and (readers := readers_of(name)):
            flag = f"--{name.replace('_', '-')}"
            if name in self.refused:
                return f"{flag}: {self.refused[name]}"
            return f"{flag}: is a setting of {', '.join(readers)} alone; pass --settings {readers[0]}.{name}=VALUE."
        flags, method = self.flags(), method or self._method()
        of_all = name in DistillSettings.model_fields and f"distill.{name}" not in self.decided
        if method and ((readers := readers_of(name)) or of_all):
            return unread(name, method, readers)
        # The ratio of these two is below that of others.
        close = ["method"] if name == "mode" and method else difflib.get_close_matches(name, flags, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"`{self.prog} --help` lists the settings."
        return f"{name!r} is not a setting of {self.prog}; {hint}"


def _names_of(part: Settings, values: Mapping[str, Any]) -> set[str]:
    """Names of the settings in a part, options of the method that the values ask for among them."""
    names = {name for name, value in part if not isinstance(value, Settings)}
    if isinstance(part, DistillSettings):
        names |= options_of(str(values.get("method", part.method))).model_fields.keys()
    return names


def _unread_of(part: Settings) -> frozenset[str]:
    """What a user's own method does not read; those of this project read all, and are not imported for --help."""
    if not isinstance(part, DistillSettings) or not is_own(part.method):
        return frozenset()
    from atom.methods.lookup import find_method

    return find_method(part.method).unread


def _flags_of(group: str, part: Settings) -> dict[str, Flag]:
    about = _one_line((type(part).__doc__ or "").partition("\n\n")[0])
    found, left_out = {}, _unread_of(part)
    for name, info in type(part).model_fields.items():
        value = getattr(part, name)
        if name in left_out:
            continue
        if isinstance(part, DistillSettings) and isinstance(value, Settings):
            found |= _flags_of(f"method {part.method}", value)
        else:
            found[name] = Flag(group, about, info, value)
    return found


class _Line(Settings):
    """What a command line gives; its values are checked where they belong."""

    # Made of fields that have their words: to look for the source of such a class took a second beside torch.
    model_config = pydantic.ConfigDict(use_attribute_docstrings=False)

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _one_sentence(cls, values: Any, handler: pydantic.ModelWrapValidatorHandler[Self]) -> Self:
        # A ConfigError passes through pydantic and tyro unchanged, where a ValidationError becomes a page.
        try:
            return handler(values)
        except pydantic.ValidationError as error:
            raise ConfigError(first_problem(error)) from None


def parse(command: type[C], argv: Sequence[str] | None = None) -> C:
    """Settings from command line and YAML file.

    Raises:
        ConfigError: a value is out of range, a method does not read it, or the YAML file is wrong.
        SystemExit: with code 2 after tyro's message on an unknown or malformed flag, 0 after --help.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    path, method = _argument(arguments, "config"), _argument(arguments, "method")
    given = command()
    asked = {} if path is None else _read_config(Path(path))
    asked = {f"{name}_" if f"{name}_" in given.flags() else name: value for name, value in asked.items()}
    if "preset" in given.flags():
        asked = _preset_values(arguments, asked) | asked
    if method is not None and "method" in given.flags():
        # Before all else: it decides which flags there are.
        given = given.changed(method=method)
        asked.pop("method", None)
    try:
        given = given.changed(**asked)
    except ConfigError as error:
        raise ConfigError(f"--config {path}: {error}") from None
    flags = given.flags()
    for name in _named(arguments):
        known = name == "mode" or readers_of(name) or name in DistillSettings.model_fields
        if ("method" in flags or given._many) and name not in flags and known:
            raise ConfigError(given._unknown(name, ""))
    line = _line(command, flags)
    parsed = tyro.cli(
        type(line),
        prog=command.prog,
        description=command.__doc__,
        args=arguments,
        default=line,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return given.changed(**dict(_values(parsed)))


def _line(command: type[CommandSettings], flags: Mapping[str, Flag]) -> _Line:
    """The flags as tyro shows them: the first ones, then group by group."""
    fields: dict[str, Any] = {
        name: (flag.info.annotation, Field(default=flag.value, description=_one_line(flag.info.description)))
        for name, flag in flags.items()
    }
    for name in [name for name in flags if name.endswith("_")]:
        kind, about = fields[name]
        fields[name] = (Annotated[kind, tyro.conf.arg(name=name.rstrip("_"))], about)
    for name in command.positional:
        kind, about = fields[name]
        fields[name] = (Annotated[kind, tyro.conf.Positional, tyro.conf.arg(metavar=name.upper())], about)
    # A method of a user's own may leave one of the first flags out.
    order = [name for name in command.first if name in flags]
    order += [name for name in flags if not flags[name].group and name not in order]
    groups: dict[str, dict[str, Any]] = {}
    for name, flag in flags.items():
        if name not in order:
            groups.setdefault(flag.group, {})[name] = fields[name]
    top: dict[str, Any] = {name: fields[name] for name in order}
    for group, members in groups.items():
        about = next(flags[name].about for name in members)
        made = create_model(group.replace(" ", "_"), __base__=_Line, __doc__=about, **members)
        top[group] = (made, Field(default=made(), description=about))
    return create_model(command.__name__, __base__=_Line, **top)()


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _values(line: Settings) -> Iterator[tuple[str, Any]]:
    for name, value in line:
        if isinstance(value, _Line):
            yield from _values(value)
        else:
            yield name, value


class Words(yaml.SafeLoader):
    """YAML 1.1 takes off, on, no and yes for booleans; here they are the words that flags take, as in YAML 1.2."""


Words.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in known if tag != _BOOL]
    for letter, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Words.add_implicit_resolver(_BOOL, re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))


def _read_config(path: Path) -> dict[str, object]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=Words)
    except OSError as error:
        raise ConfigError(
            f"--config {path}: cannot be read ({error.strerror}); pass an existing YAML file."
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(
            f"--config {path}: is not valid YAML ({problem}); expected lines such as `ipc: 10`."
        ) from None
    if not isinstance(content, dict):
        kind = "nothing" if content is None else type(content).__name__
        raise ConfigError(
            f"--config {path}: holds {kind}, expected lines of setting and value such as `ipc: 10`."
        )
    found = {str(name).replace("-", "_"): value for name, value in content.items()}
    if len(found) < len(content):
        raise ConfigError(
            f"--config {path}: a setting is there twice, with - and with _; leave one of them out."
        )
    return found


def _preset_values(arguments: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """What --preset decides, for config file and flags to win over; its method and ipc are those of the command."""

    def of(name: str, default: Any) -> Any:
        found = _argument(arguments, name.replace("_", "-"))
        return config.get(name, default) if found is None else found

    if of("preset", "best") != "paper":
        return {}
    if of("images_in_all", None) is not None:
        raise ConfigError(
            "--preset paper: nothing was published for --images-in-all; leave one of the two out."
        )
    try:
        ipc = int(float(of("ipc", 1)))
    except (TypeError, ValueError):
        return {}  # refused where flags are checked
    given = {*config, *_named(arguments)}
    return published(str(of("method", "atom")), ipc, given) if ipc > 0 else {}


def _argument(arguments: Sequence[str], name: str) -> str | None:
    """The value of a flag, before tyro reads the line."""
    found = None
    for place, argument in enumerate(arguments):
        if argument.startswith(f"--{name}="):
            found = argument.partition("=")[2]
        elif argument == f"--{name}" and place + 1 < len(arguments):
            found = arguments[place + 1]
    return found  # of several the last, as tyro takes it


def _named(arguments: Sequence[str]) -> Iterator[str]:
    """Names of the flags on a line."""
    for argument in arguments:
        if argument.startswith("--"):
            yield argument[2:].partition("=")[0].replace("-", "_")
