"""What is told and delivered of networks trained on the whole set: the lines of tables, and the winner's directory."""

import math
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from safetensors.torch import load

from apps.nas.answer import Choice
from apps.nas.space import Candidate
from apps.nas.winner import winner_files
from atom.distilled import without_folders
from atom.preprocess import Preprocess
from pipelines.output.provenance import UNKNOWN_PROGRAM
from pipelines.real_images import PREPROCESS_NAME

if TYPE_CHECKING:
    from pipelines.architecture.case import NasCase

WINNER = "winner"

Record = Mapping[str, Any]
"""Of one training: the fields of `apps.nas.trial.Score`, and `sha256` of its weights."""


def _spread(records: Mapping[int, Record], key: str) -> dict[str, Any]:
    values = [record[key] for record in records.values()]
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else None, "n": len(values)}


def row_of(
    candidate: Candidate, proxy_score: float, records: Mapping[int, Record], *, delivered: bool
) -> dict[str, Any]:
    """A network's line in tables; see `pipelines.architecture.winner.Winners`."""
    validation, test = _spread(records, "score"), _spread(records, "test_accuracy")
    return {
        "network": candidate.name,
        "proxy score": proxy_score,
        "validation mean": validation["mean"],
        "validation std": validation["std"],
        "test mean": test["mean"],
        "test std": test["std"],
        "n": test["n"],
        "parameters": candidate.parameters,
        "multiply_adds": candidate.multiply_adds,
        "delivered": delivered,
    }


def choice_of(row: Mapping[str, Any], latency_ms: float | None = None) -> Choice:
    """A network's line of `row_of` as something to take."""
    return Choice(
        row["network"],
        row["validation mean"],
        row["validation std"],
        row["test mean"],
        row["test std"],
        row["n"],
        row["parameters"],
        row["multiply_adds"],
        latency_ms,
    )


def config_of(
    case: "NasCase",
    network: str,
    records: Mapping[int, Record],
    seed: int,
    *,
    proxy_score: float,
    networks: int,
) -> dict[str, Any]:
    """The fields of `apps.nas.winner.Config`."""
    candidate, real, space = case.space.by_name[network], case.real, case.space
    assert real.validation is not None, "the command asks for a validation part"
    settings = case.recipe.settings.model_dump(mode="json")
    score = proxy_score if math.isfinite(proxy_score) else None  # JSON knows no infinity
    return {
        "network": network,
        "space": without_folders(space.spec),
        "identity": candidate.identity,
        "channels": space.channels,
        "image_size": list(space.image_size),
        "num_classes": space.num_classes,
        "class_names": list(real.train.class_names),
        "seed": seed,
        "parameters": candidate.parameters,
        "multiply_adds": candidate.multiply_adds,
        "chosen_by": {"proxy": case.deciding, "score": score, "networks": networks},
        "training": {**settings, "epochs": case.recipe.whole_epochs, "device": case.device_kind},
        "validation_accuracy": {**_spread(records, "score"), "delivered": records[seed]["score"]},
        "test_accuracy": {**_spread(records, "test_accuracy"), "delivered": records[seed]["test_accuracy"]},
        "data": {
            "spec": real.kind,
            "fingerprint": real.train.fingerprint,
            "validation_fingerprint": real.validation.fingerprint,
            "test_fingerprint": real.test.fingerprint,
            "validation_frac": case.command.data.validation_frac,
        },
        # Of the driver that trained what is delivered, which need not be this one.
        **{name: records[seed].get(name, UNKNOWN_PROGRAM[name]) for name in ("versions", "git_commit")},
    }


def _preprocess(case: "NasCase") -> Preprocess:
    """Of the images that proxies without a set of their own are trained on, the whole training set among them."""
    if case.given:
        return case.given[0][0].preprocess
    return Preprocess.from_tensors(load(case.store.read_bytes(PREPROCESS_NAME)))


def deliver(case: "NasCase", config: Mapping[str, Any], model: bytes) -> None:
    """Put the files of `apps.nas.winner` into the output, all at once; `model` are the weights chosen.

    Raises:
        StoreError: the output cannot be written.
    """
    files = winner_files(
        config,
        model,
        preprocess=_preprocess(case),
        title=case.real.source.title,
    )
    with case.store.publish_directory(WINNER) as staging:
        for name, content in files.items():
            (staging / name).write_bytes(content)
