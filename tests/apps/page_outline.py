"""What a test sees of an HTML page, and of a panel of its pictures."""

from html.parser import HTMLParser

import numpy as np
from matplotlib.axes import Axes

_VOID = {"meta", "img", "br", "hr", "link", "input", "source"}


class Outline(HTMLParser):
    """Tags left open, tags that closed nothing, links, visible text, and the cells of each table row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def drawn_points(axes: Axes) -> tuple[np.ndarray, np.ndarray]:
    """Places along x and y, in data units, of all points, lines, bars and bands of a panel.

    What spans a panel, such as a reference line, counts along the other axis only.
    """
    found = [(line.get_xydata(), line.get_transform()) for line in axes.lines]
    found += [(patch.get_path().vertices, patch.get_transform()) for patch in axes.patches]
    for collection in axes.collections:
        offsets = np.ma.getdata(collection.get_offsets())
        if len(offsets) and offsets.any():
            found.append((offsets, collection.get_offset_transform()))
        else:
            found += [(path.vertices, collection.get_transform()) for path in collection.get_paths()]
    places: tuple[list[float], list[float]] = ([], [])
    for points, transform in found:
        drawn = axes.transData.inverted().transform(transform.transform(points))
        for axis, in_data in enumerate(transform.contains_branch_seperately(axes.transData)):
            if in_data:
                places[axis].extend(drawn[:, axis].round(6))
    x, y = (np.array([place for place in along if not np.isnan(place)]) for along in places)
    return x, y
