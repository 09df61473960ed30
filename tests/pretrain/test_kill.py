"""Is a training that was killed with -9 again and again the same, to the bit, as one that was not?"""

import random
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.pretrain import torn
from tests.pretrain.toy import frame_store, toto_objective
from toto_robot.run_folder import read_metrics

KILLS = 20
SETTINGS = {"steps": 60, "checkpoint_every": 3, "eval_every": 16, "log_every": 2}


def last_step(run_dir) -> int:
    lines = read_metrics(run_dir)
    return int(lines[-1]["step"]) if lines else 0


def timeless(run_dir) -> list[dict[str, float]]:
    """Return the log without what the machine did."""
    lines = read_metrics(run_dir)
    machine = ("_per_s", "eta_s", "peak_memory_gib", "mfu", "mfu_causal")
    return [{key: value for key, value in line.items() if not key.endswith(machine)} for line in lines]


def kill_often(kind, folder, run_dir, size) -> None:
    """Train and kill some milliseconds after it has come a little further; every fourth time before, as it starts."""
    chance = random.Random(f"{kind} {size}")
    for number in range(KILLS):
        processes = torn.start(kind, folder, run_dir, size, **SETTINGS)
        until = time.monotonic() + (chance.uniform(0, 0.3) if number % 4 == 3 else 120)
        wanted = 2 * number + chance.randrange(2)
        while last_step(run_dir) < wanted and time.monotonic() < until and processes[0].is_alive():
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.03))
        alive = all(process.is_alive() for process in processes)
        torn.kill(processes, chance)
        assert alive, torn.printed(run_dir).read_text()
        torn.check_files(run_dir)


@pytest.mark.parametrize(("kind", "size"), [("toto options", 1), ("toto options", 2), ("tokenizer", 1)])
def test_killed_twenty_times_equals_unbroken(tmp_path, kind, size):
    if kind.startswith("toto"):
        toto_objective(tmp_path)  # makes the data, so that both runs read the same
    else:
        frame_store(tmp_path / "frames")
    torn.finish(kind, tmp_path, tmp_path / "whole", size, **SETTINGS)
    kill_often(kind, tmp_path, tmp_path / "killed", size)
    torn.finish(kind, tmp_path, tmp_path / "killed", size, **SETTINGS)
    assert torn.check_files(tmp_path / "killed") == torn.check_files(tmp_path / "whole")
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")
    state = "checkpoints/last/training_state/optimizer"
    files = ["pretrained_model/model", "checkpoints/last/pretrained_model/model"]
    for name in [*files, *(f"{state}/{rank + 1:05d}-of-{size:05d}" for rank in range(size))]:
        a, b = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("killed", "whole"))
        assert a.keys() == b.keys()
        different = [key for key in a if not torch.equal(a[key], b[key])]
        assert not different, (name, different)
