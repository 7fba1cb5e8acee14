"""One architecture search with everything decided: command, space, sets, recipe, and the table of scores."""

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean

import ray

from apps.nas.cost import unit_cost
from apps.nas.ladder import Ladder, default_ladder, parse_ladder
from apps.nas.proxies import DISTILLED, WHOLE, Proxy, timed
from apps.nas.table import Row, Table, from_parquet
from apps.nas.trial import Recipe, Unit
from atom.batches import num_batches
from atom.data import RealData
from atom.methods.settings import DistillSettings
from atom.resolve import resolve_evaluation, resolve_settings
from atom.settings import DeviceKind
from pipelines.architecture.plan import Given, Plan
from pipelines.architecture.proxies import MAIN, Material, gather
from pipelines.architecture.remote import Shared
from pipelines.architecture.study import open_study
from pipelines.console.command import say
from pipelines.console.commands import NasCommand
from pipelines.output.records import log_distilled, log_real, note_maker, start_tracker
from pipelines.output.store import Store
from pipelines.real_images import not_whitened, preprocessing, whitening_flaw
from pipelines.tracking import Tracker
from pipelines.workers.resources import ActorSize

TABLE = "results.parquet"
LATENCY = "latency, ms"
"""Its rows hold milliseconds; it is no proxy, and no user's function is called so."""


