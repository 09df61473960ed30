"""What does a person see of `toto_robot emulator`: its end by Ctrl-C, its errors?"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.emulator.client import Emulator
from deploy.emulator.command import EmulatorConfig

ROOT = Path(__file__).resolve().parents[2]


def console(*words: str, cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "toto_robot", "emulator", *words],
        cwd=cwd,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_ctrl_c_ends_it_with_its_events_written(tmp_path: Path) -> None:
    address = Emulator().address
    process = console(f"address={address}", "seed=3", "run=here", cwd=tmp_path)
    assert process.stdout is not None
    assert f"fr3 at {address}" in process.stdout.readline()
    time.sleep(1.0)  # the status line runs
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to both processes
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert "wrote" in out
    assert "robot s, idle, no client" in error
    assert (tmp_path / "here/events.jsonl").exists()


def test_a_taken_address_is_one_line(tmp_path: Path) -> None:
    with Emulator() as emulator:
        process = console(f"address={emulator.address}", cwd=tmp_path)
        _, error = process.communicate(timeout=150)
    assert process.returncode == 1
    assert "another emulator may run there" in error


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"address": "0.0.0.0"}, "loopback"),
        ({"robot": "ur5"}, "fr3"),
        ({"pacing": "fast"}, "lockstep"),
        ({"seconds": 0.0}, "seconds"),
        ({"camera_rate_hz": 0.0}, "camera_rate_hz"),
    ],
)
def test_bad_settings_say_what_was_expected(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EmulatorConfig(**settings)


def test_another_arm_is_refused() -> None:
    with pytest.raises(RuntimeError, match="kuka_iiwa7"):
        Emulator("kuka_pick").start()
