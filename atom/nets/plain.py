"""Networks that are one row of blocks: the ConvNet family, AlexNet and VGG-11, for small images.

Sizes follow the published code of DC and its successors, which the cross-architecture tables of this
literature use: AlexNet and VGG-11 keep the resolution in the first convolution instead of dividing it by
four, and end in a single linear layer without dropout. Every network takes any image size and channel count:
see `atom.nets.shapes` for 28x28 images and for maps too small to be halved.
"""

from collections.abc import Sequence

from torch import nn

from atom.nets.layers import ConvBlock, PlainNet, pooling_layer
from atom.nets.shapes import Size, plan_halving, stem_padding, stem_size
from atom.nets.spec import Activation, ConvNetSpec, Norm, Pooling

# Output channels, kernel side, whether a pooling follows.
Row = tuple[int, int, bool]

ALEXNET_ROWS: tuple[Row, ...] = (
    (128, 5, True),
    (192, 5, True),
    (256, 3, False),
    (192, 3, False),
    (192, 3, True),
)
VGG11_ROWS: tuple[Row, ...] = (
    (64, 3, True),
    (128, 3, True),
    (256, 3, False),
    (256, 3, True),
    (512, 3, False),
    (512, 3, True),
    (512, 3, False),
    (512, 3, True),
)


def convnet(spec: ConvNetSpec, *, channels: int, image_size: Size, num_classes: int) -> PlainNet:
    """A ConvNet: `spec.depth` blocks of equal width."""
    spec = spec.for_size(image_size)
    assert spec.depth is not None
    rows = [(spec.width, 3, spec.pooling != "none")] * spec.depth
    return _plain_net(
        rows,
        channels=channels,
        image_size=image_size,
        num_classes=num_classes,
        norm=spec.norm,
        activation=spec.activation,
        pooling=spec.pooling,
    )


def alexnet(*, channels: int, image_size: Size, num_classes: int, norm: Norm = "none") -> PlainNet:
    """AlexNet for small images: five convolutions, max pooling after the first, second and fifth."""
    return _plain_net(
        ALEXNET_ROWS, channels=channels, image_size=image_size, num_classes=num_classes, norm=norm
    )


def vgg11(*, channels: int, image_size: Size, num_classes: int, norm: Norm = "instance") -> PlainNet:
    """VGG-11 for small images: eight convolutions, five max poolings."""
    return _plain_net(
        VGG11_ROWS, channels=channels, image_size=image_size, num_classes=num_classes, norm=norm
    )


def _plain_net(
    rows: Sequence[Row],
    *,
    channels: int,
    image_size: Size,
    num_classes: int,
    norm: Norm,
    activation: Activation = "relu",
    pooling: Pooling = "max",
) -> PlainNet:
    stem_kernel = rows[0][1]
    size = stem_size(image_size, stem_kernel)
    halved, (height, width) = plan_halving(size, [pooled for _, _, pooled in rows])
    convs, pools, in_channels = [], [], channels
    for index, ((out_channels, kernel, _), half) in enumerate(zip(rows, halved, strict=True)):
        padding = kernel // 2 if index else stem_padding(image_size, kernel)
        convs.append(
            ConvBlock(
                in_channels,
                out_channels,
                size=size,
                norm=norm,
                activation=activation,
                kernel=kernel,
                padding=padding,
            )
        )
        pools.append(pooling_layer(pooling) if half else nn.Identity())
        size = (size[0] // 2, size[1] // 2) if half else size
        in_channels = out_channels
    return PlainNet(convs, pools, nn.Linear(in_channels * height * width, num_classes))
