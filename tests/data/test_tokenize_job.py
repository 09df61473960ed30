"""Is a tokenizing job its manifest: the same shards whoever does them, bad sources told, new and mended ones added?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from crash import all_files
from make_video import cut_off, make_video
from test_tokens import MeanTokenizer

from toto_robot.data.decoders import Decoders, Ended
from toto_robot.data.manifest import Manifest
from toto_robot.data.sampling import Kind
from toto_robot.data.share import Share, local_rank, share_from
from toto_robot.data.sources import Source
from toto_robot.data.token_job import TokenJob
from toto_robot.data.token_shards import first_unfinished, seal_store
from toto_robot.data.tokenize import (
    TokenizeConfig,
    choose_job_device,
    job_settings,
    open_manifest,
    tokenize,
    tokenize_sources,
)
from toto_robot.data.tokens import MANIFEST, TokenSpec, TokenStore
from toto_robot.data.video import BadVideo, Frame
from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, save_dvae


@dataclass(frozen=True)
class Toy:
    """A clip of one grey level; `fails_at` makes it bad, `promises` is what its header says."""

    id: str
    length: int
    grey: int = 7
    fails_at: int | None = None
    promises: int | None = None
    kind: Kind = "video"
    source: str = "toys"
    version: int = 0

    @property
    def group(self) -> str:
        return self.id

    def fingerprint(self) -> str:
        return f"{self.id} {self.version}"

    def header(self) -> tuple[int, float]:
        if self.promises is None and self.fails_at == 0:
            raise BadVideo("cannot be opened as a video")
        return self.length if self.promises is None else self.promises, 30.0

    def frames(self, size_px: int) -> Iterator[Frame]:
        for index in range(self.length):
            if index == self.fails_at:
                raise BadVideo(f"fails after {index} decoded frames")
            yield np.full((size_px, size_px, 3), self.grey, np.uint8)


def run(sources: Sequence[Source], path: Path, **options: object) -> TokenStore:
    options = {"image_px": 8, "batch_size": 4, "unit_frames": 20, "progress": False, **options}
    return tokenize_sources(sources, MeanTokenizer(), path, **options)  # type: ignore[arg-type]


def units(path: Path) -> list[list[str]]:
    return [[entry.id for entry in unit] for unit in Manifest.read(path / MANIFEST).units]


def test_units_are_packed_by_the_headers(tmp_path: Path) -> None:
    toys = [Toy("a", 12), Toy("b", 8), Toy("c", 1), Toy("d", 50), Toy("e", 3, promises=0), Toy("f", 5)]
    run(toys, tmp_path / "t")
    assert units(tmp_path / "t") == [["a", "b"], ["c"], ["d"], ["e"], ["f"]], "an unknown length counts as long"
    run(toys, tmp_path / "one", unit_frames=10_000)
    assert units(tmp_path / "one") == [["a", "b", "c", "d", "e", "f"]]
    assert TokenStore.open(tmp_path / "one").fingerprint() == TokenStore.open(tmp_path / "t").fingerprint()


@pytest.mark.parametrize(
    ("limit", "ends"), [(12, [12]), (15, [12]), (17, [12, 17]), (20, [12, 20]), (999, [12, 20, 40])]
)
def test_the_limit_is_kept(tmp_path: Path, limit: int, ends: list[int]) -> None:
    """At 15 the second clip would have 3 frames, too few."""
    toys = [Toy("a", 12), Toy("b", 8), Toy("c", 20)]
    assert run(toys, tmp_path / "t", limit_frames=limit, min_frames=4).clip_ends.tolist() == ends
    assert run(toys, tmp_path / "t", limit_frames=limit, min_frames=4).clip_ends.tolist() == ends, (
        "again, with the rest"
    )


@pytest.mark.parametrize("decoders", [1, 3])
def test_bad_sources_are_told_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture, decoders: int) -> None:
    toys = [
        Toy("a", 9),
        Toy("bad", 9, fails_at=6),
        Toy("short", 2),
        Toy("c", 5),
        Toy("none", 9, fails_at=0),
        Toy("d", 4),
    ]
    store = run(toys, tmp_path / "t", min_frames=3, decoders=decoders)
    assert store.clip_names == ["a", "c", "d"] and store.clip_ends.tolist() == [9, 14, 18]
    reasons = {one["source"]: (one["unit"], one["reason"]) for one in store.skipped}
    assert reasons == {
        "bad": ("000000", "fails after 6 decoded frames"),
        "short": ("000000", "has 2 frames, at least 3 are needed"),
        "none": ("000002", "fails after 0 decoded frames"),
    }
    assert "left out: bad fails after 6 decoded frames" in capsys.readouterr().out
    assert units(tmp_path / "t")[2] == ["none"], "a shard without a clip"
    with pytest.raises(ValueError, match=r"none of the 2 sources can be used: bad fails .*; short has 2 frames"):
        run(toys[1:3], tmp_path / "u", min_frames=3)


def test_pictures_share_batches_and_are_left_out_alone(tmp_path: Path) -> None:
    seen: list[int] = []

    class Counting(MeanTokenizer):
        def encode(self, images):  # type: ignore[no-untyped-def]
            seen.append(len(images))
            return super().encode(images)

    pictures: list[Source] = [
        Toy(f"p{grey}", 1, grey, kind="images", fails_at=0 if grey in (2, 8) else None) for grey in range(10)
    ]
    sources = [Toy("v", 5, 99), *pictures, Toy("w", 5, 98)]
    options = {"image_px": 8, "batch_size": 4, "min_frames": 5, "progress": False}
    store = tokenize_sources(sources, Counting(), tmp_path / "t", **options)  # type: ignore[arg-type]
    assert seen == [4, 1, 3, 4, 1, 4, 1], "pictures four at a time, less the bad ones"
    assert store.clip_names == ["v", *(f"p{grey}" for grey in range(10) if grey not in (2, 8)), "w"]
    assert store.tokens[:][:, 0].tolist() == [99] * 5 + [0, 1, 3, 4, 5, 6, 7, 9] + [98] * 5
    assert [record["kind"] for record in store.records] == ["video", *["images"] * 8, "video"]
    assert [one["source"] for one in store.skipped] == ["p2", "p8"]


def test_a_mended_file_gets_another_chance_and_a_changed_one_is_not_mixed_in(tmp_path: Path) -> None:
    a, bad = Toy("a", 9), Toy("bad", 9, fails_at=6)
    run([a, bad], tmp_path / "t")
    before = all_files(tmp_path / "t" / "units")
    assert run([a, bad], tmp_path / "t").clip_names == ["a"], "nothing has changed"
    mended = Toy("bad", 9, version=1)
    for _ in range(2):
        store = run([a, mended], tmp_path / "t")
        assert store.clip_names == ["a", "bad"] and len(store.shards) == 2
    assert {name: content for name, content in all_files(tmp_path / "t" / "units").items() if name in before} == before
    with pytest.raises(ValueError, match="a has changed since its tokens were made; delete them"):
        run([replace(a, version=1), mended], tmp_path / "t")
    # Changed after the manifest was planned, before its unit was done:
    open_manifest(tmp_path / "u", [a, bad], _settings(), {}, Share(), progress=False)
    store = run([a, replace(bad, version=2)], tmp_path / "u")
    assert store.clip_names == ["a"]
    assert store.skipped[0]["reason"] == "has changed since the manifest was made"
    store = run([a], tmp_path / "v")
    open_manifest(tmp_path / "v", [a, mended], _settings(), {}, Share(), progress=False)
    assert run([a], tmp_path / "v").skipped[0]["reason"] == "is not there any more"


def test_retry_tries_what_was_left_out_again(tmp_path: Path) -> None:
    toys = [Toy("a", 9), Toy("bad", 9, fails_at=6)]
    run(toys, tmp_path / "t")
    assert len(open_manifest(tmp_path / "t", toys, _settings(), {}, Share(), progress=False).units) == 1
    manifest = open_manifest(tmp_path / "t", toys, _settings(), {}, Share(), retry=True, progress=False)
    assert [[entry.id for entry in unit] for unit in manifest.units] == [["a", "bad"], ["bad"]]


def _settings() -> dict[str, object]:
    return job_settings(MeanTokenizer(), image_px=8, precision="fp32", min_frames=1, limit_frames=None, unit_frames=20)


def _do(path: Path, sources: Sequence[Source], share: Share) -> None:
    manifest = open_manifest(path, sources, _settings(), {}, share, progress=False)
    job = TokenJob(path, manifest, sources, MeanTokenizer(), batch_size=4, device="cpu", decoders=2, provenance={})
    todo = [unit for unit in share.of(len(manifest.units)) if unit in first_unfinished(path, len(manifest.units))]
    assert sorted(job.run(todo, progress=False)) == todo


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_three_processes_make_the_bytes_of_one(tmp_path: Path, order: tuple[int, ...]) -> None:
    toys = [Toy(f"t{number}", 15, grey=number, fails_at=3 if number == 4 else None) for number in range(8)]
    for rank in order:
        _do(tmp_path / "t", toys, Share(rank, 3))
    seal_store(tmp_path / "t", TokenSpec.of(_settings()), 8)
    run(toys, tmp_path / "one")
    assert all_files(tmp_path / "t") == all_files(tmp_path / "one")


def test_several_processes_leave_the_manifest_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    _do(tmp_path / "t", [Toy("a", 9)], Share(0, 2))
    manifest = open_manifest(tmp_path / "t", [Toy("a", 9), Toy("b", 9)], _settings(), {}, Share(1, 2), progress=False)
    assert len(manifest.units) == 1
    assert "1 sources came or changed since the manifest was made" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "1"}, (4, 8)),
        ({"SLURM_ARRAY_TASK_ID": "20", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_STEP": "10"}, (2, 8)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (1, 2)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}, (7, 8)),
        ({"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4"}, (0, 1)),
    ],
)
def test_the_share_is_read_from_what_started_the_process(environment: dict[str, str], share: tuple[int, int]) -> None:
    found = share_from(environment)
    assert (found.rank, found.world_size) == share


def test_shares_divide_the_units() -> None:
    assert sorted(unit for rank in range(3) for unit in Share(rank, 3).of(8)) == list(range(8))
    with pytest.raises(ValueError, match="expected 0 <= rank < world_size, got rank 4 of 4"):
        share_from({"RANK": "4", "WORLD_SIZE": "4"})
    with pytest.raises(ValueError, match="expected a number in the environment variable RANK, got 'x'"):
        share_from({"RANK": "x", "WORLD_SIZE": "4"})
    assert local_rank({"LOCAL_RANK": "2"}) == 2 == local_rank({"SLURM_LOCALID": "2"})
    assert choose_job_device("cuda:1") == "cuda:1"


def test_decoders_stop_when_nobody_reads_any_more() -> None:
    opened: list[int] = []

    def endless(number: int) -> Iterator[Frame]:
        opened.append(number)
        while True:
            yield np.zeros((2, 2, 3), np.uint8)

    with Decoders([lambda n=number: endless(n) for number in range(5)], batch_size=2, threads=2) as decoded:
        number, images = next(iter(decoded))
        assert number in (0, 1) and images.shape == (2, 2, 2, 3)
    assert sorted(opened) == [0, 1] and not any(thread.is_alive() for thread in decoded._threads)


def test_a_fault_of_the_program_is_no_bad_source() -> None:
    def broken() -> Iterator[Frame]:
        yield np.zeros((2, 2, 3), np.uint8)
        raise ZeroDivisionError("here")

    def bad() -> Iterator[Frame]:
        raise OSError("stale file handle")
        yield

    with Decoders([bad, broken], batch_size=1, threads=1) as decoded:
        found = []
        with pytest.raises(ZeroDivisionError, match="here"):
            found.extend(decoded)
    with Decoders([bad], batch_size=1, threads=1) as decoded:
        assert list(decoded) == [(0, Ended("stale file handle"))]


def test_the_command_plans_first_and_ranks_do_their_shares(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With videos and a real dVAE of toy size, as a Slurm array would run it."""
    from toto_robot.cli import main

    for number in range(3):
        make_video(tmp_path / "v" / f"{number}.mp4", 12 + number)
    cut_off(tmp_path / "v" / "2.mp4", tmp_path / "v" / "cut.mp4", 0.6)
    save_dvae(DVAE(DVAEConfig(name="toy", hidden=8, blocks_per_group=1, vocab=32, decoder_init=8)), tmp_path / "dvae")
    words = ["tokenize", f"data={tmp_path / 'v'}", f"tokenizer={tmp_path / 'dvae'}", f"out={tmp_path / 't'}"]
    words += ["image_px=16", "min_frames=4", "unit_frames=12", "device=cpu", f"run={tmp_path / 'run'}"]

    def call(*more: str) -> str:
        with pytest.raises(SystemExit) as end:
            main([*words, *more])
        told = capsys.readouterr()
        assert end.value.code == 0, told.err
        return told.out

    assert "4 units of 4 sources" in call("engine=plan")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    told = call()
    assert "process 1 of 2: 2 of 4 units" in told and "2 of 4 are left to others" in told
    with pytest.raises(ValueError, match=r"unfinished \(2 of 4 units so far\)"):
        TokenStore.open(tmp_path / "t")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    told = call()
    assert "3 clips, 39 frames, 156 tokens" in told and "1 sources were left out" in told
    (left_out,) = TokenStore.open(tmp_path / "t").skipped
    assert left_out["source"] == "v/cut.mp4"
    ranks = [
        json.loads((tmp_path / "t" / "units" / f"{unit:06d}" / "provenance.json").read_text()) for unit in range(4)
    ]
    assert [(one["rank"], one["world_size"]) for one in ranks] == [(0, 2), (1, 2), (0, 2), (1, 2)]
    expected = TokenStore.open(tmp_path / "t").fingerprint()
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    monkeypatch.delenv("SLURM_ARRAY_TASK_COUNT")
    config = TokenizeConfig(
        data=(str(tmp_path / "v"),), tokenizer=str(tmp_path / "dvae"), image_px=16, min_frames=4, device="cpu"
    )
    assert tokenize(config, tmp_path / "straight") == 0
    assert TokenStore.open(tmp_path / "straight" / "tokens").fingerprint() == expected
