"""A small vision transformer (Dosovitskiy et al., 2021), in the size this literature uses.

Legend: N images, C channels, H height, W width, K classes, T tokens, D features, h, w rows and columns of
patches.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from atom.nets.layers import BlockNet
from atom.nets.shapes import Size

DIM, DEPTH, NUM_HEADS, DIM_MLP, DROPOUT = 512, 6, 8, 512, 0.1


class LearnedTokens(nn.Module):
    """The class token (1, 1, D) and the position embedding (1, 1 + T, D), drawn standard normal."""

    def __init__(self, num_patches: int, dim: int) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.empty(1, 1, dim))
        self.position = nn.Parameter(torch.empty(1, 1 + num_patches, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both from the standard normal distribution."""
        nn.init.normal_(self.cls)
        nn.init.normal_(self.position)

    def forward(self, patches_NTD: Tensor) -> Tensor:
        """Class token ahead of the patches, positions added: (N, 1 + T, D)."""
        cls_N1D = self.cls.expand(patches_NTD.shape[0], -1, -1)
        return torch.cat([cls_N1D, patches_NTD], dim=1) + self.position


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and a two-layer perceptron with GELU, each on a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(DIM)
        self.qkv = nn.Linear(DIM, 3 * DIM, bias=False)
        self.project = nn.Linear(DIM, DIM)
        self.norm_mlp = nn.LayerNorm(DIM)
        self.expand = nn.Linear(DIM, DIM_MLP)
        self.contract = nn.Linear(DIM_MLP, DIM)

    def forward(self, tokens_NTD: Tensor, dropout: float) -> Tensor:
        """Tokens of the same shape; `dropout` is the probability, 0 for none."""
        num_images, num_tokens, _ = tokens_NTD.shape
        qkv = self.qkv(self.norm_attention(tokens_NTD))
        query, key, value = qkv.view(num_images, num_tokens, 3, NUM_HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        mixed = self.project(mixed.transpose(1, 2).reshape(num_images, num_tokens, DIM))
        tokens_NTD = tokens_NTD + functional.dropout(mixed, dropout, training=dropout > 0)
        hidden = functional.gelu(self.expand(self.norm_mlp(tokens_NTD)))
        hidden = self.contract(functional.dropout(hidden, dropout, training=dropout > 0))
        return tokens_NTD + functional.dropout(hidden, dropout, training=dropout > 0)


class ViT(BlockNet):
    """Six transformer blocks over patches of 4x4 pixels, 8x8 above 32 pixels, 16x16 above 64.

    So there are at most 8x8 patches up to 128 pixels. Sides that the patch does not divide are padded with
    zeros on the right and below. The six feature maps are the patches' tokens after each transformer block;
    the embedding is the class token at the end, after the last LayerNorm. `blocks` leaves dropout out, in
    training mode too: both sides of a match must see one and the same network. `forward` applies it while
    training, from torch's global generator.
    """

    def __init__(self, *, channels: int, image_size: Size, num_classes: int) -> None:
        super().__init__()
        self.mixes_batch = False
        self.patch = patch = patch_side(image_size)
        self.grid = (-(-image_size[0] // patch), -(-image_size[1] // patch))
        self.padding = (0, self.grid[1] * patch - image_size[1], 0, self.grid[0] * patch - image_size[0])
        self.embed = nn.Conv2d(channels, DIM, patch, stride=patch)
        self.tokens = LearnedTokens(self.grid[0] * self.grid[1], DIM)
        self.layers = nn.ModuleList([TransformerBlock() for _ in range(DEPTH)])
        self.norm = nn.LayerNorm(DIM)
        self.classifier = nn.Linear(DIM, num_classes)

    def _first_tokens(self, images_NCHW: Tensor) -> Tensor:
        if any(self.padding):
            images_NCHW = functional.pad(images_NCHW, self.padding)
        return self.tokens(self.embed(images_NCHW).flatten(2).transpose(1, 2))

    def blocks(self, images_NCHW: Tensor) -> tuple[list[Tensor], Tensor]:
        """See `BlockNet.blocks`; without dropout."""
        maps, tokens_NTD = [], self._first_tokens(images_NCHW)
        for layer in self.layers:
            tokens_NTD = layer(tokens_NTD, 0.0)
            maps.append(tokens_NTD[:, 1:].transpose(1, 2).unflatten(2, self.grid))
        return maps, self.norm(tokens_NTD[:, 0])

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K)."""
        dropout = DROPOUT if self.training else 0.0
        tokens_NTD = functional.dropout(self._first_tokens(images_NCHW), dropout, training=self.training)
        for layer in self.layers:
            tokens_NTD = layer(tokens_NTD, dropout)
        return self.classifier(self.norm(tokens_NTD[:, 0]))


def patch_side(image_size: Size) -> int:
    """Pixels of a patch's side: 4 up to 32 pixels, doubled with each doubling of the longer side."""
    side, reach = 4, 32
    while max(image_size) > reach:
        side, reach = 2 * side, 2 * reach
    return side
