"""The picture of a distilled set: every class a labelled row of its images."""

# M decoded images, C channels, H height, W width, K classes

import io
import itertools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from atom.set_values import SetValues

STRETCH_FROM_FRAC = 0.1
"""Share of clipped values from which a stretched sheet is drawn too. Chosen: below it, shapes are plain to see."""

_MIN_SIDE = 64
_MIN_WIDTH = 400
_GAP = 2
_MARGIN = 8
_LABEL_WIDTH = 84
_LABEL_LETTERS = 13
_CAPTION_HEIGHT = 20
_STRETCHED = "stretched for display, each image by itself: not as trained on"
_WHITE, _INK = (255, 255, 255), (40, 40, 40)


def draw(distilled: SetValues, *, max_columns: int = 50, stretched: bool = False) -> Image.Image:
    """The decoded images with the preprocessing undone, one row a class, as an RGB picture.

    Small images are enlarged by whole factors without smoothing. Rows flow into several columns where
    a single one would be a narrow ribbon, as with one image a class.

    Args:
        distilled: the set.
        max_columns: images shown of a class, the first ones.
        stretched: see `DistilledSet.pixels`; the picture then says so.
    """
    starts = [0, *itertools.accumulate(n * distilled.factor**2 for n in distilled.per_class)]
    shown = min(distilled.ipc * distilled.factor**2, max_columns)
    pictures = to_pictures(distilled.pixels(stretched=stretched))
    width, height = pictures[0].size
    scale = max(1, math.ceil(_MIN_SIDE / max(width, height)))
    cell_w, cell_h = width * scale + _GAP, height * scale + _GAP
    strip_w = _LABEL_WIDTH + shown * cell_w + _MARGIN
    blocks, rows = _layout(distilled.num_classes, strip_w, cell_h)
    head = _CAPTION_HEIGHT if stretched else 0
    size = (max(_MIN_WIDTH, _MARGIN + blocks * strip_w), head + 2 * _MARGIN + rows * cell_h)
    page = Image.new("RGB", size, _WHITE)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=12)
    if stretched:
        pen.text((_MARGIN, _MARGIN), _STRETCHED, fill=_INK, font=font)
    for class_id, name in enumerate(distilled.class_names):
        left = _MARGIN + (class_id // rows) * strip_w
        top = head + _MARGIN + (class_id % rows) * cell_h
        pen.text((left, top + cell_h // 2), _short(name), fill=_INK, font=font, anchor="lm")
        for column, picture in enumerate(pictures[starts[class_id] : starts[class_id + 1]][:shown]):
            big = picture.convert("RGB").resize((width * scale, height * scale), Image.Resampling.NEAREST)
            page.paste(big, (left + _LABEL_WIDTH + column * cell_w, top))
    return page


def needs_stretching(distilled: SetValues) -> bool:
    """Whether pictures cut off so much of the images that a sheet stretched for display belongs beside them."""
    return distilled.clipped_frac() > STRETCH_FROM_FRAC


def to_pictures(pixels_MCHW: Tensor) -> list[Image.Image]:
    """8-bit pictures of pixels in [0, 1]: grey for one channel, RGB for three.

    Of two channels the first is shown in grey, of four or more the first three as RGB.
    """
    channels = 3 if pixels_MCHW.shape[1] >= 3 else 1
    bytes_MHWC = (pixels_MCHW[:, :channels] * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(b if channels == 3 else b[..., 0])) for b in bytes_MHWC]


def png_bytes(picture: Image.Image) -> bytes:
    """The picture as PNG; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _layout(num_classes: int, strip_w: int, cell_h: int) -> tuple[int, int]:
    """Blocks beside each other and rows in each: wide enough, and not much higher than wide."""
    blocks = 1
    while blocks < num_classes:
        rows = math.ceil(num_classes / blocks)
        if blocks * strip_w >= _MIN_WIDTH and rows * cell_h <= 1.5 * blocks * strip_w:
            break
        blocks += 1
    rows = math.ceil(num_classes / blocks)
    return math.ceil(num_classes / rows), rows


def _short(name: str) -> str:
    """The name on one line, cut to the width of its column."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in name).split())
    return line if len(line) <= _LABEL_LETTERS else line[: _LABEL_LETTERS - 1] + "…"
