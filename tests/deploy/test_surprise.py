"""Does the surprise monitor keep its promise about false alarms, see a black picture, refuse foreign calibrations?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from deploy.cameras.reader import CameraSettings
from deploy.conformal import conformal_threshold, episode_score, episodes_needed, sustained
from deploy.episode_log import append_episode, read_rows, rows_file
from deploy.policy_loop import InferenceConfig, PolicyLoop
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
    Machine,
    create_mailboxes,
    frame_dtype,
    text,
)
from deploy.report import surprises
from deploy.surprise import Calibration, SurpriseMeter, SurpriseMonitor, SurpriseSettings, calibrate, standard_scores
from deploy.task_interface import TRAINED
from tests.encoders.small import PX, frames, save_toto
from toto_robot.encoders.load import load_encoder
from toto_robot.encoders.toto import TotoEncoder
from toto_robot.run_folder import write_json

CAMERAS = ("front", "wrist")
SETTINGS = SurpriseSettings(context_frames=2, top=2, alpha=0.2, clear=3)


# --- the threshold ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.05), (40, 0.05), (40, 0.1), (9, 0.25)])
def test_false_alarms_of_exchangeable_episodes_are_as_rare_as_promised_and_not_much_rarer(n: int, alpha: float) -> None:
    random, trials = np.random.default_rng(0), 20_000
    drawn = random.lognormal(size=(trials, n + 1))  # a skewed score: nothing is assumed about its shape
    alarms = np.mean([row[n] > conformal_threshold(row[:n], alpha) for row in drawn])
    deviation = np.sqrt(alpha * (1 - alpha) / trials)
    assert alpha - 1 / (n + 1) - 4 * deviation < alarms < alpha + 4 * deviation


def test_the_promise_holds_for_episodes_whose_steps_depend_on_each_other() -> None:
    random, alpha = np.random.default_rng(1), 0.1
    walks = random.normal(size=(1500, 10, 12)).cumsum(axis=2)  # (trials, episodes, T)
    scores = [[episode_score(walk, 2) for walk in trial] for trial in walks]
    alarms = np.mean([trial[-1] > conformal_threshold(trial[:-1], alpha) for trial in scores])
    assert alpha / 2 < alarms < alpha + 0.035  # four deviations of 1500 trials


def test_too_few_episodes_are_refused_with_what_they_could_promise() -> None:
    assert episodes_needed(0.05) == 19 and episodes_needed(0.1) == 9
    assert conformal_threshold(range(19), 0.05) == 18  # the largest
    with pytest.raises(ValueError, match=r"needs 19 calibration episodes or more, got 18.*alpha=0\.053"):
        conformal_threshold(range(18), 0.05)
    with pytest.raises(ValueError, match="finite"):
        conformal_threshold([*range(18), np.nan], 0.05)
    with pytest.raises(ValueError, match="alpha between 0 and 1"):
        conformal_threshold([1.0], 1.0)


def test_a_score_is_sustained_while_all_of_the_last_frames_reach_it() -> None:
    scores = np.array([1.0, 5.0, 2.0, 4.0, 3.0])
    assert sustained(scores, 2).tolist() == [-np.inf, 1.0, 2.0, 2.0, 3.0]
    assert episode_score(scores) == 5.0 and episode_score(scores, 2) == 3.0
    with pytest.raises(ValueError, match="at least 6 frames, got 5"):
        episode_score(scores, 6)


# --- the monitor on a small Toto ----------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """What decides a bundle's hash."""
    write_json(tmp_path / "bundle" / "hashes.json", {"policy.json": "a"})
    return tmp_path / "bundle"


def scene() -> np.ndarray:
    """What the cameras see of an empty room."""
    return frames(1, seed=5)[0].numpy()


