"""How late do a policy's actions arrive, from a number or from what was measured on a robot?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

from toto_robot.run_folder import read_json

LONGEST_S = 2.0
_QUANTILES = 51  # delays that stand for a distribution given by its median and 99 % quantile
_UNITS_S = {"_s": 1.0, "_ms": 1e-3}
_CONTROLLED, _DEPLOYED = "control.json", "deploy.json"  # that `toto_robot deploy` leaves


def read_latency(text: str) -> tuple[float, ...]:
    """Return delays in s, one of which is drawn for each episode; ValueError for anything else.

    `text` is a number of seconds, or a JSON file: a list of seconds, `{"samples_s": [...]}`, or `{"p50_s": ...,
    "p99_s": ...}`, which becomes a lognormal distribution of these quantiles; keys may end in _ms. Or it is the folder
    of a deployment, its control.json or deploy.json: the time from a picture to the command that follows it or, where
    no command did or control.json is not there, the time of the policy's step.
    """
    try:
        return _checked([float(text)], text)
    except ValueError:
        path = Path(text)
        if path.is_dir() and (path / _DEPLOYED).is_file():
            path = path / _DEPLOYED
        if not path.is_file():
            raise ValueError(
                f"expected latency_s as seconds of 0 to {LONGEST_S:g}, a JSON file or the folder of a deployment, "
                f"got {text!r}"
            ) from None
    found = read_json(path)
    figures = _measured(found, path) if isinstance(found, Mapping) else {"samples_s": found}
    return _checked(_samples(figures, path), text)


def _measured(found: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Return what a deployment has measured as p50_ms and p99_ms; other files as they are."""
    beside = path.with_name(_CONTROLLED)
    control = read_json(beside) if path.name == _DEPLOYED and beside.is_file() else found
    captured = control.get("capture_to_command_ms", {})
    if captured.get("n"):
        return {"p50_ms": captured["p50"], "p99_ms": captured["p99"]}
    if "capture_to_command_ms" in found:
        raise ValueError(f"{path}: no command followed a picture; give {_DEPLOYED}, which has the policy's step")
    return found.get("policy_ms") or found


def _samples(found: Mapping[str, Any], path: Path) -> list[float]:
    for unit, scale in _UNITS_S.items():
        if f"samples{unit}" in found:
            return [scale * float(sample) for sample in found[f"samples{unit}"]]
        if f"p50{unit}" in found and f"p99{unit}" in found:
            return _lognormal(scale * float(found[f"p50{unit}"]), scale * float(found[f"p99{unit}"]), path)
    raise ValueError(
        f"{path}: expected a list, samples_s, or p50_s and p99_s (or _ms; a unit is needed), "
        f"got {', '.join(found) or 'none'}"
    )


def _lognormal(median_s: float, high_s: float, path: Path) -> list[float]:
    if not 0 < median_s <= high_s:
        raise ValueError(f"{path}: expected 0 < p50 <= p99, got {median_s} and {high_s} s")
    spread = math.log(high_s / median_s) / NormalDist().inv_cdf(0.99)
    return [median_s * math.exp(spread * NormalDist().inv_cdf((i + 0.5) / _QUANTILES)) for i in range(_QUANTILES)]


def _checked(samples: list[float], text: str) -> tuple[float, ...]:
    if not samples or any(not 0 <= sample <= LONGEST_S for sample in samples):
        raise ValueError(f"expected latencies of 0 to {LONGEST_S:g} s in {text}, got {samples[:3]}; are they in ms?")
    return tuple(samples)
