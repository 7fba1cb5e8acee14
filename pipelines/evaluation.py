"""How good are small sets: networks trained on each as Ray tasks, every finished training kept on disk."""

import hashlib
import json
import statistics
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import ray

from atom.data import RealData
from atom.distilled import DistilledSet
from atom.errors import ConfigError
from atom.nets.layers import mixes_batch
from atom.rivals import accuracy_text, lost_to_random, network_label
from atom.settings import DeviceKind, EvaluateSettings
from atom.streams import stream
from atom.train import TRAINING_VERSION
from pipelines.console.progress import Progress, print_table
from pipelines.output.ownership import settings_hash
from pipelines.output.provenance import distinct, program
from pipelines.output.store import Store
from pipelines.workers.faults import Failure
from pipelines.workers.pool import Limits
from pipelines.workers.remote import REAL_STATISTICS, Trial, TrialContext, run_trial
from pipelines.workers.tasks import run_tasks


@dataclass(frozen=True, eq=False)
class SmallSet:
    """What a network is trained on: preprocessed float32 images and targets, one pair a training seed.

    The targets are int64 labels, or float32 probabilities of each class, which `_content` hashes alike.

    Attributes:
        name: such as "atom" or "random".
        draws: by training seed, or under None for all seeds. Random coresets are drawn anew for each seed,
            so that their spread holds that of the draw.
        stored_images: images counted as storage.
    """

    name: str
    draws: Mapping[int | None, tuple[np.ndarray, np.ndarray]]
    stored_images: int


