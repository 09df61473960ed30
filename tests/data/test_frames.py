"""Do videos and episodes become one frame store, without the bad ones but with their reasons, the same after kills?"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import zarr
from crash import all_files, killed_at, run_and_kill
from make_video import cut_off, make_video

from toto_robot.data.clip_sources import EpisodeSource
from toto_robot.data.episodes import EpisodeStore, FeatureSpec
from toto_robot.data.frames import FrameStore, prepare_frames
from toto_robot.data.sampling import Kind
from toto_robot.data.sources import Source, find_sources
from toto_robot.data.video import BadVideo, Frame, decode, resize_square


def five_odd_videos(folder: Path) -> Path:
    """Make what a stranger's folder holds."""
    make_video(folder / "a_hevc.mp4", 40, codec="libx265")
    make_video(folder / "b_variable_rate.mkv", 30, steps_ms=(10, 90, 33))
    make_video(folder / "c_portrait.mp4", 24, 162, 96, rotation_deg=-90)
    cut_off(make_video(folder / "whole.mp4", 40, noise=20), folder / "d_corrupt.mp4", 0.6)
    (folder / "whole.mp4").unlink()
    make_video(folder / "e_three_frames.mp4", 3)
    return folder


def episodes(path: Path, size_px: int = 16, count: int = 4) -> EpisodeStore:
    """Make an episode store with two cameras; episode i has 10 + i steps."""
    image = FeatureSpec("uint8", (size_px, size_px, 3))
    features = {"observation.images.front": image, "observation.images.wrist": image}
    store = EpisodeStore.create(path, features=features, fps=20.0, env={"env_id": "x"})
    rng = np.random.default_rng(0)
    for index in range(count):
        shape = (10 + index, size_px, size_px, 3)
        store.append({key: rng.integers(0, 256, shape, dtype=np.uint8) for key in features}, {"success": True})
    store.close()
    return store


@dataclass(frozen=True)
class ToySource:
    """Frames from a seed; `fails_at` makes it a bad video."""

    id: str
    length: int
    fails_at: int | None = None
    seed: int = 0
    source: str = "toys"
    kind: Kind = "video"

    @property
    def group(self) -> str:
        return self.id

    def fingerprint(self) -> str:
        return f"{self.seed}"

    def header(self) -> tuple[int, float]:
        return self.length, 30.0

    def frames(self, size_px: int) -> Iterator[Frame]:
        for index in range(self.length):
            if index == self.fails_at:
                raise BadVideo(f"fails after {index} decoded frames")
            yield np.full((size_px, size_px, 3), (self.seed * 50 + index) % 256, np.uint8)


TOYS: list[Source] = [
    ToySource("a", 70, seed=1),
    ToySource("bad", 130, fails_at=100, seed=2),
    ToySource("short", 3, seed=3),
    ToySource("b", 65, seed=4),
]


def prepare(
    sources: list[Source], path: Path, size_px: int = 8, limit: int | None = None, least: int = 16
) -> FrameStore:
    return prepare_frames(sources, path, size_px, limit_frames=limit, min_frames=least, progress=False)


def test_five_odd_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = five_odd_videos(tmp_path / "my_videos")
    store = prepare(find_sources(folder), tmp_path / "frames", 32)
    good = ["a_hevc.mp4", "b_variable_rate.mkv", "c_portrait.mp4"]
    assert store.clip_names == [f"my_videos/{name}" for name in good]
    assert store.clip_ends.tolist() == [40, 70, 94] and store.frames.shape == (94, 32, 32, 3)
    for clip, name in enumerate(good):
        start, stop = store.bounds(clip)
        np.testing.assert_array_equal(store.frames.read(start, stop), np.stack(list(decode(folder / name, 32))))
    rejected = json.loads((tmp_path / "frames" / "rejected.json").read_text())
    assert [entry["source"] for entry in rejected] == ["my_videos/d_corrupt.mp4", "my_videos/e_three_frames.mp4"]
    assert rejected[0]["reason"].startswith("cannot be opened as a video (Invalid data")
    assert rejected[1]["reason"] == "has 3 frames, at least 16 are needed"
    told = capsys.readouterr().out
    assert "left out 2 of 5 sources" in told
    assert all(f"{entry['source']}: {entry['reason']}" in told for entry in rejected)
    assert 28 < store.records[0]["fps"] < 32


def test_records_tell_where_a_clip_belongs_and_pictures_may_be_alone(tmp_path: Path) -> None:
    pictures = [ToySource(name, 1, source="photos", kind="images") for name in ("p", "q")]
    store = prepare([*TOYS, *pictures], tmp_path / "f")
    assert store.clip_names == ["a", "b", "p", "q"]
    assert [(record["source"], record["kind"]) for record in store.records] == [
        *[("toys", "video")] * 2,
        *[("photos", "images")] * 2,
    ]
    make_video(tmp_path / "my_videos" / "v.mp4", 20)
    assert {(s.source, s.kind) for s in find_sources(tmp_path / "my_videos")} == {("my_videos", "video")}


