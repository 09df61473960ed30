"""Who says what the arm does next: the task's expert, keys, a space mouse, or a policy that one of them corrects?

All answer the same question, `decide(seen, suggested)`. `active` says whether the operator wants the arm: with a policy
running, only then is it theirs. (Hand guiding decides nothing: guiding.py.)
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from deploy.drivers.base import Floats
from deploy.recording.keys import RecordingKeys
from deploy.recording.twin import SceneTwin
from deploy.task_interface import TRAINED, Measured

_RELEASE_S = 0.5  # after the last touch the policy goes on
_DEAD_ZONE = 0.08  # of a space mouse's full deflection
_MOST_REPORTS = 512  # read in one step; the kernel queues 64
_NO_MOUSE = "no space mouse answers: is it plugged in, and may this user read /dev/hidraw*?"


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What there is to decide on."""

    proprio: np.ndarray
    pixels: Mapping[str, np.ndarray]
    measured: Measured


class Decision(NamedTuple):
    """One action (A,) float32 in [-1, 1]."""

    action: np.ndarray  # what moves the arm, and what should be learned
    active: bool  # the operator acts


class Operator(Protocol):
    """Decides what the arm does."""

    def begin(self, seed: int) -> None:
        """Begin an episode."""

    def decide(self, seen: Seen, suggested: np.ndarray | None) -> Decision:
        """Return the action for what was seen; `suggested` is a policy's, None where none runs."""


class Scripted:
    """The task's scripted expert, asked in the twin of the emulated scene (which must be placed before)."""

    def __init__(self, twin: SceneTwin, *, takeover: float = 0.5) -> None:
        """It takes over from a policy where an entry of the action differs by more than `takeover`."""
        self._twin, self._takeover = twin, takeover
        self._expert: Any = None

    def begin(self, seed: int) -> None:
        """Make the expert of an episode."""
        self._expert = self._twin.env.expert(seed=seed)

    def decide(self, seen: Seen, suggested: np.ndarray | None) -> Decision:
        """Return the expert's action for the twin's state."""
        action, _ = self._expert.label()
        return Decision(action, suggested is None or float(np.abs(suggested - action).max()) > self._takeover)


class Keyboard:
    """Keys of the terminal; ee_delta."""

    def __init__(self, keys: RecordingKeys, speed: float = 0.5) -> None:
        """`speed` is the share of the greatest action that a key gives."""
        self._keys, self._speed = keys, speed

    def begin(self, seed: int) -> None:
        """Nothing is kept between episodes."""

    def decide(self, seen: Seen, suggested: np.ndarray | None) -> Decision:
        """Return the action of the keys that are held."""
        closed = _gripper(self._keys.gripper, seen.measured, suggested)
        action = _action(self._speed * np.clip(self._keys.motion(), -1.0, 1.0), closed)
        return Decision(action, time.monotonic() - self._keys.touched_s < _RELEASE_S)


class SpaceMouse:
    """A 3Dconnexion space mouse through pyspacemouse; ee_delta. Its buttons close (left) and open (right)."""

    def __init__(self) -> None:
        try:
            pyspacemouse: Any = importlib.import_module("pyspacemouse")
        except (ImportError, OSError) as error:  # OSError: its C library is missing
            raise RuntimeError(
                'operator=spacemouse needs pyspacemouse: pip install "toto-robot[spacemouse]" (or pip install '
                f"pyspacemouse), and its library: apt install libhidapi-hidraw0 ({error})"
            ) from error
        try:
            self._device: Any = pyspacemouse.open()
        except Exception as error:  # a RuntimeError since version 2; what easyhid raises
            raise RuntimeError(f"{_NO_MOUSE} ({error})") from error
        if not self._device:
            raise RuntimeError(_NO_MOUSE)
        self._closed: float | None = None
        self._touched_s = float("-inf")

    def begin(self, seed: int) -> None:
        """Take the gripper as it is."""
        self._closed, self._touched_s = None, float("-inf")

    def decide(self, seen: Seen, suggested: np.ndarray | None) -> Decision:
        """Return the action of the mouse's deflection."""
        told, pressed = self._newest()
        # Its axes: y away from the person, x to the right, z up; the base's: x away, y to the left, z up.
        motion = np.array([told.y, -told.x, told.z, told.pitch, -told.roll, -told.yaw], np.float64)
        motion = np.where(np.abs(motion) > _DEAD_ZONE, np.clip(motion, -1.0, 1.0), 0.0)
        if motion.any() or any(pressed):
            self._touched_s = time.monotonic()
        if any(pressed):
            self._closed = 1.0 if pressed[0] else -1.0
        action = _action(motion, _gripper(self._closed, seen.measured, suggested))
        return Decision(action, time.monotonic() - self._touched_s < _RELEASE_S)

    def _newest(self) -> tuple[Any, list[bool]]:
        """Return the newest deflection, and which buttons were down in any report since the last step.

        The kernel queues a hundred reports a second and `read` takes one, or leaves the state and its time as they
        are when there is none: read once a step, a mouse that was let go would move the arm for seconds.
        """
        told = self._device.read()
        pressed = [bool(button) for button in told.buttons]
        for _ in range(_MOST_REPORTS):
            before_s = float(told.t)
            told = self._device.read()
            if float(told.t) == before_s:
                break
            pressed = [was or bool(button) for was, button in zip(pressed, told.buttons, strict=True)]
        return told, pressed


class Corrected:
    """A policy runs, and an operator takes over whenever they act (DAgger)."""

    def __init__(self, policy: Any, operator: Operator) -> None:
        self._policy, self._operator = policy, operator

    def begin(self, seed: int) -> None:
        """Begin an episode for both."""
        self._policy.reset(seeds=[seed])
        self._operator.begin(seed)

    def decide(self, seen: Seen, suggested: np.ndarray | None = None) -> Decision:
        """Return the operator's action where they act, else the policy's. The policy sees every step."""
        suggested = np.asarray(self._policy.act({"proprio": seen.proprio, "pixels": dict(seen.pixels)}), np.float32)
        own = self._operator.decide(seen, suggested)
        return own if own.active else Decision(suggested, False)


def _gripper(told: float | None, measured: Measured, suggested: np.ndarray | None) -> float:
    """Return what the person told, else what the policy wants, else what the fingers do."""
    if told is not None:
        return told
    if suggested is not None:
        return float(suggested[6])
    return 1.0 if measured.width_m < next(iter(TRAINED.values())).finger_open_m else -1.0


def _action(motion: Floats, closed: float) -> np.ndarray:
    return np.append(motion, closed).astype(np.float32)
