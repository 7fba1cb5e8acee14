"""What the networks share: the promise of feature blocks, normalisation, activation, pooling.

Legend: N images, C channels, H height, W width, K classes, D features.
"""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atom.nets.shapes import Size
from atom.nets.spec import NUM_GROUPS, Activation, Norm, Pooling


class BlockNet(nn.Module):
    """A classifier that shows the features of its blocks; all networks of `atom.nets` are one.

    Attributes:
        mixes_batch: whether images of one batch influence each other's features while training (BatchNorm).
        classifier: the last, linear layer.
    """

    mixes_batch: bool
    classifier: nn.Linear

    def blocks(self, images_NCHW: Tensor) -> tuple[list[Tensor], Tensor]:
        """Activations of every block, (N, c, h, w) after the nonlinearity and before pooling, in order; and
        the embedding (N, D) that the classifier reads.
        """
        raise NotImplementedError

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K)."""
        raise NotImplementedError


def mixes_batch(net: nn.Module) -> bool:
    """Whether a batch's images influence each other while training: whether the network holds a BatchNorm."""
    return any(isinstance(module, _BatchNorm) for module in net.modules())


def norm_layer(norm: Norm, num_channels: int, size: Size) -> nn.Module | None:
    """Normalisation of maps (N, num_channels, *size), or None for "none". Source: DC's published code."""
    if norm == "none":
        return None
    if norm == "batch":
        return nn.BatchNorm2d(num_channels)
    if norm == "layer":
        return nn.LayerNorm([num_channels, *size])
    return nn.GroupNorm(num_channels if norm == "instance" else NUM_GROUPS, num_channels)


def activation_layer(activation: Activation) -> nn.Module:
    """Activation; ReLUs overwrite their input, the output of the layer before, which nothing else reads."""
    if activation == "sigmoid":
        return nn.Sigmoid()
    return nn.ReLU(inplace=True) if activation == "relu" else nn.LeakyReLU(0.01, inplace=True)


def pooling_layer(pooling: Pooling) -> nn.Module:
    """2x2 pooling with stride 2; "none" gives the identity."""
    if pooling == "none":
        return nn.Identity()
    return nn.MaxPool2d(2) if pooling == "max" else nn.AvgPool2d(2)


class ConvBlock(nn.Module):
    """Convolution, normalisation, activation of one block: (N, C, H, W) to (N, c, H, W); no pooling."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        size: Size,
        norm: Norm,
        activation: Activation = "relu",
        kernel: int = 3,
        padding: int = 1,
    ) -> None:
        """`size` is that of the output, which LayerNorm's weights follow."""
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=padding)
        self.norm = norm_layer(norm, out_channels, size)
        self.activation = activation_layer(activation)

    def forward(self, map_NCHW: Tensor) -> Tensor:
        """The block's activation, before pooling."""
        map_NCHW = self.conv(map_NCHW)
        if self.norm is not None:
            map_NCHW = self.norm(map_NCHW)
        return self.activation(map_NCHW)


class PlainNet(BlockNet):
    """Blocks in a row, each followed by a pooling or by none, and a linear classifier."""

    def __init__(self, convs: list[ConvBlock], pools: list[nn.Module], classifier: nn.Linear) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.pools = nn.ModuleList(pools)
        self.classifier = classifier
        self.mixes_batch = mixes_batch(self)

    def blocks(self, images_NCHW: Tensor) -> tuple[list[Tensor], Tensor]:
        """See `BlockNet.blocks`."""
        activations, map_NCHW = [], images_NCHW
        for conv, pool in zip(self.convs, self.pools, strict=True):
            activation_NCHW = conv(map_NCHW)
            activations.append(activation_NCHW)
            map_NCHW = pool(activation_NCHW)
        return activations, map_NCHW.flatten(1)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K)."""
        # Not by way of `blocks`: its list would keep every map alive to the end.
        map_NCHW = images_NCHW
        for conv, pool in zip(self.convs, self.pools, strict=True):
            map_NCHW = pool(conv(map_NCHW))
        return self.classifier(map_NCHW.flatten(1))
