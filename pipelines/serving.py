"""A network made ready for MLflow to serve: traced on a worker, since it may be a user's code."""

# C channels, H height, W width

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import ray

from atom.errors import ClusterError
from pipelines.tracking import Model
from pipelines.workers.tasks import ONE_CPU, run_tasks

if TYPE_CHECKING:
    import threading

    from torch import nn

    from pipelines.workers.pool import Limits

logger = logging.getLogger(__name__)

Arrays = Mapping[str, np.ndarray]


def served_model(
    build: "Callable[[], nn.Module]",
    weights: Arrays,
    preprocess: Arrays,
    *,
    classes: list[str],
    shape: tuple[int, int, int],
    resize: int | None,
    num_cpus: float,
    limits: "Limits",
    stop: "threading.Event",
) -> Model | None:
    """The network as `Tracker.log_model` takes it; None, with a warning, where that cannot be.

    Args:
        build: makes the network, on a worker.
        weights, preprocess: tensors by name, see `atom.preprocess.Preprocess.tensors`.
        classes: names by label.
        shape: [C, H, W] of the images.
        resize: what encoded images are cropped and resized to; None: as they are.
        num_cpus: that the worker holds.
        limits: of its work.
        stop: when set, there is no model.
    """
    scripts: list[bytes] = []
    try:
        outcome = run_tasks(
            _traced,
            ["model"],
            shared=(build, ray.put(dict(weights)), dict(preprocess), shape),
            size=replace(ONE_CPU, cpus=num_cpus),
            limits=limits,
            on_result=lambda _, script: scripts.append(script),
            stop=stop,
        )
    except ClusterError as error:
        reason = str(error)
    else:
        if scripts:
            return Model(scripts[0], tuple(classes), shape, resize)
        reason = "stopped" if outcome.stopped else outcome.failed["model"].reason
    logger.warning("This network cannot be logged as a model: %s. All else is kept.", reason)
    return None


def _traced(
    item: str,
    build: "Callable[[], nn.Module]",
    weights: Arrays,
    preprocess: Arrays,
    shape: tuple[int, int, int],
) -> bytes:
    import torch

    from apps.served import Served, torchscript
    from atom.device import use_threads
    from atom.preprocess import Preprocess

    with use_threads(1):
        net = build()
        net.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
        named = {name: torch.tensor(value) for name, value in preprocess.items()}
        return torchscript(Served(net, Preprocess.from_tensors(named)).eval(), shape)
