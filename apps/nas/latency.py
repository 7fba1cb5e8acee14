"""How long a network takes to answer, measured where it is trained."""

import time

import torch
from torch import Tensor, nn

BATCH = 1
"""Images at a time: a service that answers one photo after another. Chosen."""
RUN_S = 0.3
"""Seconds of passes, of which the fastest counts. Chosen, measured: see docs/nas.md."""


@torch.inference_mode()
def latency_ms(net: nn.Module, images_BCHW: Tensor) -> float:
    """Milliseconds of one forward pass in evaluation mode and float32: the fastest of those in `RUN_S`.

    The fastest, since what else runs on the machine only ever adds to it.

    Args:
        net: on the images' device; left in evaluation mode.
        images_BCHW: preprocessed float32 images, B of them at a time.
    """
    net.eval()
    fastest, begun_s = float("inf"), time.perf_counter()
    # The first pass sets things up; a slow network still has three.
    for number in range(1_000_000):
        before_s = time.perf_counter()
        net(images_BCHW)
        if images_BCHW.device.type == "cuda":
            torch.cuda.synchronize(images_BCHW.device)
        after_s = time.perf_counter()
        fastest = min(fastest, after_s - before_s)
        if number >= 2 and after_s - begun_s >= RUN_S:
            break
    return 1000 * fastest