class NasCase:
    """One run of the command with everything decided."""

    def __init__(
        self,
        command: NasCommand,
        decided: Plan,
        given: Given,
        real: RealData,
        store: Store,
        size: ActorSize,
        device_kind: DeviceKind,
    ) -> None:
        self.command = command
        self.plan = decided
        self.space = decided.space
        self.given = given
        self.real = real
        self.store = store
        self.size = size
        self.device_kind: DeviceKind = device_kind
        self.limits = command.cluster.limits()
        asked = command.nas.optuna_storage
        # Before any work: a wrong URL is said at once.
        self.study = open_study(asked, f"{real.name}-{decided.space_name}") if asked else None
        self.recipe = self._recipe()
        self.ladder = self._ladder()
        self.material = self._gather()
        self.table = self._table()
        self._shared: Shared | None = None
        # Why a network is not scored; one that took too long joins them.
        self.problems = {c.name: c.problem for c in self.space.candidates if c.problem}
        known = [c.multiply_adds for c in self.space.candidates if c.multiply_adds is not None]
        average = fmean(known) if known else 0.0
        self.costs = {c.name: c.multiply_adds or average for c in self.space.candidates}

    def _recipe(self) -> Recipe:
        on_gpu = self.device_kind == "cuda"
        asked = self.command.evaluate
        if asked.protocol == "common":
            asked = asked.model_copy(update={"epochs": asked.epochs or (200 if on_gpu else 100)})
        settings = resolve_evaluation(asked, device_kind=self.device_kind, symbols=self.real.symbols)
        images = self.plan.ipc * self.real.train.num_classes
        if self.given:
            images = len(self.given[0][0].decode()[1])
        per_epoch = num_batches(images, settings.batch)
        # What is delivered is trained no shorter than it was to be chosen.
        asked_for = (
            parse_ladder(self.command.nas.ladder) if self.command.nas.ladder and self.searches else None
        )
        longest = (
            max((s.epochs[-1] for s in asked_for.stages if s.source == WHOLE), default=0) if asked_for else 0
        )
        whole = self.command.nas.whole_epochs or max(100 if on_gpu else 10, longest)
        assert settings.epochs is not None, "resolved"
        return Recipe(settings, whole_epochs=whole, steps=per_epoch * settings.epochs)

    def _ladder(self) -> Ladder:
        epochs = self.recipe.settings.epochs
        assert epochs is not None, "resolved"
        default = default_ladder(epochs=epochs, whole_epochs=self.recipe.whole_epochs)
        return parse_ladder(self.command.nas.ladder or default)

    @property
    def retrains(self) -> int:
        """How many of the best are trained in full: three after a search, whose top rung has one training of each."""
        asked = self.command.nas.retrain
        return asked if asked is not None else 3 * self.searches

    @property
    def searches(self) -> bool:
        """Whether networks climb a ladder, instead of all being ranked."""
        return self.command.nas.mode == "search"

    def _gather(self) -> Material:
        sets = [distilled for distilled, _ in self.given]
        if sets:
            preprocess = sets[0].preprocess
        else:
            channels, height, width = self.real.train.images.shape[1:]
            shape = {"channels": channels, "height": height, "width": width}
            flaw = whitening_flaw(self.real, DistillSettings())
            for note in not_whitened(flaw):
                say(f"Note: {note}")
            settings = resolve_settings(
                DistillSettings(),
                device_kind="cpu",
                num_classes=self.real.train.num_classes,
                symbols=self.real.symbols,
                whitenable=flaw is None,
                **shape,
            )
            preprocess = preprocessing(self.real, settings, self.store, self.command.data.data_dir / "cache")
        asked = self.ladder.proxies if self.searches else self.command.nas.proxies
        names = [name for name in asked if self.given or timed(name)[0] != DISTILLED]
        material = gather(
            names,
            sets,
            [seconds for _, seconds in self.given],
            self.real,
            preprocess,
            ipc=self.plan.ipc,
            seeds=self.command.nas.seeds,
            seed=self.command.seed,
            own_digests=self.plan.own_proxies,
        )
        if not self.searches:
            return material
        return replace(material, proxies=(*material.proxies, Proxy(LATENCY, "latency", MAIN, 0)))

    def _table(self) -> Table:
        rows: list[Row] = []
        if self.store.exists(TABLE):
            rows = from_parquet(self.store.read_bytes(TABLE), where=self.store.where(TABLE))

        def write(content: bytes) -> None:
            note_maker(self.store, self.size)
            self.store.write_bytes(TABLE, content)

        return Table(write, rows=rows)

    @property
    def primary(self) -> Proxy:
        """The first proxy: it picks the winner."""
        return self.material.proxies[0]

    def best_first(self, scores: Mapping[str, float]) -> dict[str, float]:
        """The scores of networks, the best first; of equals, the cheaper one comes first."""
        known = self.space.by_name

        def place(network: str) -> tuple[float, float, str]:
            cost = known[network].multiply_adds
            return -scores[network], math.inf if cost is None else cost, network

        return {network: scores[network] for network in sorted(scores, key=place)}

    @property
    def deciding(self) -> str:
        """Name of the proxy that picks the winner: the first, or the top of the ladder."""
        return self.ladder.told.split()[-1] if self.searches else self.primary.name

    def tracker(self, name: str) -> Tracker:
        """The MLflow run of this output: a new one, or that of an earlier driver continued."""
        settings = self.recipe.settings.model_dump()
        params: dict[str, object] = {
            **{f"train.{key}": value for key, value in settings.items()},
            "nas.mode": self.command.nas.mode,
            "nas.space": self.command.nas.space,
            "nas.networks": len(self.space.candidates),
            "nas.proxies": " ".join(proxy.name for proxy in self.material.proxies),
            **({"nas.ladder": self.ladder.told} if self.searches else {}),
            "nas.seeds": self.command.nas.seeds,
            "nas.reference": self.command.nas.reference,
            "nas.reference_seeds": self.command.nas.reference_seeds,
            "nas.whole_epochs": self.recipe.whole_epochs,
            "nas.ipc": self.plan.ipc,
            "data.spec": self.real.spec,
            "data.fingerprint": self.real.train.fingerprint,
            "data.validation_frac": self.command.data.validation_frac,
            "cluster.num_actors": self.size.num_actors,
            "cluster.device": self.device_kind,
        }
        return start_tracker(self.command, self.store, experiment="nas", name=name, params=params)

    def log_inputs(self, tracker: Tracker) -> None:
        """The real images and the distilled sets as inputs of the run."""
        log_real(tracker, self.real)
        for (distilled, _), location in zip(
            self.given, self.command.set or ("distilled here",), strict=False
        ):
            log_distilled(tracker, distilled, source=location)

    def shared(self, seconds: Mapping[str, float] | None = None) -> Shared:
        """What workers need; the images go into Ray's object store once."""
        if self._shared is None:
            self._shared = Shared(
                proxies={proxy.name: proxy for proxy in self.material.proxies},
                space=self.space,
                recipe=self.recipe,
                device_kind=self.device_kind,
                small=ray.put(self.material.draws()),
                real=ray.put(dict(self.material.real)),
                timeout_s=self.command.cluster.timeout_s,
            )
        kept = self._shared
        return kept if seconds is None else replace(kept, seconds=seconds)

    def cost(self, unit: Unit) -> float:
        """Predicted time of a unit, see `apps.nas.cost.unit_cost`."""
        validation = self.real.validation
        return unit_cost(
            self.material.named(unit.proxy),
            self.recipe,
            multiply_adds=self.costs[unit.network],
            num_train=len(self.real.train.labels),
            num_validation=0 if validation is None else len(validation.labels),
            num_test=len(self.real.test.labels),
        )
