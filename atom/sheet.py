"""The picture of a distilled set: every class a labelled row of its images."""

# M decoded images, C channels, H height, W width, K classes

import io
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from atom.set_values import SetValues

STRETCH_FROM_FRAC = 0.1
"""Share of clipped values from which a stretched sheet is drawn too. Chosen: below it, shapes are plain to see."""

MAX_PIXELS = 44_000_000
"""Of a sheet: it shows the first classes that find room. Chosen: half of what Pillow opens without a warning of a bomb,
since a page may hold two sheets; 130 MB while it is drawn."""

MAX_COLUMNS = 50
"""Images shown of a class, the first ones."""

_MIN_SIDE = 64
_MIN_WIDTH = 400
_GAP = 2
_MARGIN = 8
_LABEL_WIDTH = 84
_LABEL_LETTERS = 13
_CAPTION_HEIGHT = 20
_STRETCHED = "stretched for display, each image by itself: not as trained on"
_WHITE, _INK = (255, 255, 255), (40, 40, 40)


def draw(distilled: SetValues, *, max_columns: int = MAX_COLUMNS, stretched: bool = False) -> Image.Image:
    """The decoded images with the preprocessing undone, one row a class, as an RGB picture.

    Small images are enlarged by whole factors without smoothing. Rows flow into several columns where
    a single one would be a narrow ribbon, as with one image a class. Of more classes than find room in `MAX_PIXELS`
    the first are shown, and the picture says so.

    Args:
        distilled: the set.
        max_columns: images shown of a class, the first ones.
        stretched: see `DistilledSet.pixels`; the picture then says so.
    """
    plan = _Plan.of(distilled, max_columns)
    starts = [0, *itertools.accumulate(n * distilled.factor**2 for n in distilled.per_class)]
    pictures = to_pictures(_first(distilled, plan.classes).pixels(stretched=stretched))
    captions = [_STRETCHED] if stretched else []
    if plan.classes < distilled.num_classes:
        captions.append(f"first {plan.classes} of {distilled.num_classes} classes")
    head, side = len(captions) * _CAPTION_HEIGHT, (plan.cell_w - _GAP, plan.cell_h - _GAP)
    page = Image.new("RGB", (plan.width, head + plan.height), _WHITE)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=12)
    for line, caption in enumerate(captions):
        pen.text((_MARGIN, _MARGIN + line * _CAPTION_HEIGHT), caption, fill=_INK, font=font)
    for class_id, name in enumerate(distilled.class_names[: plan.classes]):
        left = _MARGIN + (class_id // plan.rows) * plan.strip_w
        top = head + _MARGIN + (class_id % plan.rows) * plan.cell_h
        pen.text((left, top + plan.cell_h // 2), _short(name), fill=_INK, font=font, anchor="lm")
        for column, picture in enumerate(pictures[starts[class_id] : starts[class_id + 1]][: plan.columns]):
            big = picture.convert("RGB").resize(side, Image.Resampling.NEAREST)
            page.paste(big, (left + _LABEL_WIDTH + column * plan.cell_w, top))
    return page


def classes_shown(distilled: SetValues) -> int:
    """How many classes find room on a sheet of the set, the first ones."""
    return _Plan.of(distilled, MAX_COLUMNS).classes


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


@dataclass(frozen=True)
class _Plan:
    """Where everything stands on a sheet, pixels.

    Attributes:
        classes, columns: that are shown, and the images of each.
        cell_w, cell_h: of an image with the gap behind it.
        strip_w: of a class, name and images.
        blocks, rows: of classes, beside and below each other.
    """

    classes: int
    columns: int
    cell_w: int
    cell_h: int
    strip_w: int
    blocks: int
    rows: int

    @property
    def width(self) -> int:
        return max(_MIN_WIDTH, _MARGIN + self.blocks * self.strip_w)

    @property
    def height(self) -> int:
        """Without captions, for which there is room in `MAX_PIXELS`."""
        return 2 * _MARGIN + self.rows * self.cell_h

    @property
    def fits(self) -> bool:
        return self.width * (self.height + 2 * _CAPTION_HEIGHT) <= MAX_PIXELS

    @classmethod
    def of(cls, distilled: SetValues, max_columns: int) -> "_Plan":
        """All classes, or as many as fit; one at least, of which large images may show in part."""
        height, width = distilled.images_NCHW.shape[2:]
        scale = max(1, math.ceil(_MIN_SIDE / max(width, height)))
        cell_w, cell_h = width * scale + _GAP, height * scale + _GAP
        most = max(1, MAX_PIXELS // (2 * cell_w * cell_h))
        columns = min(distilled.ipc * distilled.factor**2, max_columns, most)
        strip_w = _LABEL_WIDTH + columns * cell_w + _MARGIN

        def plan(classes: int) -> "_Plan":
            return cls(classes, columns, cell_w, cell_h, strip_w, *_layout(classes, strip_w, cell_h))

        whole = plan(distilled.num_classes)
        if whole.fits:
            return whole
        begin = min(distilled.num_classes, max(1, MAX_PIXELS // (strip_w * cell_h)))
        return next((found for n in range(begin, 1, -1) if (found := plan(n)).fits), plan(1))


def _first(distilled: SetValues, classes: int) -> SetValues:
    """The images of the first classes alone, for their pixels; all of them as they are."""
    if classes == distilled.num_classes:
        return distilled
    count = sum(distilled.per_class[:classes])
    soft = None if distilled.soft_labels is None else distilled.soft_labels[:count]
    parts = {"images_NCHW": distilled.images_NCHW[:count], "labels": distilled.labels[:count]}
    return replace(distilled, **parts, soft_labels=soft)


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
