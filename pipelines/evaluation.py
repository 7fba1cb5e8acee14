"""How good are small sets: networks trained on each as Ray tasks, every finished training kept on disk."""

import hashlib
import json
import statistics
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import ray

from atom.data import RealData
from atom.distilled import DistilledSet
from atom.errors import ConfigError
from atom.nets.layers import mixes_batch
from atom.pixels import Pixels
from atom.protocols import PROTOCOLS
from atom.rivals import accuracy_text, auc_text, balanced_text, lost_to_random, network_label, training_text
from atom.scores import auc_interval, is_uneven
from atom.settings import DeviceKind, EvaluateSettings, OwnTraining
from atom.streams import stream
from atom.train import TRAINING_VERSION
from pipelines.console.progress import Progress, print_table
from pipelines.output.ownership import settings_hash
from pipelines.output.provenance import distinct, program
from pipelines.output.store import Store
from pipelines.workers.faults import Failure
from pipelines.workers.pool import Limits
from pipelines.workers.remote import REAL_STATISTICS, SCORES, Trial, TrialContext, run_trial
from pipelines.workers.resources import ActorSize
from pipelines.workers.tasks import run_tasks


@dataclass(frozen=True, eq=False)
class SmallSet:
    """What a network is trained on: preprocessed float32 images and targets, one pair a training seed.

    The targets are int64 labels, or float32 probabilities of each class, which `content_of` hashes alike.

    Attributes:
        name: such as "atom" or "random".
        draws: by training seed, or under None for all seeds. Random coresets are drawn anew for each seed,
            so that their spread holds that of the draw.
        stored_images: images counted as storage.
        training: settings that the set carries, in place of the common ones; empty: it is trained on as all are.
    """

    name: str
    draws: Mapping[int | None, tuple[np.ndarray, np.ndarray]]
    stored_images: int
    training: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, common: EvaluateSettings) -> EvaluateSettings:
        """Of trainings on this set, resolved as the common ones are."""
        carried = {n: v for n, v in self.training.items() if v not in (None, "auto")}
        return OwnTraining.model_validate({**dict(common), **carried}) if carried else common


@dataclass(frozen=True)
class Row:
    """Accuracy of one network on one small set, in percent, over `n` trainings; a single one has no spread.

    Beside them `failed` trainings came to no accuracy, such as diverged ones. `computed` says what decides bits besides
    the settings: whether the network was compiled, the arithmetic, the CPU threads.
    With `statistics_images` above 0 the network's BatchNorm statistics were re-estimated on so many unlabelled real
    images before the test; with 0 they are those of its training on the set. `hardware` and `commits` are those of the
    trainings when they were done, each once; later runs find these trainings and add nothing of their own. `training`
    is what the set carries and was trained on by; empty for a training as all sets get it. `protocol` is that of
    `atom.protocols`, empty for the common one.
    Balanced accuracy, in percent, and the area under the ROC curve, 0 to 1, with its 95 % interval over test images,
    are there where the classes of the test part differ in size (`atom.scores.is_uneven`) and all n trainings have them.
    """

    method: str
    network: str
    mean: float
    std: float | None
    n: int
    epochs: int
    stored_images: int
    seconds: float
    statistics_images: int = 0
    failed: int = 0
    computed: Mapping[str, Any] = field(default_factory=dict)
    hardware: str = ""
    commits: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    protocol: str = ""
    balanced_mean: float | None = None
    balanced_std: float | None = None
    auc_mean: float | None = None
    auc_std: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None

    @property
    def text(self) -> str:
        """Mean and spread for a table."""
        single = " (one training)" if self.n == 1 else ""
        failed = f" ({self.failed} of {self.n + self.failed} failed)" if self.failed else ""
        return accuracy_text(vars(self)) + (failed or single)

    @property
    def column(self) -> str:
        """The network, as tables call it."""
        return network_label(vars(self))


THREADS = 1
"""CPU threads of a training."""

