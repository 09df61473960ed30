"""What does an arm do that exists only in this process: MuJoCo behind the driver protocol, with faults on demand?

The task's scene from gymnasium, stepped each millisecond with the law of joint impedance that franky's tracker applies.
With `pace="clock"` a thread keeps up with the wall clock; with `pace="manual"` time passes in `advance` only, so that a
test repeats bit by bit. Limits and collisions end a motion as on a robot; `reflex`, `user_stop` and `lose_connection`
do so on demand.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any, Self

import mujoco
import numpy as np
import numpy.typing as npt

from deploy.drivers.base import (
    CommandRefused,
    ConnectionLost,
    DriverError,
    Floats,
    GripperDriver,
    Mode,
    ReflexError,
    RobotState,
    UserStopped,
    ended_by,
)
from deploy.drivers.impedance import DAMPING, RAMP_HZ, STIFFNESS, gains, ramp
from deploy.drivers.twin_hand import TwinGripper
from deploy.emulator.guards import Collision, check_measured
from deploy.emulator.plant import DT_S, Plant
from deploy.emulator.process import env_id
from deploy.realtime.limits import limits_of

PACES = ("clock", "manual")
_ERROR_CLIP_RAD = 0.5  # franky's trackers
_TORQUE_RATE_NM = 1.0  # a millisecond; franky's trackers
_FILTER = 0.1  # of the external torque, a millisecond
_MOST_STEPS = 50  # behind by more than this many milliseconds, time is dropped, not made up for
_COLLISION_TICKS = 5  # the wrench costs as much as a step of the scene
_AT_REST_RAD_S = 0.01
_SETTLE_S = 1.0


class TwinDriver:
    """An arm in MuJoCo. Settings: env (task), seed, pace, stiffness, damping (7,), options of `gymnasium.make`."""

    name = "twin"

    def __init__(
        self,
        *,
        robot: str,
        address: str = "",
        realtime: str = "ignore",
        env: str = "franka_pick",
        seed: int = 0,
        pace: str = "clock",
        stiffness: Any = STIFFNESS,
        damping: Any = DAMPING,
        options: dict[str, Any] | None = None,
    ) -> None:
        """`address` and `realtime` are taken for the other drivers' sake: a twin has neither."""
        if pace not in PACES:
            raise ValueError(f"pace must be one of {', '.join(PACES)}, got {pace!r}")
        self.robot, self._pace = robot, pace
        self._limits = limits_of(robot)
        self._stiffness, self._damping = gains(stiffness, damping)
        self._plant = Plant(env_id(env), options or {}, self._limits)
        self._lock = threading.RLock()
        self._hand = TwinGripper(self._plant, self._lock)
        self._collision = Collision.default()
        self._connected, self._lost, self._moving = False, False, False
        self._mode: Mode = Mode.IDLE
        self._errors: tuple[str, ...] = ()
        self._pending: DriverError | None = None
        self._thread: threading.Thread | None = None
        self._version = 10 if robot == "fr3" else 5
        self._ticks, self._ticks_before = 0, 0
        self.reset(seed)

    # --- the protocol -------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Start the clock."""
        if self._connected and not self._lost:
            return
        self._connected, self._lost = True, False
        self._pending = None
        if self._pace == "clock" and self._thread is None:
            self._ending = threading.Event()
            self._thread = threading.Thread(target=self._keep_time, name="twin", daemon=True)
            self._thread.start()

    def state(self) -> RobotState:
        """Return what MuJoCo has now."""
        self._check_connected()
        with self._lock:
            pending, self._pending = self._pending, None
            if pending is not None:
                raise pending
            plant = self._plant
            return RobotState(
                time_s=time.monotonic(),
                robot_time_s=(self._ticks_before + self._ticks) * DT_S,
                q_rad=plant.q_rad.copy(),
                dq_rad_s=plant.dq_rad_s.copy(),
                q_desired_rad=self._target[0].copy() if self._moving else plant.q_rad.copy(),
                tau_nm=self._torque + plant.gravity_nm,
                tau_external_nm=self._external.copy(),
                wrench_n_nm=plant.external_wrench(self._external),
                mode=self._mode,
                errors=self._errors,
                command_success_rate=1.0 if self._moving else 0.0,
            )

    def start(self) -> None:
        """Hold the measured position."""
        self._check_connected()
        with self._lock:
            if self._mode is Mode.USER_STOPPED:
                raise ended_by(self._mode, ())
            if self._mode is Mode.REFLEX:
                raise ReflexError(f"the robot is in reflex ({', '.join(self._errors)}): recover() first", self._errors)
            if self._moving:
                raise CommandRefused("a motion runs already: stop() first")
            self._target = self._plant.q_rad.copy(), np.zeros_like(self._plant.q_rad)
            self._moving, self._mode = True, Mode.MOVE

    def set_target(self, q_rad: Floats, dq_rad_s: Floats) -> None:
        """Follow a position."""
        self._check_connected()
        with self._lock:
            self._target = np.array(q_rad, float), np.array(dq_rad_s, float)

    def stop(self) -> None:
        """Bring the target to rest, wait until the arm is there, and let go of it."""
        if not self._moving or self._lost:
            return
        for target in ramp(*self._target, self._limits):
            self.set_target(*target)
            self._wait(1.0 / RAMP_HZ)
        for _ in range(round(_SETTLE_S * RAMP_HZ)):
            if not self._moving or np.abs(self._plant.dq_rad_s).max() < _AT_REST_RAD_S:
                break
            self._wait(1.0 / RAMP_HZ)
        with self._lock:
            if self._moving:
                self._moving, self._mode = False, Mode.IDLE

    def recover(self) -> None:
        """Clear a reflex."""
        self._check_connected()
        with self._lock:
            if self._mode is Mode.USER_STOPPED:
                raise UserStopped("the user stop is pressed: release it, then confirm")
            self._errors, self._pending = (), None
            if self._mode is Mode.REFLEX:
                self._mode = Mode.IDLE

    def gripper(self) -> GripperDriver | None:
        """Return the simulated hand."""
        return self._hand

    def server_version(self) -> int:
        """Return what the arm it stands for speaks."""
        return self._version

    def close(self) -> None:
        """Stop and end the clock."""
        if not self._connected:
            return
        self.stop()
        if self._thread is not None:
            self._ending.set()
            self._thread.join()
            self._thread = None
        self._connected = False

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- what only a twin can do --------------------------------------------------------------------------------------

    def reset(self, seed: int) -> None:
        """Begin an episode: everything where `env.reset(seed=seed)` puts it, no motion, no errors."""
        with self._lock:
            self._plant.reset(seed)
            self._hand.rest()
            self._mode, self._errors, self._moving = Mode.IDLE, (), False
            self._pending = None
            self._torque, self._external = np.zeros(7), np.zeros(7)
            self._target = self._plant.q_rad.copy(), np.zeros(7)
            self._ticks_before += self._ticks  # the robot's clock goes on
            self._ticks = 0

    def advance(self, duration_s: float) -> None:
        """Let simulated time pass; with pace="manual" nothing else does."""
        for _ in range(round(duration_s / DT_S)):
            with self._lock:
                self._tick()

    def render(self, cameras: tuple[str, ...], size: int) -> dict[str, npt.NDArray[np.uint8]]:
        """Return pictures (size, size, 3) of cameras as the task's observations have them."""
        env = self._plant.env
        with self._lock:
            env.data.qpos[:] = self._plant.data.qpos
            mujoco.mj_kinematics(env.scene.model, env.data)
            mujoco.mj_comPos(env.scene.model, env.data)
            mujoco.mj_camlight(env.scene.model, env.data)
            return {camera: env.picture(camera, size) for camera in cameras}

    @property
    def success(self) -> bool:
        """Say whether the task was done since the last reset."""
        return self._plant.success_s is not None

    def scene(self) -> dict[str, Any]:
        """Return what a simulator knows: `qpos`, `success`, `success_s`, `failed`, `since_reset_s`; one instant's."""
        with self._lock:
            plant = self._plant
            return {
                "qpos": plant.data.qpos.copy(),
                "success": plant.success_s is not None,
                "success_s": plant.success_s,
                "failed": plant.failed,
                "since_reset_s": self._ticks * DT_S,
            }

    def reflex(self, error: str) -> None:
        """End the motion as the robot does when it protects itself; `error` is libfranka's name."""
        with self._lock:
            self._abort(Mode.REFLEX, (error,))

    def user_stop(self, pressed: bool) -> None:
        """Press or release the activation device."""
        with self._lock:
            if pressed:
                self._abort(Mode.USER_STOPPED, ())
            elif self._mode is Mode.USER_STOPPED:
                self._mode = Mode.IDLE

    def lose_connection(self) -> None:
        """Cut the cable: the arm stops, every call but `connect` raises ConnectionLost."""
        with self._lock:
            self._lost = True
            if self._moving:
                self._abort(Mode.IDLE, ())

    # --- parts --------------------------------------------------------------------------------------------------------

    def _check_connected(self) -> None:
        if not self._connected or self._lost:
            raise ConnectionLost("the twin is not connected: connect()")

    def _abort(self, mode: Mode, errors: tuple[str, ...]) -> None:
        if self._moving and not self._lost:
            self._pending = ended_by(mode, errors)
        self._moving, self._mode, self._errors = False, mode, errors
        self._target = self._plant.q_rad.copy(), np.zeros_like(self._plant.q_rad)  # it brakes and holds

    def _wait(self, duration_s: float) -> None:
        if self._pace == "manual":
            self.advance(duration_s)
        else:
            time.sleep(duration_s)

    def _keep_time(self) -> None:
        due_s = time.monotonic()
        while not self._ending.wait(0.002):
            late = int((time.monotonic() - due_s) / DT_S)
            due_s = due_s + late * DT_S if late <= _MOST_STEPS else time.monotonic()
            self.advance(min(late, _MOST_STEPS) * DT_S)

    def _tick(self) -> None:
        plant = self._plant
        q, dq = plant.q_rad, plant.dq_rad_s
        if self._moving:
            error = np.clip(self._target[0] - q, -_ERROR_CLIP_RAD, _ERROR_CLIP_RAD)
            wanted = self._stiffness * error + self._damping * (self._target[1] - dq) + plant.coriolis_nm
        else:
            wanted = self._stiffness * (self._target[0] - q) - self._damping * dq + plant.coriolis_nm
        self._torque = self._torque + np.clip(wanted - self._torque, -_TORQUE_RATE_NM, _TORQUE_RATE_NM)
        plant.step(self._torque)
        self._hand.advance()
        self._ticks += 1
        self._external = self._external + _FILTER * (plant.external_nm - self._external)
        if self._moving:
            found = check_measured(self._limits, plant.q_rad, plant.dq_rad_s)
            if not found and self._ticks % _COLLISION_TICKS == 0:
                found = self._collision.check(self._external, plant.external_wrench(self._external))
            if found:
                self._abort(Mode.REFLEX, (found,))
