"""The best networks by the first proxy, trained on the whole training set; the best of them is delivered.

Each training leaves its weights and then a record under `retrain/`, which a later driver takes up. That is not inside
`winner/`, since that directory appears, and is replaced, as a whole.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Any

from safetensors.torch import load

from apps.nas.proxies import WHOLE, Proxy
from apps.nas.space import Space
from apps.nas.trial import Images, Recipe, Unit, train_unit
from apps.nas.winner import CONFIG, MODEL, PREPROCESS, model_bytes
from atom.device import resolve_device
from atom.settings import DeviceKind
from pipelines.architecture.case import NasCase
from pipelines.architecture.proxies import MAIN, Material, keys_of
from pipelines.architecture.remote import RealArrays
from pipelines.architecture.scores import Scores
from pipelines.architecture.winner_files import WINNER, Record, config_of, deliver, row_of
from pipelines.console.command import say
from pipelines.console.progress import Progress
from pipelines.console.signals import StopSignal
from pipelines.output.provenance import program
from pipelines.output.records import add_seconds, note_maker
from pipelines.output.store import Store
from pipelines.serving import served_model
from pipelines.tracking import Registered, Tracker
from pipelines.workers.cluster import as_images, as_tensor
from pipelines.workers.faults import Failure
from pipelines.workers.remote import network_slug
from pipelines.workers.tasks import run_tasks

WORK = "retrain"
_NUMBERS = ("score", "test_accuracy", "steps", "train_seconds", "score_seconds")


@dataclass
class Winners:
    """What became of the best networks.

    Attributes:
        stopped: whether a signal ended it early; then nothing was delivered.
        failed: why a training came to nothing, after retries.
        rows: one a network with at least one training, the best by the proxy first: its name, proxy score, mean and
            standard deviation (None for one training) over n trainings of validation and test accuracy in
            percent, parameters, multiply-adds (None where unknown), and whether it is the one delivered.
        directory: where the delivered network lies; empty if none was.
        seconds: of workers in these trainings, of all drivers.
    """

    stopped: bool = False
    failed: dict[Unit, Failure] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    directory: str = ""
    seconds: float = 0.0


def retrain(case: NasCase, best: Mapping[str, float], stop: StopSignal) -> Winners:
    """Train the first `--retrain` networks with every seed, and deliver the best of them.

    A training is the reference's of the same seed, so its accuracy is the same too. Network and seed are chosen by
    validation accuracy alone: first the network with the best mean, then its best seed.

    Args:
        case: with everything decided.
        best: scores by network, the best first.
        stop: ends it when set.

    Raises:
        StoreError: the output cannot be written.
    """
    chosen = dict(list(best.items())[: case.retrains])
    if len(chosen) < case.retrains:
        which = "reached the top of the ladder" if case.searches else "have a score for every seed"
        say(f"Note: --retrain {case.retrains}: {len(chosen)} networks {which}, so no more are retrained.")
    material = _with_whole(case.material, len(case.real.train.labels))
    units = [Unit(name, WHOLE, seed) for name in chosen for seed in range(case.command.nas.retrain_seeds)]
    keys = keys_of(units, material, case.space, case.recipe, case.device_kind)
    names = {unit: f"{WORK}/{network_slug(unit.network)}-s{unit.seed}-{keys[unit]}" for unit in units}
    found: dict[Unit, Record] = {}
    for unit, name in names.items():
        stored = _stored(case.store, name)
        if stored is not None:
            found[unit] = stored
    result = _train(case, units, material.named(WHOLE), names, found, stop)
    if result.stopped or not found:
        return result
    own = {name: {u.seed: found[u] for u in units if u in found and u.network == name} for name in chosen}
    own = {name: records for name, records in own.items() if records}
    result.seconds = sum(record["train_seconds"] + record["score_seconds"] for record in found.values())
    means = {name: fmean(record["score"] for record in records.values()) for name, records in own.items()}
    winner = max(means, key=means.__getitem__)  # of equals the first, which the proxy prefers
    result.rows = [
        row_of(case.space.by_name[name], chosen[name], records, delivered=name == winner)
        for name, records in own.items()
    ]
    seed = max(own[winner], key=lambda s: own[winner][s]["score"])
    config = config_of(case, winner, own[winner], seed, proxy_score=chosen[winner], networks=len(best))
    deliver(case, config, case.store.read_bytes(f"{names[Unit(winner, WHOLE, seed)]}.safetensors"))
    result.directory = case.store.where(WINNER)
    return result


def ranked(case: NasCase, scored: Scores) -> dict[str, float]:
    """Mean scores by the first proxy of all networks that have one for every seed, the best first."""
    name = case.primary.name
    failed = {row.network for row in scored.failed if row.proxy == name}
    return case.best_first(
        {network: mean for network, mean in scored.means(name).items() if network not in failed}
    )


def train_winner(
    unit: Unit,
    real: Mapping[str, RealArrays],
    proxy: Proxy,
    space: Space,
    recipe: Recipe,
    device_kind: DeviceKind,
) -> tuple[dict[str, Any], bytes]:
    """Fields of the score, and the weights as safetensors: what a Ray task does."""
    device = resolve_device(device_kind)
    parts = {
        part: (as_images(images).to(device), as_tensor(labels_N).to(device))
        for part, (images, labels_N) in real[proxy.real].items()
    }
    images = {proxy.real: Images(**parts)}
    net, score = train_unit(unit, proxy, space=space, small={}, real=images, recipe=recipe, device=device)
    return asdict(score), model_bytes(net, network=unit.network, seed=unit.seed)


def log_winner(case: NasCase, tracker: Tracker, stop: StopSignal) -> None:
    """The delivered network as a model in MLflow, registered by the name of the images; see `Tracker.log_model`."""
    config = json.loads(case.store.read_bytes(f"{WINNER}/{CONFIG}"))
    weights, preprocess = (load(case.store.read_bytes(f"{WINNER}/{name}")) for name in (MODEL, PREPROCESS))
    height, width = config["image_size"]
    with stop.polling():
        model = served_model(
            partial(case.space.build, config["network"]),
            {name: tensor.numpy() for name, tensor in weights.items()},
            {name: tensor.numpy() for name, tensor in preprocess.items()},
            classes=config["class_names"],
            shape=(config["channels"], height, width),
            resize=case.command.data.image_size,
            num_cpus=case.size.cpus,
            limits=case.limits,
            stop=stop,
        )
    if model is not None:
        at = Registered(
            f"nas-{network_slug(case.real.name)}", owner="atom-nas", version=config["sha256"][MODEL][:16]
        )
        tracker.log_model(model, at)


def _train(
    case: NasCase,
    units: Sequence[Unit],
    proxy: Proxy,
    names: Mapping[Unit, str],
    found: dict[Unit, Record],
    stop: StopSignal,
) -> Winners:
    """Train what has no record yet, and add everything to `found`."""
    left = [unit for unit in units if unit not in found]
    if not left:
        return Winners()
    begun_s = time.monotonic()
    note_maker(case.store, case.size)
    with Progress(
        "retraining", len(units), num_items=len(units), unit="trainings", item="trainings", done=len(found)
    ) as progress:

        def keep(unit: Unit, value: tuple[dict[str, Any], bytes]) -> None:
            score, weights = value
            record = {**asdict(unit), **score, **program(), "sha256": hashlib.sha256(weights).hexdigest()}
            # In this order: a record says that its weights are there.
            case.store.write_bytes(f"{names[unit]}.safetensors", weights)
            case.store.write_json(f"{names[unit]}.json", record)
            found[unit] = record
            progress.update(len(found), items_done=len(found))

        with stop.polling():
            outcome = run_tasks(
                train_winner,
                left,
                shared=[case.shared().real, proxy, case.space, case.recipe, case.device_kind],
                size=case.size,
                kind=lambda unit: unit.network,
                limits=case.limits,
                on_result=keep,
                on_tick=lambda _: progress.update(len(found), items_done=len(found)),
                stop=stop,
            )
    add_seconds(case.store, "retrain_s", time.monotonic() - begun_s)
    return Winners(stopped=outcome.stopped, failed=outcome.failed)


def _with_whole(material: Material, num_train: int) -> Material:
    """The material with the whole training set as a proxy, whether or not it is the reference too."""
    if any(proxy.name == WHOLE for proxy in material.proxies):
        return material
    return replace(material, proxies=(*material.proxies, Proxy(WHOLE, "whole", MAIN, num_train)))


def _stored(store: Store, name: str) -> Record | None:
    """The record of a training whose weights are there and whole."""
    if not store.exists(f"{name}.json") or not store.exists(f"{name}.safetensors"):
        return None
    try:
        record = json.loads(store.read_bytes(f"{name}.json"))
    except ValueError:
        return None
    if not isinstance(record, dict) or not {*_NUMBERS, "sha256"} <= record.keys():
        return None
    digest = hashlib.sha256(store.read_bytes(f"{name}.safetensors")).hexdigest()
    return record if digest == record["sha256"] else None
