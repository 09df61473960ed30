"""How wrong were the readouts of a probe, with which interval, and how is that shown?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policies.seed_statistics import student_quantile
from toto_robot.run_folder import atomic_path

PROPRIO = "proprioception"  # the readout that sees no picture


@dataclass(frozen=True)
class Score:
    """How far off a readout is on demonstrations that it has not seen."""

    layer: int | None  # None: proprioception alone
    camera: str  # several joined by +
    labels: int
    error_cm: tuple[float, ...]  # mean distance, a split
    r2: tuple[float, ...]  # share of the target's variance that is explained, a split

    @property
    def mean_cm(self) -> float:
        """The mean over splits."""
        return float(np.mean(self.error_cm))

    @property
    def half_width_cm(self) -> float:
        """Half of the 95 % Student interval over splits; splits share demonstrations, so it is somewhat narrow."""
        count = len(self.error_cm)
        deviation = float(np.std(self.error_cm, ddof=1))
        return student_quantile(0.975, count - 1) * deviation / count**0.5

    def as_dict(self) -> dict[str, Any]:
        """Return every number, for JSON."""
        interval = [self.mean_cm - self.half_width_cm, self.mean_cm + self.half_width_cm]
        return {
            "layer": self.layer, "camera": self.camera, "labels": self.labels, "error_cm": list(self.error_cm),
            "mean_cm": self.mean_cm, "interval95_cm": interval, "r2": float(np.mean(self.r2)),
            "r2_splits": list(self.r2),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Score:
        """Read what `as_dict` and JSON have made of it."""
        return cls(
            stored["layer"], stored["camera"], stored["labels"], tuple(stored["error_cm"]), tuple(stored["r2_splits"])
        )


def best_layer(scores: Iterable[Score]) -> int:
    """Return the layer whose readout from the most cameras is the least wrong at the most labels."""
    seen = [score for score in scores if score.layer is not None]
    most = max(score.labels for score in seen)
    view = max((score.camera for score in seen), key=lambda camera: camera.count("+"))
    best = min((s for s in seen if s.labels == most and s.camera == view), key=lambda score: score.mean_cm)
    assert best.layer is not None
    return best.layer


def table(scores_of: Mapping[str, Iterable[Score]], thing: str) -> str:
    """Return the errors as text: a line a layer, a column a camera and number of labels."""
    every = [score for scores in scores_of.values() for score in scores]
    labels = sorted({score.labels for score in every})
    views = list(dict.fromkeys(score.camera for score in every if score.layer is not None))
    names = [f"{view}, {count} demos" for view in views for count in labels]
    lines = [
        f"where is the {thing}, seen from the hand: mean error in cm on demonstrations without a label, +- half of the "
        "95 % interval over splits",
        f"{'encoder':<28}{'layer':>6}" + "".join(f"{name:>22}" for name in names),
    ]
    blind = {score.labels: score for score in every if score.layer is None}
    if blind:
        cells = [_cell(blind[count]) for _ in (views or [PROPRIO]) for count in labels]
        lines.append(f"{PROPRIO:<28}{'-':>6}" + "".join(f"{cell:>22}" for cell in cells))
    for name, scores in scores_of.items():
        seen = {(score.layer, score.camera, score.labels): score for score in scores if score.layer is not None}
        for layer in dict.fromkeys(key[0] for key in seen):
            cells = [_cell(seen[layer, view, count]) for view in views for count in labels]
            lines.append(f"{name:<28}{layer:>6}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def draw_layers(scores_of: Mapping[str, Iterable[Score]], thing: str, path: Path) -> None:
    """Draw the error by layer: a panel a camera and number of labels, a line an encoder, proprioception dashed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    every = [score for scores in scores_of.values() for score in scores]
    views = list(dict.fromkeys(score.camera for score in every if score.layer is not None))
    labels = sorted({score.labels for score in every})
    figure = Figure(figsize=(3.6 * max(1, len(views)), 3.0 * len(labels)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(labels), max(1, len(views)), squeeze=False, sharex=True, sharey="row")
    for row, count in enumerate(labels):
        for column, view in enumerate(views):
            axis = axes[row][column]
            for name, scores in scores_of.items():
                line = sorted((s for s in scores if (s.camera, s.labels) == (view, count)), key=lambda s: s.layer or 0)
                if line:
                    axis.errorbar(
                        [score.layer for score in line], [score.mean_cm for score in line],
                        yerr=[score.half_width_cm for score in line], marker="o", capsize=2, label=name,
                    )  # fmt: skip
            for score in every:
                if score.layer is None and score.labels == count:
                    axis.axhline(score.mean_cm, color="0.6", linestyle="--", linewidth=1)
                    break
            axis.set_title(f"{view}, {count} labelled demonstrations", fontsize=9)
            axis.set_ylim(bottom=0)
    for axis in axes[-1]:
        axis.set_xlabel("layer (0: embedding)")
    for axis in axes[:, 0]:
        axis.set_ylabel(f"error of the {thing}, cm")
    axes[0][-1].legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _cell(score: Score) -> str:
    return f"{score.mean_cm:.2f} +- {score.half_width_cm:.2f}"
