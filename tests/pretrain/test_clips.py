"""Are whole videos held out, and strides chosen that fit?"""

import numpy as np
import pytest

from toto_robot.pretrain.clips import divide, fitting_strides


def of_groups(groups: list[str]) -> list[dict[str, str]]:
    """Return the records of videos of one source."""
    return [{"group": group, "source": "videos", "kind": "video"} for group in groups]


def test_both_cameras_of_an_episode_are_on_one_side():
    groups = [f"episode_{index // 2}" for index in range(40)]
    division = divide(np.arange(10, 401, 10), of_groups(groups), 0.2, seed=0)
    held_out = {groups[clip] for clip in division.held_out}
    assert len(held_out) == 4
    assert not held_out & {groups[clip] for clip in division.training}
    assert len(division.held_out) + len(division.training) == 40


def test_a_single_video_is_divided_in_time():
    division = divide(np.array([100]), of_groups(["only"]), 0.2, seed=0, min_frames=16)
    training, held_out = division.samplers(16, (1, 2), seed=0)
    assert held_out is not None
    train_rows = {row for window in training.windows(0, 500) for row in window.rows}
    held_rows = {row for window in held_out.windows(0, 500) for row in window.rows}
    assert train_rows == set(range(80))
    assert held_rows == set(range(80, 100))


def test_both_cameras_of_a_single_episode_are_divided_at_the_same_moment():
    division = divide(np.array([100, 200]), of_groups(["only", "only"]), 0.2, seed=0)
    assert division.ends.tolist() == [80, 100, 180, 200]
    assert division.training.tolist() == [0, 2]
    assert division.held_out.tolist() == [1, 3]


def test_a_single_short_video_all_trains_and_says_so(capsys):
    division = divide(np.array([20]), of_groups(["only"]), 0.2, seed=0, min_frames=16)
    assert "nothing is held out" in capsys.readouterr().out
    training, held_out = division.samplers(16, (1,), seed=0)
    assert held_out is None
    assert training.samples == 5


def test_strides_that_fit_are_kept_and_too_large_ones_replaced(capsys):
    lengths = np.array([10, 33])
    assert fitting_strides(lengths, 16, (1, 2, 4), "videos") == (1, 2)
    assert capsys.readouterr().out == ""
    assert fitting_strides(lengths, 16, (4,), "videos") == (2,)
    assert "every 2. frame" in capsys.readouterr().out
    assert fitting_strides(np.array([31]), 16, (2,), "videos") == (2,)
    assert fitting_strides(np.array([30]), 16, (2,), "videos") == (1,)
    assert fitting_strides(np.array([1]), 1, (1,), "videos") == (1,)


def test_too_short_videos_say_how_many_frames_are_needed():
    with pytest.raises(
        ValueError, match=r"longest training clip of videos has 9 frames.*sample is 16 frames.*at least 16"
    ):
        fitting_strides(np.array([9, 4]), 16, (1, 2), "videos")


def test_held_out_clips_too_short_for_a_window_are_left_out():
    division = divide(np.array([40, 50, 90]), of_groups(["a", "b", "c"]), 0.34, seed=0)
    for frames in (2, 16):
        training, held_out = division.samplers(frames, (1,), seed=0)
        assert training.samples > 0
        lengths = {0: 40, 1: 10, 2: 40}
        long_enough = [clip for clip in division.held_out if lengths[int(clip)] >= frames]
        assert (held_out is None) == (not long_enough)


def of_source(source: str, count: int, kind: str = "video") -> list[dict[str, str]]:
    """Return the records of `count` clips, each a group of its own."""
    return [{"group": f"{source}/{index}", "source": source, "kind": kind} for index in range(count)]


def test_every_source_of_a_mixture_holds_out_its_share():
    records = [
        *of_source("web", 100),
        *of_source("robot", 10),
        *of_source("single", 1),
        *of_source("photos", 200, "images"),
    ]
    lengths = [40] * 100 + [50] * 10 + [100] + [1] * 200
    division = divide(np.cumsum(lengths), records, 0.1, seed=0, min_frames=16)
    held = {part.source: len(part.held_out) for part in division.parts}
    assert held == {"web": 10, "robot": 1, "single": 1, "photos": 20}
    assert {part.source: len(part.training) for part in division.parts} == {
        "web": 90, "robot": 9, "single": 1, "photos": 180,
    }  # fmt: skip
    assert division.ends[110:113].tolist() == [4584, 4600, 4601], "of the single video a window is held out"
    assert sorted([*division.training, *division.held_out]) == list(range(312))


def test_samples_of_a_mixture_are_of_their_source_and_kind():
    records = [*of_source("web", 20), *of_source("photos", 40, "images")]
    division = divide(np.cumsum([40] * 20 + [1] * 40), records, 0.1, seed=0, min_frames=16)
    training, held_out = division.samplers(16, (2, 64), seed=0, weights={"web": 1, "photos": 3})
    assert held_out is not None
    for sampler, per_source in ((training, (36, 20)), (held_out, (4, 16))):  # 16 of 40 pictures: a sample takes so many
        windows = sampler.windows(0, 400)
        assert sum(window.kind == "images" for window in windows) == 300
        rows = [
            {row for window in windows if window.source == name for row in window.rows} for name in ("web", "photos")
        ]
        assert max(rows[0]) < 800 <= min(rows[1])
        assert all(window.rows.step == 2 for window in windows if window.source == "web"), "64 does not fit"
        assert all(len(set(window.rows)) == 16 for window in windows)
        assert len(rows[1]) <= per_source[1] + 4


def test_weights_left_out_are_those_of_the_frames():
    records = [*of_source("web", 20), *of_source("photos", 200, "images")]
    division = divide(np.cumsum([40] * 20 + [1] * 200), records, 0, seed=0)
    training, held_out = division.samplers(16, (1,), seed=0)
    assert held_out is None
    assert training.weights == {"web": 0.8, "photos": 0.2}


def test_too_few_pictures_are_told(capsys):
    records = [*of_source("web", 20), *of_source("photos", 17, "images")]
    ends = np.cumsum([40] * 20 + [1] * 17)
    training, held_out = divide(ends, records, 0.05, seed=0, min_frames=16).samplers(16, (1,), seed=0)
    assert "photos: too little is held out" in capsys.readouterr().out
    assert set(training.parts) == {"web", "photos"}
    assert set(held_out.parts) == {"web"}
    with pytest.raises(ValueError, match="photos has 15 training pictures, but a training sample is 16"):
        divide(ends[:35], records[:35], 0, seed=0).samplers(16, (1,), seed=0)


def test_records_from_before_sources_had_names_are_one_source():
    division = divide(np.array([10, 20]), [{"group": "a"}, {"group": "b"}], 0, seed=0)
    assert [(part.source, part.kind) for part in division.parts] == [("data", "video")]
