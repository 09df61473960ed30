"""How does one read a comparison: the conclusion first, then the table, the curves, and everything behind them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from policies.compare_analysis import STEPS
from policies.compare_words import headline, p_value, seeds_words, sentences
from policies.page import (
    ENCODER_LABELS,
    bullets,
    colour,
    commands,
    figure,
    heading,
    paragraph,
    picture,
    plot,
    table,
    write_page,
)
from policies.seed_statistics import DEAD_BELOW

_LIMITS = (
    "IQM is the mean of the middle half of all policies; its interval is a bootstrap over policy seeds within tasks. "
    "With few seeds it is too narrow: at 10 seeds it holds the truth in about 90 % of all cases, at 5 in 83 %. "
    "Differences have Student's interval over paired policy seeds, which keeps its 95 %. "
    "Intervals are not corrected for the number of comparisons: of twenty without any difference, one shows one. "
    "All policies learn from the first episodes of one store a task: other demonstrations would add their own noise. "
    "Success in simulation says nothing yet about a real arm."
)


def write_comparison(
    run_dir: Path, result: Mapping[str, Any], pictures: Sequence[tuple[str, Path]], again: Sequence[str]
) -> None:
    """Write `report.html`.

    Args:
        run_dir: where to.
        result: what `comparison.json` holds.
        pictures: (caption, PNG file) of what policies do.
        again: command lines to go on with.
    """
    design = result["design"]
    done, planned = len({_policy(run) for run in result["runs"]}), design["planned_runs"]
    parts = [paragraph(line, "first") for line in headline(result)]
    if done < planned:
        parts.append(paragraph(f"{done} of {planned} policies are done; the same command goes on.", "note"))
    parts += [paragraph(line, "note") for line in _failures(result["runs"])]
    parts += result_parts(result)
    if result["pairs"]:
        parts += [heading(f"Against {design['reference']}"), _pair_table(result["pairs"])]
    parts += _layer_parts(result["layers"])
    parts += [heading("What a frame costs"), _cost_table(result["encoders"])]
    parts.append(
        paragraph(
            "One new frame of one stream, tokenizer included, memory full; two operations a multiply-add. Times with "
            "one thread: other work on the machine lengthens what passes, not what the processor spends. Parameters "
            "are those that a frame passes through.",
            "sub",
        )
    )
    for caption, path in pictures:
        parts.append(picture(path, caption))
    parts += [heading("What all policies share"), _shared_table(design)]
    if result.get("sources"):
        parts += [heading("Taken from earlier comparisons"), _source_table(result["sources"])]
    parts += [heading("Single policies"), _run_table(result["runs"])]
    parts += [heading("Go on"), commands(again)]
    title = f"{' against '.join(design['encoders'][:2])} on {', '.join(design['tasks'])}"
    machine = result["machine"]
    subtitle = f"{machine['processor']}, {machine['cores']} cores · {result['date']} · commit {result['commit']}"
    write_page(run_dir / "report.html", title, subtitle, parts)


def result_parts(result: Mapping[str, Any]) -> list[str]:
    """Return what a page shows of a comparison: table, intervals, learning curves, conclusions and their limits."""
    return [
        heading("Success on held-out starts"),
        _cell_table(result["cells"]),
        figure(_cell_plot(result), "Interquartile mean and its interval; dots are single policies."),
        *_curve_parts(result),
        heading("What can be concluded, and what not"),
        bullets(sentences(result)),
        paragraph(_LIMITS, "sub"),
    ]


# --------------------------------------------------------------------------------------------------------------- tables


def _cell_table(cells: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "encoder", "demos", "test", "policies", "IQM [95 %]", "all episodes [Wilson]",
        f"dead (< {100 * DEAD_BELOW:.0f} %)", "steps",
    )  # fmt: skip
    rows = []
    for cell in cells:
        pooled = cell["pooled"]
        low, high = pooled["wilson95"]
        rate = f"{pooled['successes']}/{pooled['episodes']} = {_percent(pooled['rate'])} [{_percent(low, high)}]"
        steps = f"{cell['steps_to_success']['median']:.0f}" if cell["steps_to_success"] else "–"
        rows.append(
            (ENCODER_LABELS.get(cell["encoder"], cell["encoder"]), cell["demonstrations"], cell["test"],
             f"{cell['policies']} on {cell['tasks']}", _iqm(cell), rate, cell["dead"], steps)
        )  # fmt: skip
    return table(head, rows)


def _pair_table(pairs: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "against", "demonstrations", "test", "difference, points", "McNemar p", "P(improvement)",
        "shown", "seeds to show it",
    )  # fmt: skip
    rows = [
        (
            pair["second"], pair["demonstrations"], pair["test"],
            _points(pair["difference"]) if pair["seeds"] > 1 else f"{100 * pair['difference'][0]:+.0f} (one seed)",
            p_value(pair["episodes"]["mcnemar_p"]),
            "{:.2f} [{:.2f}, {:.2f}]".format(*pair["probability_of_improvement"]) if pair["seeds"] > 1 else "–",
            "yes" if pair["shown"] else "no",
            "–" if pair["shown"] else seeds_words(pair["needed_seeds"]),
        )
        for pair in pairs
    ]  # fmt: skip
    return table(head, rows)


def _cost_table(encoders: Mapping[str, Any]) -> str:
    head = (
        "encoder",
        "layer",
        "context",
        "parameters",
        "tokens x width",
        "GFLOP a frame",
        "ms a frame [quartiles]",
        "processor ms",
    )
    rows = []
    for label, facts in encoders.items():
        low, middle, high = facts["ms_per_frame"]
        rows.append(
            (label, facts["layer"], facts["context_frames"], f"{facts['parameters']:,}",
             f"{facts['tokens_per_frame']} x {facts['width']}", f"{facts['gflops_per_frame']:.3f}",
             f"{middle:.1f} [{low:.1f}, {high:.1f}]", f"{facts['processor_ms_per_frame']:.1f}")
        )  # fmt: skip
    return table(head, rows)


def _shared_table(design: Mapping[str, Any]) -> str:
    rows = [(key, value) for key, value in design.items() if key not in ("shared", "planned_runs")]
    return table((), [(key, _told(value)) for key, value in [*rows, *_flat(design["shared"])]])


def _source_table(sources: Sequence[Mapping[str, Any]]) -> str:
    head = ("comparison", "policies of it", "commit", "date", "machine")
    rows = [
        (source["file"], source["policies"], source["commit"], source["date"],
         f"{source['machine']['processor']}, {source['machine']['cores']} cores")
        for source in sources
    ]  # fmt: skip
    return table(head, rows)


def _failures(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each policy that could not be trained."""
    reasons = {_policy(run): run["failed"] for run in runs if "failed" in run}
    return [
        f"No policy came of {encoder} on {env}, {count} demonstrations, seed {seed}: {reason}. It counts as one that "
        "never succeeds."
        for (env, encoder, count, seed), reason in reasons.items()
    ]


