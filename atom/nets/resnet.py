"""ResNet-18 for small images (He et al., 2016, in the form used on CIFAR).

Legend: N images, C channels, H height, W width, K classes.
"""

from torch import Tensor, nn
from torch.nn import functional

from atom.nets.layers import BlockNet, mixes_batch, norm_layer
from atom.nets.shapes import Size, plan_halving, stem_padding, stem_size
from atom.nets.spec import Norm


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; a 1x1 convolution on the shortcut where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, size: Size, norm: Norm) -> None:
        """`size` is that of the output."""
        super().__init__()
        bias = norm == "none"  # a norm would take it away again
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=bias)
        self.norm1 = norm_layer(norm, out_channels, size) or nn.Identity()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.norm2 = norm_layer(norm, out_channels, size) or nn.Identity()
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=bias)
            self.shortcut = nn.Sequential(conv, norm_layer(norm, out_channels, size) or nn.Identity())

    def forward(self, map_NCHW: Tensor) -> Tensor:
        """The block's activation."""
        inner_NCHW = functional.relu_(self.norm1(self.conv1(map_NCHW)))
        return functional.relu_(self.norm2(self.conv2(inner_NCHW)) + self.shortcut(map_NCHW))


class ResNet18(BlockNet):
    """A 3x3 stem of stride 1 and four stages of two basic blocks; the later three halve the map.

    The stages are its four feature blocks; the embedding is the mean over positions after the last (512). A
    stage does not halve where that would leave a single position: 8x8 images end in 2x2 maps.
    """

    def __init__(self, *, channels: int, image_size: Size, num_classes: int, norm: Norm = "instance") -> None:
        super().__init__()
        size = stem_size(image_size)
        # One flag ahead of each stage, and one that stands for the mean at the end.
        halved, _ = plan_halving(size, [False, True, True, True, False], round_up=True)
        padding = stem_padding(image_size, 3)
        self.stem = nn.Conv2d(channels, 64, 3, padding=padding, bias=norm == "none")
        self.stem_norm = norm_layer(norm, 64, size) or nn.Identity()
        stages, in_channels = [], 64
        for out_channels, half in zip((64, 128, 256, 512), halved[:4], strict=True):
            size = ((size[0] + 1) // 2, (size[1] + 1) // 2) if half else size
            first = BasicBlock(in_channels, out_channels, stride=2 if half else 1, size=size, norm=norm)
            second = BasicBlock(out_channels, out_channels, stride=1, size=size, norm=norm)
            stages.append(nn.Sequential(first, second))
            in_channels = out_channels
        self.stages = nn.ModuleList(stages)
        self.classifier = nn.Linear(in_channels, num_classes)
        self.mixes_batch = mixes_batch(self)

    def blocks(self, images_NCHW: Tensor) -> tuple[list[Tensor], Tensor]:
        """See `BlockNet.blocks`."""
        activations, map_NCHW = [], functional.relu_(self.stem_norm(self.stem(images_NCHW)))
        for stage in self.stages:
            map_NCHW = stage(map_NCHW)
            activations.append(map_NCHW)
        return activations, map_NCHW.mean((2, 3))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K)."""
        map_NCHW = functional.relu_(self.stem_norm(self.stem(images_NCHW)))
        for stage in self.stages:
            map_NCHW = stage(map_NCHW)
        return self.classifier(map_NCHW.mean((2, 3)))
