"""Small distilled sets for the tests of the artifact."""

import torch

from atom.distilled import DistilledSet
from atom.preprocess import Preprocess

SOURCE = {
    "name": "cifar10",
    "spec": "parquet:cifar10",
    "fingerprint": "ab12",
    "title": "CIFAR-10",
    "citation": "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    "licence": "The authors state no licence and ask to be cited.",
    "homepage": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "image_shape": [3, 8, 6],
    "num_train": 40,
}
RESULTS = (
    {"method": "atom", "network": "convnet", "mean": 31.5, "std": 0.7, "n": 5, "epochs": 300},
    {"method": "random", "network": "convnet", "mean": 14.2, "std": 0.6, "n": 5, "epochs": 300},
)


def make_set(
    *,
    num_classes: int = 4,
    ipc: int = 2,
    channels: int = 3,
    height: int = 8,
    width: int = 6,
    zca: bool = True,
    seed: int = 0,
    **changes: object,
) -> DistilledSet:
    """A set of noise with a preprocessing fitted on noise."""
    rng = torch.Generator().manual_seed(seed)
    real = torch.randint(0, 256, (40, channels, height, width), generator=rng, dtype=torch.uint8)
    preprocess = Preprocess.fit(real, zca=zca)
    fields = {
        "images_NCHW": preprocess.apply(real)[torch.arange(num_classes * ipc) % 40],
        "labels": torch.arange(num_classes).repeat_interleave(ipc),
        "class_names": tuple(f"class {index}" for index in range(num_classes)),
        "ipc": ipc,
        "method": "atom",
        "preprocess": preprocess,
        "settings": {"seed": seed, "matching": {"power": 4, "dsa": ("flip", "crop")}},
        "source": SOURCE,
        "versions": {"torch": "2.15"},
        "git_commit": "0123abc",
        "results": RESULTS,
    }
    return DistilledSet(**(fields | changes))  # type: ignore[arg-type]
