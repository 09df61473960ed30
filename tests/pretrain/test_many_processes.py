"""Do several processes learn what one learns, continue each other's checkpoints, and stop together?"""

import json
import os
import random
import signal
import time

import numpy as np
import pytest
import torch

from tests.pretrain import torn
from tests.pretrain.toy import frame_store, toto_objective
from toto_robot.pretrain.pieces import Pieces
from toto_robot.run_folder import read_metrics

SETTINGS = {"dtype": "float32", "checkpoint_every": 4, "eval_every": 5, "log_every": 1}


def curve(run_dir, key: str = "train/loss") -> list[float]:
    return [line[key] for line in read_metrics(run_dir) if key in line]


def check_same_learning(run_dir, reference) -> None:
    for key in ("train/loss", "val/loss", "grad_norm"):
        np.testing.assert_allclose(curve(run_dir, key), curve(reference, key), rtol=1e-5, err_msg=key)


def kill_after(step: int, processes, run_dir) -> None:
    until = time.monotonic() + 120
    while not (run_dir / "checkpoints" / f"{step:06d}").exists() and time.monotonic() < until:
        time.sleep(0.002)
    torn.kill(processes, random.Random(step))


def test_two_processes_continue_one_and_one_continues_two(tmp_path):
    toto_objective(tmp_path)
    torn.finish("toto options", tmp_path, tmp_path / "one", steps=24, **SETTINGS)
    run_dir = tmp_path / "changing"
    for size, stop in ((2, 8), (1, 16)):
        kill_after(stop, torn.start("toto options", tmp_path, run_dir, size, steps=24, **SETTINGS), run_dir)
    torn.finish("toto options", tmp_path, run_dir, 2, steps=24, **SETTINGS)
    check_same_learning(run_dir, tmp_path / "one")
    names = sorted(path.name for path in (run_dir / "checkpoints/last/training_state/optimizer").iterdir())
    assert names == ["00001-of-00002.safetensors", "00002-of-00002.safetensors"]


def test_groups_of_processes_learn_the_same(tmp_path, monkeypatch):
    """Four processes in two groups (HSDP): half a model in each process, and two files for its moments."""
    toto_objective(tmp_path)
    torn.finish("toto", tmp_path, tmp_path / "one", steps=6, **SETTINGS)
    torn.finish("toto", tmp_path, tmp_path / "four", 4, replicas=2, steps=6, **SETTINGS)
    check_same_learning(tmp_path / "four", tmp_path / "one")
    moments = [Pieces(tmp_path / run / "checkpoints/last/training_state/optimizer") for run in ("one", "four")]
    assert {name: one.shape for name, one in moments[0].shapes().items()} == {
        name: one.shape for name, one in moments[1].shapes().items()
    }
    assert len(list((tmp_path / "four/checkpoints/last/training_state/optimizer").iterdir())) == 2


def test_mae_of_two_processes_learns_the_same(tmp_path):
    frame_store(tmp_path / "frames")
    for size in (1, 2):
        torn.finish("mae", tmp_path, tmp_path / str(size), size, steps=6, **SETTINGS)
    check_same_learning(tmp_path / "2", tmp_path / "1")


def test_ctrl_c_saves_one_step_of_all_processes(tmp_path):
    toto_objective(tmp_path)
    processes = torn.start("toto", tmp_path, tmp_path / "run", 2, steps=10_000, **SETTINGS)
    until = time.monotonic() + 120
    while len(curve(tmp_path / "run")) < 3 and time.monotonic() < until:
        time.sleep(0.002)
    os.kill(processes[1].pid, signal.SIGINT)  # one hears it
    for process in processes:
        process.join(60)
        assert process.exitcode == 1
    assert "KeyboardInterrupt" in torn.printed(tmp_path / "run").read_text()
    state = json.loads((tmp_path / "run/checkpoints/last/training_state/state.json").read_text())
    assert state["step"] == read_metrics(tmp_path / "run")[-1]["step"] < 10_000


def test_a_loss_of_one_process_that_is_not_finite_stops_all_before_the_update(tmp_path):
    toto_objective(tmp_path)
    for rank, process in enumerate(torn.start("toto", tmp_path, tmp_path / "run", 2, poisoned=(1, 6), **SETTINGS)):
        process.join(120)
        assert process.exitcode == 1
        printed = torn.printed(tmp_path / "run", rank).read_text()
        assert "train/loss became nan in step 7, and nothing was updated" in printed
        assert "batch 6: clip_" in printed
    assert (tmp_path / "run/checkpoints/last").readlink().name == "000004"
    weights = Pieces(tmp_path / "run/checkpoints/last/pretrained_model")
    for name, about in weights.shapes().items():
        weights.read_into(name, into := torch.empty(about.shape))
        assert bool(into.isfinite().all())


def test_an_error_of_one_process_is_named_by_all(tmp_path):
    toto_objective(tmp_path)
    processes = torn.start("toto", tmp_path, tmp_path / "run", 2, unreadable=(1, 3), **SETTINGS)
    for process in processes:
        process.join(120)
        assert process.exitcode == 1
    assert "OSError: shard 3 is gone" in torn.printed(tmp_path / "run", 1).read_text()
    first = torn.printed(tmp_path / "run", 0).read_text()
    assert "process 0 stopped, because process 1 failed: shard 3 is gone" in first


def test_files_of_pieces_are_those_of_torch(tmp_path):
    """torch.distributed.checkpoint reads what we write, and we read what it writes."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter, load
    from torch.distributed.checkpoint import save as save_by_torch

    from toto_robot.pretrain.pieces import Piece, write_pieces

    whole = torch.randn(7, 3)
    write_pieces(tmp_path / "ours" / "1.safetensors", {"a": Piece(whole[:4]), "step": Piece(torch.tensor(5.0))})
    write_pieces(tmp_path / "ours" / "2.safetensors", {"a": Piece(whole[4:], 4)})
    by_torch = {"a": torch.zeros(7, 3)}
    load(by_torch, storage_reader=HuggingFaceStorageReader(str(tmp_path / "ours")), no_dist=True)
    assert torch.equal(by_torch["a"], whole)

    writer = HuggingFaceStorageWriter(str(tmp_path / "torch"), save_distributed=True)
    save_by_torch({"a": whole}, storage_writer=writer, no_dist=True)
    Pieces(tmp_path / "torch").read_into("a", ours := torch.zeros(7, 3))
    assert torch.equal(ours, whole)

    (tmp_path / "ours" / "2.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks 3 rows of a; copy the checkpoint again"):
        Pieces(tmp_path / "ours").read_into("a", torch.zeros(7, 3))
