"""Do two computers exchange the newest records in the right time, and does the arm stop when they no longer do?

Both ends are real, over loopback; the policy's computer has a clock of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from control_cell import Cell, assert_ramped_stop, make_arm, settings

from deploy.bridge.clock import CHUNK_TIMES, STATE_TIMES, Offset, shift
from deploy.bridge.policy_end import PolicyEnd, camera_file, connect, create_all
from deploy.bridge.robot_end import RobotEnd, greet
from deploy.bridge.wire import Hello, Kind, Refused, WireError, hello_body, make_hello, parse_hello
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

PATIENCE_S = 60.0
AHEAD_S = 5000.0  # of the policy's computer's clock
HASH = "0123456789abcdef"
HEIGHT, WIDTH, SIZE = 24, 32, 16
HELLO = make_hello(HASH, {"image_size": SIZE, "env_id": "any"}, ("front",), {"p50_ms": 1.0})


def elsewhere() -> float:
    """What the policy's computer's clock shows."""
    return time.monotonic() + AHEAD_S


def wait(what: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < until_s
        time.sleep(0.005)


class Door:
    """The robot's computer's listening socket, and what came through it."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.error: Exception | None = None
        self.end: RobotEnd | None = None
        self._thread: threading.Thread | None = None

    def open(self, folder: Path, cameras: Any, bundle: str = HASH[:8]) -> None:
        """Let one policy's computer in, in a thread."""

        def work() -> None:
            connection, _ = self.socket.accept()
            try:
                channel, hello = greet(connection, bundle)
                self.end = RobotEnd(channel, hello, folder, cameras).__enter__()
            except (Refused, WireError) as error:
                self.error = error

        self._thread = threading.Thread(target=work)
        self._thread.start()

    def opened(self) -> RobotEnd:
        """Wait until somebody is in."""
        assert self._thread is not None
        self._thread.join(PATIENCE_S)
        assert self.end is not None, self.error
        return self.end

    def refused(self) -> str:
        """Wait until somebody was not let in; return why."""
        assert self._thread is not None
        self._thread.join(PATIENCE_S)
        assert self.error is not None and self.end is None
        return str(self.error)

    def close(self) -> None:
        if self.end is not None:
            self.end.__exit__()
        self.socket.close()


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    yield made
    made.close()


class Link:
    """Both computers' folders, and the bridge between them."""

    def __init__(self, door: Door, robot: Path, policy: Path) -> None:
        """The robot's mailboxes of state, plans and operator exist."""
        policy.mkdir()
        self.eye = Mailbox(robot / "front", frame_dtype(HEIGHT, WIDTH), create=True)
        create_all(policy, HELLO.cameras, SIZE)
        for folder in (robot, policy):
            Mailbox(folder / EPISODE_FILE, EPISODE, create=True).close()
            Mailbox(folder / INFERENCE_FILE, INFERENCE, create=True).close()
        door.open(robot, {"front": (robot / "front", (HEIGHT, WIDTH))})
        self.channel = connect("127.0.0.1", door.port, HELLO)
        self.policy_end = PolicyEnd(self.channel, HELLO, policy, elsewhere).__enter__()
        self.robot_end = door.opened()
        wait(lambda: self.policy_end.offset.known)
        self._folders = {"robot": robot, "policy": policy}

    def box(self, side: str, name: str, dtype: Any) -> Mailbox:
        return Mailbox(self._folders[side] / name, dtype)

    def close(self) -> None:
        self.policy_end.__exit__()


@pytest.fixture
def link(door: Door, tmp_path: Path) -> Iterator[Link]:
    (tmp_path / "robot").mkdir()
    create_mailboxes(tmp_path / "robot")
    made = Link(door, tmp_path / "robot", tmp_path / "policy")
    yield made
    made.close()


def plan(q_rad: np.ndarray, now_s: float, state_s: float) -> np.ndarray:
    """Return a chunk of a policy whose clock shows `now_s`: the first joint swings."""
    chunk = np.zeros((), CHUNK)
    times = now_s + 0.05 * np.arange(1, 9)
    chunk["made_s"], chunk["capture_s"], chunk["state_s"], chunk["count"] = now_s, now_s - 0.04, state_s, 8
    chunk["time_s"][:8], chunk["q_rad"][:8], chunk["gripper"][:8] = times, q_rad, -1.0
    chunk["q_rad"][:8, 0] += 0.3 * np.sin(4.0 * times)
    chunk["dq_rad_s"][:8, 0] = 1.2 * np.cos(4.0 * times)
    return chunk


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


