"""How does a report become one HTML file that needs nothing beside it: style, tables, figures, notes?

Text given to `heading`, `paragraph`, `table`, `figure` and `bullets` is escaped; the parts they return are HTML.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toto_robot.run_folder import write_text

_STYLE = """
body{font:16px/1.55 system-ui,sans-serif;max-width:1120px;margin:2.2em auto;padding:0 1.2em;color:#1d2733}
h1{font-size:1.9em;margin:0 0 .2em}h2{margin:2em 0 .5em;border-bottom:1px solid #d8dee6;padding-bottom:.2em}
p.sub{color:#5b6775;margin-top:0}table{border-collapse:collapse;margin:.6em 0;font-size:.9em}td,th{padding:.3em .6em;
text-align:right;white-space:nowrap}
th{white-space:normal;border-bottom:2px solid #1d2733;font-weight:600}tr+tr td{border-top:1px solid #e4e8ee}
td:first-child,th:first-child{text-align:left}
img{max-width:100%;border:1px solid #e4e8ee;border-radius:4px}figure{margin:1em 0}
figcaption{color:#5b6775;font-size:.9em}
code{background:#f1f4f8;padding:.1em .35em;border-radius:3px}
pre{background:#f1f4f8;padding:.8em 1em;border-radius:4px;overflow-x:auto}
.note{background:#fff7e0;border-left:4px solid #e3b341;padding:.6em 1em}
.first{font-size:1.15em;background:#eef4ff;border-left:4px solid #1f6feb;padding:.7em 1em}
.wide{overflow-x:auto}.note ul{margin:0;padding-left:1.2em}
"""

ENCODER_LABELS = {
    "toto": "Toto (pretrained, frozen)",
    "mae": "MAE (pretrained, frozen)",
    "random_vit": "random ViT (control)",
    "random_toto": "random Toto (control)",
    "none": "no pixels, proprioception only (control)",
    "state": "simulator state (oracle)",
}
_COLOURS = {
    "toto": "#1f6feb", "mae": "#d1701c", "random_vit": "#7d8590", "random_toto": "#a371f7", "none": "#3d444d",
    "state": "#2da44e",
}  # fmt: skip
_OTHER_COLOURS = ("#bf3989", "#0a7d91", "#9a6700", "#57606a", "#cf222e", "#6639ba")


def write_page(path: Path, title: str, subtitle: str, parts: Sequence[str]) -> None:
    """Write a page; what the parts show is inside it, so it can be mailed."""
    head = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(title)}</h1><p class=sub>{html.escape(subtitle)}</p>"
    )
    write_text(path, "\n".join([head, *parts]))


def heading(text: str) -> str:
    """Return the title of a section."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph; `kind` is "first" (what the page says), "note" (a warning) or "sub" (small print)."""
    return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>"


def bullets(lines: Sequence[str]) -> str:
    """Return a list on a coloured ground."""
    return f"<div class=note><ul>{''.join(f'<li>{html.escape(line)}' for line in lines)}</ul></div>"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table; an empty `head` leaves the line of titles out."""
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}" for cell in head) + "</tr>"] if head else []
    lines += ["<tr>" + "".join(f"<td>{html.escape(str(cell))}" for cell in row) + "</tr>" for row in rows]
    return "\n".join(["<div class=wide><table>", *lines, "</table></div>"])


def commands(lines: Sequence[str]) -> str:
    """Return command lines to copy."""
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"


def figure(png: bytes, caption: str) -> str:
    """Return a picture that is inside the page."""
    data = base64.b64encode(png).decode()
    return f'<figure><img src="data:image/png;base64,{data}"><figcaption>{html.escape(caption)}</figcaption></figure>'


def picture(path: Path, caption: str) -> str:
    """Return a PNG file's picture; one that is missing is named as missing."""
    if not path.exists():
        return paragraph(f"{path.name} was not made.", "note")
    return figure(path.read_bytes(), caption)


def colour(encoder: str, place: int = 0) -> str:
    """Return the colour of an encoder in every plot; `place` tells those apart that have none of their own."""
    return _COLOURS.get(encoder, _OTHER_COLOURS[place % len(_OTHER_COLOURS)])


@dataclass
class Plot:
    """A plot being drawn, and its PNG when it is done."""

    axes: Any  # of matplotlib, (1, columns)
    png: bytes = b""


@contextmanager
def plot(width_in: float, height_in: float, columns: int = 1) -> Iterator[Plot]:
    """Yield a plot of this size in inches; its `png` is there when the block ends."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    canvas, axes = pyplot.subplots(1, columns, figsize=(width_in, height_in), squeeze=False)
    drawn = Plot(axes)
    try:
        yield drawn
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
        drawn.png = buffer.getvalue()
    finally:
        pyplot.close(canvas)