OWN_TRAINING = "(own training)"
"""After the name of a set that is judged by the training it carries."""

SCORED = ("balanced_mean", "balanced_std", "auc_mean", "auc_std", "auc_low", "auc_high")
"""Of a row, beside accuracy."""

_MAY_LACK = ("statistics_images", "failed", "computed", "hardware", "commits", "training", "protocol")


@dataclass
class Evaluation:
    """Rows by set and network; failures by trial."""

    rows: list[Row] = field(default_factory=list)
    failed: dict[Trial, Failure] = field(default_factory=dict)
    stopped: bool = False


def evaluate_sets(
    sets: Sequence[SmallSet],
    test: tuple[Pixels | np.ndarray, np.ndarray],
    store: Store,
    *,
    networks: Sequence[str],
    seeds: Sequence[int],
    num_classes: int,
    settings: EvaluateSettings,
    identity: Mapping[str, Any],
    device_kind: DeviceKind,
    size: ActorSize,
    limits: Limits | None = None,
    stop: threading.Event | None = None,
    statistics_NCHW: np.ndarray | None = None,
) -> Evaluation:
    """Train every network on every set with every seed, test each once, and collect mean and spread.

    Args:
        sets: what to train on.
        test: test images, see `as_stored`, and labels; read once per trained network, after its last epoch.
        store: finished trainings are kept under results/ and not repeated.
        networks, seeds: names and training seeds.
        num_classes: of the source.
        settings: resolved.
        identity: what the test images are; with it, the settings, the network's source and the very images
            trained on name a stored result, so that none is taken for another's.
        device_kind: where a task computes.
        size: of a task, see `run_tasks`; on a CPU it has one thread, so that results do not depend on the machine's
            size.
        limits: retries and time limits.
        stop: ends it early when set.
        statistics_NCHW: preprocessed real training images to re-estimate BatchNorm statistics on, for a second row of
            the networks that have them.
    """
    inputs = TestImages(*test, statistics_NCHW)
    trials = Trials(
        sets,
        inputs,
        store,
        networks=networks,
        seeds=seeds,
        num_classes=num_classes,
        settings=settings,
        identity=identity,
        device_kind=device_kind,
    )
    total = len(trials.all)
    with Progress(
        "evaluating",
        total,
        num_items=total,
        unit="trainings",
        item="trainings",
        done=len(trials.found),
    ) as progress:

        def keep(trial: Trial, value: dict[str, Any]) -> None:
            trials.keep(trial, value)
            progress.update(len(trials.found), items_done=len(trials.found))

        outcome = run_tasks(
            run_trial,
            trials.left,
            shared=trials.shared,
            size=size.one_thread,
            kind=lambda trial: (trial.set_name, trial.network),
            limits=limits,
            on_result=keep,
            on_tick=lambda _: progress.update(len(trials.found), items_done=len(trials.found)),
            stop=stop,
        )
    return Evaluation(trials.rows(outcome.failed), outcome.failed, outcome.stopped)


class TestImages:
    """What every training of an evaluation is tested on, once in Ray's object store however many sets there are.

    Args:
        images: test images, see `as_stored`.
        labels_N: theirs.
        statistics_NCHW: see `evaluate_sets`.
    """

    __test__ = False  # for pytest: no test

    def __init__(
        self,
        images: Pixels | np.ndarray,
        labels_N: np.ndarray,
        statistics_NCHW: np.ndarray | None = None,
    ) -> None:
        self.images, self.labels_N = images, labels_N
        self.statistics_NCHW = statistics_NCHW

    @cached_property
    def references(self) -> tuple[Any, Any]:
        """Of images and labels."""
        return ray.put(self.images), ray.put(self.labels_N)

    @cached_property
    def statistics_reference(self) -> Any:
        """Of the images for statistics; None without any."""
        return None if self.statistics_NCHW is None else ray.put(self.statistics_NCHW)


