"""What does a task declare about itself: rates, limits, action and proprioception layouts, with units?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from envs.meshes import Floats
from envs.robots import ARM_JOINTS, Robot

OBS_MODES = ("state", "proprio", "pixels", "all")
ACTION_MODES = ("ee_delta", "joint_delta")
RENDER_QUALITIES = ("lean", "full")
CAMERAS = ("front", "wrist")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Rates, gains and action scales of one way to run the task."""

    name: str
    control_rate_hz: int
    substeps: int  # physics steps in one control step
    horizon_steps: int
    servo_kp_nm_rad: float
    servo_kd_nms_rad: float
    joint_scale_rad: float  # joint target change at action 1, a control step
    translation_scale_m: float  # hand target change at action 1, a control step
    rotation_scale_rad: float
    speed_limits: bool  # hold the real arm's joint and finger speeds

    @property
    def timestep_s(self) -> float:
        """Return the physics step."""
        return 1.0 / (self.control_rate_hz * self.substeps)

    def finger_scale(self, robot: Robot) -> float:
        """Return the gripper's target change at action 1 in joint_delta, a control step, in the gripper's unit."""
        return robot.gripper.speed / self.control_rate_hz if self.speed_limits else robot.gripper.pixmc_step


# `pixmc` follows MVP's PixMC: 60 Hz, 500 steps, 7.5/60 rad a step, kp 400, kd 80. `real` is what the real arms can do
# at 20 Hz in the same 8.33 s; its stiffer servo lags a command by kd/kp = 0.075 s, not 0.2 s.
PRESETS = {
    "real": Preset(
        name="real",
        control_rate_hz=20,
        substeps=10,
        horizon_steps=166,
        servo_kp_nm_rad=800.0,
        servo_kd_nms_rad=60.0,
        joint_scale_rad=0.1,
        translation_scale_m=0.02,
        rotation_scale_rad=0.1,
        speed_limits=True,
    ),
    "pixmc": Preset(
        name="pixmc",
        control_rate_hz=60,
        substeps=4,
        horizon_steps=500,
        servo_kp_nm_rad=400.0,
        servo_kd_nms_rad=80.0,
        joint_scale_rad=0.125,
        translation_scale_m=0.0067,
        rotation_scale_rad=0.033,
        speed_limits=False,
    ),
}


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What a policy must agree with to act in this task; goes into data sets and policy bundles."""

    env_id: str
    preset: str
    robot: str
    control_rate_hz: int
    horizon_steps: int
    action_mode: str
    action_names: tuple[str, ...]
    action_units: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_scale: tuple[float, ...]
    proprio_names: tuple[str, ...]
    proprio_units: tuple[str, ...]
    cameras: tuple[str, ...]
    image_size: int
    scene_hash: str
    randomization: dict[str, float] | None = None  # axis to strength
    options: dict[str, Any] | None = None  # further arguments that the environment was made with

    def as_dict(self) -> dict[str, Any]:
        """Return plain lists, strings and numbers, ready for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


_AXES = ("x", "y", "z")


def action_layout(
    mode: str, preset: Preset, robot: Robot
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[float, ...]]:
    """Return names, units at the scale, and what action 1 means in that unit, for `ee_delta` or `joint_delta`."""
    if mode == "ee_delta":
        names = (*(f"d{a}" for a in _AXES), *(f"dr{a}" for a in _AXES), "gripper")
        units = ("m",) * 3 + ("rad",) * 3 + ("open -1 .. closed +1",)
        scale = (preset.translation_scale_m,) * 3 + (preset.rotation_scale_rad,) * 3 + (1.0,)
        return names, units, scale
    assert mode == "joint_delta", mode
    names = (*(f"dq{i + 1}" for i in range(ARM_JOINTS)), "dfinger")
    scales = (preset.joint_scale_rad,) * ARM_JOINTS + (preset.finger_scale(robot),)
    return names, ("rad",) * ARM_JOINTS + (robot.gripper.unit,), scales


def state_layout(thing: str, last: str) -> tuple[str, ...]:
    """Return PixMC's task entries: both grasp points, the thing, the thing seen from each, and one number. (16,)"""
    points = ("left", "right", thing, f"{thing}_from_left", f"{thing}_from_right")
    return (*(f"{point}_{axis}" for point in points for axis in _AXES), last)


def proprio_layout(robot: Robot) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return names and units of the 27 proprioception entries: PixMC's 18, then the hand pose in the base frame."""
    joints = [f"q{i + 1}" for i in range(ARM_JOINTS)] + ["finger_left", "finger_right"]
    names = [
        *(f"{joint}_scaled" for joint in joints),
        *(f"{joint}_speed" for joint in joints),
        *(f"hand_{a}" for a in _AXES),
        *(f"hand_axis_{c}_{a}" for c in ("x", "y") for a in _AXES),
    ]
    fingers = [f"0.1 {robot.gripper.unit}/s"] * 2
    units = ["of range, -1..1"] * 9 + ["0.1 rad/s"] * 7 + fingers + ["m"] * 3 + ["1"] * 6
    return tuple(names), tuple(units)


def position_range(robot: Robot) -> tuple[Floats, Floats]:
    """Return lowest and highest positions of the arm and the two driven fingers. (9,)"""
    hand = robot.gripper
    fingers = np.sort([[sign * end for end in (hand.open, hand.closed)] for sign in (1.0, hand.right_sign)], axis=1)
    return np.concatenate([robot.low_rad, fingers[:, 0]]), np.concatenate([robot.high_rad, fingers[:, 1]])


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check_latencies(latency_s: float | Sequence[float]) -> tuple[float, ...]:
    """Return delays in s; ValueError for none, NaN, or one outside 0..2 s."""
    delays = tuple(float(delay) for delay in np.atleast_1d(np.asarray(latency_s, np.float64)))
    if not delays or not all(0.0 <= delay <= 2.0 for delay in delays):
        raise ValueError(f"latency_s must be a delay of 0 to 2 s, or several, got {latency_s!r}")
    return delays


def check_cameras(cameras: Any) -> tuple[str, ...]:
    """Return the cameras' names as a tuple; ValueError for an unknown, a repeated or no camera."""
    names = (cameras,) if isinstance(cameras, str) else tuple(cameras)
    for name in names:
        check_choice("camera", name, CAMERAS)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"cameras must name each camera once, out of {', '.join(CAMERAS)}, got {names}")
    return names
