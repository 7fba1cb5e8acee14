"""A network as other programs take it: its preprocessing inside, traced into TorchScript, without Python code."""

# N images, C channels, H height, W width, K classes, D = C*H*W

import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from atom.preprocess import Preprocess

_SLACK = 1e-4
"""How far a traced network's probabilities may lie from the network's own; chosen."""


class Served(nn.Module):
    """A network with its preprocessing inside: pixels 0 to 255, any type [N, C, H, W], to probabilities [N, K]."""

    def __init__(self, net: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", preprocess.mean_C.view(1, -1, 1, 1))
        self.register_buffer("std", preprocess.std_C.view(1, -1, 1, 1))
        zca = preprocess.zca
        self.whitens = zca is not None
        if zca is not None:
            self.register_buffer("zca_mean", zca.mean_D)
            self.register_buffer("zca_whiten", zca.whiten_DD)

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities."""
        white = (images.float() / 255 - self.mean) / self.std
        if self.whitens:
            flat_ND = (white.flatten(1) - self.zca_mean) @ self.zca_whiten
            white = flat_ND.view(white.shape)
        return self.net(white).softmax(dim=1)


def torchscript(served: Served, shape: tuple[int, int, int]) -> bytes:
    """The network as a TorchScript file.

    Args:
        served: on the CPU, in evaluation mode.
        shape: [C, H, W] of its images.

    Raises:
        ValueError: what was traced answers otherwise than the network, as where its way depends on the images.
        Exception: whatever a user's network makes the tracer say.
    """
    generator = torch.Generator().manual_seed(0)
    images_NCHW = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=generator)
    content = io.BytesIO()
    # Tracing is deprecated in favour of what only Python reads; programs in C++ and on phones read this.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script: Any = torch.jit.trace(served, images_NCHW[:2], check_trace=False)
        for part_NCHW in (images_NCHW, images_NCHW[:1]):
            if not torch.allclose(script(part_NCHW), served(part_NCHW), atol=_SLACK):
                raise ValueError("the traced network answers otherwise than the network itself")
        torch.jit.save(script, content)
    return content.getvalue()


__all__ = ["Served", "torchscript"]
