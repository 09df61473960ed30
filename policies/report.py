"""What does the demo show at the end: one self-contained HTML page of pictures, intervals and timings?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.page import (
    ENCODER_LABELS,
    bullets,
    colour,
    commands,
    figure,
    heading,
    picture,
    plot,
    table,
    write_page,
)
from policies.statistics import newcombe_interval, wilson_interval


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
        _pipeline_svg(),
        heading("Success on held-out starts"),
        _result_table(rows),
        figure(_interval_plot(rows), "Success rate and Wilson 95 % interval. Dots: single policy seeds."),
        bullets(conclusions(rows)),
    ]
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
                f"{count} demonstrations, Toto against {ENCODER_LABELS.get(name, name)}: "
                f"{100 * (reference.rate - row.rate):+.0f} points [{100 * low:+.0f}, {100 * high:+.0f}], {verdict}."
            )
    sentences.append(
        "The intervals treat episodes as independent; the noise between policy seeds and between draws of "
        "demonstrations comes on top, so a gap of one policy seed says little about the method."
    )
    return sentences


def _result_table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        low, high = row.wilson95
        counts = f"{row.successes} of {row.episodes}"
        interval = f"{100 * low:.0f} to {100 * high:.0f} %"
        name = ENCODER_LABELS.get(row.encoder, row.encoder)
        lines.append((name, row.demonstrations, len(row.per_seed), counts, f"{100 * row.rate:.0f} %", interval))
    return table(("encoder", "demonstrations", "policy seeds", "successes", "rate", "Wilson 95 %"), lines)


def _interval_plot(rows: Sequence[Row]) -> bytes:
    """Draw rate and interval of each row, grouped by number of demonstrations; return PNG bytes."""
    names = [name for name in ENCODER_LABELS if any(row.encoder == name for row in rows)]
    ticks = []
    position = 0.0
    with plot(8.6, 1.1 + 0.36 * len(rows)) as drawn:
        axes = drawn.axes[0, 0]
        for count in sorted({row.demonstrations for row in rows}):
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
    return drawn.png


def _draw_row(axes: Any, row: Row, position: float) -> None:
    low, high = row.wilson95
    ink = colour(row.encoder)
    axes.plot([100 * low, 100 * high], [position, position], color=ink, linewidth=5, alpha=0.45, solid_capstyle="butt")
    axes.plot([100 * row.rate], [position], "|", color=ink, markersize=15, markeredgewidth=2.5)
    if len(row.per_seed) > 1:
        rates = [100 * successes / episodes for successes, episodes in row.per_seed]
        axes.plot(rates, [position] * len(rates), "o", color=ink, markersize=4)


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
