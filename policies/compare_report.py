"""How does one read a comparison: the conclusion first, then the table, the curves, and everything behind them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policies.compare_plots import cell_plot, curve_plot, layer_plot
from policies.compare_tables import (
    cell_table,
    cost_table,
    layer_table,
    pair_table,
    run_table,
    shared_table,
    source_table,
    target_table,
)
from policies.compare_words import amount, headline, sentences
from policies.curve import measured_on
from policies.page import bullets, commands, figure, heading, paragraph, picture, write_page

_LIMITS = (
    "IQM is the mean of the middle half of all policies; its interval is a bootstrap over policy seeds within tasks. "
    "With few seeds it is too narrow: over four tasks of 50 episodes a policy it holds the truth in 92 to 94 % of all "
    "cases at 10 seeds a task, in 90 to 92 % at 5 (simulated, at rates from 0.5 to 0.97). Intervals of a single task's "
    "curve are of a mean, in 90 % and 83 %. "
    "Differences have Student's interval over paired policy seeds, which keeps its 95 % from 3 seeds on (with 2: 81 to "
    "92 %, simulated). "
    "Intervals are not corrected for the number of comparisons: of twenty without any difference, one shows one. "
    "All policies learn from the first episodes of one store a task: other demonstrations would add their own noise. "
    "Success in simulation says nothing yet about a real arm."
)


_EQUAL = 1.05  # encoders whose sizes differ by less count as equally large


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
        parts += [heading(f"Against {design['reference']}"), pair_table(result["pairs"])]
    parts += _layer_parts(result["layers"])
    parts += [heading("What a frame costs"), cost_table(result["encoders"])]
    parts += [paragraph(line, "note") for line in _unequal(result)]
    parts.append(
        paragraph(
            "One new frame of one stream, tokenizer included, memory full; two operations a multiply-add. Times with "
            "one thread: other work on the machine lengthens what passes, not what the processor spends. Parameters: "
            "those that a frame passes through, all that the encoder has, and those of the head, which learns.",
            "sub",
        )
    )
    for caption, path in pictures:
        parts.append(picture(path, caption))
    parts += [heading("What all policies share"), shared_table(design)]
    if result.get("sources"):
        parts += [heading("Taken from earlier comparisons"), source_table(result["sources"])]
    parts += [heading("Single policies"), run_table(result["runs"])]
    parts += [heading("Go on"), commands(again)]
    title = f"{' against '.join(design['encoders'][:2])} on {', '.join(design['tasks'])}"
    machine = result["machine"]
    subtitle = f"{machine['processor']}, {machine['cores']} cores · {result['date']} · commit {result['commit']}"
    write_page(run_dir / "report.html", title, subtitle, parts)


def result_parts(result: Mapping[str, Any]) -> list[str]:
    """Return what a page shows of a comparison: table, intervals, learning curves, conclusions and their limits."""
    return [
        heading("Success on held-out starts"),
        cell_table(result["cells"]),
        figure(cell_plot(result), "Interquartile mean and its interval; dots are single policies."),
        *_curve_parts(result),
        heading("What can be concluded, and what not"),
        bullets(sentences(result)),
        paragraph(_LIMITS, "sub"),
    ]


def _curve_parts(result: Mapping[str, Any]) -> list[str]:
    curves, parts = result["curves"], [heading("Learning curves")]
    if not curves:
        return []
    on = measured_on(result["design"].get("policy", "bc"))
    for test in dict.fromkeys(curve["test"] for curve in curves):
        drawn = [curve for curve in curves if curve["test"] == test]
        tasks = sorted({task for curve in drawn for task in curve["by_task"]})
        said = f" Success on {on}." + ("" if test == "plain" else f" Varied: {test}.")
        caption = f"Interquartile mean over policy seeds and {len(tasks)} tasks, and its interval.{said}"
        parts.append(figure(curve_plot(drawn, [None], result), caption))
        columns = 2 if len(tasks) in (2, 4) else 3
        for first in range(0, len(tasks) if len(tasks) > 1 else 0, columns):
            panels = tasks[first : first + columns]
            caption = f"Each task: mean over policy seeds, and its bootstrap interval.{said}"
            parts.append(figure(curve_plot(drawn, panels, result), caption))
    return [*parts, target_table(curves)]


def _layer_parts(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    if not layers:
        return []
    caption = f"Success by layer, {amount(layers[0]['points'][0])}; interquartile mean and its interval."
    return [heading("By layer"), figure(layer_plot(layers), caption), layer_table(layers)]


def _failures(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each policy that could not be trained."""
    reasons = {_policy(run): run["failed"] for run in runs if "failed" in run}
    return [
        f"No policy came of {encoder} on {env}{f', {count} demonstrations' if count else ''}, seed {seed}: {reason}. "
        "It counts as one that never succeeds."
        for (env, encoder, count, seed), reason in reasons.items()
    ]


def _unequal(result: Mapping[str, Any]) -> list[str]:
    """Return a warning where the encoders that are compared are not of one size."""
    sizes = {
        label: facts["parameters"]
        for label in result["design"]["encoders"]
        if (facts := result["encoders"].get(label)) and facts["parameters"]
    }
    if not sizes or max(sizes.values()) <= _EQUAL * min(sizes.values()):
        return []
    told = ", ".join(f"{label} {size:,}" for label, size in sizes.items())
    return [
        f"The encoders are not of one size: parameters that a frame passes differ by more than {_EQUAL - 1:.0%} "
        f"({told}). What the larger one does better may come of that."
    ]


def _policy(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return run["env"], run["encoder"], run["demonstrations"], run["seed"]
