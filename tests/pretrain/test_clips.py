"""Are whole videos held out, and strides chosen that fit?"""

import numpy as np
import pytest

from toto_robot.pretrain.clips import divide, fitting_strides


def test_both_cameras_of_an_episode_are_on_one_side():
    groups = [f"episode_{index // 2}" for index in range(40)]
    division = divide(np.arange(10, 401, 10), groups, 0.2, seed=0)
    held_out = {groups[clip] for clip in division.held_out}
    assert len(held_out) == 4
    assert not held_out & {groups[clip] for clip in division.training}
    assert len(division.held_out) + len(division.training) == 40


def test_a_single_video_is_divided_in_time():
    division = divide(np.array([100]), ["only"], 0.2, seed=0, min_frames=16)
    training, held_out = division.samplers(16, (1, 2), seed=0)
    assert held_out is not None
    train_rows = {start + 15 * stride for start, stride in training.starts(0, 500)}
    held_rows = {start for start, _ in held_out.starts(0, 500)}
    assert max(train_rows) < 80 <= min(held_rows)
    assert max(start + 15 * stride for start, stride in held_out.starts(0, 500)) < 100


def test_both_cameras_of_a_single_episode_are_divided_at_the_same_moment():
    division = divide(np.array([100, 200]), ["only", "only"], 0.2, seed=0)
    assert division.ends.tolist() == [80, 100, 180, 200]
    assert division.training.tolist() == [0, 2]
    assert division.held_out.tolist() == [1, 3]


def test_a_single_short_video_all_trains_and_says_so(capsys):
    division = divide(np.array([20]), ["only"], 0.2, seed=0, min_frames=16)
    assert "nothing is held out" in capsys.readouterr().out
    training, held_out = division.samplers(16, (1,), seed=0)
    assert held_out is None
    assert training.samples == 5


def test_strides_that_fit_are_kept_and_too_large_ones_replaced(capsys):
    lengths = np.array([10, 33])
    assert fitting_strides(lengths, 16, (1, 2, 4)) == (1, 2)
    assert capsys.readouterr().out == ""
    assert fitting_strides(lengths, 16, (4,)) == (2,)
    assert "every 2. frame" in capsys.readouterr().out
    assert fitting_strides(np.array([31]), 16, (2,)) == (2,)
    assert fitting_strides(np.array([30]), 16, (2,)) == (1,)
    assert fitting_strides(np.array([1]), 1, (1,)) == (1,)


def test_too_short_videos_say_how_many_frames_are_needed():
    with pytest.raises(ValueError, match=r"longest training clip has 9 frames.*sample is 16 frames.*at least 16"):
        fitting_strides(np.array([9, 4]), 16, (1, 2))


def test_held_out_clips_too_short_for_a_window_are_left_out():
    division = divide(np.array([40, 50, 90]), ["a", "b", "c"], 0.34, seed=0)
    for frames in (2, 16):
        training, held_out = division.samplers(frames, (1,), seed=0)
        assert training.samples > 0
        lengths = {0: 40, 1: 10, 2: 40}
        long_enough = [clip for clip in division.held_out if lengths[int(clip)] >= frames]
        assert (held_out is None) == (not long_enough)
