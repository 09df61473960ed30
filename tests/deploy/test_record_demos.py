"""Do demonstrations on the arm end in the store that simulated ones are in, with the actions that moved the arm?"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import psutil
import pytest

from deploy.emulator.client import Emulator
from deploy.policy_loop import InferenceConfig
from deploy.realtime.mailbox import memory_folder
from deploy.record_demos import Demos, RecordDemosConfig, described, record_demos
from deploy.recording.guiding import recover_actions
from deploy.recording.keys import RecordingKeys
from deploy.recording.operators import Corrected, Keyboard, Scripted, Seen, SpaceMouse
from deploy.recording.recorder import INTERVENTION_KEY, ArmSession, Emulated, Recorder
from deploy.recording.twin import SceneTwin
from deploy.run_franka import control_config, emulated_cameras, make_emulator, prepare
from deploy.task_interface import Measured
from policies.collect import CollectConfig, collect_episodes
from toto_robot.data.check import Options, check
from toto_robot.data.episodes import EpisodeStore

client = pytest.mark.skipif(importlib.util.find_spec("franky") is None, reason="not installed: franky-control")


def measured(env: Any) -> Measured:
    q, dq = env.data.qpos, env.data.qvel
    return Measured(q[:7].copy(), dq[:7].copy(), float(q[7] + q[8]), float(dq[7] + dq[8]))


def findings(path: Path) -> list[str]:
    return [str(finding) for finding in check(path, Options(progress=False))]


# --- actions from motion ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_actions_come_back_from_the_motion_that_they_made(seed: int) -> None:
    env: Any = gymnasium.make("toto_robot/FrankaPick-v0", obs_mode="proprio").unwrapped
    env.reset(seed=seed)
    expert, start = env.expert(seed=seed), env.simulator_state()
    path, commanded, points = [measured(env)], [], [env.hand_pose()[0]]
    for _ in range(env.task_spec.horizon_steps):
        commanded.append(expert.act().clean)
        commanded[-1][:6] *= 0.5  # a person's speed: at full speed the arm cuts actions, and what it cut is not seen
        info = env.step(commanded[-1])[-1]
        path.append(measured(env))
        points.append(env.hand_pose()[0])
        if info["success"]:
            break
    found, wanted = recover_actions(env.task_spec.as_dict(), path), np.array(commanded)
    assert found.shape == wanted.shape and found.dtype == np.float32 and np.abs(found).max() <= 1.0
    # The scene's arm has another inertia in every direction than the servo that is assumed.
    assert np.median(np.abs(found - wanted)[:, :6]) < 0.1
    assert np.mean(np.sign(found[:, 6]) == wanted[:, 6]) > 0.95
    # What counts: the recovered actions alone, without any feedback, lead along the same path.
    env.set_simulator_state(start)
    off_m = []
    for action, point in zip(found, points[1:], strict=True):
        env.step(action)
        off_m.append(np.linalg.norm(env.hand_pose()[0] - point))
    assert max(off_m) < 0.02


# --- the command ------------------------------------------------------------------------------------------------------


@client
def test_a_killed_recording_leaves_whole_episodes_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "episodes"
    command = [sys.executable, "-m", "toto_robot", "record-demos", "cameras=[front]", "late_s=2", f"out={path}"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([*command, "episodes=50", f"run={tmp_path / 'run'}"], stdout=log, stderr=log)
    deadline_s = time.monotonic() + 120.0
    while not (path.exists() and stored(path)):
        assert process.poll() is None and time.monotonic() < deadline_s, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.1)
    time.sleep(1.5)  # into the next episode
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for child in children:  # the emulator: on an arm it would go on too
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    kept = stored(path)
    assert kept >= 1 and findings(path) == []

    config = RecordDemosConfig(cameras=("front",), late_s=2.0, episodes=kept + 1, out=str(path))
    assert record_demos(config, tmp_path) == 0
    assert findings(path) == []
    store = EpisodeStore.open(path)
    assert len(store) == kept + 1 and store.meta["success"].all()
    assert list(store.meta["seed"]) == sorted(set(store.meta["seed"]))

    simulated = collect_episodes(CollectConfig(episodes=1, cameras=("front",), workers=1), tmp_path / "simulated")
    assert list(store.features) == list(simulated.features)
    assert store.features == simulated.features
    assert store.env == simulated.env and store.fps == simulated.fps
    assert store.meta.keys() == simulated.meta.keys()
    episode = store.episode(0)
    assert np.array_equal(episode["action"], episode["action.executed"])
    assert Demos(config, store.env, ["front"], path).attempt == int(store.meta["attempt"][-1]) + 1


def stored(path: Path) -> int:
    with contextlib.suppress(ValueError, OSError):  # being made
        return len(EpisodeStore.open(path))
    return 0


# --- on the emulated arm ----------------------------------------------------------------------------------------------


class Rig(NamedTuple):
    """Emulator with cameras, control process with the real client, twin."""

    config: RecordDemosConfig
    task: dict[str, Any]
    session: ArmSession
    emulated: Emulated
    inference: InferenceConfig

    def recorder(self, operator: Any, **settings: Any) -> Recorder:
        return Recorder(self.inference, self.session.folder, self.task, operator, self.emulated, late_s=2.0, **settings)

    def ready(self, seed: int) -> Emulator:
        prepare(self.emulated.emulator, self.session, seed)
        return self.emulated.emulator


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    config, log = RecordDemosConfig(cameras=("front",)), tmp_path_factory.mktemp("log")
    description = described(config)
    with contextlib.ExitStack() as stack:
        emulator = stack.enter_context(make_emulator(config.deployment, description, log))
        control = control_config(config.deployment, emulator.address, description, log)
        session = stack.enter_context(ArmSession(memory_folder(), control))
        session.wait_connected()
        cameras = emulated_cameras(emulator, description)
        inference = InferenceConfig(bundle=Path(), cameras=cameras, log_folder=log)
        task = description["task"]
        yield Rig(config, task, session, Emulated(emulator, SceneTwin(task)), inference)


class NeverCloses:
    """A policy that knows the task, but does not grasp."""

    def __init__(self, twin: SceneTwin) -> None:
        self._twin = twin

    def reset(self, seeds: list[int]) -> None:
        self._expert = self._twin.env.expert(seed=seeds[0])

    def act(self, observation: Any) -> np.ndarray:
        assert observation["pixels"]["front"].shape == (64, 64, 3)
        label, _ = self._expert.label()
        return np.append(label[:6], np.float32(-1.0))


@client
def test_the_operator_takes_over_from_a_policy_and_it_is_recorded(rig: Rig) -> None:
    twin = rig.emulated.twin
    operator = Corrected(NeverCloses(twin), Scripted(twin, takeover=0.5))
    rig.ready(3)
    recorded = rig.recorder(operator, corrects=True).record(1, 3, rig.task["horizon_steps"], lambda: None)
    assert recorded.ended == "success", recorded.reason
    taken, closes = recorded.arrays[INTERVENTION_KEY], recorded.arrays["action"][:, 6] > 0
    assert taken.dtype == np.bool_ and taken.any() and not taken.all()
    np.testing.assert_array_equal(taken, closes)  # the policy never says so
    np.testing.assert_array_equal(recorded.arrays["next.success"].nonzero()[0], [len(taken) - 1])


@client
def test_a_guided_arm_gives_the_actions_of_its_motion(rig: Rig) -> None:
    emulator = rig.ready(4)
    target = np.array(emulator.status()["q_rad"])
    target[[0, 1, 3]] += 0.3
    emulator.guiding(True)
    emulator.guide(target)
    recorded = rig.recorder(None).record(2, 4, 40, lambda: None)
    emulator.guiding(False)
    assert recorded.ended == "horizon", recorded.reason
    arrays = recorded.arrays
    assert len(arrays["action"]) == 40 and np.ptp(arrays["observation.state"][:, 0]) > 0.05
    moved_m = np.diff(arrays["observation.state"][:, 18:21], axis=0).sum(axis=0)
    said_m = (arrays["action"][:, :3] * rig.task["action_scale"][:3]).sum(axis=0)
    # A step of the task's law gives less than was asked for, most where the arm is nearly stretched out.
    assert np.linalg.norm(moved_m) > 0.1
    assert np.linalg.norm(said_m - moved_m) < 0.4 * np.linalg.norm(moved_m)


@client
def test_a_person_discards_or_ends_an_episode(rig: Rig) -> None:
    keys = RecordingKeys(rig.session)
    for number, (key, ended) in enumerate([(b"x", "discard"), (b"y", "success"), (b"e", "failure")], 3):
        rig.ready(5)
        keys.forget()
        asked = itertools.count()

        def verdict(asked: Iterator[int] = asked, key: bytes = key) -> str | None:
            if next(asked) == 60:
                keys.press(key)
            return keys.verdict()

        recorded = rig.recorder(Keyboard(keys)).record(number, 5, 100, verdict)
        assert recorded.ended == ended
        if ended != "discard":
            assert bool(recorded.arrays["next.success"][-1]) == (ended == "success")


# --- people and settings ----------------------------------------------------------------------------------------------


class Arm:
    """Takes what keys ask for."""

    stopped = False

    def stop_arm(self) -> None:
        self.stopped = True

    def confirm(self) -> None:
        raise AssertionError("not asked for")


def test_keys_move_hand_and_gripper_and_let_go() -> None:
    arm = Arm()
    keys = RecordingKeys(arm)
    keyboard = Keyboard(keys, speed=0.5)
    seen = Seen(proprio=np.zeros(27), pixels={}, measured=Measured(np.zeros(7), np.zeros(7), 0.08, 0.0))
    idle = keyboard.decide(seen, None)
    assert not idle.active and list(idle.action) == [0, 0, 0, 0, 0, 0, -1]
    for key in (b"i", b"o", b"2", b"g"):
        keys.press(key)
    moving = keyboard.decide(seen, None)
    assert moving.active and list(moving.action) == [0.5, 0, -0.5, -0.5, 0, 0, 1]
    time.sleep(0.2)
    assert list(keyboard.decide(seen, None).action) == [0, 0, 0, 0, 0, 0, 1]
    assert not arm.stopped
    keys.press(b"s")
    assert arm.stopped and keys.verdict() == "operator" and not keys.wait_for_start()


@pytest.mark.skipif(importlib.util.find_spec("pyspacemouse") is not None, reason="pyspacemouse is installed")
def test_a_missing_space_mouse_package_is_named() -> None:
    with pytest.raises(RuntimeError, match="pip install pyspacemouse"):
        SpaceMouse()


@pytest.mark.parametrize(
    "settings",
    [
        {"operator": "telepathy"},
        {"robot": "fr3", "address": "172.16.0.2"},  # the script needs the emulator
        {"robot": "fr3", "operator": "guiding"},  # no address
        {"operator": "guiding", "policy": "bundle"},
        {"episodes": 0},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        RecordDemosConfig(**settings)
