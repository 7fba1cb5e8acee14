"""A distilled set of two classes of small images, made of noise."""

# N images, C channels, H height, W width

import numpy as np
import torch

from atom.distilled import DistilledSet
from atom.preprocess import Preprocess


def some_set(*, images: int) -> DistilledSet:
    """So many images of 5x4 pixels of each of two classes."""
    pixels_NCHW = np.random.default_rng(0).integers(0, 256, (2 * images, 3, 5, 4), dtype=np.uint8)
    preprocess = Preprocess.fit(pixels_NCHW, zca=False, zca_eps=0.1)
    return DistilledSet(
        images_NCHW=preprocess.apply(pixels_NCHW),
        labels=torch.arange(2).repeat_interleave(images),
        class_names=("cat", "dog"),
        ipc=images,
        method="atom",
        preprocess=preprocess,
    )