@dataclass(frozen=True)
class Row:
    """Accuracy of one network on one small set, in percent, over `n` trainings; a single one has no spread.

    Beside them `failed` trainings came to no accuracy, such as diverged ones. `computed` says what decides bits besides
    the settings: whether the network was compiled, the arithmetic, the CPU threads.
    With `statistics_images` above 0 the network's BatchNorm statistics were re-estimated on so many unlabelled real
    images before the test; with 0 they are those of its training on the set. `hardware` and `commits` are those of the
    trainings when they were done, each once; a later run finds these trainings and adds nothing of its own.
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

_MAY_LACK = ("statistics_images", "failed", "computed", "hardware", "commits")


@dataclass
class Evaluation:
    """Rows by set and network; failures by trial."""

    rows: list[Row] = field(default_factory=list)
    failed: dict[Trial, Failure] = field(default_factory=dict)
    stopped: bool = False


def evaluate_sets(
    sets: Sequence[SmallSet],
    test: tuple[np.ndarray, np.ndarray],
    store: Store,
    *,
    networks: Sequence[str],
    seeds: Sequence[int],
    num_classes: int,
    settings: EvaluateSettings,
    identity: Mapping[str, Any],
    device_kind: DeviceKind,
    gpus_per_task: float,
    max_in_flight: int | None = None,
    limits: Limits | None = None,
    stop: threading.Event | None = None,
    statistics_NCHW: np.ndarray | None = None,
) -> Evaluation:
    """Train every network on every set with every seed, test each once, and collect mean and spread.

    Args:
        sets: what to train on.
        test: preprocessed test images and labels; read once per trained network, after its last epoch.
        store: finished trainings are kept under results/ and not repeated.
        networks, seeds: names and training seeds.
        num_classes: of the source.
        settings: resolved.
        identity: what the test images are; with it, the settings, the network's source and the very images
            trained on name a stored result, so that none is taken for another's.
        device_kind, gpus_per_task: where a task computes; on a CPU it is one thread, so that results do not
            depend on the machine's size.
        max_in_flight: trainings at once; default as many as the cluster holds.
        limits: retries and time limits.
        stop: ends it early when set.
        statistics_NCHW: preprocessed real training images to re-estimate BatchNorm statistics on, for a second row of
            the networks that have them.
    """
    by_name = {small.name: small for small in sets}
    if len(by_name) < len(sets):
        raise ConfigError(
            f"two of the sets {', '.join(small.name for small in sets)} have one name; rename one."
        )
    trials = [Trial(small.name, network, s) for network in networks for small in sets for s in seeds]
    common = {
        **settings.model_dump(mode="json", exclude={"initial_weights"}),
        **identity,
        "device": device_kind,
        "threads": THREADS,
        "version": TRAINING_VERSION,
    }
    num_statistics = 0 if statistics_NCHW is None else len(statistics_NCHW)
    compiled = _compiled(sets, networks, test[0], num_classes, settings, device_kind)
    starts = {network: initial_key(network, settings) for network in networks}
    records = _record_names(
        sets, trials, common, test[0].shape[1:], num_classes, statistics_NCHW, compiled, starts
    )
    found = {trial: stored for trial in trials if (stored := _stored(store, records[trial])) is not None}
    context = TrialContext(
        num_classes=num_classes,
        settings=settings,
        device_kind=device_kind,
        threads=THREADS,
        compiled=compiled,
    )
    shared = [
        ray.put({small.name: dict(small.draws) for small in sets}),
        ray.put(test[0]),
        ray.put(test[1]),
        context,
        None if statistics_NCHW is None else ray.put(statistics_NCHW),
    ]
    result, now = Evaluation(), program()
    with Progress(
        "evaluating", len(trials), num_items=len(trials), unit="trainings", item="trainings", done=len(found)
    ) as progress:

        def keep(trial: Trial, value: dict[str, Any]) -> None:
            value = {**value, "program": now}
            store.write_json(records[trial], {**asdict(trial), **value})
            found[trial] = value
            progress.update(len(found), items_done=len(found))

        outcome = run_tasks(
            run_trial,
            [trial for trial in trials if trial not in found],
            shared=shared,
            num_cpus=0 if gpus_per_task else 1,
            num_gpus=gpus_per_task,
            max_in_flight=max_in_flight,
            kind=lambda trial: (trial.set_name, trial.network),
            limits=limits,
            on_result=keep,
            on_tick=lambda _: progress.update(len(found), items_done=len(found)),
            stop=stop,
        )
    result.failed, result.stopped = outcome.failed, outcome.stopped
    result.rows = [
        row
        for network in networks
        for small in sets
        for row in _rows(by_name[small.name], network, found, outcome.failed, context, num_statistics)
    ]
    return result


def table_rows(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the table people see: a line a set, a column a network and source of its statistics."""
    networks = list(dict.fromkeys(row.column for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    cell = {(row.method, row.column): row for row in rows}
    lines = []
    for method in methods:
        own = [cell[method, network] for network in networks if (method, network) in cell]
        texts = [cell[method, n].text if (method, n) in cell else "failed" for n in networks]
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
    lost = lost_to_random(row_dicts(rows), own)
    return said if lost is None else [*said, lost]


def print_evaluation(judged: Evaluation, *, title: str) -> None:
    """The table on the screen, and under it what failed."""
    if judged.rows:
        print_table(title, *table_rows(judged.rows))
    if judged.failed:
        reasons = [(trial.name, failure.reason) for trial, failure in judged.failed.items()]
        print_table("Failed trainings", ["training", "reason"], reasons)


def set_name(distilled: DistilledSet, baselines: Sequence[str]) -> str:
    """How tables call a set: by its method, unless a coreset beside it has that name."""
    return f"set ({distilled.method})" if distilled.method in baselines else distilled.method


def small_set(distilled: DistilledSet, name: str) -> SmallSet:
    """A distilled set as networks are trained on it: decoded."""
    images, labels = distilled.decode()
    return SmallSet(
        name=name,
        draws={None: (images.numpy(), labels.numpy())},
        stored_images=len(distilled.images_NCHW),
    )


def row_dicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain values, for the artifact and MLflow; what a row may lack only where it has it."""
    return [
        {name: value for name, value in asdict(row).items() if value or name not in _MAY_LACK} for row in rows
    ]


def judges(asked: Sequence[str] | None, own: str) -> tuple[str, ...]:
    """The networks that judge a set: those asked for, or by default its own and the same with BatchNorm.

    Networks with InstanceNorm see neither scale nor contrast of an image; one with BatchNorm does.
    """
    from atom import nets

    return tuple(asked) if asked is not None else tuple(dict.fromkeys((own, nets.with_batch_norm(own))))


def statistics_images(images_NCHW: np.ndarray, count: int) -> np.ndarray | None:
    """`count` training images at random, without labels and always the same; None for 0."""
    if not count:
        return None
    rows = stream(0, "evaluate/statistics").permutation(len(images_NCHW))[:count]
    return images_NCHW[rows]


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


def check_baselines(names: Sequence[str]) -> None:
    """Refuse an unknown coreset.

    Raises:
        ConfigError: naming the known ones.
    """
    from atom.coreset import METHODS

    for name in names:
        if name not in METHODS:
            raise ConfigError(f"--baselines {name}: unknown coreset; known are {', '.join(METHODS)}.")


def _compiled(
    sets: Sequence[SmallSet],
    networks: Sequence[str],
    test_NCHW: np.ndarray,
    num_classes: int,
    settings: EvaluateSettings,
    device_kind: DeviceKind,
) -> frozenset[tuple[str, str]]:
    """Sets and networks whose trainings are worth compiling."""
    from atom import nets
    from atom.evaluate import worth_compiling

    channels, height, width = test_NCHW.shape[1:]
    found = set()
    for network in networks:
        net = nets.build(network, channels=channels, image_size=(height, width), num_classes=num_classes)
        for small in sets:
            shape = next(iter(small.draws.values()))[0].shape
            if worth_compiling(net, shape, settings, num_test=len(test_NCHW), device_kind=device_kind):
                found.add((small.name, network))
    return frozenset(found)


def _record_names(
    sets: Sequence[SmallSet],
    trials: Sequence[Trial],
    common: Mapping[str, Any],
    shape_CHW: tuple[int, ...],
    num_classes: int,
    statistics_NCHW: np.ndarray | None,
    compiled: frozenset[tuple[str, str]],
    starts: Mapping[str, Mapping[str, str]],
) -> dict[Trial, str]:
    """Where the result of each trial is kept: a name made from all that decides it, images included."""
    from atom import nets

    channels, *size = shape_CHW
    restated = {}
    if statistics_NCHW is not None:
        content = _content(statistics_NCHW)
        for network in {trial.network for trial in trials}:
            net = nets.build(
                network, channels=channels, image_size=(size[0], size[1]), num_classes=num_classes
            )
            # The other networks have no statistics, and their results are what they were.
            restated[network] = {"statistics": content} if mixes_batch(net) else {}
    contents = {(small.name, seed): _content(*draw) for small in sets for seed, draw in small.draws.items()}
    shape = {"channels": channels, "image_size": (size[0], size[1]), "num_classes": num_classes}
    sources = {network: nets.identity(network, **shape) for network in {trial.network for trial in trials}}
    names = {}
    for trial in trials:
        content = contents.get((trial.set_name, trial.seed)) or contents[trial.set_name, None]
        key = settings_hash(
            {
                **common,
                **restated.get(trial.network, {}),
                **starts[trial.network],
                "train": content,
                "network": sources[trial.network],
                "compiled": (trial.set_name, trial.network) in compiled,
                "seed": trial.seed,
            }
        )
        names[trial] = f"results/{trial.name}-{key}.json"
    return names


def _content(*arrays: np.ndarray) -> str:
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
) -> Iterator[Row]:
    """The row of the strict protocol, and after it that with re-estimated statistics, where there is one."""
    this = (small.name, network)
    own = [value for trial, value in found.items() if (trial.set_name, trial.network) == this]
    num_failed = sum((trial.set_name, trial.network) == this for trial in failed)
    programs = distinct({"git_commit": value["program"]["git_commit"]} for value in own if "program" in value)
    for key, count in (("accuracy", 0), (REAL_STATISTICS, num_statistics)):
        accuracies = [value[key] for value in own if key in value]
        if not accuracies:
            continue
        assert context.settings.epochs is not None, "settings are resolved by the driver"
        yield Row(
            method=small.name,
            network=network,
            mean=statistics.fmean(accuracies),
            std=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
            n=len(accuracies),
            epochs=context.settings.epochs,
            stored_images=small.stored_images,
            seconds=round(sum(value["seconds"] for value in own), 1),
            statistics_images=count,
            failed=num_failed,
            computed={
                "compiled": this in context.compiled,
                "precision": context.settings.eval_precision,
                "threads": context.threads,
            },
            hardware="; ".join(dict.fromkeys(value["hardware"] for value in own if "hardware" in value)),
            commits=tuple(one["git_commit"] or "not known" for one in programs),
        )
