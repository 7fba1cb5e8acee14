"""What runs on the cluster for an audit: one training, and the losses of real images after it."""

# N images of a set, T images asked about, C channels, H height, W width, K classes

from collections.abc import Mapping

import numpy as np

from pipelines.workers.cluster import as_tensor
from pipelines.workers.remote import Trial, TrialContext


def run_losses(
    trial: Trial,
    sets: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    asked_TCHW: np.ndarray,
    asked_labels_T: np.ndarray,
    context: TrialContext,
) -> np.ndarray:
    """Loss of every image asked about, and after these of every image of the set itself, float32 [T + N].

    Args:
        trial: what to train.
        sets: by name: images [N, C, H, W], what they are trained on, int64 [N] or float32 [N, K], and their classes.
        asked_TCHW, asked_labels_T: preprocessed real images and their labels.
        context: settings and where to compute.
    """
    import torch

    from apps.audit.losses import losses_after_training
    from atom.device import resolve_device

    images_NCHW, targets, labels_N = map(as_tensor, sets[trial.set_name])
    return losses_after_training(
        images_NCHW,
        targets,
        asked_TCHW=torch.cat([as_tensor(asked_TCHW), images_NCHW]),
        asked_labels_T=torch.cat([as_tensor(asked_labels_T), labels_N]),
        network=trial.network,
        num_classes=context.num_classes,
        seed=trial.seed,
        settings=context.settings[trial.set_name],
        device=resolve_device(context.device_kind),
        threads=context.threads,
    )
