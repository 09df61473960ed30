"""Does a training say how fast it is, how much of the machine it uses, how long it takes, and to W&B if asked?"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.pretrain.test_loop import Regression, Stop, fit, settings, stop_at
from tests.pretrain.toy import CPU, SIZES, loop_settings, toto_objective
from toto_robot.models.compute import peak_flops_per_s, toto_training_flops
from toto_robot.pretrain.distributed import ALONE
from toto_robot.pretrain.loop import train
from toto_robot.pretrain.reporting import Meter, peak_memory_gib
from toto_robot.run_folder import read_json, read_metrics


def training_lines(run_dir: Path) -> list[dict[str, float]]:
    return [line for line in read_metrics(run_dir) if "train/loss" in line]


def test_speed_utilisation_memory_and_time_left_are_in_every_line_and_in_tensorboard(tmp_path: Path) -> None:
    train(toto_objective(tmp_path), loop_settings(8, log_every=2), tmp_path / "run", device=CPU, dtype=torch.float32)
    lines, peak = training_lines(tmp_path / "run"), peak_flops_per_s(CPU, torch.float32)
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert peak is not None
    for line in lines:
        for name, causal in (("mfu", False), ("mfu_causal", True)):
            per_token = toto_training_flops(SIZES, 1, causal=causal)
            assert line[name] == pytest.approx(per_token * line["tokens_per_s"] / peak)
        assert 0 < line["mfu_causal"] < line["mfu"] < 1
        assert 0.1 < line["peak_memory_gib"] < 64
    left = [line["eta_s"] for line in lines]
    assert left[-1] == 0
    assert all(seconds > 0 for seconds in left[:-1])
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in ("mfu", "mfu_causal", "peak_memory_gib", "eta_s", "tokens_per_s", "train/loss"):
        written = [(event.step, event.value) for event in board.Scalars(name)]
        assert written == [(line["step"], pytest.approx(line[name])) for line in lines], name


def test_the_time_left_is_that_of_the_steps_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves a second a step: 30 steps of which 8 were done by a process that was killed."""
    with pytest.raises(Stop):
        fit(tmp_path, Regression(at_step=stop_at(9)))
    now = [0.0]
    monkeypatch.setattr("toto_robot.pretrain.reporting.time", types.SimpleNamespace(monotonic=lambda: now[0]))

    def tick(step: int) -> None:
        now[0] += 1.0

    fit(tmp_path, Regression(at_step=tick))
    left = {line["step"]: line["eta_s"] for line in training_lines(tmp_path) if line["step"] > 8}
    assert left == {10: 20.0, 15: 15.0, 16: 14.0, 20: 10.0, 24: 6.0, 25: 5.0, 30: 0.0}
    speeds = {line["images_per_s"] for line in training_lines(tmp_path) if line["step"] > 8}
    assert speeds == {16.0}  # images of a batch


def test_peak_memory_sees_what_was_held_for_a_moment() -> None:
    before, resident = peak_memory_gib(CPU), psutil.Process().memory_info().rss
    np.ones(int(before * 2**30 - resident) // 8 + 2**26)  # at once freed
    assert before + 0.3 < peak_memory_gib(CPU) < before + 1


def test_the_meter_leaves_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("toto_robot.pretrain.reporting.time", types.SimpleNamespace(monotonic=lambda: now[0]))
    meter = Meter(CPU)
    for value in (1.0, 3.0):
        now[0] += 2.0
        meter.end_step({"loss": torch.tensor(value)})
        with meter.paused():
            now[0] += 100.0
    assert meter.read(ALONE) == ({"loss": 2.0}, 2.0)


class FakeWandb(types.ModuleType):
    """Takes the calls that the package takes, and remembers them."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="here")
        self.inits: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.exit_codes: list[int] = []

    def init(self, **arguments: Any) -> FakeWandb:
        self.inits.append(arguments)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


def test_wandb_gets_every_line_and_a_continued_run_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(Stop):
        fit(tmp_path, Regression(at_step=stop_at(17)), wandb="arms")
    fit(tmp_path, wandb="arms")
    first, second = fake.inits
    assert first["id"] == second["id"] == read_json(tmp_path / "wandb.json")["id"]
    assert (first["project"], first["resume"], first["dir"]) == ("arms", "allow", str(tmp_path))
    assert first["config"]["lr"] == settings().lr
    assert fake.exit_codes == [1, 0]
    lines = [{"step": step, **values} for step, values in fake.logged]
    assert lines == read_metrics(tmp_path)  # killed after a checkpoint: nothing was repeated
    with pytest.raises(ValueError, match="logs to the W&B project 'arms'; give wandb=arms"):
        fit(tmp_path, wandb="legs")


def test_wandb_that_is_missing_is_named_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()  # as the package leaves it; Python takes it for a package without files
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ValueError, match=r"pip install 'toto-robot\[wandb\]'"):
        settings(wandb="arms")
    settings()


def test_wandb_itself_writes_an_offline_run_into_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra [wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.raises(Stop):
        fit(tmp_path, Regression(at_step=stop_at(17)), wandb="arms")
    fit(tmp_path, wandb="arms")
    run_id = json.loads((tmp_path / "wandb.json").read_text())["id"]
    written = list((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(written) == 2  # one a process, of the same run: `wandb sync` joins them
    assert all(path.stat().st_size > 1000 for path in written)
