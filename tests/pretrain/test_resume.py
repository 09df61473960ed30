"""Is a training that was killed with -9 and started again the same, to the bit, as one that was not?"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.pretrain.toy import frame_store, toto_objective, train_toy
from toto_robot.run_folder import read_metrics

ROOT = Path(__file__).resolve().parents[2]


def kill_at(lines: int, kind: str, folder: Path, run_dir: Path) -> int:
    """Start a training in a process of its own, kill it when its log has `lines` lines; return the step it was at."""
    arguments = [sys.executable, "-m", "tests.pretrain.toy", kind, str(folder), str(run_dir)]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while len(read_metrics(run_dir)) < lines and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the training ended before it could be killed"
    return int(read_metrics(run_dir)[-1]["step"])


def timeless(run_dir: Path) -> list[dict[str, float]]:
    """Return the log without speeds."""
    lines = read_metrics(run_dir)
    return [{key: value for key, value in line.items() if not key.endswith("_per_s")} for line in lines]


@pytest.mark.parametrize(("kind", "lines"), [("toto", 24), ("toto options", 26), ("tokenizer", 7), ("tokenizer", 24)])
def test_killed_and_continued_equals_unbroken(tmp_path, kind, lines):
    if kind.startswith("toto"):
        toto_objective(tmp_path)  # makes the data, so that both runs read the same
    else:
        frame_store(tmp_path / "frames")
    step = kill_at(lines, kind, tmp_path, tmp_path / "killed")
    assert lines - 1 <= step < 40
    continued = train_toy(kind, tmp_path, tmp_path / "killed")
    whole = train_toy(kind, tmp_path, tmp_path / "whole")
    assert continued.validation == whole.validation
    state = "checkpoints/last/training_state"
    files = ["pretrained_model/model", "checkpoints/last/pretrained_model/model", f"{state}/optimizer/00001-of-00001"]
    for name in files:
        a, b = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("killed", "whole"))
        assert a.keys() == b.keys()
        different = [key for key in a if not torch.equal(a[key], b[key])]
        assert not different, (name, different)
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")
