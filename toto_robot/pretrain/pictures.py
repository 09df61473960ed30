"""What does a training look like: its loss over steps and positions, its reconstructions, its continuations?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from toto_robot.run_folder import atomic_path, read_metrics

_DPI = 110
_GAP_PX = 4


def draw_loss(run_dir: Path, *, unit: str, references: Mapping[str, float] | None = None) -> Path:
    """Draw training and held-out loss of a run over its steps to `loss.png`, with named horizontal references."""
    lines = read_metrics(run_dir)
    figure = Figure(figsize=(7.5, 4.5), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    for key, label, style in (("train/loss", "training", "-"), ("val/loss", "held out", "o-")):
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, style, label=label, linewidth=1.2, markersize=4)
    for shade, (label, value) in enumerate((references or {}).items()):
        axes.axhline(value, linestyle="--", linewidth=1, color=f"C{shade + 2}", label=f"{label} {value:.2f}")
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:  # pictures may come before the first line of the log
        axes.legend()
    return _save(figure, run_dir / "loss.png")


def draw_per_position(path: Path, measured: Mapping[str, Any], title: str = "held-out loss within a sample") -> Path:
    """Draw what `per_position.json` holds: nats at each position of a sample, a thin line at each frame's first token.

    The stairs are the means of the frames, thin ones those of each source where there are several. Dashed: what the
    references that it names reach, and how well the model predicts a first frame, which is what it knows without frames
    before.
    """
    nats, frames = np.asarray(measured["per_position"]), np.asarray(measured["per_frame"])
    per_frame = len(nats) // len(frames)
    figure = Figure(figsize=(10, 4.8), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    for edge in range(0, len(nats) + 1, per_frame):
        axes.axvline(edge, color="0.88", linewidth=0.8, zorder=0)
    axes.plot(np.arange(len(nats)) + 0.5, nats, color="C0", linewidth=0.8, alpha=0.65, label="each position")
    edges = np.arange(len(frames) + 1) * per_frame
    axes.stairs(frames, edges, color="C3", linewidth=1.8, baseline=None, label="mean of the frame")
    sources = measured.get("sources", {})
    for shade, (name, one) in enumerate(sources.items() if len(sources) > 1 else ()):
        axes.stairs(one["per_frame"], edges, color=f"C{6 + shade % 4}", linewidth=1.0, baseline=None, label=name)
    references = {**measured.get("references", {}), "the model without frames before": frames[0]}
    for shade, (label, value) in enumerate(references.items()):
        if value is not None:
            colour = f"C{(4, 1, 2, 5)[shade % 4]}"
            axes.axhline(value, linestyle="--", linewidth=1.1, color=colour, label=f"{label} {value:.2f}")
    axes.set(xlim=(0, len(nats)), xlabel="position in the sample", ylabel=measured["unit"], title=title)
    axes.set_ylim(0, 1.05 * max(nats.max(), *(value for value in references.values() if value is not None)))
    over = axes.secondary_xaxis("top")
    over.set_xticks((np.arange(len(frames)) + 0.5) * per_frame, [str(frame) for frame in range(1, len(frames) + 1)])
    over.tick_params(length=0, labelsize=7, colors="0.5")
    over.set_xlabel("frame", fontsize=8, color="0.5")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, ncols=2, loc="upper right")
    return _save(figure, path)


def draw_rows(path: Path, rows: Sequence[tuple[str, np.ndarray]], *, title: str, mark: int | None = None) -> Path:
    """Draw labelled rows of pictures, each uint8 (n, h, w, 3), below each other.

    `mark` draws a line before that column: where given frames end and made ones begin.
    """
    assert rows and all(row.dtype == np.uint8 and row.ndim == 4 for _, row in rows)
    height_px, width_px = rows[0][1].shape[1:3]
    columns = max(len(row) for _, row in rows)
    canvas = np.full(
        (len(rows) * (height_px + _GAP_PX) - _GAP_PX, columns * (width_px + _GAP_PX) - _GAP_PX, 3), 255, np.uint8
    )
    for i, (_, row) in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height_px + _GAP_PX), j * (width_px + _GAP_PX)
            canvas[top : top + height_px, left : left + width_px] = picture
    figure = Figure(figsize=_figure_size(canvas), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(canvas, interpolation="nearest")
    _label_rows(axes, [label for label, _ in rows], height_px)
    if mark is not None:
        axes.axvline(mark * (width_px + _GAP_PX) - _GAP_PX / 2 - 0.5, color="red", linewidth=1.5)
    axes.set_title(title, fontsize=9)
    return _save(figure, path)


def _figure_size(canvas: np.ndarray) -> tuple[float, float]:
    """Return inches that show small pictures enlarged and large ones no wider than a screen."""
    scale = min(2.0, 1700 / canvas.shape[1])
    return (max(7.5, canvas.shape[1] * scale / _DPI + 1.3), canvas.shape[0] * scale / _DPI + 0.5)  # 7.5: the title's


def _label_rows(axes: Axes, labels: Sequence[str], height_px: int) -> None:
    axes.set_xticks([])
    axes.set_yticks([i * (height_px + _GAP_PX) + height_px / 2 for i in range(len(labels))], labels, fontsize=8)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _save(figure: Figure, path: Path) -> Path:
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
    return path
