"""The method as the papers describe it, in slow float64 loops: the oracle of the tests.

One class, one image, one pixel at a time, with Python's own arithmetic on lists of numbers where it can.
Nothing here is fast and nothing here is shared with the fast path, so that an error would have to be made twice.
"""

# N images, C channels, H height, W width

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def spatial_map(feature_CHW: Tensor, p: int) -> list[float]:
    """Vectorised spatial map of one image, H*W values, divided by their L2 norm."""
    channels, height, width = feature_CHW.shape
    values = feature_CHW.double().tolist()
    flat = [
        sum(abs(values[c][y][x]) ** p for c in range(channels)) for y in range(height) for x in range(width)
    ]
    return _divided_by_norm(flat)


def channel_map(feature_CHW: Tensor, p: int) -> list[float]:
    """Channel map of one image, C values, divided by their L2 norm."""
    channels, height, width = feature_CHW.shape
    values = feature_CHW.double().tolist()
    flat = [
        sum(abs(values[c][y][x]) ** p for y in range(height) for x in range(width)) for c in range(channels)
    ]
    return _divided_by_norm(flat)


def class_loss(
    blocks: Callable[[Tensor], tuple[list[Tensor], Tensor]],
    real_NCHW: Tensor,
    synthetic_NCHW: Tensor,
    *,
    method: str,
    p: int,
    task_balance: float,
) -> float:
    """The loss of one class, for batches already augmented.

    Args:
        blocks: the network's `blocks`, in float64.
        real_NCHW: real images of the class.
        synthetic_NCHW: its synthetic images, decoded.
        method: "atom", "spatial", "channel" or "dm".
        p: exponent of the attention maps.
        task_balance: λ.
    """
    maps = {
        "atom": (spatial_map, channel_map),
        "spatial": (spatial_map,),
        "channel": (channel_map,),
        "dm": (),
    }[method]
    real_blocks, real_embedding = blocks(real_NCHW)
    synthetic_blocks, synthetic_embedding = blocks(synthetic_NCHW)
    total = 0.0
    for real_layer, synthetic_layer in zip(real_blocks[:-1], synthetic_blocks[:-1], strict=True):
        for attention in maps:
            real_mean = _mean([attention(feature, p) for feature in real_layer])
            synthetic_mean = _mean([attention(feature, p) for feature in synthetic_layer])
            total += _squared_distance(real_mean, synthetic_mean)
    embedding_distance = _squared_distance(
        _mean(real_embedding.double().tolist()), _mean(synthetic_embedding.double().tolist())
    )
    return 100 * (total + task_balance * embedding_distance)


def numeric_gradient(loss: Callable[[Tensor], float], images: Tensor, *, step: float = 1e-6) -> Tensor:
    """Central differences of a scalar loss by every value of `images`, float64."""
    gradient = torch.zeros_like(images, dtype=torch.float64)
    for place in range(images.numel()):
        up, down = images.clone().double(), images.clone().double()
        up.view(-1)[place] += step
        down.view(-1)[place] -= step
        gradient.view(-1)[place] = (loss(up) - loss(down)) / (2 * step)
    return gradient


def momentum_steps(
    gradient: Callable[[Tensor, int], Tensor], images: Tensor, *, steps: int, lr: float, momentum: float
) -> Tensor:
    """SGD with momentum as in the textbook: v <- m v + g, x <- x - lr v, from v = 0."""
    position, velocity = images.clone().double(), torch.zeros_like(images, dtype=torch.float64)
    for step in range(steps):
        velocity = momentum * velocity + gradient(position, step)
        position = position - lr * velocity
    return position


def decode_stored(stored_NCHW: Tensor, factor: int) -> list[Tensor]:
    """Multi-formation, tile by tile and pixel by pixel: bilinear with pixel centres at half integers."""
    decoded = []
    height, width = stored_NCHW.shape[2:]
    for stored in stored_NCHW.double():
        for top, end in _tiles(height, factor):
            for left, right in _tiles(width, factor):
                decoded.append(_resize(stored[:, top:end, left:right], height, width))
    return decoded


def _tiles(size: int, factor: int) -> list[tuple[int, int]]:
    lengths = [size // factor + (1 if i < size % factor else 0) for i in range(factor)]
    return [(sum(lengths[:i]), sum(lengths[: i + 1])) for i in range(factor)]


def _resize(tile_CHW: Tensor, height: int, width: int) -> Tensor:
    channels, tile_height, tile_width = tile_CHW.shape
    out = torch.zeros(channels, height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            # Edges replicate: a source position before the first pixel centre takes the first pixel.
            source_y = max((y + 0.5) * tile_height / height - 0.5, 0.0)
            source_x = max((x + 0.5) * tile_width / width - 0.5, 0.0)
            y0, x0 = math.floor(source_y), math.floor(source_x)
            y1, x1 = min(y0 + 1, tile_height - 1), min(x0 + 1, tile_width - 1)
            wy, wx = source_y - y0, source_x - x0
            out[:, y, x] = (
                tile_CHW[:, y0, x0] * (1 - wy) * (1 - wx)
                + tile_CHW[:, y0, x1] * (1 - wy) * wx
                + tile_CHW[:, y1, x0] * wy * (1 - wx)
                + tile_CHW[:, y1, x1] * wy * wx
            )
    return out


def _divided_by_norm(values: list[float]) -> list[float]:
    norm = math.sqrt(sum(value * value for value in values))
    return [value / norm for value in values] if norm > 0 else values


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def _squared_distance(first: Sequence[float], second: Sequence[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(first, second, strict=True))
