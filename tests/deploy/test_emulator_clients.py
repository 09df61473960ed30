"""Do unmodified clients, from their packages, work with the emulator?

Each in a process of its own: franky and pylibfranka cannot be imported into one, and an emulator always has its own.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Session in clients/ to (module, package to install).
SESSIONS = {
    "franky": ("franky", "franky-control"),
    "pylibfranka": ("pylibfranka", "pylibfranka"),
    "panda": ("panda_py", "panda-python"),
    "faults": ("franky", "franky-control"),
    "pick": ("franky", "franky-control"),
}


@pytest.mark.parametrize("session", SESSIONS)
def test_session(session: str) -> None:
    module, package = SESSIONS[session]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install --no-deps {package}")
    script = Path(__file__).parent / "clients" / f"{session}_session.py"
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    assert "all well" in done.stdout
