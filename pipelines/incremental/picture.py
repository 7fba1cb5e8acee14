"""The picture of a memory: every class it holds a labelled row of its images."""

# N images, M decoded images, C channels, H height, W width

from collections.abc import Mapping

import torch
from PIL import Image

from apps.continual.memory import Memory, Reservoir
from atom.distilled import DistilledSet
from atom.preprocess import Preprocess
from atom.sheet import draw, needs_stretching, png_bytes

_COLUMNS = 20


def memory_picture(kept: Memory | Reservoir, preprocess: Preprocess, class_names: Mapping[int, str]) -> bytes:
    """PNG of a memory that holds an image: the first decoded ones of every class, the most important first.

    Where they are cut off by much, a sheet stretched for display stands below, see `atom.sheet.needs_stretching`.

    Args:
        kept: the memory; rows of classes with fewer images than others end early.
        preprocess: of the run, to undo.
        class_names: of the classes it holds, or their parts, by number.
    """
    contents = kept.contents(preprocess)
    assert contents is not None, "budgets of less than one image a class are refused"
    images_MCHW, labels_M = contents
    rows = {c: images_MCHW[labels_M == c][:_COLUMNS] for c in kept.classes}
    width = max(len(row) for row in rows.values())
    # White on the page: pixels of value 1.
    blank_1CHW = preprocess.apply(torch.ones_like(images_MCHW[:1]))
    filled = [torch.cat([row, blank_1CHW.expand(width - len(row), -1, -1, -1)]) for row in rows.values()]
    shown = DistilledSet(
        images_NCHW=torch.cat(filled),
        labels=torch.arange(len(filled)).repeat_interleave(width),
        class_names=tuple(class_names[c] for c in rows),
        ipc=width,
        method="memory",
        preprocess=preprocess,
    )
    sheets = [draw(shown)]
    if needs_stretching(shown):
        sheets.append(draw(shown, stretched=True))
    page = Image.new("RGB", (sheets[0].width, sum(sheet.height for sheet in sheets)))
    for number, sheet in enumerate(sheets):
        page.paste(sheet, (0, number * sheets[0].height))
    return png_bytes(page)
