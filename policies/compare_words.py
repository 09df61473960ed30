"""How does one say what a comparison shows, what it does not, and what would settle it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_NOBODY_RUNS = 500  # policy seeds a task


def words(pair: Mapping[str, Any]) -> str:
    """Say what the comparison of two encoders shows, what it does not, and what would settle it."""
    value, low, high = (100 * number for number in pair["difference"])
    where = f"{pair['tasks']} tasks" if pair["tasks"] > 1 else "one task"
    test = "" if pair["test"] == "plain" else f" ({pair['test']} varied)"
    about = f"{amount(pair)}{test}, {pair['first']} against {pair['second']}"
    p = f"McNemar p {p_value(pair['episodes']['mcnemar_p'])}"
    if pair["seeds"] < 2:
        return (
            f"{about}: {value:+.0f} points between two single policies on {where} ({p}). One policy "
            "seed says nothing about the encoders: run seeds=5 or more."
        )
    said = f"{about}: {value:+.1f} points [{low:+.1f}, {high:+.1f}] over {where} and {pair['seeds']} policy seeds"
    if pair["shown"]:
        ahead = pair["first"] if value > 0 else pair["second"]
        return f"{said}, {ahead} is ahead ({p})."
    settle = ""
    if pair["needed_seeds"] is not None and pair["needed_rollouts"] is not None:
        settle = (
            f" If the true difference were what was seen, {seeds_words(pair['needed_seeds'])} policy seeds a task "
            f"would show it in 4 of 5 trials; for two fixed policies {pair['needed_rollouts']:,} episodes each would."
        )
    return f"{said}: no difference is shown ({p}).{settle}"


def amount(of: Mapping[str, Any]) -> str:
    """Return what policies learned from: demonstrations, environment steps (the median of several), or both."""
    count, steps = of["demonstrations"], of.get("env_steps")
    if steps is None:
        return f"{count} demonstrations"
    return f"DAgger on {count} demonstrations, {steps:,} environment steps" if count else f"{steps:,} environment steps"


def curve_name(curve: Mapping[str, Any], curves: Sequence[Mapping[str, Any]]) -> str:
    """Return what a curve is called beside others: by its encoder, and by its demonstrations where those differ."""
    differ = len({other["demonstrations"] for other in curves}) > 1
    more = f", {curve['demonstrations']} demonstrations" if differ and curve["demonstrations"] is not None else ""
    return f"{curve['encoder']}{more}"


def p_value(p: float) -> str:
    """Return a p-value as it is read: never 0, no digits that mean nothing."""
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"


def seeds_words(count: int | None) -> str:
    """Return a number of policy seeds; one that nobody will run is not given to the digit."""
    if count is None:
        return "unknown"
    return f"more than {_NOBODY_RUNS}" if count > _NOBODY_RUNS else f"about {count}"


def headline(result: Mapping[str, Any]) -> list[str]:
    """Return what stands first: the reference against the encoder that comes next, on the plain task."""
    pairs = [pair for pair in result["pairs"] if pair["test"] == result["pairs"][0]["test"]]
    first = [pair["words"] for pair in pairs if pair["second"] == pairs[0]["second"]]
    return first or sentences(result)[:1]


def sentences(result: Mapping[str, Any]) -> list[str]:
    """Return the conclusion, one sentence a pair, and what limits all of them."""
    said = [pair["words"] for pair in result["pairs"]]
    dead = [cell for cell in result["cells"] if cell["dead"]]
    for cell in dead:
        said.append(
            f"{cell['encoder']}, {amount(cell)}, {cell['test']}: {cell['dead']} of "
            f"{cell['policies']} policies are dead (below 5 % success)."
        )
    if not said:
        return ["Nothing to compare yet: fewer than two encoders have finished a policy on the same task and seed."]
    return said
