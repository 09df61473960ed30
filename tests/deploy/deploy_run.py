"""How does a test run `toto_robot deploy`, and what did the run leave?"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from toto_robot.run_folder import read_json, sha256_file, write_json

PATIENCE_S = 300.0  # a few seconds on an idle machine


def command(bundle: Path, run: Path, *words: str) -> list[str]:
    """Return the command line."""
    return [sys.executable, "-m", "toto_robot", "deploy", f"policy={bundle}", f"run={run}", *words]


def deploy(bundle: Path, run: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        command(bundle, run, *words), capture_output=True, text=True, timeout=PATIENCE_S, check=False, **options
    )


def events(run: Path) -> list[str]:
    """Return the names of the emulated robot's events, in order."""
    return [line["event"] for line in event_lines(run)]


def event_lines(run: Path) -> list[dict[str, Any]]:
    """Return the emulated robot's events; none where no emulator was started."""
    path = run / "robot_events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ends_of_motions(lines: list[dict[str, Any]]) -> list[str]:
    """Return how the robot says that each motion ended: success, aborted, ..."""
    return [line["status"] for line in lines if line["event"] == "motion_ended"]


def changed(bundle: Path, folder: Path, **task: Any) -> Path:
    """Return a copy of a bundle whose `task` says something else, with its hashes right."""
    copy = folder / "bundle"
    shutil.copytree(bundle, copy)
    description = read_json(copy / "policy.json")
    description["task"].update(task)
    write_json(copy / "policy.json", description)
    hashes = read_json(copy / "hashes.json")
    hashes["policy.json"] = sha256_file(copy / "policy.json")
    write_json(copy / "hashes.json", hashes)
    return copy