def _run_table(runs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (run["encoder"], run["env"], run["demonstrations"], run["seed"], run["test"],
         f"{run['successes']}/{run['episodes']}{' (failed)' if 'failed' in run else ''}", _percent(*run["wilson95"]))
        for run in runs
    ]  # fmt: skip
    return table(("encoder", "task", "demonstrations", "seed", "test", "successes", "Wilson 95 %"), rows)


# ---------------------------------------------------------------------------------------------------------------- plots


def _cell_plot(result: Mapping[str, Any]) -> bytes:
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
                ticks.append((position, f"{cell['encoder']}, {before}"))
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


def _curve_parts(result: Mapping[str, Any]) -> list[str]:
    curves = result["curves"]
    if not curves:
        return []
    parts = [heading("Learning curves")]
    for test in dict.fromkeys(curve["test"] for curve in curves):
        drawn = [curve for curve in curves if curve["test"] == test]
        tasks = sorted({task for curve in drawn for task in curve["by_task"]})
        varied = "" if test == "plain" else f" Varied: {test}."
        caption = f"Interquartile mean over policy seeds and {len(tasks)} tasks, and its interval.{varied}"
        parts.append(figure(_curve_plot(drawn, [None], result), caption))
        columns = 2 if len(tasks) in (2, 4) else 3
        for first in range(0, len(tasks) if len(tasks) > 1 else 0, columns):
            panels = tasks[first : first + columns]
            parts.append(figure(_curve_plot(drawn, panels, result), f"Each task, mean over policy seeds.{varied}"))
    return [*parts, _target_table(curves)]


