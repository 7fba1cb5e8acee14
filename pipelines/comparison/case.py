"""A comparison with everything decided: the sets that can be distilled, each an output of its own, and the others."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from atom import resolve
from atom.data import RealData
from atom.errors import ConfigError
from atom.methods.lookup import find_method
from atom.methods.registry import short_name
from atom.methods.settings import DistillSettings
from atom.settings import DeviceKind, EvaluateSettings
from pipelines.comparison.asked import Asked
from pipelines.console.commands import CompareCommand
from pipelines.distill_case import Case, identity_of, run_name
from pipelines.output.store import Store
from pipelines.session import Session
from pipelines.workers.resources import ActorSize


@dataclass(frozen=True)
class Candidate:
    """One set of the comparison.

    Attributes:
        label: what tables call it.
        name: of its output within that of the comparison, and of its run.
        case: as `pipelines.distill` has it.
    """

    label: str
    name: str
    case: Case

    @property
    def ipc(self) -> int:
        """Stored images a class."""
        return self.case.settings.ipc

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.label}, ipc {self.ipc}"


@dataclass(frozen=True)
class Refused:
    """A set that its method cannot distil here, and why."""

    label: str
    ipc: int
    reason: str

    @property
    def note(self) -> str:
        """For who waits for its row."""
        return f"{self.label}, ipc {self.ipc} is left out: {self.reason}"


@dataclass(frozen=True)
class Comparison:
    """One run of the command with everything decided.

    Attributes:
        command: as given.
        real: the images.
        store: the output, with one for each candidate inside.
        size: the workers, on `device_kind`.
        evaluation: the common protocol, resolved.
        networks: that judge.
        candidates: what is distilled.
        refused: what cannot be.
        experts: where experts are kept, for all.
    """

    command: CompareCommand
    real: RealData
    store: Store
    size: ActorSize
    device_kind: DeviceKind
    evaluation: EvaluateSettings
    networks: Sequence[str]
    candidates: Sequence[Candidate]
    refused: Sequence[Refused]
    experts: Store

    @property
    def asked(self) -> Sequence[Asked]:
        """The candidates as they were asked for, with resolved settings."""
        return [Asked(one.label, one.case.command) for one in self.candidates]

    @property
    def seeds(self) -> range:
        """Of the trainings, the same for all rows."""
        return range(self.command.judges.eval_seeds)


def decided(
    asked: Sequence[Asked], real: RealData, device_kind: DeviceKind, *, whitenable: bool
) -> tuple[list[Asked], list[Refused]]:
    """Settings resolved; and apart those that their method refuses, for these images or this device.

    Raises:
        ConfigError: none is left, or a method refuses what --settings says for it alone.
    """
    channels, height, width = real.train.images.shape[1:]

    def resolved(settings: DistillSettings) -> DistillSettings:
        return resolve.resolve_settings(
            settings,
            device_kind=device_kind,
            channels=channels,
            height=height,
            width=width,
            num_classes=real.train.num_classes,
            symbols=real.symbols,
            whitenable=whitenable,
        )

    def resolves(settings: DistillSettings) -> bool:
        with suppress(ConfigError):
            return bool(resolved(settings))
        return False

    left, refused = [], []
    for one in asked:
        try:
            settings = resolved(one.settings)
        except ConfigError as error:
            if one.plain is not None and resolves(one.plain):
                raise ConfigError(f"--settings of {short_name(one.settings.method)}: {error}") from None
            refused.append(Refused(one.label, one.settings.ipc, str(error)))
            continue
        left.append(Asked(one.label, one.command.model_copy(update={"distill": settings})))
    if not left:
        raise ConfigError(f"no method can distil this; the first says: {refused[0].reason}")
    return left, refused


def candidates(
    session: Session,
    asked: Sequence[Asked],
    real: RealData,
    *,
    size: ActorSize,
    device_kind: DeviceKind,
    evaluation: EvaluateSettings,
    experts: Store,
) -> list[Candidate]:
    """The outputs of sets with resolved settings, claimed and locked.

    Raises:
        StoreError: one belongs to other settings, or another driver is at work there.
    """
    found = []
    for one in asked:
        settings = one.settings
        name = run_name(settings, real.name)
        identity = identity_of(settings, real, device_kind)
        store, digest = session.take_inside(name, identity)
        units = find_method(settings.method).units(settings, range(real.train.num_classes))
        case = Case(
            one.command, settings, evaluation, real, store, size, device_kind, digest, units, shared=experts
        )
        found.append(Candidate(one.label, name, case))
    return found


__all__ = ["Candidate", "Comparison", "Refused", "candidates", "decided"]
