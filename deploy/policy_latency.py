"""How long does a step of a bundle's policy take here, and does that hold its rate?

Measured by a program of its own, so that the asking one needs no torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.host_checks import FAILED, OK, WARNING, Finding

# A policy that needs more of its period than this falls behind with the first disturbance.
RATE_SHARE = 0.8


class PolicyRate(ValueError):
    """The encoder cannot hold the bundle's control rate on this machine."""


def check_rate(measured: Mapping[str, float], rate_hz: float) -> None:
    """Raise PolicyRate, with numbers, if even the fastest tenth of steps takes longer than RATE_SHARE of the period.

    The fastest, because other work on the machine makes any step slow for a while, and a slow one is bridged.
    """
    period_ms = 1e3 / rate_hz
    if measured["p10_ms"] > RATE_SHARE * period_ms:
        raise PolicyRate(
            f"the bundle wants {rate_hz:g} Hz, a period of {period_ms:.1f} ms; one step of its policy takes "
            f"{measured['p10_ms']:.1f} ms at best (p50 {measured['p50_ms']:.1f}, p99 "
            f"{measured['p99_ms']:.1f} ms), more than "
            f"{RATE_SHARE:.0%} of it. Use device=cuda, a smaller encoder, or train with a lower control rate"
        )


def check_policy(bundle: Path, device: str) -> Finding:
    """Measure a bundle's policy and judge it."""
    try:
        found = policy_latency(bundle, device)
    except RuntimeError as error:
        return Finding(name="policy", verdict=FAILED, text=f"{bundle} does not run here: {error}")
    return judge_policy(found, float(found["rate_hz"]))


def judge_policy(measured: Mapping[str, float], rate_hz: float) -> Finding:
    """Return the finding about measured steps: what a deployment refuses fails; late steps are a warning."""
    try:
        check_rate(measured, rate_hz)
    except PolicyRate as error:
        return Finding(name="policy", verdict=FAILED, text=str(error))
    period_ms = 1e3 / rate_hz
    return Finding(
        name="policy",
        verdict=WARNING if measured["p99_ms"] > RATE_SHARE * period_ms else OK,
        text=f"{measured['p50_ms']:.1f} ms a step (p99 {measured['p99_ms']:.1f}) of a period of {period_ms:.0f} ms",
        help="device=cuda, a smaller encoder, or a lower control rate; nothing else on this computer",
    )


def policy_latency(bundle: Path, device: str) -> dict[str, Any]:
    """Return p10_ms, p50_ms, p99_ms and the bundle's rate_hz, of another process. RuntimeError with its last words."""
    if not bundle.is_dir():
        raise RuntimeError("expected the folder of a policy bundle, there is none")
    command = [sys.executable, "-m", "deploy.policy_latency", str(bundle), device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(bundle: str, device: str) -> None:
    """Load, measure, print one JSON line."""
    import torch

    from deploy.policy_loop import measure
    from policies.bundle import load_policy

    torch.set_num_threads(1)  # as the inference process
    policy = load_policy(Path(bundle), device)
    print(json.dumps({**measure(policy), "rate_hz": policy.task["control_rate_hz"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
