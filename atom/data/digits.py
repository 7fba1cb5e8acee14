"""scikit-learn's 8x8 digits: shipped with the package, read without a download."""

# N images, C channels, H height, W width, P pixels

import numpy as np

from atom.data import about
from atom.data.image_set import ImageSet, RealData
from atom.data.request import Request

TEST_SHARE = 5
"""The last fifth of every class, in the shipped order, is the test part; the set has no official split."""


def read_digits(request: Request) -> RealData:
    """1,797 grey images of 8x8 pixels in 10 classes, values 0..16 scaled to 0..255."""
    from sklearn.datasets import load_digits  # a second of import time, needed by this source only

    values_NP, labels_N = load_digits(return_X_y=True)
    images_NCHW = np.round(np.asarray(values_NP).reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)
    everything = ImageSet.create(images_NCHW, np.asarray(labels_N), about.DIGIT_NAMES)
    is_test = np.zeros(len(everything), dtype=bool)
    for class_id in range(everything.num_classes):
        indices = everything.indices_of(class_id)
        is_test[indices[len(indices) - len(indices) // TEST_SHARE :]] = True
    train = everything.subset(np.flatnonzero(~is_test))
    return RealData(
        request.name, request.spec, train, everything.subset(np.flatnonzero(is_test)), about.DIGITS
    )
