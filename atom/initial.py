"""Where the synthetic images of a class start: real images, a coreset of them, or noise."""

# n real images of the class, I images per class, C channels, H height, W width

import numpy as np
import torch
from torch import Tensor

from atom import coreset
from atom.embedding import embed
from atom.errors import ConfigError
from atom.formation import encode
from atom.settings import DistillSettings
from atom.streams import stream


def initial_images(
    real_NCHW: Tensor, settings: DistillSettings, *, class_id: int, num_classes: int
) -> Tensor:
    """Stored images [I, C, H, W] of one class before the first step, float32, on the CPU.

    With a factor f every stored image begins as a grid of f x f shrunken real ones.

    Args:
        real_NCHW: the class's preprocessed images, float32, on the CPU.
        settings: resolved; init, ipc, factor, network, precision and seed are read.
        class_id: counter of the stream.
        num_classes: of the whole source, for the network that herding and k-center look through.

    Raises:
        ConfigError: the class has fewer images than the start needs.
    """
    rng = stream(settings.seed, "distill/init", 0, class_id)
    if settings.init == "noise":
        noise = rng.standard_normal((settings.ipc, *real_NCHW.shape[1:]), dtype=np.float32)
        return torch.from_numpy(noise)
    count = settings.ipc * settings.factor**2
    if count > len(real_NCHW):
        raise ConfigError(
            f"class {class_id} has {len(real_NCHW)} training images, but --ipc {settings.ipc} with --factor"
            f" {settings.factor} starts from {count}; pass a smaller --ipc or --init noise."
        )
    method = "random" if settings.init == "real" else settings.init
    features_ND = real_NCHW.flatten(1)
    if method != "random":
        features_ND = embed(
            real_NCHW,
            settings.network,
            num_classes=num_classes,
            seed=settings.seed,
            precision=settings.precision,
        )
    rows = coreset.select(method, features_ND.numpy(), count=count, rng=rng)
    return encode(real_NCHW[torch.from_numpy(rows)], settings.factor)