def episode(seed: int, length: int = 8) -> list[dict[str, np.ndarray]]:
    """One patch blinks between two looks, at random."""
    random = np.random.default_rng(seed)
    shown = []
    for _ in range(length):
        image = scene()
        image[:8, :8] = 255 * random.integers(0, 2)
        shown.append({"front": image, "wrist": image[::-1].copy()})
    return shown


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TotoEncoder:
    """A small Toto that has learned what the episodes below look like."""
    loaded = load_encoder(save_toto(tmp_path_factory.mktemp("toto")), context_frames=1, layer=2, precision="fp32")
    assert isinstance(loaded, TotoEncoder)
    shown = [np.stack([now[camera] for now in episode(seed)]) for seed in range(100, 108) for camera in CAMERAS]
    inputs, targets = loaded.model.pack(torch.stack([loaded.codes(clip) for clip in shown]))
    optimizer = torch.optim.Adam(loaded.model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = loaded.model(inputs, targets=targets).loss
        assert loss is not None
        loss.backward()
        optimizer.step()
    return loaded


def measured(encoder: TotoEncoder, seed: int) -> np.ndarray:
    meter = SurpriseMeter(encoder, CAMERAS, SETTINGS)
    return np.stack([meter.feed(shown) for shown in episode(seed)])


@pytest.fixture
def calibration(encoder: TotoEncoder, bundle: Path) -> Calibration:
    fit, held_out = ([measured(encoder, seed) for seed in seeds] for seeds in (range(6), range(10, 16)))
    return calibrate(bundle, encoder, CAMERAS, SETTINGS, fit, held_out)


def test_the_meter_is_the_encoders_surprise_of_the_tokens_that_surprise_most(encoder: TotoEncoder) -> None:
    shown = episode(0)
    found = measured(encoder, 0)
    for row, camera in enumerate(CAMERAS):
        stream = encoder.surprise_stream(1, SETTINGS.context_frames)
        nats = [encoder.surprise(stream, encoder.codes(now[camera][None]))[0] for now in shown]
        expected = [float(each.sort().values[-SETTINGS.top :].mean()) for each in nats]
        np.testing.assert_allclose(found[:, row], expected, atol=1e-5)


def test_codes_of_the_policys_stream_give_the_same_as_pictures(encoder: TotoEncoder, calibration: Calibration) -> None:
    by_codes, by_frames = SurpriseMonitor(encoder, calibration), SurpriseMonitor(encoder, calibration)
    stream = encoder.stream(len(CAMERAS))
    for step, shown in enumerate(episode(3)):
        stream.step(np.stack([shown[camera] for camera in CAMERAS]))
        assert stream.codes is not None
        codes = dict(zip(CAMERAS, stream.codes.split(1), strict=True))
        assert by_codes.feed_codes(codes, 0.05 * step) == by_frames.feed(shown, 0.05 * step)


def test_a_running_monitor_gives_the_scores_it_was_calibrated_with(
    encoder: TotoEncoder, calibration: Calibration
) -> None:
    monitor = SurpriseMonitor(encoder, calibration)
    expected = standard_scores(measured(encoder, 20), calibration.mean, calibration.deviation)
    for _ in range(2):  # a reset forgets the first run
        readings = [monitor.feed(shown, 0.05 * step) for step, shown in enumerate(episode(20))]
        np.testing.assert_allclose([reading.score for reading in readings], expected, rtol=1e-4)
        assert set(readings[0].nats) == set(CAMERAS) and readings[3].time_s == pytest.approx(0.15)
        monitor.reset()


def test_a_black_picture_raises_the_alarm_and_a_while_of_good_ones_ends_it(
    encoder: TotoEncoder, calibration: Calibration
) -> None:
    monitor = SurpriseMonitor(encoder, calibration)
    good = episode(11, length=12)  # one of the calibration, below its threshold or at it
    assert not any(monitor.feed(shown, 0.0).alarm for shown in good[:6])
    black = {**good[6], "front": np.zeros((PX, PX, 3), np.uint8)}
    assert monitor.feed(black, 0.3).alarm and monitor.alarm
    calm = replace(calibration, threshold=np.inf)
    monitor.calibration = calm
    alarms = [monitor.feed(shown, 0.4).alarm for shown in good[7:11]]
    assert alarms == [True, True, False, False]  # clear = 3
    monitor.calibration = calibration
    monitor.feed(black, 0.5)
    assert monitor.alarm
    monitor.reset()
    assert not monitor.alarm


def test_consecutive_frames_are_needed(encoder: TotoEncoder, calibration: Calibration) -> None:
    patient = replace(calibration, settings=replace(SETTINGS, consecutive=3), threshold=-np.inf)
    monitor = SurpriseMonitor(encoder, patient)
    assert [monitor.feed(shown, 0.0).alarm for shown in episode(0, 5)] == [False, False, True, True, True]


def test_saved_and_loaded_it_is_the_same(
    encoder: TotoEncoder, bundle: Path, calibration: Calibration, tmp_path: Path
) -> None:
    calibration.save(tmp_path / "surprise.json")
    loaded = Calibration.load(tmp_path / "surprise.json", bundle, encoder)
    np.testing.assert_array_equal(loaded.mean, calibration.mean)
    np.testing.assert_array_equal(loaded.deviation, calibration.deviation)
    same = {"mean": None, "deviation": None}
    assert vars(loaded) | same == vars(calibration) | same


def test_calibrations_of_another_bundle_or_encoder_are_refused(
    encoder: TotoEncoder, bundle: Path, calibration: Calibration, tmp_path: Path
) -> None:
    path = tmp_path / "surprise.json"
    with pytest.raises(ValueError, match="no calibration"):
        Calibration.load(path, bundle, encoder)
    calibration.save(path)
    other = load_encoder(save_toto(tmp_path / "other", seed=1), context_frames=1, layer=2, precision="fp32")
    with pytest.raises(ValueError, match="calibrated for encoder"):
        Calibration.load(path, bundle, other)
    write_json(bundle / "hashes.json", {"policy.json": "b"})
    with pytest.raises(ValueError, match="calibrated for bundle"):
        Calibration.load(path, bundle, encoder)


def test_what_cannot_be_measured_is_refused(encoder: TotoEncoder) -> None:
    with pytest.raises(ValueError, match="wrist is missing"):
        SurpriseMeter(encoder, CAMERAS, SETTINGS).feed({"front": scene()})
    with pytest.raises(ValueError, match="top of at least 1, got 0"):
        SurpriseSettings(top=0)
    blind = load_encoder("none")
    with pytest.raises(ValueError, match="a Toto; the policy's is 'none'"):
        SurpriseMeter(blind, CAMERAS, SETTINGS)


def test_bf16_weights_measure_too(tmp_path: Path) -> None:
    fast = load_encoder(save_toto(tmp_path / "toto"), context_frames=1, layer=2, precision="bf16")
    exact = load_encoder(tmp_path / "toto", context_frames=1, layer=2, precision="fp32")
    assert isinstance(fast, TotoEncoder) and isinstance(exact, TotoEncoder)
    codes = exact.codes(frames(2))
    streams = fast.surprise_stream(2, 2), exact.surprise_stream(2, 2)
    found, expected = fast.surprise(streams[0], codes), exact.surprise(streams[1], codes)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.5, rtol=0.1)


