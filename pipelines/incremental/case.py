"""One continual experiment with everything decided: command, class orders, images, settings, where it is kept."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from apps.continual.lots import Lots
from apps.continual.settings import LearnerSettings
from apps.continual.stream import DOMAINS
from atom.data import ImageSet, RealData
from atom.methods.settings import DistillSettings
from atom.resolve import resolve_evaluation, resolve_settings
from atom.settings import DeviceKind, Settings
from pipelines.console.commands import ContinualCommand
from pipelines.incremental.plan import Plan
from pipelines.incremental.preprocessed import ALL, Preprocessed
from pipelines.output.records import add_seconds, dotted
from pipelines.output.store import Store
from pipelines.real_images import whitening_flaw
from pipelines.workers.resources import ActorSize

if TYPE_CHECKING:
    from atom.distilled import DistilledSet


class ContinualCase:
    """One run of the command with everything decided.

    Raises:
        ConfigError: an unusable network, or a set that does not fit.
    """

    def __init__(
        self,
        command: ContinualCommand,
        decided: Plan,
        given: "tuple[DistilledSet, float | None] | None",
        real: RealData,
        store: Store,
        size: ActorSize,
        learner_size: ActorSize,
        device_kind: DeviceKind,
    ) -> None:
        self.command = command
        self.plan = decided
        self.given = given
        self.real, self.lots = real, decided.lots
        self.store = store
        self.size = size
        self.learner_size = learner_size
        self.device_kind: DeviceKind = device_kind
        self.limits = command.cluster.limits()
        asked = command.evaluate
        self.train_settings = resolve_evaluation(asked, device_kind=device_kind, symbols=real.symbols)
        # Asked for again and again, and always the same.
        self.learner_settings = cache(self._learner_settings)
        self.flaw = whitening_flaw(real, command.distill)
        # Only the whitening counts here: the method that asks least of the network.
        self.preprocess_settings = self.distil_settings(method="dm", ipc=1)
        self.preprocessed = Preprocessed(
            self.lots,
            self.judged_name,
            settings=self.preprocess_settings,
            streams=decided.streams,
            shared=command.stream.preprocess_on == ALL,
            store=store,
            cache=command.data.data_dir / "cache",
        )

    @property
    def judged_name(self) -> str:
        """Of the images that accuracies are measured on."""
        return "test" if self.real.validation is None else self.command.stream.score_on

    @property
    def judged(self) -> ImageSet:
        """The images that accuracies are measured on."""
        return self.real.test if self.judged_name == "test" else cast(ImageSet, self.real.validation)

    def _learner_settings(self, order: int, step: int) -> LearnerSettings:
        """Settings of the learners in a step of a class order, resolved: where it has few images, more epochs."""
        settings = self.command.learner.resolved(
            device_kind=self.device_kind,
            step_images=sum(self.plan.counts[lot] for lot in self.plan.streams[order].steps[step]),
            seen_images=len(self.real.train.labels),
            symbols=self.real.symbols,
        )
        return settings.model_copy(update={"step_epochs": 1}) if self.command.stream.online else settings

    def all_learner_settings(self) -> dict[str, str]:
        """Settings of the learners in all steps and class orders, as of `together`."""
        places = [(order, step) for order in self.plan.streams for step in range(self.plan.num_steps)]
        return together([self.learner_settings(*place) for place in places])

    @property
    def protocol(self) -> str:
        """Of the stream, for people."""
        return f"{self.lots.protocol}{', online' if self.command.stream.online else ''}"

    def data_key(self, order: int) -> dict[str, Any]:
        """The images of a class order, as keys of results hold them."""
        return {
            **self.lots.key,
            "train": self.real.train.fingerprint,
            "judged": self.judged.fingerprint,
            "preprocess": self.preprocessed.digest(self.preprocessed.name(order)),
        }

    def distil_settings(self, *, method: str, ipc: int) -> DistillSettings:
        """The command's settings of distillation for one method and size, resolved.

        Raises:
            ConfigError: see `resolve_settings`.
        """
        channels, height, width = self.plan.shape
        asked = self.command.distill.changed(method=method, ipc=ipc, network=self.command.distil_network)
        return resolve_settings(
            asked,
            device_kind=self.device_kind,
            channels=channels,
            height=height,
            width=width,
            num_classes=self.real.train.num_classes,
            symbols=self.real.symbols,
            whitenable=self.flaw is None,
        )

    def add_seconds(self, name: str, seconds: float) -> None:
        """Add to a wall time of the output."""
        add_seconds(self.store, name, seconds)


def together(settings: Sequence[Settings]) -> dict[str, str]:
    """Settings of one kind as one: where they differ, all values in order, once each."""
    dumps = [dotted("", one.model_dump(mode="json")) for one in settings]
    # Methods have options of their own.
    names = dict.fromkeys(name for dump in dumps for name in dump)
    return {
        name: " ".join(dict.fromkeys(str(dump[name]) for dump in dumps if name in dump)) for name in names
    }


def orders_text(command: ContinualCommand, lots: Lots) -> str:
    """Which class orders are run, for people."""
    if lots.protocol == DOMAINS and command.stream.order_seeds is None:
        return "1, as they are named"
    if command.stream.class_order is not None:
        return "1, given by --class-order"
    seeds = range(command.stream.orders) if command.stream.order_seeds is None else command.stream.order_seeds
    return f"{len(seeds)}, NumPy's permutations of the seeds {' '.join(map(str, seeds))}"


def metric_name(learner: str) -> str:
    """A learner's name as MLflow takes it in names of metrics: der++ has signs it refuses."""
    return learner.replace("+", "p")