def test_frames_of_episodes_are_copied_or_resized(tmp_path: Path) -> None:
    source = episodes(tmp_path / "run" / "episodes", 16)
    same = prepare(find_sources(tmp_path / "run"), tmp_path / "same", 16, least=1)
    assert same.clip_names[:3] == [
        "run/episodes/episode_000000/front",
        "run/episodes/episode_000000/wrist",
        "run/episodes/episode_000001/front",
    ]
    front = source.read("observation.images.front", *source.bounds(1))
    np.testing.assert_array_equal(same.frames.read(*same.bounds(2)), front)
    small = prepare(find_sources(tmp_path / "run" / "episodes"), tmp_path / "small", 8, least=1)
    np.testing.assert_array_equal(small.read([small.bounds(2)[0]])[0], resize_square(front[0], 8))
    assert same.records[0]["fps"] == 20.0


def test_access_at_random_equals_zarr(tmp_path: Path) -> None:
    store = prepare(TOYS, tmp_path / "f")
    theirs = np.asarray(zarr.open_group(tmp_path / "f", mode="r")["data/frames"])
    np.testing.assert_array_equal(store.read([100, 3, 3, 77]), theirs[[100, 3, 3, 77]])
    np.testing.assert_array_equal(store.clip(70, 4, 3), theirs[70:80:3])
    np.testing.assert_array_equal(store.frames[60:80], theirs[60:80])
    assert store.image_px == 8 and len(store) == 2


def test_cameras_of_an_episode_stay_on_one_side(tmp_path: Path) -> None:
    episodes(tmp_path / "e", 8, count=12)
    store = prepare(find_sources(tmp_path / "e"), tmp_path / "f", least=1)
    for seed in range(5):
        train, val = store.split(0.25, seed)
        groups = [{store.clip_names[clip].rsplit("/", 1)[0] for clip in side.tolist()} for side in (train, val)]
        assert not groups[0] & groups[1]
        assert len(groups[1]) == 3 and len(val) == 6 and sorted([*train, *val]) == list(range(24))
    assert any(store.split(0.25, 0)[1].tolist() != store.split(0.25, seed)[1].tolist() for seed in range(1, 5))


def test_killed_at_every_touch_of_the_disk_and_resumed(tmp_path: Path) -> None:
    prepare(TOYS, tmp_path / "straight")
    expected = all_files(tmp_path / "straight")
    touch = 1
    while killed_at(touch, lambda: prepare(TOYS, tmp_path / "killed")):
        if (tmp_path / "killed").exists() and all_files(tmp_path / "killed") != expected:
            with pytest.raises(ValueError, match="unfinished"):
                FrameStore.open(tmp_path / "killed")
        prepare(TOYS, tmp_path / "killed")
        assert all_files(tmp_path / "killed") == expected, f"killed at touch {touch}"
        shutil.rmtree(tmp_path / "killed")
        touch += 1
    assert touch > 30, "hardly anything was tried"


PREPARE = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_frames import prepare
from toto_robot.data import clip_sources, sources
decode = clip_sources.decode
def told(path, size_px):
    for frame in decode(path, size_px):
        print(path.name, flush=True)
        yield frame