# --- the monitor in the loop ----------------------------------------------------------------------------------------

PERIOD_S = 0.05
AHEAD_S = 600.0  # of stamps: nothing is stale, however slow the host


class Looks:
    """A policy that does nothing but look, through the small Toto."""

    cameras = CAMERAS

    def __init__(self, encoder: TotoEncoder) -> None:
        env: Any = gymnasium.make("toto_robot/FrankaPick-v0", obs_mode="proprio").unwrapped
        self.task = {**env.task_spec.as_dict(), "image_size": PX}
        self._encoder = encoder
        self.codes: dict[str, torch.Tensor] = {}

    def reset(self, seeds: list[int]) -> None:
        """It remembers nothing."""

    def act(self, observation: Any) -> np.ndarray:
        self.codes = {name: self._encoder.codes(image[None]) for name, image in observation["pixels"].items()}
        return np.zeros(7, np.float32)


class Room:
    """Everything around a PolicyLoop: cameras, an arm that follows, an operator; one step at a time."""

    def __init__(self, folder: Path, monitor: SurpriseMonitor, encoder: TotoEncoder, surprise: str) -> None:
        self.folder, self.policy = folder, Looks(encoder)
        create_mailboxes(folder)
        self.eyes = {name: Mailbox(folder / name, frame_dtype(PX, PX), create=True) for name in CAMERAS}
        self.states, self.chunks = Mailbox(folder / STATE_FILE, STATE), Mailbox(folder / CHUNK_FILE, CHUNK)
        self.episodes = Mailbox(folder / EPISODE_FILE, EPISODE, create=True)
        self.told = Mailbox(folder / INFERENCE_FILE, INFERENCE, create=True)
        self.state, self.frames = np.zeros((), STATE), 0
        self.state["machine"], self.state["q_rad"] = Machine.RUNNING, TRAINED["franka_panda"].posture_rad
        config = InferenceConfig(
            bundle=folder,
            cameras={name: (folder / name, (PX, PX)) for name in CAMERAS},
            log_folder=folder,
            camera=CameraSettings(frozen_rad=10.0),
            surprise=surprise,
        )
        loop = PolicyLoop(config, folder, self.policy, monitor)
        self.thread = threading.Thread(target=loop.run)
        self.thread.start()

    def operate(self, running: bool, leave: bool = False) -> None:
        self.episodes.put((1, 0, running, leave))

    def step(self, shown: dict[str, np.ndarray]) -> np.ndarray:
        """Let one control period pass with these pictures; return what inference says of it."""
        before = self.told.newest()[1]
        self.frames += 1
        for name, box in self.eyes.items():
            box.put((time.monotonic() + AHEAD_S, self.frames, shown[name]))
        self.state["time_s"] = time.monotonic() + AHEAD_S
        self.state["robot_time_s"] += 1.01 * PERIOD_S
        self.states.put(self.state)
        self.operate(running=True)
        self.wait(lambda now: now["step"] + now["waits"] > before["step"] + before["waits"])
        return self.told.newest()[1]

    def wait(self, true: Callable[[np.ndarray], bool]) -> None:
        until_s = time.monotonic() + 60.0
        while not true(self.told.newest()[1]):
            assert self.thread.is_alive() and time.monotonic() < until_s
            time.sleep(0.002)

    def end(self) -> dict[str, np.ndarray]:
        """End the episode; return its log."""
        self.state["machine"] = Machine.IDLE
        self.states.put(self.state)
        self.operate(running=False)
        self.wait(lambda now: now["written"] == 1)
        return read_rows(rows_file(self.folder, 1))


