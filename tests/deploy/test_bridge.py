"""Do two computers exchange the newest records in the right time, and does the arm stop when they no longer do?

Both ends are real, over loopback; the policy's computer has a clock of its own.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bridge_link import AHEAD_S, HEIGHT, HELLO, PATIENCE_S, SIZE, WIDTH, Door, Link, elsewhere, plan, wait
from control_cell import Cell, assert_ramped_stop, make_arm, settings

from deploy.bridge.clock import CHUNK_TIMES, STATE_TIMES, Offset, shift
from deploy.bridge.policy_end import camera_file
from deploy.bridge.wire import Hello, hello_body, parse_hello
from deploy.cameras.reader import fit
from deploy.realtime.mailbox import Mailbox
from deploy.realtime.records import (
    CHUNK,
    CHUNK_FILE,
    EPISODE,
    EPISODE_FILE,
    INFERENCE,
    INFERENCE_FILE,
    STATE,
    STATE_FILE,
    TICK_FILE,
    Machine,
    create_mailboxes,
    frame_dtype,
)
from deploy.realtime.ticklog import read_ticks


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    yield made
    made.close()


@pytest.fixture
def link(door: Door, tmp_path: Path) -> Iterator[Link]:
    (tmp_path / "robot").mkdir()
    create_mailboxes(tmp_path / "robot")
    made = Link(door, tmp_path / "robot", tmp_path / "policy")
    yield made
    made.close()


# --- values and times -------------------------------------------------------------------------------------------------


def test_states_pictures_and_episodes_arrive_in_the_policys_time(link: Link) -> None:
    states, seen = (link.box(side, STATE_FILE, STATE) for side in ("robot", "policy"))
    state = np.zeros((), STATE)
    state["q_rad"], state["tick"], state["machine"] = np.arange(7) / 7, 0, Machine.RUNNING
    for tick in range(1, 200):  # more than a link has to carry: the newest wins
        state["tick"], state["time_s"] = tick, time.monotonic()
        states.put(state)
    wait(lambda: int(seen.newest()[1]["tick"]) == 199)
    found = seen.newest()[1]
    assert abs(float(found["time_s"] - state["time_s"]) - AHEAD_S) < 0.25
    assert float(found["gripper_time_s"]) == 0.0, "no gripper stays no gripper"
    shift(found, STATE_TIMES, float(state["time_s"] - found["time_s"]))
    assert found == state

    picture = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    captured_s = time.monotonic()
    link.eye.put((captured_s, 7, picture))
    frames = Mailbox(camera_file(link._folders["policy"], "front"), frame_dtype(SIZE, SIZE))
    wait(lambda: frames.newest()[0] > 0)
    frame = frames.newest()[1]
    np.testing.assert_array_equal(frame["image"], fit(picture, SIZE))
    assert frame["number"] == 7 and abs(float(frame["capture_s"]) - captured_s - AHEAD_S) < 0.25

    link.box("robot", EPISODE_FILE, EPISODE).put((3, 11, True, False))
    episodes = link.box("policy", EPISODE_FILE, EPISODE)
    wait(lambda: episodes.newest()[0] > 0)
    assert episodes.newest()[1].item() == (3, 11, True, False)


def test_plans_and_news_arrive_in_the_robots_time(link: Link) -> None:
    before_s = time.monotonic()
    chunk = plan(np.zeros(7), elsewhere(), elsewhere() - 0.01)
    link.box("policy", CHUNK_FILE, CHUNK).put(chunk)
    chunks = link.box("robot", CHUNK_FILE, CHUNK)
    wait(lambda: chunks.newest()[0] > 0)
    found = chunks.newest()[1]
    assert before_s - 0.25 < float(found["made_s"]) <= time.monotonic()
    np.testing.assert_allclose(np.diff(found["time_s"][:8]), 0.05, atol=1e-9)
    assert (found["time_s"][8:] == 0.0).all()
    for name in set(CHUNK.names or ()) - set(CHUNK_TIMES):
        np.testing.assert_array_equal(found[name], chunk[name])
    link.box("policy", CHUNK_FILE, CHUNK).put(np.zeros((), CHUNK))  # takes a stop back
    wait(lambda: float(chunks.newest()[1]["made_s"]) == 0.0)

    news = np.zeros((), INFERENCE)
    news["step"], news["begin_s"], news["fault"] = 5, elsewhere(), b"camera front is black"
    link.box("policy", INFERENCE_FILE, INFERENCE).put(news)
    told = link.box("robot", INFERENCE_FILE, INFERENCE)
    wait(lambda: told.newest()[0] > 0)
    found = told.newest()[1]
    assert int(found["step"]) == 5 and found["fault"] == b"camera front is black"
    assert abs(float(found["begin_s"]) - before_s) < PATIENCE_S and float(found["end_s"]) == 0.0


@pytest.mark.parametrize(
    ("made_s", "state_s", "reason"), [(100.0, 0.0, "made after it came"), (-0.5, -0.1, "made before the state")]
)
def test_a_plan_whose_stamp_cannot_be_is_not_passed_on(link: Link, made_s: float, state_s: float, reason: str) -> None:
    now_s = elsewhere()
    link.box("policy", CHUNK_FILE, CHUNK).put(plan(np.zeros(7), now_s + made_s, now_s + state_s))
    wait(lambda: bool(link.robot_end.rejected))
    assert all(why.startswith(reason) for why in link.robot_end.rejected)
    assert link.box("robot", CHUNK_FILE, CHUNK).newest()[0] == 0


def test_the_offset_is_that_of_the_shortest_round_trip() -> None:
    offset, random, true_s = Offset(), np.random.default_rng(0), -1234.5
    for number in range(50):
        there_s, back_s = random.exponential(0.01, 2)
        sent_s = float(number)
        offset.observe(sent_s, sent_s + there_s + true_s, sent_s + there_s + back_s)
        assert abs(offset.seconds - true_s) <= offset.error_s + 1e-9
    assert offset.known and offset.error_s < 0.005
    offset.observe(0.0, float("nan"), 1e-9)  # nonsense does not count
    assert np.isfinite(offset.seconds)


# --- the arm ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["closed", "silent"])
def test_a_cut_link_ends_in_a_ramped_stop(door: Door, tmp_path: Path, cut: str) -> None:
    robot = tmp_path / "robot"
    robot.mkdir()
    cell = Cell(robot, settings(robot), make_arm)
    link = Link(door, robot, tmp_path / "policy")
    ended = threading.Event()

    def think() -> None:  # at 20 Hz, on the policy's computer, from its mailboxes alone
        states, chunks = (link.box("policy", *which) for which in ((STATE_FILE, STATE), (CHUNK_FILE, CHUNK)))
        while not ended.wait(0.05):
            number, state = states.newest()
            if number:
                chunks.put(plan(cell.home, elsewhere(), float(state["time_s"])))

    policy = threading.Thread(target=think)
    try:
        policy.start()
        cell.reach(Machine.RUNNING)
        cell.wait_for(lambda: abs(float(cell.state["command_dq_rad_s"][0])) > 0.2)
        if cut == "closed":
            link.channel.close()
            wait(lambda: not link.robot_end.alive())
            assert link.robot_end.error
        else:
            ended.set()
        cell.reach(Machine.IDLE)
        cell.ask(quit=True)
        cell.end()
    finally:
        ended.set()
        policy.join()
        cell.close()
        link.close()
    assert_ramped_stop(robot)
    ticks = read_ticks(cell.log / TICK_FILE)
    order = [Machine(int(machine)) for machine, _ in itertools.groupby(ticks["machine"])]
    stops = [index for index, machine in enumerate(order) if machine is Machine.STOPPING]
    assert stops and order[stops[0] - 1] is Machine.HOLDING, "by the age of the last plan"
    assert not ticks["guards"].size or np.isfinite(ticks["command_q_rad"]).all()


def test_a_greeting_survives_the_way() -> None:
    assert parse_hello(hello_body(HELLO)) == HELLO
    assert isinstance(HELLO, Hello)


def test_the_robots_side_runs_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import deploy.bridge_robot_side"
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
