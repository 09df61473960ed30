"""Does a policy on one computer move an arm on another, whose side runs without torch?"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cell import make_bundle

from deploy.bridge_command import BridgeConfig
from deploy.episode_log import read_rows, rows_file
from deploy.realtime.records import REPORT_FILE
from policies.bundle import bundle_hash

PATIENCE_S = 240.0
STEPS = 12
_RUN = "import sys; {block}from toto_robot.cli import main; main(['deploy', 'bridge', *sys.argv[1:]])"
_WITHOUT_TORCH = "sys.modules['torch'] = None; "


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"side": "both"}, "side must be robot or policy"),
        ({"side": "policy"}, "policy=<bundle folder>"),
        ({"side": "robot"}, "bundle=<hash>"),
        ({"side": "robot", "bundle": "01234567", "robot": "fr3"}, "address"),
        ({"side": "robot", "bundle": "01234567", "port": 0}, "port"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, word):
    with pytest.raises(ValueError, match=word):
        BridgeConfig(**settings)


def side(name: str, run: Path, port: int, *words: str, block: str = "") -> subprocess.Popen:
    command = [sys.executable, "-c", _RUN.format(block=block), f"side={name}", f"port={port}", f"run={run}", *words]
    with open(run.with_suffix(".log"), "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def test_an_episode_over_the_bridge(tmp_path_factory, tmp_path):
    pytest.importorskip("franky", reason="the arm's default driver needs franky-control")
    bundle = make_bundle(tmp_path_factory.mktemp("bundle"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    robot, policy = tmp_path / "robot", tmp_path / "policy"
    expected = f"bundle={bundle_hash(bundle)[:16]}"
    processes = [
        side("policy", policy, port, f"policy={bundle}"),
        side("robot", robot, port, expected, f"horizon={STEPS}", block=_WITHOUT_TORCH),
    ]
    try:
        codes = [process.wait(PATIENCE_S) for process in reversed(processes)]
    finally:
        for process in processes:
            process.terminate()
            process.wait()
    words = "\n".join(path.with_suffix(".log").read_text()[-2000:] for path in (robot, policy))
    assert codes == [0, 0], words
    outcome = json.loads((robot / "episodes.jsonl").read_text())
    assert outcome["ended"] == "horizon" and outcome["steps"] >= STEPS
    events = [json.loads(line)["event"] for line in (robot / "robot_events.jsonl").read_text().splitlines()]
    assert "motion_started" in events and "motion_ended" in events and "reflex" not in events
    assert json.loads((robot / REPORT_FILE).read_text())["ended_in"] == "idle"
    rows = read_rows(rows_file(policy, 1))
    assert len(rows["action"]) >= STEPS
    assert np.ptp(rows["robot.q_rad"], axis=0).max() > 0.01, "the policy has seen the arm move"
