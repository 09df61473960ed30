"""What does the demo show at the end: one self-contained HTML page of pictures, intervals and timings?"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.statistics import newcombe_interval, wilson_interval
from toto_robot.run_folder import write_text

_STYLE = """
body{font:16px/1.55 system-ui,sans-serif;max-width:1060px;margin:2.2em auto;padding:0 1.2em;color:#1d2733}
h1{font-size:1.9em;margin:0 0 .2em}h2{margin:2em 0 .5em;border-bottom:1px solid #d8dee6;padding-bottom:.2em}
p.sub{color:#5b6775;margin-top:0}table{border-collapse:collapse;margin:.6em 0}td,th{padding:.35em .8em;
text-align:right}
th{border-bottom:2px solid #1d2733;font-weight:600}tr+tr td{border-top:1px solid #e4e8ee}
td:first-child,th:first-child{text-align:left}
img{max-width:100%;border:1px solid #e4e8ee;border-radius:4px}figure{margin:1em 0}
figcaption{color:#5b6775;font-size:.9em}
code{background:#f1f4f8;padding:.1em .35em;border-radius:3px}
pre{background:#f1f4f8;padding:.8em 1em;border-radius:4px;overflow-x:auto}
.note{background:#fff7e0;border-left:4px solid #e3b341;padding:.6em 1em}
"""

ENCODER_LABELS = {
    "toto": "Toto (pretrained, frozen)",
    "mae": "MAE of equal size (pretrained, frozen)",
    "random_vit": "random ViT (control)",
    "random_toto": "random Toto (control)",
    "none": "no pixels, proprioception only (control)",
}
_COLOURS = {"toto": "#1f6feb", "mae": "#d1701c", "random_vit": "#7d8590", "random_toto": "#a371f7", "none": "#3d444d"}


@dataclass(frozen=True)
class Row:
    """The closed-loop result of one encoder at one number of demonstrations, summed over policy seeds."""

    encoder: str
    demonstrations: int
    successes: int
    episodes: int
    per_seed: tuple[tuple[int, int], ...]  # (successes, episodes) of each policy seed

    @property
    def rate(self) -> float:
        """Share of successful episodes, in [0, 1]."""
        return self.successes / self.episodes

    @property
    def wilson95(self) -> tuple[float, float]:
        """Wilson 95 % interval of the rate; episodes are pooled over policy seeds."""
        return wilson_interval(self.successes, self.episodes)


def write_report(
    path: Path,
    *,
    rows: Sequence[Row],
    stages: Mapping[str, float],
    pictures: Sequence[tuple[str, str, Path]],
    facts: Mapping[str, Any],
    next_steps: Sequence[str],
) -> None:
    """Write the page.

    Args:
        path: where to write the HTML file; everything it shows is inside it.
        rows: results, one per encoder and number of demonstrations.
        stages: minutes by stage, in order.
        pictures: (heading, caption, PNG file); a file that is missing is named as missing.
        facts: provenance and sizes, shown as a table.
        next_steps: command lines to try.
    """
    minutes = sum(stages.values())
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>toto_robot demo</title>",
        f"<style>{_STYLE}</style><h1>From robot video to a policy that picks the cube</h1>",
        f"<p class=sub>{html.escape(str(facts.get('machine', '')))} · {minutes:.1f} minutes of work · "
        f"{html.escape(str(facts.get('date', '')))} · commit {html.escape(str(facts.get('commit')))}</p>",
        _pipeline_svg(),
        "<h2>Success on held-out starts</h2>",
        _result_table(rows),
        _figure(_interval_plot(rows), "Success rate and Wilson 95 % interval. Dots: single policy seeds."),
        f"<div class=note><ul><li>{'<li>'.join(conclusions(rows))}</ul></div>",
    ]
    for heading, caption, picture in pictures:
        parts.append(f"<h2>{html.escape(heading)}</h2>")
        if picture.exists():
            parts.append(_figure(picture.read_bytes(), caption))
        else:
            parts.append(f"<p class=note>{html.escape(picture.name)} was not made.</p>")
    parts += ["<h2>Where the time went</h2>", _stage_table(stages), "<h2>What ran</h2>", _fact_table(facts)]
    parts += ["<h2>What to try next</h2><pre>", html.escape("\n".join(next_steps)), "</pre>"]
    write_text(path, "\n".join(parts))


def conclusions(rows: Sequence[Row]) -> list[str]:
    """Say, per number of demonstrations, what the intervals of the differences to Toto carry, and what they do not."""
    sentences = []
    for count in sorted({row.demonstrations for row in rows}):
        group = {row.encoder: row for row in rows if row.demonstrations == count}
        if "toto" not in group:
            continue
        reference = group["toto"]
        for name, row in group.items():
            if name == "toto":
                continue
            low, high = newcombe_interval(reference.successes, reference.episodes, row.successes, row.episodes)
            verdict = "Toto is ahead" if low > 0 else ("Toto is behind" if high < 0 else "no difference is shown")
            sentences.append(
                f"{count} demonstrations, Toto against {html.escape(ENCODER_LABELS.get(name, name))}: "
                f"{100 * (reference.rate - row.rate):+.0f} points [{100 * low:+.0f}, {100 * high:+.0f}], {verdict}."
            )
    sentences.append(
        "The intervals treat episodes as independent; the noise between policy seeds and between draws of "
        "demonstrations comes on top, so a gap of one policy seed says little about the method."
    )
    return sentences


def _result_table(rows: Sequence[Row]) -> str:
    lines = ["<table><tr><th>encoder<th>demonstrations<th>policy seeds<th>successes<th>rate<th>Wilson 95 %</tr>"]
    for row in rows:
        low, high = row.wilson95
        lines.append(
            f"<tr><td>{html.escape(ENCODER_LABELS.get(row.encoder, row.encoder))}<td>{row.demonstrations}"
            f"<td>{len(row.per_seed)}<td>{row.successes} of {row.episodes}<td>{100 * row.rate:.0f} %"
            f"<td>{100 * low:.0f} to {100 * high:.0f} %</tr>"
        )
    return "\n".join([*lines, "</table>"])


def _stage_table(stages: Mapping[str, float]) -> str:
    lines = [f"<tr><td>{html.escape(name)}<td>{minutes:.1f}</tr>" for name, minutes in stages.items()]
    return "\n".join(["<table><tr><th>stage<th>minutes</tr>", *lines, "</table>"])


def _fact_table(facts: Mapping[str, Any]) -> str:
    lines = [f"<tr><td>{html.escape(str(key))}<td>{html.escape(str(value))}</tr>" for key, value in facts.items()]
    return "\n".join(["<table>", *lines, "</table>"])


def _figure(png: bytes, caption: str) -> str:
    encoded = base64.b64encode(png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{encoded}"><figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def _interval_plot(rows: Sequence[Row]) -> bytes:
    """Draw rate and interval of each row, grouped by number of demonstrations; return PNG bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    counts = sorted({row.demonstrations for row in rows})
    names = [name for name in ENCODER_LABELS if any(row.encoder == name for row in rows)]
    figure, axes = pyplot.subplots(figsize=(8.6, 1.1 + 0.36 * len(rows)))
    ticks = []
    position = 0.0
    for count in counts:
        for name in names:
            for row in rows:
                if (row.encoder, row.demonstrations) == (name, count):
                    _draw_row(axes, row, position)
                    ticks.append((position, f"{name}, {count}"))
                    position -= 1
        position -= 0.7
    axes.set_yticks([place for place, _ in ticks], [label for _, label in ticks])
    axes.set_xlim(-2, 102)
    axes.set_xlabel("success, %")
    axes.grid(axis="x", alpha=0.3)
    axes.set_ylabel("encoder, demonstrations")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    pyplot.close(figure)
    return buffer.getvalue()


def _draw_row(axes: Any, row: Row, position: float) -> None:
    low, high = row.wilson95
    colour = _COLOURS.get(row.encoder, "#333333")
    axes.plot(
        [100 * low, 100 * high], [position, position], color=colour, linewidth=5, alpha=0.45, solid_capstyle="butt"
    )
    axes.plot([100 * row.rate], [position], "|", color=colour, markersize=15, markeredgewidth=2.5)
    if len(row.per_seed) > 1:
        rates = [100 * successes / episodes for successes, episodes in row.per_seed]
        axes.plot(rates, [position] * len(rates), "o", color=colour, markersize=4)


def _pipeline_svg() -> str:
    """Draw the chain as boxes, so that a reader knows what the pictures below belong to."""
    boxes = [
        ("video", "rendered or yours"),
        ("tokens", "dVAE, 8x8 a frame"),
        ("Toto", "next token, 16 frames"),
        ("features", "middle layer, streamed"),
        ("policy", "pooled, cloned"),
        ("robot", "MuJoCo, 20 Hz"),
    ]
    width, gap = 150, 24
    parts = [f'<svg viewBox="0 0 {len(boxes) * (width + gap)} 74" width="100%" role="img" aria-label="the pipeline">']
    for index, (title, detail) in enumerate(boxes):
        x = index * (width + gap)
        parts.append(
            f'<rect x="{x + 1}" y="4" width="{width}" height="62" rx="7" fill="#eef4ff" stroke="#1f6feb"/>'
            f'<text x="{x + width / 2}" y="31" text-anchor="middle" font-weight="600">{title}</text>'
            f'<text x="{x + width / 2}" y="52" text-anchor="middle" font-size="12" fill="#5b6775">{detail}</text>'
        )
        if index + 1 < len(boxes):
            parts.append(f'<text x="{x + width + gap / 2}" y="42" text-anchor="middle" fill="#1f6feb">&#10140;</text>')
    return "".join([*parts, "</svg>"])
