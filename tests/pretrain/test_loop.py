"""Does the loop resume to the bit, stop at a NaN, survive Ctrl-C and a full disk, and refuse another checkpoint?"""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file
from torch import nn

from toto_robot import weights
from toto_robot.pretrain import checkpoint
from toto_robot.pretrain.loop import LoopConfig, step_seed, train
from toto_robot.pretrain.optim import adamw
from toto_robot.run_folder import read_metrics

CPU = torch.device("cpu")


class Regression:
    """Fits y = 3x + dropout noise: small, but with a buffer and with randomness inside the loss."""

    name = "toy"
    unit = "images"
    units_per_step = 16

    def __init__(self, width: int = 8, at_step=lambda step: None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 1))
        self.at_step = at_step

    def batch(self, step: int) -> torch.Tensor:
        self.at_step(step)
        return torch.randn(16, 4, generator=torch.Generator().manual_seed(step_seed(5, step)))

    def name_batch(self, step: int) -> str:
        return f"draw {step}"

    def loss(self, batch, step):
        return (self.model(batch) - 3 * batch.sum(1, keepdim=True)).square().mean(), {"scale": batch.std()}

    def validate(self) -> dict[str, float]:
        return {"loss": float((self.model(torch.ones(1, 4)) - 12).square())}

    def utilisation(self, units_per_s: float, peak_flops_per_s: float) -> dict[str, float]:
        return {"mfu": units_per_s * 6 * 40 / peak_flops_per_s}

    def describe(self) -> dict[str, str]:
        return {"model_type": "toy"}

    def publish(self, directory: Path, state) -> None:
        weights.write_model(directory, self.describe(), state)


def settings(**changes) -> LoopConfig:
    values = {
        "steps": 30, "lr": 1e-2, "warmup_steps": 3, "final_lr_ratio": 0.1, "weight_decay": 0.1, "clip": 1.0,
        "seed": 1, "checkpoint_every": 8, "eval_every": 10, "log_every": 5,
    }  # fmt: skip
    return LoopConfig(**{**values, **changes})


def fit(run_dir: Path, objective: Regression | None = None, **changes):
    return train(objective or Regression(), settings(**changes), run_dir, device=CPU, dtype=torch.float32)


class Stop(Exception):
    pass


def stop_at(wanted: int):
    def at_step(step: int) -> None:
        if step == wanted:
            raise Stop

    return at_step


def test_training_reduces_the_loss_and_leaves_the_run_folder_of_the_contract(tmp_path):
    trained = fit(tmp_path, steps=200, lr=0.05)
    losses = [line["train/loss"] for line in read_metrics(tmp_path) if "train/loss" in line]
    assert sum(losses[-10:]) / 10 < 0.4 * losses[0]  # dropout keeps it from zero
    assert trained.units == 200 * 16
    assert trained.validation["loss"] == read_metrics(tmp_path)[-1]["val/loss"]
    assert (tmp_path / "checkpoints" / "last").readlink() == Path("000200")
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["000192", "000200", "last"]  # the newest two
    written = load_file(tmp_path / "pretrained_model" / "model.safetensors")
    assert written.keys() == Regression().model.state_dict().keys()
    first = read_metrics(tmp_path)[0]
    assert {"step", "train/loss", "train/scale", "grad_norm", "lr", "images_per_s"} <= first.keys()


@pytest.mark.parametrize("stops", [(9,), (3, 17), (8, 16, 29)])
def test_a_run_stopped_anywhere_ends_with_the_bits_of_an_unbroken_one(tmp_path, stops):
    fit(tmp_path / "whole")
    for wanted in stops:
        with pytest.raises(Stop):
            fit(tmp_path / "broken", Regression(at_step=stop_at(wanted)))
    fit(tmp_path / "broken")
    state = "checkpoints/last/training_state"
    for name in ("pretrained_model/model", f"{state}/optimizer/00001-of-00001"):
        whole, broken = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("whole", "broken"))
        assert whole.keys() == broken.keys()
        assert all(torch.equal(whole[key], broken[key]) for key in whole), name
    timeless = [
        [{k: v for k, v in line.items() if k != "images_per_s"} for line in read_metrics(tmp_path / run)]
        for run in ("whole", "broken")
    ]
    assert [line for line in timeless[0] if "val/loss" in line] == [line for line in timeless[1] if "val/loss" in line]
    assert timeless[0][-1] == timeless[1][-1]


def test_a_finished_run_called_again_trains_nothing_and_reports_the_same(tmp_path):
    before = fit(tmp_path)
    again = fit(tmp_path, Regression(at_step=stop_at(0)))
    assert again.validation == before.validation
    assert len([line for line in read_metrics(tmp_path) if line["step"] == 30 and "val/loss" in line]) == 1