class Trials:
    """The trainings of an evaluation: which there are, where each is kept, and what is found of them.

    Args:
        sets, store, networks, seeds, num_classes, settings, identity, device_kind: see `evaluate_sets`.
        test: what they are tested on.

    Attributes:
        all: every one, network by network.
        found: what is known of those that are done.
    """

    def __init__(
        self,
        sets: Sequence[SmallSet],
        test: TestImages,
        store: Store,
        *,
        networks: Sequence[str],
        seeds: Sequence[int],
        num_classes: int,
        settings: EvaluateSettings,
        identity: Mapping[str, Any],
        device_kind: DeviceKind,
    ) -> None:
        if len({small.name for small in sets}) < len(sets):
            raise ConfigError(
                f"two of the sets {', '.join(small.name for small in sets)} have one name; rename one."
            )
        self.sets, self.networks, self._test, self._store = sets, networks, test, store
        self.all = [Trial(small.name, network, s) for network in networks for small in sets for s in seeds]
        of_set = {small.name: small.settings(settings) for small in sets}
        common = {
            **identity,
            "device": device_kind,
            "threads": THREADS,
            "version": TRAINING_VERSION,
        }
        compiled = _compiled(sets, networks, test.images.shape, num_classes, of_set, device_kind)
        self._records = _record_names(
            sets,
            self.all,
            common,
            of_set,
            test.images.shape[1:],
            num_classes,
            test.statistics_NCHW,
            compiled,
            {(t.set_name, t.network): initial_key(t.network, of_set[t.set_name]) for t in self.all},
        )
        stored = {trial: _stored(store, self._records[trial]) for trial in self.all}
        self.found = {trial: value for trial, value in stored.items() if value is not None}
        self._context = TrialContext(
            num_classes=num_classes,
            settings=of_set,
            device_kind=device_kind,
            threads=THREADS,
            compiled=compiled,
        )
        self._program, self._uneven = program(), is_uneven(test.labels_N, num_classes)

    @property
    def left(self) -> list[Trial]:
        """Those that are not done."""
        return [trial for trial in self.all if trial not in self.found]

    @cached_property
    def shared(self) -> list[Any]:
        """Arguments of `run_trial` after the trial; large ones as references."""
        draws = ray.put({small.name: dict(small.draws) for small in self.sets})
        return [draws, *self._test.references, self._context, self._test.statistics_reference]

    def keep(self, trial: Trial, value: dict[str, Any]) -> None:
        """Store what a training gave, and which program it was done by."""
        value = {**value, "program": self._program}
        self._store.write_json(self._records[trial], {**asdict(trial), **value})
        self.found[trial] = value

    def rows(self, failed: Iterable[Trial] = ()) -> list[Row]:
        """Mean and spread by network and set, of the trainings that are done."""
        images = self._test.statistics_NCHW
        count = 0 if images is None else len(images)
        return [
            row
            for network in self.networks
            for small in self.sets
            for row in _rows(small, network, self.found, failed, self._context, count, self._uneven)
        ]

    def by_seed(self, row: Row) -> dict[int, float]:
        """The accuracies that a row is the mean of, by training seed."""
        key = REAL_STATISTICS if row.statistics_images else "accuracy"
        return {
            trial.seed: value[key]
            for trial, value in self.found.items()
            if (trial.set_name, trial.network) == (row.method, row.network) and key in value
        }