clip_sources.decode = told
prepare(sources.find_sources(sys.argv[1]), Path(sys.argv[2]), 32)
"""


def test_kill_9_while_decoding_and_resume(tmp_path: Path) -> None:
    five_odd_videos(tmp_path / "my_videos")
    script = PREPARE.format(tests=str(Path(__file__).parent))
    arguments = [str(tmp_path / "my_videos"), str(tmp_path / "killed")]
    assert run_and_kill(script, arguments, 20), "in the first video"
    assert run_and_kill(script, arguments, 52), "in the second"
    assert FrameStore(_partial(tmp_path / "killed")).clip_names == ["my_videos/a_hevc.mp4"]
    assert not run_and_kill(script, arguments, 1000)
    prepare(find_sources(tmp_path / "my_videos"), tmp_path / "straight", 32)
    assert all_files(tmp_path / "killed") == all_files(tmp_path / "straight")


def _partial(path: Path):  # type: ignore[no-untyped-def]
    from toto_robot.data.flat_store import FlatStore

    return FlatStore.open(path, kind="frames", made_by="")


def test_ctrl_c_leaves_a_resumable_store(tmp_path: Path) -> None:
    class Interrupted(ToySource):
        def frames(self, size_px: int) -> Iterator[Frame]:
            yield from list(super().frames(size_px))[:64]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([*TOYS[:3], Interrupted("b", 65, seed=4)], tmp_path / "f")
    prepare(TOYS, tmp_path / "f")
    prepare(TOYS, tmp_path / "straight")
    assert all_files(tmp_path / "f") == all_files(tmp_path / "straight")


def test_done_work_is_not_done_again(tmp_path: Path) -> None:
    prepare(TOYS, tmp_path / "f")
    before = all_files(tmp_path / "f")

    class Untouchable(ToySource):
        def frames(self, size_px: int) -> Iterator[Frame]:
            raise AssertionError("decoded again")

    again = [Untouchable(**toy.__dict__) for toy in TOYS]
    prepare(again, tmp_path / "f")
    assert all_files(tmp_path / "f") == before
    more = prepare([*again, ToySource("c", 20)], tmp_path / "f")
    assert more.clip_names == ["a", "b", "c"]


def test_changed_sources_and_settings_are_noticed(tmp_path: Path) -> None:
    prepare(TOYS, tmp_path / "f")
    with pytest.raises(ValueError, match=r"b has changed since .* delete that folder"):
        prepare([ToySource("b", 65, seed=5)], tmp_path / "f")
    with pytest.raises(ValueError, match=r"was made with .*'size_px': 8.* not with .*'size_px': 16"):
        prepare(TOYS, tmp_path / "f", 16)
    mended = prepare([*TOYS[:2], ToySource("short", 30, seed=9)], tmp_path / "f")
    assert mended.clip_names == ["a", "b", "short"]
    assert [entry["source"] for entry in json.loads((tmp_path / "f/rejected.json").read_text())] == ["bad"]


@pytest.mark.parametrize(("limit", "ends"), [(50, [50]), (70, [70]), (80, [70]), (100, [70, 100]), (999, [70, 135])])
def test_the_limit_is_kept(tmp_path: Path, limit: int, ends: list[int]) -> None:
    """At 80 the second clip would have 10 frames, too few."""
    assert prepare(TOYS, tmp_path / "f", limit=limit).clip_ends.tolist() == ends


def test_no_good_source_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of the 2 sources .*: bad fails after 100 decoded frames; short has 3"):
        prepare(TOYS[1:3], tmp_path / "f")


def test_what_is_behind_a_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_video(tmp_path / "videos" / "deep" / "b.mp4", 3)
    make_video(tmp_path / "videos" / "a.mp4", 3)
    assert [source.id for source in find_sources(tmp_path / "videos")] == ["videos/a.mp4", "videos/deep/b.mp4"]
    assert [source.id for source in find_sources(tmp_path / "videos" / "a.mp4")] == ["a.mp4"]
    episodes(tmp_path / "run" / "episodes", 8, count=1)
    make_video(tmp_path / "run" / "videos" / "episode_0.mp4", 3)
    both = find_sources(str(tmp_path / "run"), tmp_path / "videos")
    assert [type(source).__name__ for source in both] == [
        "EpisodeSource",
        "EpisodeSource",
        "VideoSource",
        "VideoSource",
    ]
    assert isinstance(both[1], EpisodeSource) and both[1].group == "run/episodes/episode_000000"
    assert "run holds episode stores: its 1 videos are left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"two sources would both be called 'videos/a\.mp4'"):
        find_sources(tmp_path / "videos", tmp_path / "videos")
    with pytest.raises(ValueError, match="does not exist; expected a folder of videos"):
        find_sources(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no episode store, no LeRobot data set, no video and no picture"):
        find_sources(tmp_path / "empty")


def test_a_video_that_may_not_be_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_video(tmp_path / "v" / "a.mp4", 20)
    (tmp_path / "v" / "b.mp4").symlink_to(tmp_path / "gone.mp4")
    store = prepare(find_sources(tmp_path / "v"), tmp_path / "f", 16)
    assert store.clip_names == ["v/a.mp4"]
    assert "No such file" in (tmp_path / "f" / "rejected.json").read_text()


def test_the_fingerprint_is_of_pixels_and_names(tmp_path: Path) -> None:
    one = prepare(TOYS, tmp_path / "one").fingerprint()
    assert prepare([TOYS[0], TOYS[3]], tmp_path / "two").fingerprint() == one
    assert prepare([TOYS[0], ToySource("b", 65, seed=7)], tmp_path / "three").fingerprint() != one
    assert prepare([TOYS[0], ToySource("c", 65, seed=4)], tmp_path / "four").fingerprint() != one


def test_frames_need_no_torch() -> None:
    import subprocess

    code = "import sys, toto_robot.data.frames; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
