"""How is a comparison drawn: cells with their intervals, learning curves, layers?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from policies.compare_words import curve_name
from policies.page import colour, plot


def cell_plot(result: Mapping[str, Any]) -> bytes:
    """Draw every cell as an interval with a dot for each policy, one panel a test."""
    cells, encoders = result["cells"], result["design"]["encoders"]
    tests = list(dict.fromkeys(cell["test"] for cell in cells)) or ["plain"]
    most = max((sum(cell["test"] == test for cell in cells) for test in tests), default=1)
    with plot(max(8.6, 4.3 * len(tests)), 1.2 + 0.34 * most, columns=len(tests)) as drawn:
        for axes, test in zip(drawn.axes[0], tests, strict=True):
            ticks, position, before = [], 0.0, None
            for cell in (cell for cell in cells if cell["test"] == test):
                position -= 0.0 if before is None else 1.0 if before == cell["demonstrations"] else 1.6
                before = cell["demonstrations"]
                _draw_cell(axes, cell, position, _ink(cell["encoder"], encoders, result))
                ticks.append((position, f"{cell['encoder']}, {before}" if before else cell["encoder"]))
            axes.set_yticks([place for place, _ in ticks], [label for _, label in ticks])
            axes.set_xlim(-2, 102)
            axes.set_ylim(position - 0.7, 0.7)
            axes.set_xlabel("success, %")
            axes.grid(axis="x", alpha=0.3)
            axes.set_title(test if len(tests) > 1 else "")
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        drawn.axes[0, 0].figure.tight_layout()
    return drawn.png


def _draw_cell(axes: Any, cell: Mapping[str, Any], position: float, ink: str) -> None:
    value, low, high = (100 * number for number in cell["iqm"])
    axes.plot([low, high], [position] * 2, color=ink, linewidth=7, alpha=0.35, solid_capstyle="butt")
    axes.plot([value], [position], "|", color=ink, markersize=15, markeredgewidth=2.5)
    rates = [100 * rate for group in cell["by_task"].values() for rate in group]
    places = position + np.linspace(-0.12, 0.12, len(rates))
    axes.plot(rates, places, "o", color=ink, markersize=3.5, alpha=0.8)


def curve_plot(curves: Sequence[Mapping[str, Any]], tasks: Sequence[str | None], result: Mapping[str, Any]) -> bytes:
    """Draw one panel a task, its mean over seeds; the panel of None has the IQM over all tasks. Both with intervals."""
    encoders, counts = result["design"]["encoders"], list(dict.fromkeys(curve["demonstrations"] for curve in curves))
    with plot(7.5 if len(tasks) == 1 else 10.2, 3.6, columns=len(tasks)) as drawn:
        for axes, task in zip(drawn.axes[0], tasks, strict=True):
            for curve in curves:
                ink, x = _ink(curve["encoder"], encoders, result), curve["x"]
                found = curve["iqm"] if task is None else curve["task_means"].get(task, [[np.nan] * 3] * len(x))
                value, low, high = 100 * np.transpose(found)
                axes.fill_between(x, low, high, color=ink, alpha=0.15, linewidth=0)
                style = ("-", "--", ":", "-.")[
                    sorted({*counts}).index(curve["demonstrations"]) % 4 if None not in counts else 0
                ]
                axes.plot(x, value, f"o{style}", color=ink, label=curve_name(curve, curves), markersize=4)
            axes.set_title(task or "")
            axes.set_xlabel(curves[0]["unit"])
            axes.set_ylim(-2, 102)
            axes.grid(alpha=0.3)
        drawn.axes[0, 0].set_ylabel("success, %")
        drawn.axes[0, 0].legend(frameon=False)
        drawn.axes[0, 0].figure.tight_layout()
    return drawn.png


def layer_plot(layers: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw success by layer, a line an encoder and test."""
    with plot(7.5, 3.5) as drawn:
        axes = drawn.axes[0, 0]
        for place, curve in enumerate(layers):
            names = [point["layer"] for point in curve["points"]]
            value, low, high = 100 * np.transpose([point["iqm"] for point in curve["points"]])
            label = curve["encoder"] + ("" if curve["test"] == "plain" else f", {curve['test']}")
            ink = colour(curve["encoder"], place)
            axes.fill_between(range(len(names)), low, high, color=ink, alpha=0.15, linewidth=0)
            axes.plot(range(len(names)), value, "o-", color=ink, label=label)
            axes.set_xticks(range(len(names)), names)
        axes.set_xlabel("layer")
        axes.set_ylabel("success, %")
        axes.set_ylim(-2, 102)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return drawn.png


def _ink(label: str, encoders: Sequence[str], result: Mapping[str, Any]) -> str:
    """Return an encoder's colour: the first of its kind has the kind's own, variants of it have others."""
    kinds = {name: result["encoders"].get(name, {}).get("name", name) for name in encoders}
    first = next((name for name in encoders if kinds[name] == kinds.get(label)), label)
    return colour(kinds.get(label, label) if first == label else label, encoders.index(label))
