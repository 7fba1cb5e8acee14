"""Pieces of self-contained HTML pages: frame and style, tables, numbers, pictures; nothing is fetched elsewhere."""

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from statistics import stdev

import matplotlib
from matplotlib.figure import Figure

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2530;--soft:#5d6875;--line:#dfe4e9;--page:#fff;--band:#f5f7f9}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ec;--soft:#a0abb7;--line:#37414b;--page:#161b21;--band:#1f262e}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:1.5rem 1.25rem 4rem;color:var(--ink);background:var(--page);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.8rem;line-height:1.2;margin:.5rem 0 1rem}h2{font-size:1.2rem;margin:2.4rem 0 .5rem}
p{max-width:46rem}.note,figcaption{color:var(--soft);font-size:.9rem;max-width:52rem}
figcaption{margin-top:.5rem}
.summary{border-left:4px solid #c8550b;background:var(--band);padding:.75rem 1rem;max-width:52rem}
.summary p,.summary li{margin:.35rem 0}ul.summary{padding-left:2rem}thead small{font-weight:400}
.wide{overflow-x:auto;margin:.75rem 0;background:
linear-gradient(to left,var(--page) 40%,transparent) 100% 0/4rem 100% no-repeat local,
linear-gradient(to left,var(--line),transparent) 100% 0/1rem 100% no-repeat scroll}.tall{max-height:36rem;overflow:auto}
table{border-collapse:collapse;font-size:.82rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .5rem;text-align:right;vertical-align:top;white-space:nowrap;border-bottom:1px solid var(--line)}
thead th{vertical-align:bottom;font-weight:600;background:var(--band)}thead th[colspan]{text-align:center}
th:first-child,.text th,.text td{text-align:left}tbody th{font-weight:600;position:sticky;left:0;background:var(--page)}
.text th,.text td{white-space:normal}tbody tr:hover>*{background:var(--band)}td small{display:block;color:var(--soft)}
colgroup+colgroup{border-left:1px solid var(--line)}
figure{margin:1rem 0 2rem}figure div{overflow-x:auto;background:#fff;border:1px solid var(--line)}
img{display:block;width:100%;min-width:660px;padding:.5rem}
@media(max-width:699px){picture img{min-width:0}}summary{cursor:pointer;color:var(--soft)}
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page around pieces of HTML; the title is text and becomes the heading."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    body = "\n".join([f"<h1>{escape(title)}</h1>", *parts])
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    groups: Sequence[tuple[str, int]] = (),
    kind: str = "wide",
) -> str:
    """A table that scrolls sideways. Cells of `rows` are HTML; headings are text, `groups` span several."""
    groups = [(name, width) for name, width in groups if width]
    columns = "".join(f'<colgroup span="{width}"></colgroup>' for _, width in groups)
    spans = "".join(f'<th colspan="{width}">{escape(name)}</th>' for name, width in groups)
    head = (
        (f"<tr>{spans}</tr>" if spans else "")
        + "<tr>"
        + "".join(f"<th>{escape(h)}</th>" for h in heads)
        + "</tr>"
    )
    lines = (
        f'<tr><th scope="row">{row[0]}</th><td>' + "</td><td>".join(row[1:]) + "</td></tr>" for row in rows
    )
    body = "\n".join(lines)
    return f'<div class="{kind}"><table>{columns}<thead>{head}</thead><tbody>{body}</tbody></table></div>'


def number(value: float | None, digits: int = 2) -> str:
    """A fixed number of decimals with a true minus sign; "–" for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def duration(seconds: float | None) -> str:
    """A time in the unit that suits it; "–" for None."""
    if seconds is None:
        return "–"
    units = ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h"), (math.inf, 86_400, "days"))
    unit, name = next((unit, name) for limit, unit, name in units if seconds < limit)
    return f"{seconds / unit:.3g} {name}"


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation; None of one value, and where one is infinite, as the scores of some proxies are."""
    return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def listed(items: Sequence[str], last: str = " and ") -> str:
    """A list as a sentence has it."""
    return ", ".join(items[:-1]) + last + items[-1] if len(items) > 1 else "".join(items)


def picture(figure: Figure, *, max_bytes: int = 500_000) -> str:
    """The figure as a data URI: SVG where it stays within `max_bytes`, else PNG.

    As an image, not as markup, so that the ids inside one drawing cannot meet those of another.
    """
    buffer, kind = io.BytesIO(), "svg+xml"
    # The salt and the missing date make the same figure the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "nas", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=120)
    if buffer.tell() > max_bytes:
        buffer, kind = io.BytesIO(), "png"
        figure.savefig(buffer, format="png", dpi=120)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


NARROW = 4.0
"""Width of a narrow figure, inches: at the width of a phone its letters are as large as the text beside it."""


def drawing(draw: Callable[..., Figure], caption: str) -> str:
    """A figure for pages: panels beside each other on a screen, below each other on a phone.

    Args:
        draw: gives the figure; called with `narrow`, once for each.
        caption: HTML, shown below; also what stands for the image where it is not seen.
    """
    source = f'<source media="(max-width:699px)" srcset="{picture(draw(narrow=True))}">'
    image = f'<img src="{picture(draw(narrow=False))}" alt="{escape(caption)}">'
    return f"<figure><div><picture>{source}{image}</picture></div><figcaption>{caption}</figcaption></figure>"