def test_ctrl_c_finishes_the_step_checkpoints_and_is_raised(tmp_path):
    def interrupt(step: int) -> None:
        if step == 12:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "broken", Regression(at_step=interrupt))
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "broken" / "checkpoints" / "last").readlink() == Path("000013")
    fit(tmp_path / "broken")
    fit(tmp_path / "whole")
    whole, broken = (load_file(tmp_path / run / "pretrained_model/model.safetensors") for run in ("whole", "broken"))
    assert all(torch.equal(whole[key], broken[key]) for key in whole)


def test_second_ctrl_c_acts_at_once(tmp_path):
    def interrupt(step: int) -> None:
        if step == 12:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, Regression(at_step=interrupt))
    assert (tmp_path / "checkpoints" / "last").readlink() == Path("000008")


def test_a_loss_that_is_not_finite_is_an_error_and_the_checkpoint_before_it_stays(tmp_path):
    objective = Regression()

    def poison(step: int) -> None:
        if step == 13:
            with torch.no_grad():
                objective.model[0].weight[0, 0] = float("nan")

    objective.at_step = poison
    with pytest.raises(ValueError, match=r"train/loss became nan in step 14, and nothing.*lower lr.*batch 13: draw 13"):
        fit(tmp_path, objective)
    kept = load_file(tmp_path / "checkpoints" / "last" / "pretrained_model" / "model.safetensors")
    assert (tmp_path / "checkpoints" / "last").readlink() == Path("000008")
    assert all(bool(tensor.isfinite().all()) for tensor in kept.values())
    fit(tmp_path)  # and training continues from it


def test_a_checkpoint_of_another_size_names_tensor_and_shapes(tmp_path):
    fit(tmp_path)
    with pytest.raises(ValueError, match=r"0\.weight is \(8, 4\) in the file, \(6, 4\) in the model; load it with"):
        fit(tmp_path, Regression(width=6))


def test_other_settings_in_the_same_run_are_refused(tmp_path):
    fit(tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(lr: 0\.01 -> 0\.02\)"):
        fit(tmp_path, lr=0.02)
    fit(tmp_path, eval_every=7, checkpoint_every=5)  # these do not change the result


def test_dangling_last_pointer_is_an_error_and_not_a_fresh_start(tmp_path):
    fit(tmp_path)
    (tmp_path / "checkpoints" / "last").unlink()
    (tmp_path / "checkpoints" / "last").symlink_to("000999")
    with pytest.raises(ValueError, match="points at 000999, which is gone"):
        fit(tmp_path)


def test_nothing_is_pickled(tmp_path):
    fit(tmp_path)
    suffixes = {path.suffix for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json"}


FULL_DISK = """
import errno, resource, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_loop import *
run_dir = Path({run_dir!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def fill(step):
    if step == 10:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    fit(run_dir, Regression(at_step=fill))
except OSError as error:
    print("OSError:", error)
"""


def test_a_failing_write_leaves_the_checkpoint_before_it(tmp_path):
    """A file-size limit stands for the full disk: same code path, another errno."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    script = FULL_DISK.format(here=str(Path(__file__).parent), run_dir=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "OSError" in done.stdout, done.stdout + done.stderr
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["000008", "last"]
    fit(tmp_path)


def test_full_disk_says_what_to_do(tmp_path, monkeypatch):
    def no_space(tensors, path, metadata):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", no_space)  # its words, seen on a full tmpfs
    model = nn.Linear(2, 2)
    optimizer = adamw(model.named_parameters(), lr=1, weight_decay=0)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = checkpoint.snapshot(1, model, optimizer, config={}, notes={})
    with pytest.raises(OSError, match=r"no space left to write .*free some disk and run the same command"):
        checkpoint.save(tmp_path, state, keep=1)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_seeds_of_neighbouring_steps_share_nothing():
    seeds = {step_seed(seed, step) for seed in range(20) for step in range(200)}
    assert len(seeds) == 4000
    assert step_seed(0, 1) != step_seed(0, 1, "noise")


def test_settings_are_checked():
    with pytest.raises(ValueError, match="expected warmup_steps from 0 to steps - 1 = 9, got 10"):
        settings(steps=10, warmup_steps=10)
    with pytest.raises(ValueError, match="expected steps of at least 1, got 0"):
        settings(steps=0)
    with pytest.raises(ValueError, match="'lr': -1"):
        settings(lr=-1)
    assert json.dumps(settings().same_run())


def test_beyond_a_million_steps_the_newest_checkpoint_is_kept(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = adamw(list(model.named_parameters()), lr=1e-3, weight_decay=0.0)
    for step in (999_999, 1_000_001):  # as text the second sorts before the first
        state = checkpoint.snapshot(step, model, optimizer, config={}, notes={})
        checkpoint.save(tmp_path, state, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()] == ["1000001"]
    assert checkpoint.last(tmp_path).resolve().name == "1000001"