# --- who is let in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "0.0.1"}, "toto_robot differs: 0.0.1"),
        ({"protocol": 99}, "protocol differs: 99"),
        ({"layout": "0" * 16}, "layout of the records differs"),
        ({"bundle": "f" * 64}, "this one expects '01234567'"),
        ({"image_size": 4096}, "cameras of"),
        ({"cameras": ()}, "cameras of"),
    ],
)
def test_what_does_not_belong_together_is_refused_on_both_sides(
    door: Door, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    door.open(tmp_path, {})
    with pytest.raises(Refused, match="the robot's computer refuses") as refused:
        connect("127.0.0.1", door.port, replace(HELLO, **change))
    assert words in str(refused.value) and words in door.refused()


def test_a_short_hash_is_no_hash(door: Door, tmp_path: Path) -> None:
    door.open(tmp_path, {}, bundle="")
    with pytest.raises(Refused, match="8 or more characters"):
        connect("127.0.0.1", door.port, HELLO)
    door.refused()


def test_nobody_there_and_somebody_else_there_are_told(door: Door) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(WireError, match="no robot's computer answers"):
        connect("127.0.0.1", port, HELLO)

    def other() -> None:
        connection, _ = door.socket.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"SSH-2.0-OpenSSH_9.2 and more of it\r\n")

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(WireError):
        connect("127.0.0.1", door.port, HELLO)
    thread.join()


def message(kind: int, body: bytes, length: int | None = None, magic: bytes = b"TOTB") -> bytes:
    size = len(body) if length is None else length
    return magic + bytes([kind]) + size.to_bytes(4, "little") + body


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: robot\r\n\r\n",
        message(Kind.HELLO, b"{}", magic=b"ABCD"),
        message(99, b""),
        message(Kind.HELLO, b"", length=4_000_000_000),
        message(Kind.HELLO, b"\x80\x04\x95 a pickle"),
        message(Kind.HELLO, b"[1, 2]"),
        message(Kind.HELLO, b"{}"),
        message(Kind.HELLO, hello_body(HELLO).replace(b'"front"', b'"../../etc"')),
        message(Kind.CHUNK, bytes(CHUNK.itemsize)),  # before the greeting
        message(Kind.FRAME, bytes(100)),
        message(Kind.HELLO, b"half")[:-2],
    ],
)
def test_malformed_greetings_are_refused(door: Door, tmp_path: Path, sent: bytes) -> None:
    door.open(tmp_path, {})
    with socket.create_connection(("127.0.0.1", door.port)) as stranger:
        stranger.sendall(sent)
        with contextlib.suppress(OSError):  # it has hung up already
            stranger.shutdown(socket.SHUT_WR)
        assert door.refused()


@pytest.mark.parametrize(
    ("side", "sent"),
    [
        ("policy", message(Kind.CHUNK, bytes(CHUNK.itemsize - 1))),
        ("policy", message(Kind.STATE, bytes(STATE.itemsize))),  # the wrong way
        ("policy", message(Kind.FRAME, b"", length=4_000_000_000)),
        ("robot", message(Kind.CHUNK, bytes(CHUNK.itemsize))),
        ("robot", message(Kind.FRAME, bytes([7]) + bytes(frame_dtype(SIZE, SIZE).itemsize))),  # no such camera
        ("robot", message(Kind.FRAME, bytes(3))),
    ],
)
def test_malformed_messages_end_the_link(link: Link, side: str, sent: bytes) -> None:
    ends = {"policy": link.policy_end, "robot": link.robot_end}
    sender, other = ends[side], ends["robot" if side == "policy" else "policy"]
    sender._channel._socket.sendall(sent)
    wait(lambda: not other.alive())
    assert other.error
    assert link.box("robot", CHUNK_FILE, CHUNK).newest()[0] == 0
    wait(lambda: not sender.alive())


def test_a_greeting_survives_the_way() -> None:
    assert parse_hello(hello_body(HELLO)) == HELLO
    assert isinstance(HELLO, Hello)


def test_the_robots_side_runs_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import deploy.bridge.robot_end, deploy.bridge_command"
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
