"""How large the gradient of each term of atom's objective is on the images, and whether it points where another does.

    python benchmarks/term_gradients.py --dataset parquet:DIR --ipc 1 --iterations 0 50 200 --out FILE

After so many iterations of --method atom, and for fresh random networks, the gradient of each term by the synthetic
images of a class: its norm as a share of the whole gradient's, and its cosine with that of the embedding term. In one
process, on one thread.
"""

# G classes, I stored images, C channels, H height, W width

import argparse
import json
import shlex
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atom import data, nets
from atom.device import describe_hardware
from atom.formation import decode
from atom.methods.lookup import find_method
from atom.methods.matching import LOSS_SCALE, Objective, class_statistics
from atom.methods.settings import DistillSettings
from atom.preprocess import Preprocess
from atom.resolve import resolve_settings
from atom.streams import stream


def gradients(net: Any, images_NCHW: Tensor, real_NCHW: Tensor, objective: Objective) -> dict[str, Tensor]:
    """Of each term, weighed as in the loss, by the images of one class, flat."""
    leaf_NCHW = images_NCHW.clone().requires_grad_()
    with torch.no_grad():
        targets = class_statistics(net, real_NCHW, num_classes=1, objective=objective)
    own = class_statistics(net, leaf_NCHW, num_classes=1, objective=objective)
    names = [f"{kind} {block + 1}" for block in range(len(own) // 2) for kind in ("spatial", "channel")]
    found = {}
    for name, target, statistic in zip([*names, "embedding"], targets, own, strict=True):
        weight = LOSS_SCALE * (objective.task_balance if name == "embedding" else 1.0)
        loss = weight * (statistic - target).square().sum()
        (gradient,) = torch.autograd.grad(loss, leaf_NCHW, retain_graph=True)
        found[name] = gradient.flatten()
    return found


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--network", default="convnet-w32")
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--iterations", type=int, nargs="+", default=[0, 50, 200])
    parser.add_argument("--batch-real", type=int, default=64)
    parser.add_argument("--networks", type=int, default=10, help="random networks at each")
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args()
    real = data.load(asked.dataset, data_dir=Path("data"))
    channels, height, width = real.train.images.shape[1:]
    shape = {"channels": channels, "height": height, "width": width, "num_classes": real.train.num_classes}
    values = {"ipc": asked.ipc, "network": asked.network, "batch_real": asked.batch_real}
    values["iterations"] = max(asked.iterations)
    settings = resolve_settings(
        DistillSettings.model_validate(values), device_kind="cpu", symbols=real.symbols, **shape
    )
    preprocess = Preprocess.fit(real.train.images, zca=settings.zca == "on", zca_eps=settings.zca_eps)
    kind = find_method("atom")
    made = kind(settings, device=torch.device("cpu"), **shape)
    net = nets.require_blocks(
        nets.build(
            asked.network, channels=channels, image_size=(height, width), num_classes=shape["num_classes"]
        ),
        asked.network,
    ).eval()
    objective = Objective(spatial=True, channel=True, power=4, task_balance=0.01)
    rows: dict[int, dict[str, list[tuple[float, float]]]] = {}
    for unit in kind.units(settings, range(shape["num_classes"])):
        of_class = {c: preprocess.apply(real.train.images[real.train.indices_of(c)]) for c in unit}
        state = made.start(unit, of_class)
        for iteration in asked.iterations:
            state = made.advance(state, iteration, unit=unit, real=of_class)
            for row, class_id in enumerate(unit):
                images_NCHW = decode(torch.from_numpy(np.asarray(state.images[row])), settings.factor)
                for number in range(asked.networks):
                    nets.fill_weights(net, stream(1, "benchmark/weights", number))
                    rng = stream(1, "benchmark/batch", number, class_id)
                    batch = rng.choice(len(of_class[class_id]), size=asked.batch_real, replace=False)
                    found = gradients(net, images_NCHW, of_class[class_id][batch], objective)
                    whole = torch.stack(list(found.values())).sum(0).norm()
                    for name, gradient in found.items():
                        cosine = torch.cosine_similarity(gradient, found["embedding"], dim=0)
                        held = rows.setdefault(iteration, {}).setdefault(name, [])
                        held.append((float(gradient.norm() / whole), float(cosine)))
    table = {
        str(iteration): {
            name: {"share": round(fmean(s for s, _ in of), 3), "cosine": round(fmean(c for _, c in of), 3)}
            for name, of in terms.items()
        }
        for iteration, terms in rows.items()
    }
    record = {"command": shlex.join(sys.argv), "hardware": describe_hardware(), "by_iteration": table}
    print(json.dumps(table, indent=1))
    if asked.out is not None:
        asked.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
