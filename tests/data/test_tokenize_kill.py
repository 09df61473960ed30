"""Does a job that is killed again and again end in the bytes of one that never was, with no file half-written?"""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from crash import all_files
from make_video import cut_off, make_video
from test_tokens import MeanTokenizer

from toto_robot.data.share import Share
from toto_robot.data.sources import Source, find_sources
from toto_robot.data.token_job import TokenJob
from toto_robot.data.token_shards import first_unfinished, open_shard, remove_leftovers, seal_store
from toto_robot.data.tokenize import job_settings, open_manifest
from toto_robot.data.tokens import MANIFEST, UNITS, TokenSpec, TokenStore
from toto_robot.run_folder import read_json

KILLS = 20
SETTINGS = job_settings(MeanTokenizer(), image_px=16, precision="fp32", min_frames=2, limit_frames=None, unit_frames=12)


class SlowTokenizer(MeanTokenizer):
    """Takes its time, so that kills fall everywhere and cost the machine nothing."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.03)
        return super().encode(images)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Source]:
    """Nine short videos, one of them cut off: a unit each."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(7):
        make_video(folder / f"{number}.mp4", 9 + number % 4, 32, 32)
    cut_off(make_video(folder / "w.mp4", 30, noise=20), folder / "x_cut.mp4", 0.6)
    torch.set_num_threads(1)  # children are forked
    return find_sources(folder)


def job(sources: Sequence[Source], path: Path, share: Share) -> None:
    """Do what the command does: a share of the units, and the root once all are there."""
    manifest = open_manifest(path, sources, SETTINGS, {}, share, progress=False)
    work = TokenJob(path, manifest, sources, SlowTokenizer(), batch_size=4, device="cpu", decoders=1, provenance={})
    mine = [unit for unit in share.of(len(manifest.units)) if unit in first_unfinished(path, len(manifest.units))]
    for _ in work.run(mine, progress=False):
        pass
    if not first_unfinished(path, len(manifest.units)):
        seal_store(path, TokenSpec.of(SETTINGS), len(manifest.units))


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a forked child; return its process id. It exits with 0, or 1 after an error."""
    gc.collect()  # a decoder of the broken video, freed in the child, would wait there for threads it does not have
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def ended(child: int) -> bool:
    """Wait for a child; False where it was killed. Anything but a kill or success is a failure."""
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"the job failed by itself: {status}"
    return status == 0


def look_at_every_file(path: Path) -> int:
    """Check that what is visible of a store is whole; return the number of its shards."""
    if not path.exists():
        return 0
    read_json(path / "zarr.json"), read_json(path / MANIFEST)
    shards = [folder for folder in (path / UNITS).iterdir() if folder.name.isdigit()]
    for folder in shards:
        shard = open_shard(folder)
        rows = shard.data["tokens"].read(0, shard.rows)
        assert hashlib.sha256(rows.data).hexdigest() == shard.attributes["sha256"], folder
        assert len(shard.records) == shard.items and read_json(folder / "provenance.json") == {}
    if read_json(path / "zarr.json")["attributes"]["toto_robot"]["complete"]:
        store = TokenStore.open(path)
        assert len(store.tokens[:]) == store.clip_ends[-1] and len(store.skipped) == 1
    return len(shards)


@pytest.mark.parametrize("processes", [1, 2])
def test_twenty_kills_at_random_moments(sources: Sequence[Source], tmp_path: Path, processes: int) -> None:
    began = time.monotonic()
    job(sources, tmp_path / "straight", Share())
    assert len(TokenStore.open(tmp_path / "straight").shards) == 9
    expected, whole_s = all_files(tmp_path / "straight"), time.monotonic() - began
    path, chance = tmp_path / "killed", random.Random(processes)
    shares = [Share(rank, processes) for rank in range(processes)]
    kills, before, seen, patience_s = 0, 0, {0}, 0.4 * whole_s
    while kills < KILLS:
        children = [forked(lambda share=share: job(sources, path, share)) for share in shares]
        for child in chance.sample(children, processes):
            time.sleep(chance.uniform(0, patience_s / processes))
            os.kill(child, signal.SIGKILL)
        finished = [ended(child) for child in children]
        kills += finished.count(False)
        shards = look_at_every_file(path)
        seen.add(shards)
        if any(finished):  # faster than the kills
            patience_s *= 0.7
        elif shards <= before:  # other work on the machine slows the job down
            patience_s *= 1.2
        before = shards
        if path.exists() and not first_unfinished(path, 9):  # once more from the start
            shutil.rmtree(path)
            before = 0
    assert len(seen) >= 3, f"all kills came at the same moment: {seen} shards were there"
    for share in shares:
        assert ended(forked(lambda share=share: job(sources, path, share)))
    job(sources, path, Share())
    remove_leftovers(path)
    assert all_files(path) == expected
    assert sorted(os.listdir(tmp_path)) == ["killed", "straight"]


@pytest.mark.parametrize("refused", [1, 2, 5, 12])
def test_a_full_disk_leaves_what_was_done(
    sources: Sequence[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    job(sources, tmp_path / "straight", Share())
    left, real = refused, os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        with pytest.raises(OSError, match=r"no space left to write .*free some space and run the same command again"):
            job(sources, tmp_path / "t", Share())
    look_at_every_file(tmp_path / "t")
    assert not list(tmp_path.rglob("*.building")), "what could not be finished is gone"
    job(sources, tmp_path / "t", Share())
    assert all_files(tmp_path / "t") == all_files(tmp_path / "straight")


def test_a_limit_on_file_sizes_is_told(sources: Sequence[Source], tmp_path: Path) -> None:
    """What a quota does: the kernel takes a part and refuses the rest."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, resource.RLIM_INFINITY))
        try:
            job(sources, tmp_path / "t", Share())
        except OSError as error:
            (tmp_path / "told").write_text(json.dumps([error.errno, str(error)]))

    assert ended(forked(limited))
    number, told = json.loads((tmp_path / "told").read_text())
    assert number == errno.EFBIG and "the units that are done are safe: free some space" in told
    look_at_every_file(tmp_path / "t")
    job(sources, tmp_path / "t", Share())
    job(sources, tmp_path / "straight", Share())
    assert all_files(tmp_path / "t") == all_files(tmp_path / "straight")