def _curve_plot(curves: Sequence[Mapping[str, Any]], tasks: Sequence[str | None], result: Mapping[str, Any]) -> bytes:
    """Draw one panel a task, its mean over seeds; the panel of None has the IQM over all tasks and its interval."""
    encoders, counts = result["design"]["encoders"], _counts(curves)
    with plot(7.5 if len(tasks) == 1 else 10.2, 3.6, columns=len(tasks)) as drawn:
        for axes, task in zip(drawn.axes[0], tasks, strict=True):
            for curve in curves:
                ink, x = _ink(curve["encoder"], encoders, result), curve["x"]
                value, low, high = 100 * np.transpose(curve["iqm"])
                if task is not None:
                    value = 100 * np.mean(curve["by_task"].get(task, [[np.nan] * len(x)]), axis=0)
                else:
                    axes.fill_between(x, low, high, color=ink, alpha=0.15, linewidth=0)
                style = ("-", "--", ":", "-.")[counts.index(curve["demonstrations"]) % 4]
                axes.plot(x, value, f"o{style}", color=ink, label=_named(curve, counts), markersize=4)
            axes.set_title(task or "")
            axes.set_xlabel(curves[0]["unit"])
            axes.set_ylim(-2, 102)
            axes.grid(alpha=0.3)
        drawn.axes[0, 0].set_ylabel("success, %")
        drawn.axes[0, 0].legend(frameon=False)
        drawn.axes[0, 0].figure.tight_layout()
    return drawn.png


def _target_table(curves: Sequence[Mapping[str, Any]]) -> str:
    """Show how much each encoder needs to reach each target; a median beyond the last measurement is not invented."""
    rows, counts = [], _counts(curves)
    for curve in curves:
        for target, found in curve["steps_to"].items():
            middle = "never in half of the runs" if found["median"] is None else f"{found['median']:,.0f}"
            reached = f"{found['reached']} of {found['of']}"
            rows.append((_named(curve, counts), curve["test"], f"{100 * float(target):.0f} %", reached, middle))
    unit = STEPS if any(curve["unit"] == STEPS for curve in curves) else curves[0]["unit"]
    return table(("encoder", "test", "success", "policies that reach it", f"median {unit}"), rows)


def _layer_parts(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    if not layers:
        return []
    rows = [
        (curve["encoder"], point["layer"], curve["test"], point["policies"], _iqm(point), point["dead"])
        for curve in layers
        for point in curve["points"]
    ]
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
    caption = f"Success by layer, {layers[0]['demonstrations']} demonstrations; interquartile mean and its interval."
    head = ("encoder", "layer", "test", "policies", "IQM [95 %]", "dead")
    return [heading("By layer"), figure(drawn.png, caption), table(head, rows)]


# ---------------------------------------------------------------------------------------------------------------- words


def _ink(label: str, encoders: Sequence[str], result: Mapping[str, Any]) -> str:
    """Return an encoder's colour: the first of its kind has the kind's own, variants of it have others."""
    kinds = {name: result["encoders"].get(name, {}).get("name", name) for name in encoders}
    first = next((name for name in encoders if kinds[name] == kinds.get(label)), label)
    return colour(kinds.get(label, label) if first == label else label, encoders.index(label))


def _counts(curves: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """Return the demonstrations that the curves begin with; None for those over demonstrations."""
    return list(dict.fromkeys(curve["demonstrations"] for curve in curves))


def _named(curve: Mapping[str, Any], counts: Sequence[int | None]) -> str:
    """Return what a curve is called beside others: by its encoder, and by its demonstrations where those differ."""
    more = f", {curve['demonstrations']} demonstrations" if len(counts) > 1 else ""
    return f"{curve['encoder']}{more}"


def _policy(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return run["env"], run["encoder"], run["demonstrations"], run["seed"]


def _percent(*rates: float) -> str:
    return " to ".join(f"{100 * rate:.0f}" for rate in rates) + " %"


def _iqm(cell: Mapping[str, Any]) -> str:
    """Return IQM and interval; a single policy a task has none."""
    value, low, high = (100 * number for number in cell["iqm"])
    alone = cell["policies"] == cell["tasks"]
    return f"{value:.0f} % (one seed)" if alone else f"{value:.0f} % [{low:.0f}, {high:.0f}]"


def _points(estimate: Sequence[float]) -> str:
    value, low, high = (100 * number for number in estimate)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return found


def _told(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