def tables(rows: Sequence[Row], title: str) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and cells of the tables people see: accuracy, and the other scores where rows have them."""
    found = [(title, *table_rows(rows))]
    if any(row.balanced_mean is not None for row in rows):
        found.append(("Balanced accuracy, %", *table_rows(rows, lambda row: balanced_text(vars(row)))))
    if any(row.auc_mean is not None for row in rows):
        told = "Area under the ROC curve [95 % interval over test images]"
        found.append((told, *table_rows(rows, lambda row: auc_text(vars(row)))))
    return found


def table_rows(
    rows: Sequence[Row], text: Callable[[Row], str] = lambda row: row.text
) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of one table: a line a set, a column a network and source of its statistics."""
    networks = list(dict.fromkeys(row.column for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    cell = {(row.method, row.column): row for row in rows}
    lines = []
    for method in methods:
        own = [cell[method, network] for network in networks if (method, network) in cell]
        texts = [text(cell[method, n]) if (method, n) in cell else "failed" for n in networks]
        lines.append([method, str(own[0].stored_images), *texts, str(max(row.n for row in own))])
    return ["set", "images", *networks, "n"], lines


def remarks(rows: Sequence[Row], own: str) -> list[str]:
    """What has to be said under the table of a set: where statistics come from, and where random images do better."""
    said = []
    for count in dict.fromkeys(row.statistics_images for row in rows if row.statistics_images):
        said.append(
            f"({count} real): BatchNorm statistics re-estimated on {count} unlabelled real training images; the other"
            " columns take those of the training on the set."
        )
    for protocol in dict.fromkeys(row.protocol for row in rows if row.protocol):
        said.append(f"Trained by the protocol {protocol}, see docs/evaluate.md.")
    for row in rows:
        if row.training:
            carried = training_text(row.training)
            told = f"{OWN_TRAINING}: by what the set carries, {carried}; all others by the same protocol."
            said += [] if told in said else [told]
    lost = lost_to_random(row_dicts(rows), own)
    return said if lost is None else [*said, lost]


def print_evaluation(judged: Evaluation, *, title: str) -> None:
    """The tables on the screen, and under them what failed."""
    for table in tables(judged.rows, title) if judged.rows else ():
        print_table(*table)
    if judged.failed:
        reasons = [(trial.name, failure.reason) for trial, failure in judged.failed.items()]
        print_table("Failed trainings", ["training", "reason"], reasons)


def small_set(distilled: DistilledSet, name: str) -> SmallSet:
    """A distilled set as networks are trained on it by the common protocol: decoded."""
    images, labels = distilled.decode()
    return SmallSet(
        name=name,
        draws={None: (images.numpy(), labels.numpy())},
        stored_images=len(distilled.images_NCHW),
    )


def judged_sets(distilled: DistilledSet, name: str, *, smoke: bool = False) -> list[SmallSet]:
    """A distilled set by the common protocol, and where it carries a training of its own, by that as well.

    In a smoke run that one is short, too.
    """
    common, training = small_set(distilled, name), dict(distilled.training)
    if not training:
        return [common]
    # Steps of its own are as many as they are.
    if smoke and training.get("epochs") and not training.get("step_sizes"):
        training["epochs"] = min(training["epochs"], 2)
    return [common, replace(common, name=f"{name} {OWN_TRAINING}", training=training)]


def row_dicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain values, for the artifact and MLflow; what a row may lack only where it has it."""
    return [
        {
            name: value
            for name, value in asdict(row).items()
            if (value or name not in _MAY_LACK) and (value is not None or name not in SCORED)
        }
        for row in rows
    ]


def judges(asked: Sequence[str] | None, own: str, settings: EvaluateSettings) -> tuple[str, ...]:
    """The networks that judge a set: those asked for, or by default its own and the same with BatchNorm, or the one of
    the two that the protocol names.

    Networks with InstanceNorm see neither scale nor contrast of an image; one with BatchNorm does.
    """
    from atom import nets

    # One that is asked for twice is trained once: a training is its set, network and seed.
    if asked is not None:
        return tuple(dict.fromkeys(asked))
    sibling, norm = nets.with_batch_norm(own), PROTOCOLS[settings.protocol].norm
    related = sibling.partition("-")[0] == own.partition("-")[0]
    chosen = {"own": (own,), "batch": (sibling,) if related else (own,), "both": (own, sibling)}[norm]
    return tuple(dict.fromkeys(chosen))


def statistics_images(images: Pixels | np.ndarray, count: int) -> np.ndarray | None:
    """`count` training images at random, without labels and always the same; None for 0."""
    rows = stream(0, "evaluate/statistics").permutation(len(images))[:count]
    return np.asarray(images[rows]) if count else None


def check_networks(
    names: Sequence[str], real: RealData, *, settings: EvaluateSettings, distils: str = ""
) -> list[str]:
    """Refuse a network that no training can begin with on these images, before anything is computed.

    Args:
        names: of networks that are trained.
        real: images of the source.
        settings: of the trainings; their initial weights count.
        distils: the network that distils, if one does.

    Returns:
        What becomes of the weights that functions of the user return, a sentence a network.

    Raises:
        ConfigError: naming what is wrong with it.
    """
    from atom import nets

    channels, height, width = real.train.images.shape[1:]
    notes = []
    for name in dict.fromkeys((*names, *([distils] if distils else []))):
        build = partial(
            nets.build,
            name,
            channels=channels,
            image_size=(height, width),
            num_classes=real.train.num_classes,
        )
        if name not in names:
            build()
            continue
        kept, own = settings.initial_weights, nets.is_own(name)
        frozen, total = nets.count_frozen(
            nets.begin(build, stream(0, "evaluate/weights"), own=own, initial_weights=kept)
        )
        if own and kept == "kept":
            besides = f", {frozen:,} of {total:,} parameters frozen" if frozen else ""
            notes.append(
                f"{name}: training begins with the weights that the function returns{besides};"
                " --initial-weights drawn replaces them by random ones."
            )
        elif own:
            notes.append(f"{name}: training begins with random weights, not those that the function returns.")
    if distils and nets.is_own(distils):
        notes.append(f"{distils}: distillation takes random copies, whatever weights the function returns.")
    return notes


def initial_key(network: str, settings: EvaluateSettings) -> dict[str, str]:
    """Part of a result's key: where a training of a user's own network begins; nothing for other networks."""
    from atom import nets

    return {"initial_weights": settings.initial_weights} if nets.is_own(network) else {}


def check_baselines(names: Sequence[str] | None) -> None:
    """Refuse an unknown coreset, and one twice; None are those that nobody named.

    Raises:
        ConfigError: naming the known ones.
    """
    from atom.coreset import METHODS

    for name in names or ():
        if name not in METHODS:
            raise ConfigError(f"--baselines {name}: unknown coreset; known are {', '.join(METHODS)}.")
    if names is not None and len(set(names)) < len(names):
        raise ConfigError(f"--baselines {' '.join(names)}: one is there twice; leave it out.")


def _compiled(
    sets: Sequence[SmallSet],
    networks: Sequence[str],
    test_shape: tuple[int, ...],
    num_classes: int,
    settings: Mapping[str, EvaluateSettings],
    device_kind: DeviceKind,
) -> frozenset[tuple[str, str]]:
    """Sets and networks whose trainings are worth compiling."""
    from atom import nets
    from atom.evaluate import worth_compiling

    num_test, channels, height, width = test_shape
    found = set()
    for network in networks:
        net = nets.build(network, channels=channels, image_size=(height, width), num_classes=num_classes)
        for small in sets:
            shape = next(iter(small.draws.values()))[0].shape
            own = settings[small.name]
            if worth_compiling(net, shape, own, num_test=num_test, device_kind=device_kind):
                found.add((small.name, network))
    return frozenset(found)


def _record_names(
    sets: Sequence[SmallSet],
    trials: Sequence[Trial],
    common: Mapping[str, Any],
    settings: Mapping[str, EvaluateSettings],
    shape_CHW: tuple[int, ...],
    num_classes: int,
    statistics_NCHW: np.ndarray | None,
    compiled: frozenset[tuple[str, str]],
    starts: Mapping[tuple[str, str], Mapping[str, str]],
) -> dict[Trial, str]:
    """Where the result of each trial is kept: a name made from all that decides it, images included."""
    from atom import nets

    channels, *size = shape_CHW
    restated = {}
    if statistics_NCHW is not None:
        content = content_of(statistics_NCHW)
        for network in {trial.network for trial in trials}:
            net = nets.build(
                network, channels=channels, image_size=(size[0], size[1]), num_classes=num_classes
            )
            # The other networks have no statistics, and their results are what they were.
            restated[network] = {"statistics": content} if mixes_batch(net) else {}
    contents = {(small.name, seed): content_of(*draw) for small in sets for seed, draw in small.draws.items()}
    shape = {"channels": channels, "image_size": (size[0], size[1]), "num_classes": num_classes}
    sources = {network: nets.identity(network, **shape) for network in {trial.network for trial in trials}}
    names = {}
    for trial in trials:
        content = contents.get((trial.set_name, trial.seed)) or contents[trial.set_name, None]
        key = settings_hash(
            {
                **settings[trial.set_name].model_dump(mode="json", exclude={"initial_weights"}),
                **common,
                **restated.get(trial.network, {}),
                **starts[trial.set_name, trial.network],
                "train": content,
                "network": sources[trial.network],
                "compiled": (trial.set_name, trial.network) in compiled,
                "seed": trial.seed,
            }
        )
        names[trial] = f"results/{trial.name}-{key}.json"
    return names


def content_of(*arrays: np.ndarray) -> str:
    """Digest of the numbers of arrays, for the keys of results."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _stored(store: Store, name: str) -> dict[str, Any] | None:
    if not store.exists(name):
        return None
    try:
        value = json.loads(store.read_bytes(name))
    except ValueError:
        return None
    return value if isinstance(value, dict) and "accuracy" in value else None


def _rows(
    small: SmallSet,
    network: str,
    found: Mapping[Trial, dict[str, Any]],
    failed: Iterable[Trial],
    context: TrialContext,
    num_statistics: int,
    uneven: bool,
) -> Iterator[Row]:
    """The row of the strict protocol, and after it that with re-estimated statistics, where there is one."""
    this = (small.name, network)
    own = [value for trial, value in found.items() if (trial.set_name, trial.network) == this]
    num_failed = sum((trial.set_name, trial.network) == this for trial in failed)
    programs = distinct({"git_commit": value["program"]["git_commit"]} for value in own if "program" in value)
    for key, count in (("accuracy", 0), (REAL_STATISTICS, num_statistics)):
        having = [value for value in own if key in value]
        accuracies = [value[key] for value in having]
        if not accuracies:
            continue
        settings = context.settings[small.name]
        assert settings.epochs is not None, "settings are resolved by the driver"
        yield Row(
            method=small.name,
            network=network,
            mean=statistics.fmean(accuracies),
            std=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
            n=len(accuracies),
            epochs=settings.epochs,
            stored_images=small.stored_images,
            seconds=round(sum(value["seconds"] for value in own), 1),
            statistics_images=count,
            failed=num_failed,
            computed={
                "compiled": this in context.compiled,
                "precision": settings.eval_precision,
                "threads": context.threads,
            },
            hardware="; ".join(dict.fromkeys(value["hardware"] for value in own if "hardware" in value)),
            commits=tuple(one["git_commit"] or "not known" for one in programs),
            training=small.training,
            protocol="" if settings.protocol == "common" else settings.protocol,
            **(_scored([value.get(SCORES[key], {}) for value in having]) if uneven else {}),
        )


def _scored(scores: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Mean and spread of what all trainings have: those kept from before may lack all of it."""
    found: dict[str, float | None] = {}
    for name, key in (("balanced", "balanced_accuracy"), ("auc", "auc")):
        values = [value for one in scores if (value := one.get(key)) is not None]
        if len(values) == len(scores):
            found[f"{name}_mean"] = statistics.fmean(values)
            found[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    errors = [error for one in scores if (error := one.get("auc_error")) is not None]
    mean = found.get("auc_mean")
    if mean is not None and len(errors) == len(scores):
        found["auc_low"], found["auc_high"] = auc_interval(mean, errors)
    return found
