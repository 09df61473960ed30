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
PACKAGES = {"franky": "franky-control", "pylibfranka": "pylibfranka", "panda": "panda-python"}
MODULES = {"franky": "franky", "pylibfranka": "pylibfranka", "panda": "panda_py"}


@pytest.mark.parametrize("client", PACKAGES)
def test_session(client: str) -> None:
    if importlib.util.find_spec(MODULES[client]) is None:
        pytest.skip(f"{client} is not installed: pip install --no-deps {PACKAGES[client]}")
    script = Path(__file__).parent / "clients" / f"{client}_session.py"
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    assert "all well" in done.stdout
