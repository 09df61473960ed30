"""Which tables does a comparison have, and how do their numbers look?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from policies.compare_words import amount, curve_name, p_value, seeds_words
from policies.page import ENCODER_LABELS, table
from policies.seed_statistics import DEAD_BELOW
from policies.settings import flat


def cell_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return every encoder at every number of demonstrations, or after its environment steps."""
    head = (
        "encoder", _learned_from(cells), "test", "policies", "IQM [95 %]", "all episodes [Wilson]",
        f"dead (< {100 * DEAD_BELOW:.0f} %)", "steps to success [quartiles]",
    )  # fmt: skip
    rows = []
    for cell in cells:
        pooled = cell["pooled"]
        low, high = pooled["wilson95"]
        rate = f"{pooled['successes']}/{pooled['episodes']} = {_percent(pooled['rate'])} [{_percent(low, high)}]"
        took = cell["steps_to_success"]
        steps = f"{took['median']:.0f} [{took['q25']:.0f}, {took['q75']:.0f}]" if took else "–"
        rows.append(
            (ENCODER_LABELS.get(cell["encoder"], cell["encoder"]), _learned(cell), cell["test"],
             f"{cell['policies']} on {cell['tasks']}", _iqm(cell), rate, cell["dead"], steps)
        )  # fmt: skip
    return table(head, rows)


def pair_table(pairs: Sequence[Mapping[str, Any]]) -> str:
    """Return the reference against each other encoder."""
    head = (
        "against", _learned_from(pairs), "test", "difference, points", "McNemar p", "P(improvement)",
        "shown", "seeds to show it",
    )  # fmt: skip
    rows = [
        (
            pair["second"], _learned(pair), pair["test"],
            _points(pair["difference"]) if pair["seeds"] > 1 else f"{100 * pair['difference'][0]:+.0f} (one seed)",
            p_value(pair["episodes"]["mcnemar_p"]),
            "{:.2f} [{:.2f}, {:.2f}]".format(*pair["probability_of_improvement"]) if pair["seeds"] > 1 else "–",
            "yes" if pair["shown"] else "no",
            "–" if pair["shown"] else seeds_words(pair["needed_seeds"]),
        )
        for pair in pairs
    ]  # fmt: skip
    return table(head, rows)


def target_table(curves: Sequence[Mapping[str, Any]]) -> str:
    """Show how much each encoder needs to reach each target; a median beyond the last measurement is not invented."""
    rows = []
    for curve in curves:
        for target, found in curve["steps_to"].items():
            low, high = (_steps(end) for end in found["interval95"])
            middle = "never in half of the runs" if found["median"] is None else f"{found['median']:,.0f}"
            rows.append(
                (curve_name(curve, curves), curve["test"], f"{100 * float(target):.0f} %",
                 f"{found['reached']} of {found['of']}", f"{middle} [{low}, {high}]")
            )  # fmt: skip
    unit = " or ".join(dict.fromkeys(curve["unit"] for curve in curves))
    return table(("encoder", "test", "success", "policies that reach it", f"median {unit} [95 %]"), rows)


def layer_table(layers: Sequence[Mapping[str, Any]]) -> str:
    """Return the cells of the layer curves."""
    rows = [
        (curve["encoder"], point["layer"], curve["test"], point["policies"], _iqm(point), point["dead"])
        for curve in layers
        for point in curve["points"]
    ]
    return table(("encoder", "layer", "test", "policies", "IQM [95 %]", "dead"), rows)


def cost_table(encoders: Mapping[str, Any]) -> str:
    """Return what a frame costs under each encoder, and how large encoder and head are."""
    head = (
        "encoder",
        "layer",
        "context",
        "parameters passed",
        "of all",
        "head",
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
             _count(facts.get("total_parameters")), _count(facts.get("head_parameters")),
             f"{facts['tokens_per_frame']} x {facts['width']}", f"{facts['gflops_per_frame']:.3f}",
             f"{middle:.1f} [{low:.1f}, {high:.1f}]", f"{facts['processor_ms_per_frame']:.1f}")
        )  # fmt: skip
    return table(head, rows)


def shared_table(design: Mapping[str, Any]) -> str:
    """Return the settings of the comparison."""
    rows = [(key, value) for key, value in design.items() if key not in ("shared", "planned_runs")]
    return table((), [(key, _told(value)) for key, value in [*rows, *flat(design["shared"]).items()]])


def source_table(sources: Sequence[Mapping[str, Any]]) -> str:
    """Return which published comparisons gave policies."""
    head = ("comparison", "policies of it", "commit", "date", "machine")
    rows = [
        (source["file"], source["policies"], source["commit"], source["date"],
         f"{source['machine']['processor']}, {source['machine']['cores']} cores")
        for source in sources
    ]  # fmt: skip
    return table(head, rows)


def run_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return every policy alone."""
    rows = [
        (run["encoder"], run["env"], _learned(run), run["seed"], run["test"],
         f"{run['successes']}/{run['episodes']}{' (failed)' if 'failed' in run else ''}", _percent(*run["wilson95"]))
        for run in runs
    ]  # fmt: skip
    return table(("encoder", "task", _learned_from(runs), "seed", "test", "successes", "Wilson 95 %"), rows)


def _learned(of: Mapping[str, Any]) -> str:
    """Return what a row learned from; a number where all rows have demonstrations alone."""
    return amount(of) if "env_steps" in of else str(of["demonstrations"] or "–")


def _learned_from(rows: Sequence[Mapping[str, Any]]) -> str:
    return "learned from" if any("env_steps" in row for row in rows) else "demonstrations"


def _steps(end: float | None) -> str:
    return "never" if end is None else f"{end:,.0f}"


def _count(parameters: int | None) -> str:
    return "–" if parameters is None else f"{parameters:,}"


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


def _told(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
