"""Does the path between chunks go where the newest one says, without a jump at any seam or delay?"""

from __future__ import annotations

import numpy as np
import pytest

from deploy.realtime.interpolate import ChunkFollower
from deploy.realtime.records import CHUNK, MAX_WAYPOINTS

REST = (np.zeros(7), np.zeros(7))
DT_S = 0.005


def chunk(made_s: float, times: np.ndarray, q: np.ndarray, dq: np.ndarray | None = None) -> np.ndarray:
    record = np.zeros((), CHUNK)
    count = len(times)
    record["made_s"], record["capture_s"], record["count"] = made_s, made_s - 0.03, count
    record["time_s"][:count] = times
    record["q_rad"][:count] = np.asarray(q)[:, None]
    record["dq_rad_s"][:count] = 0.0 if dq is None else np.asarray(dq)[:, None]
    record["gripper"][:count] = np.linspace(-1, 1, count)
    return record


def path(follower: ChunkFollower, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wishes = [follower.at(float(time_s)) for time_s in times]
    return np.array([wish.q_rad[0] for wish in wishes]), np.array([wish.dq_rad_s[0] for wish in wishes])


def test_it_passes_every_waypoint_at_its_time_and_speed() -> None:
    times = 10 + 0.05 * np.arange(1, 9)
    angle = 3 * (times - 10)
    follower = ChunkFollower(0.1)
    assert follower.accept(chunk(10.0, times, np.sin(angle), 3 * np.cos(angle)), 10.0, REST) is None
    q, dq = path(follower, times)
    np.testing.assert_allclose(q[2:], np.sin(angle)[2:], atol=1e-12)
    np.testing.assert_allclose(dq[2:-1], 3 * np.cos(angle)[2:-1], atol=1e-9)
    fine = np.linspace(10.1, times[-1], 200)
    assert np.abs(path(follower, fine)[0] - np.sin(3 * (fine - 10))).max() < 1e-4
    assert not follower.at(times[-1]).starved and follower.at(times[-1] + 1e-3).starved
    assert (follower.at(times[-1] + 1).dq_rad_s == 0).all()  # holds the end of the plan


def test_it_starts_from_where_the_arm_is() -> None:
    follower = ChunkFollower(0.1)
    follower.accept(chunk(5.0, 5 + 0.05 * np.arange(1, 5), np.full(4, 0.3)), 5.0, (np.full(7, 0.1), np.zeros(7)))
    assert follower.at(5.0).q_rad[0] == pytest.approx(0.1)
    assert follower.at(5.0).dq_rad_s[0] == pytest.approx(0.0)
    assert follower.at(5.2).q_rad[0] == pytest.approx(0.3)


def test_waypoints_of_the_past_are_dropped_by_their_stamps() -> None:
    # Inference took 120 ms: the plan is followed from its third waypoint on, at the right time.
    times = 20 + 0.05 * np.arange(8)
    late = ChunkFollower(0.1)
    late.accept(chunk(20.12, times, times - 20), 20.12, (np.full(7, 0.12), np.ones(7)))
    q, _ = path(late, times[5:])
    np.testing.assert_allclose(q, times[5:] - 20, atol=1e-12)
    assert late.at(20.12).q_rad[0] == pytest.approx(0.12)
    gone = ChunkFollower(0.1)
    gone.accept(chunk(21.0, times, times - 20), 21.0, REST)
    assert gone.at(21.0).starved
    assert gone.at(21.0).q_rad[0] == pytest.approx(0.0)  # from here ...
    assert gone.at(21.2).q_rad[0] == pytest.approx(0.35)  # ... to the newest wish


def test_no_seam_jumps_however_much_chunks_disagree() -> None:
    rng = np.random.default_rng(0)
    follower, q, dq, now_s = ChunkFollower(0.1), [], [], 100.0
    present = REST
    for _ in range(40):
        spacing = rng.uniform(0.02, 0.1)
        times = now_s + rng.uniform(-0.05, 0.05) + spacing * np.arange(8)
        record = chunk(now_s, times, rng.uniform(-1, 1) + 0.5 * (times - now_s), np.full(8, 0.5))
        assert follower.accept(record, now_s, present) is None
        for _ in range(int(rng.integers(5, 30))):
            wish = follower.at(now_s)
            q.append(wish.q_rad[0])
            dq.append(wish.dq_rad_s[0])
            now_s += DT_S
        present = follower.at(now_s)[:2]
    # A cut would be a jump of up to 2 rad in one tick; the steepest cubic over 2.5 rad in 0.1 s moves 0.19 rad.
    assert np.abs(np.diff(q)).max() < 1.5 * 2.5 / 0.1 * DT_S
    # Position is the integral of the velocity, seams included: except where the plan ends, no jump hides between.
    missing = np.diff(q) - DT_S * (np.array(dq)[1:] + np.array(dq)[:-1]) / 2
    assert np.abs(missing).max() < 0.02


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"made_s": 9.0}, "out of order"),
        ({"made_s": 10.0}, "out of order"),
        ({"made_s": np.nan}, "no valid stamp"),
        ({"made_s": 999.0}, "no valid stamp"),
        ({"count": 0}, "no waypoints"),
        ({"count": MAX_WAYPOINTS + 1}, "no waypoints"),
        ({"q_rad": np.nan}, "not finite"),
        ({"dq_rad_s": np.inf}, "not finite"),
        ({"time_s": 10.0}, "times do not rise"),
        ({"state_s": 9.6}, "from an old state"),
        ({"state_s": np.nan}, "from an old state"),
    ],
)
def test_a_bad_chunk_changes_nothing(change: dict[str, float], reason: str) -> None:
    follower = ChunkFollower(0.1)
    times = 10 + 0.05 * np.arange(1, 9)
    assert follower.accept(chunk(10.0, times, times - 10), 10.0, REST) is None
    before = follower.at(10.2)
    bad = chunk(10.1, times, -(times - 10))
    for name, value in change.items():
        bad[name] = value
    assert follower.accept(bad, 10.15, (before.q_rad, before.dq_rad_s)) == reason
    after = follower.at(10.2)
    assert (after.q_rad == before.q_rad).all() and follower.made_s == 10.0
    assert follower.rejected == {reason: 1}


def test_the_gripper_follows_its_own_waypoint() -> None:
    follower = ChunkFollower(0.1)
    times = 10 + 0.05 * np.arange(1, 4)
    follower.accept(chunk(10.0, times, np.zeros(3)), 10.0, REST)
    assert [follower.at(t).gripper for t in (10.0, 10.051, 10.101, 10.2)] == [-1, -1, 0, 1]
