"""What the methods that match gradients may be told, beside the settings of all methods."""

from typing import Annotated, Literal, Self

from pydantic import Field

from atom.settings import Settings

Metric = Literal["mse", "l1"]


class LoopOptions(Settings):
    """Options of dc and dsa, whose network is trained on the synthetic images between steps on them."""

    outer_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps on the images with each fresh network; with 1 it is never trained, and classes are distilled apart. Default
    1 at ipc 1, else min(ipc, 50) on a GPU (DC, published table) and min(ipc, 10) on a CPU (chosen)."""
    inner_epochs: Annotated[int, Field(ge=1)] | None = None
    """Epochs of the network on the synthetic images after each outer step but the last; default on a GPU DC's published
    table, between its rows 500 / outer_steps (chosen); on a CPU 20 (chosen)."""

    def shrunk(self) -> Self:
        """Two steps with each network and an epoch between them, where more were asked for."""
        return self.changed(
            outer_steps=self.outer_steps and min(self.outer_steps, 2), inner_epochs=self.inner_epochs and 1
        )


class RealTrainingOptions(Settings):
    """Options of idc, whose networks are trained on real images."""

    metric: Metric = "l1"
    """Distance of the gradients: l1, the sum of absolute differences, or mse, that of squared ones. Source: IDC, the
    first for MNIST, FashionMNIST and ImageNet, the second for CIFAR and SVHN."""
    trained_networks: Annotated[int, Field(ge=1)] = 5
    """Networks that are trained on the real images beforehand. Chosen: IDC trains a fresh one on the way, 2000
    times."""
    training_passes: Annotated[int, Field(ge=1)] = 60
    """Weights kept of each, one before every pass over at most 2000 real images. Chosen, measured: IDC makes 100
    passes."""

    def shrunk(self) -> Self:
        """Two networks, two passes."""
        return self.changed(
            trained_networks=min(self.trained_networks, 2), training_passes=min(self.training_passes, 2)
        )


__all__ = ["LoopOptions", "Metric", "RealTrainingOptions"]