@pytest.fixture
def room(tmp_path: Path, encoder: TotoEncoder, calibration: Calibration, request: Any) -> Iterator[Room]:
    calm = replace(calibration, threshold=calibration.threshold + 1.0)  # good pictures are far below it
    made = Room(tmp_path, SurpriseMonitor(encoder, calm), encoder, request.param)
    yield made
    made.state["machine"] = Machine.IDLE
    made.states.put(made.state)
    made.operate(running=False, leave=True)
    made.thread.join(60.0)
    assert not made.thread.is_alive()


def strange(shown: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**shown, "front": np.full((PX, PX, 3), 255, np.uint8)}


@pytest.mark.parametrize("room", ["log"], indirect=True)
def test_surprise_is_logged_and_the_arm_goes_on(room: Room) -> None:
    good = episode(11, 8)
    said = [room.step(shown) for shown in (*good[:4], strange(good[4]), *good[5:])]
    assert [int(now["step"]) for now in said] == list(range(1, 9)) and int(said[-1]["waits"]) == 0
    rows = room.end()
    scores, threshold = rows["surprise.score"], rows["surprise.threshold"]
    assert (scores > threshold).tolist() == [False] * 4 + [True] + (scores > threshold).tolist()[5:]
    np.testing.assert_array_equal(rows["inference.surprise"], scores)
    np.testing.assert_array_equal([now["surprise"] for now in said], scores)
    (title, figure) = surprises(rows)
    assert "Surprise" in title and "<img" in figure and f"threshold of {threshold[0]:.2f}" in figure


@pytest.mark.parametrize("room", ["hold"], indirect=True)
def test_no_plan_is_made_while_the_alarm_is_up(room: Room) -> None:
    good = episode(11, 8)
    for shown in good[:4]:
        assert not text(room.step(shown), "fault")
    plans = room.chunks.newest()[0]
    for _ in range(3):
        now = room.step(strange(good[4]))
        assert "surprise" in text(now, "fault") and "successful episodes stay below" in text(now, "fault")
    assert room.chunks.newest()[0] == plans == 4, "no plan is sent: the control process holds, then stops"
    for _ in range(12):  # the alarm ends after `clear` frames below the threshold
        now = room.step(good[5])
    assert not text(now, "fault") and room.chunks.newest()[0] > plans
    rows = room.end()
    assert len(rows["action"]) == int(now["step"]) < len(rows["surprise.score"]) == 19


@pytest.mark.parametrize("room", ["hold"], indirect=True)
def test_an_episode_that_was_strange_from_the_start_has_scores_and_no_steps(room: Room) -> None:
    for _ in range(2):
        room.step(strange(episode(11)[0]))
    rows = room.end()
    assert "action" not in rows and len(rows["surprise.score"]) == 2
    assert append_episode(room.folder, room.policy.task, 1, 0, success=False) is None
