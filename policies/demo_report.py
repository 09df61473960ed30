"""What does the demo show at the end: one self-contained HTML page of pictures, intervals and timings?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policies.compare_report import result_parts
from policies.page import commands, heading, picture, table, write_page


def write_report(
    path: Path,
    *,
    result: Mapping[str, Any],
    stages: Mapping[str, float],
    pictures: Sequence[tuple[str, str, Path]],
    facts: Mapping[str, Any],
    next_steps: Sequence[str],
) -> None:
    """Write the page.

    Args:
        path: where to write the HTML file; everything it shows is inside it.
        result: what `compare` found.
        stages: minutes by stage, in order.
        pictures: (heading, caption, PNG file); a file that is missing is named as missing.
        facts: provenance and sizes, shown as a table.
        next_steps: command lines to try.
    """
    minutes = sum(stages.values())
    parts = [_pipeline_svg(), *result_parts(result)]
    for title, caption, path_of_picture in pictures:
        parts += [heading(title), picture(path_of_picture, caption)]
    times = [(name, f"{value:.1f}") for name, value in stages.items()]
    parts += [heading("Where the time went"), table(("stage", "minutes"), times)]
    parts += [heading("What ran"), table((), list(facts.items()))]
    parts += [heading("What to try next"), commands(next_steps)]
    subtitle = (
        f"{facts.get('machine', '')} · {minutes:.1f} minutes of work · {facts.get('date', '')} · "
        f"commit {facts.get('commit')}"
    )
    write_page(path, "From robot video to a policy that picks the cube", subtitle, parts)


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
