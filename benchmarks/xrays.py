"""What networks learn from a whole medical set, and whether distilled images are copies of real ones.

Beside the tables of `atom-distill` in docs/xrays.md: networks trained on all training images, judged in the same way;
and for every image of distilled sets the two training images that it correlates with most, beside the same of training
images with the others. Sets that started from images drawn at random know which these were: their rank among all
training images says whether who holds these finds them again, 1 being the first guess.

python benchmarks/xrays.py pneumoniamnist.npz --sets runs/xrays-laptop --out whole.json
"""

# N training images, M distilled images, D pixels

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from atom.data import RealData, load
from atom.device import describe_hardware
from atom.distilled import DistilledSet
from atom.evaluate import evaluate
from atom.initial import initial_images
from atom.methods.settings import DistillSettings
from atom.preprocess import Preprocess
from atom.scores import auc_interval
from atom.settings import EvaluateSettings
from atom.streams import stream


def whole(real: RealData, network: str, settings: EvaluateSettings, seeds: int) -> dict[str, Any]:
    """Scores of networks trained on all training images."""
    preprocess = Preprocess.fit(real.train.images, zca=False)
    result = evaluate(
        preprocess.apply(real.train.images),
        real.train.labels,
        test_images=preprocess.apply(real.test.images),
        test_labels=real.test.labels,
        network=network,
        num_classes=real.train.num_classes,
        seeds=range(seeds),
        settings=settings,
        device=torch.device("cpu"),
        threads=1,
        symbols=False,
    )
    areas = [one.auc for one in result.scores if one.auc is not None]
    errors = [one.auc_error for one in result.scores if one.auc_error is not None]
    values = {
        "accuracy": result.accuracies,
        "balanced_accuracy": [one.balanced_accuracy for one in result.scores],
        "auc": areas,
    }
    return {
        **{name: {"mean": fmean(v), "std": stdev(v) if len(v) > 1 else None} for name, v in values.items()},
        "auc_interval": auc_interval(fmean(areas), errors),
        "n": len(result.accuracies),
        "train_seconds": fmean(result.train_seconds),
    }


def most_alike(
    images_MD: Tensor, others_ND: Tensor, *, own_rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The two highest correlations [M, 2] with others, brightness and contrast aside, and their rows [M, 2]."""
    alike_MN = _unit(images_MD) @ _unit(others_ND).T
    if own_rows is not None:
        alike_MN[torch.arange(len(own_rows)), own_rows] = -1
    values, rows = alike_MN.topk(2, dim=1)
    return values, rows


def rank_of_start(
    distilled: DistilledSet, images_MD: Tensor, real: RealData, train_ND: Tensor
) -> list[int] | None:
    """Place of the image that each distilled one started from among all, the most alike first; None where unknown."""
    told = distilled.settings
    settings = DistillSettings(
        ipc=distilled.ipc, init=str(told["init"]), seed=int(told["seed"]), method=distilled.method
    )
    if settings.init != "real" or distilled.factor != 1 or settings.method == "datm":
        return None
    starts_MD = torch.cat(
        [
            initial_images(
                train_ND[real.train.indices_of(c)].unflatten(1, real.train.images.shape[1:]),
                settings,
                class_id=c,
                num_classes=real.train.num_classes,
            ).flatten(1)[:count]
            for c, count in enumerate(distilled.per_class)
        ]
    )
    alike_MN = _unit(images_MD) @ _unit(train_ND).T
    own_M = (_unit(images_MD) * _unit(starts_MD)).sum(dim=1)
    # A little less than its own, for the sums of a product of matrices come in another order.
    return (1 + (alike_MN > own_M[:, None] + 1e-5).sum(dim=1)).tolist()


def _unit(images_ND: Tensor) -> Tensor:
    return torch.nn.functional.normalize(images_ND - images_ND.mean(dim=1, keepdim=True), dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="a set in MedMNIST's layout")
    parser.add_argument("--test-part", default="test", help="test, or val to choose by")
    parser.add_argument("--network", default="convnet-w32-d3", help="the judge")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the whole set")
    parser.add_argument("--batch-train", type=int, default=64, help="images a step")
    parser.add_argument("--trainings", type=int, default=3, help="networks; 0: none")
    parser.add_argument("--sets", type=Path, nargs="*", default=[], help="distilled sets of the same images")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    told = parser.parse_args()
    real = load(f"npz:{told.data}", data_dir=Path("unused"), test_part=told.test_part)
    record: dict[str, Any] = {"hardware": describe_hardware(), "fingerprint": real.train.fingerprint}
    if told.trainings:
        settings = EvaluateSettings(epochs=told.epochs, batch_train=told.batch_train)
        record["whole"] = whole(real, told.network, settings, told.trainings)
    train_ND = torch.from_numpy(real.train.images).flatten(1).float() / 255
    rows = torch.from_numpy(stream(0, "benchmark/neighbours").permutation(len(train_ND))[:500])
    among_real, _ = most_alike(train_ND[rows], train_ND, own_rows=rows)
    for name, values in (
        ("first", among_real[:, 0]),
        ("first - second", among_real[:, 0] - among_real[:, 1]),
    ):
        record[f"real with real, {name}"] = {q: float(values.quantile(q)) for q in (0.05, 0.5, 0.95)}
    for place in told.sets:
        distilled = DistilledSet.load(place)
        pixels_MD = distilled.pixels().flatten(1)
        values, found = most_alike(pixels_MD, train_ND)
        record[f"{place.name} with real"] = {
            "first": values[:, 0].tolist(),
            "first - second": (values[:, 0] - values[:, 1]).tolist(),
            "row": found[:, 0].tolist(),
            "rank of the start": rank_of_start(distilled, pixels_MD, real, train_ND),
        }
    print(json.dumps(record, indent=1))
    if told.out:
        told.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
