"""How long does a step of a bundle's policy take here? A program of its own, so that the asking one needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def policy_latency(bundle: Path, device: str) -> dict[str, Any]:
    """Return p50_ms, p99_ms and the bundle's rate_hz, measured in another process. RuntimeError with its last words."""
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
