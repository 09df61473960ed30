"""What does every robot task share: the gymnasium interface around a scene, a controller and a camera renderer?"""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import gymnasium
import mujoco
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from envs import specs
from envs.control import ArmController
from envs.meshes import Floats
from envs.randomize import Draw, Randomizer, parse_randomization
from envs.render import CameraRenderer
from envs.robots import ARM_JOINTS, Robot
from envs.scene import Scene, load_scene
from envs.worlds import World

SUCCESS_STEPS = 10  # PixMC: the goal held for this many consecutive steps
ARM_CONTACT_LIMIT_N = 1.0
_DRIVEN = ARM_JOINTS + 2  # the arm and two fingers
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_EPISODE = 5  # numbers of ours behind MuJoCo's in a simulator state: finger command, step, streak, latched, at end


class Task(Protocol):
    """What a task adds to the robot. It holds no state of an episode."""

    @property
    def env_id(self) -> str:
        """gymnasium's id."""

    @property
    def robot(self) -> Robot:
        """The arm and its gripper."""

    @property
    def world(self) -> World:
        """What stands around it."""

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the entries of `state`."""

    def place(self, scene: Scene, data: Any, random: np.random.Generator) -> None:
        """Write the start positions of robot and objects into `data`."""

    def state(self, scene: Scene, data: Any) -> Floats:
        """Return PixMC's task entries of the oracle state."""

    def reward_terms(self, scene: Scene, data: Any, action: Floats) -> dict[str, float]:
        """Return the reward's terms; the reward is their sum."""

    def at_goal(self, scene: Scene, data: Any) -> bool:
        """Say whether the goal is met now."""

    def failed(self, scene: Scene, data: Any) -> bool:
        """Say whether the object is lost."""

    def expert(self, env: RobotEnv, seed: int, noise: float) -> Any:
        """Return a scripted expert for `env`."""


class RobotEnv(gymnasium.Env[dict[str, Any], npt.NDArray[np.float32]]):
    """A robot doing `task`.

    Args:
        task: what to do, where, and with which robot (envs/pick.py, envs/cabinet.py).
        obs_mode: `state` {state, proprio}, `proprio` {proprio}, `pixels` {pixels, proprio}, or `all` three.
        cameras: which of `front`, `wrist` are in `pixels`, each uint8 (h, w, 3).
        image_size: side of the square images, pixels.
        action_mode: `ee_delta` (7,) or `joint_delta` (8,), see envs/control.py.
        preset: `real` (20 Hz, 166 steps) or `pixmc` (60 Hz, 500 steps).
        render_quality: `lean` for learning, `full` for people.
        render_mode: None or `rgb_array` (the front camera, at least 480 px).
        randomize: None, "all", or axis -> strength (envs/randomize.py).
        latency_s: delay of every action on top of that, s, exact to a physics step; of several one is drawn an episode.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gymnasium's)

    def __init__(
        self,
        task: Task,
        *,
        obs_mode: str = "state",
        cameras: tuple[str, ...] = ("front", "wrist"),
        image_size: int = 64,
        action_mode: str = "ee_delta",
        preset: str = "real",
        render_quality: str = "lean",
        render_mode: str | None = None,
        randomize: Any = None,
        latency_s: float | Sequence[float] = 0.0,
    ) -> None:
        specs.check_choice("obs_mode", obs_mode, specs.OBS_MODES)
        specs.check_choice("action_mode", action_mode, specs.ACTION_MODES)
        specs.check_choice("preset", preset, tuple(specs.PRESETS))
        specs.check_choice("render_quality", render_quality, specs.RENDER_QUALITIES)
        cameras = specs.check_cameras(cameras)
        if not isinstance(image_size, int) or not 8 <= image_size <= 1024:
            raise ValueError(f"image_size must be an integer number of pixels in 8..1024, got {image_size!r}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.metadata = {**self.metadata, "render_fps": specs.PRESETS[preset].control_rate_hz}
        self.render_mode = render_mode
        self.task, self.preset, self.obs_mode = task, specs.PRESETS[preset], obs_mode
        axes = parse_randomization(randomize)
        names = (task.robot.name, task.world.name, preset, render_quality)
        # Start positions and policies belong to the plain scene, whatever is put on top of it.
        self._scene_hash, self._randomization = load_scene(*names).digest, axes.as_dict() if axes else None
        self._shared_model = load_scene(*names, dressed=axes is not None).model
        self.scene = load_scene(*names, dressed=axes is not None)
        self._randomizer: Randomizer | None = None
        if axes is not None:
            self.scene = dataclasses.replace(self.scene, model=copy.copy(self._shared_model))
            self._randomizer = Randomizer(axes, self.scene, self._shared_model)
        self._draw_now = Draw()
        self._waiting: deque[Floats] = deque()  # actions on their way to the arm
        self._latencies_s, self._late_substeps = specs.check_latencies(latency_s), 0
        self.data = mujoco.MjData(self.scene.model)
        self.controller = ArmController(self.scene, self.preset, action_mode)
        self._position_low, high = specs.position_range(task.robot)
        self._position_gain = 2.0 / (high - self._position_low)
        self._quality, self._image_size = render_quality, image_size
        self._cameras = cameras if obs_mode in ("pixels", "all") else ()
        self._renderer: CameraRenderer | None = None
        self._wrench = np.zeros(6)
        self._force = np.zeros((self.scene.model.nbody, 3))
        self._steps = self._streak = 0
        self._latched = self._goal_now = False
        self.task_spec = self._spec(preset, action_mode)
        self.action_space = spaces.Box(-1.0, 1.0, (len(self.task_spec.action_names),), np.float32)
        self.observation_space = self._observation_space()

    # --- gymnasium ------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; `seed` decides it alone, in any process. `options` must be empty."""
        super().reset(seed=seed)
        if options:
            raise ValueError(f"reset takes no options, got {sorted(options)}")
        mujoco.mj_resetData(self.scene.model, self.data)
        self.task.place(self.scene, self.data, self.np_random)
        self._draw_now = self._randomizer.draw(self.data, self.np_random) if self._randomizer else Draw()
        self._steps = self._streak = 0
        self._latched = self._goal_now = False
        self._refresh()
        self.controller.reset(self.data)
        latency_s = float(self.np_random.choice(self._latencies_s))
        late, self._late_substeps = divmod(round(latency_s / self.preset.timestep_s), self.preset.substeps)
        late += round(self._draw_now.latency_s * self.preset.control_rate_hz)
        self._waiting = deque([self.controller.neutral_action()] * late)
        zero = np.zeros(self.action_space.shape or 0)
        info = self._info(self.task.reward_terms(self.scene, self.data, zero))
        if self._randomizer is not None:
            info["randomization"] = self._draw_now.numbers
        if any(self._latencies_s):
            info["latency_s"] = latency_s
        return self._observe(), info

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move one control period; `action` (A,) in [-1, 1]. Truncates at the horizon, terminates on failure only."""
        checked = self._check_action(action)
        self._waiting.append(checked)
        if self._late_substeps:  # the command before still holds
            mujoco.mj_step(self.scene.model, self.data, nstep=self._late_substeps)
            self._refresh()
        self.controller.apply(self.data, self._waiting.popleft())
        mujoco.mj_step(self.scene.model, self.data, nstep=self.preset.substeps - self._late_substeps)
        collided = self._arm_collided()
        self._refresh()
        self._steps += 1
        self._count_success()
        terms = self.task.reward_terms(self.scene, self.data, checked)
        failed = collided or self.task.failed(self.scene, self.data)
        truncated = self._steps >= self.preset.horizon_steps
        return self._observe(), float(sum(terms.values())), failed, truncated, self._info(terms)

    def render(self) -> Any:
        """Return the front camera's picture, 480 px or the observation's size if larger; None without a render mode."""
        if self.render_mode is None:
            return None
        return self.picture("front", max(480, self._image_size))

    def close(self) -> None:
        """Drop this environment's scene; the GL objects are shared and live as long as the process."""
        self._renderer = None

    # --- for demonstrations, evaluation, emulators ------------------------------------------------------------------

    def picture(self, camera: str, size: int) -> npt.NDArray[np.uint8]:
        """Return a square RGB picture of any camera at any size, without stepping."""
        specs.check_cameras((camera,))
        return self._draw((camera,), size)[camera]

    def expert(self, seed: int, noise: float = 0.0) -> Any:
        """Return a scripted expert; `noise` is the deviation of the Gaussian it adds to the executed arm action."""
        return self.task.expert(self, seed, noise)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Return the names of the entries of `observation["state"]`; positions in metres, world frame."""
        return (*self.task_spec.proprio_names[: 2 * _DRIVEN], *self.task.state_names)

    def simulator_state(self) -> Floats:
        """Return all that the future depends on: MuJoCo's integration state, commands, episode counters. (S,)"""
        model = self.scene.model
        vector = np.zeros(mujoco.mj_stateSize(model, _STATE))
        mujoco.mj_getState(model, self.data, vector, _STATE)
        episode = [self.controller.finger, self._steps, self._streak, self._latched, self._goal_now]
        return np.concatenate([vector, self.controller.q_rad, episode])

    def set_simulator_state(self, vector: Floats) -> None:
        """Continue from a state of `simulator_state`; the same actions then give the same bits."""
        model = self.scene.model
        size = mujoco.mj_stateSize(model, _STATE)
        vector = np.asarray(vector, np.float64)
        if vector.shape != (size + ARM_JOINTS + _EPISODE,):
            raise ValueError(f"a simulator state of this task is ({size + ARM_JOINTS + _EPISODE},), got {vector.shape}")
        mujoco.mj_setState(model, self.data, vector[:size], _STATE)
        self.controller.q_rad = vector[size : size + ARM_JOINTS].copy()
        finger, steps, streak, latched, goal = vector[size + ARM_JOINTS :]
        self.controller.finger = float(finger)
        self._steps, self._streak, self._latched, self._goal_now = int(steps), int(streak), bool(latched), bool(goal)
        self._refresh()

    def observation(self) -> dict[str, Any]:
        """Return the observation of the present state, without stepping."""
        return self._observe()

    # --- parts --------------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Bring positions, cameras and Jacobians up to the joint positions that the last substep reached."""
        mujoco.mj_kinematics(self.scene.model, self.data)
        mujoco.mj_comPos(self.scene.model, self.data)
        mujoco.mj_camlight(self.scene.model, self.data)

    def _check_action(self, action: Any) -> Floats:
        checked = np.asarray(action, np.float64)
        if checked.shape != self.action_space.shape:
            names = ", ".join(self.task_spec.action_names)
            raise ValueError(f"action must have shape {self.action_space.shape} ({names}), got {checked.shape}")
        if not np.abs(checked).max() <= 1.0:  # also false for NaN
            raise ValueError(f"action must lie in [-1, 1], got {checked.tolist()}; clip it before step()")
        return checked

    def _arm_collided(self) -> bool:
        """Say whether a link of the arm feels more than 1 N net contact force (PixMC), at the last substep."""
        data, model, arm = self.data, self.scene.model, self.scene.arm_links
        if data.ncon == 0:
            return False
        bodies = model.geom_bodyid[data.contact.geom]  # (ncon, 2)
        touching = np.nonzero(arm[bodies].any(axis=1))[0]
        if touching.size == 0:
            return False
        self._force[:] = 0.0
        for index in touching:
            mujoco.mj_contactForce(model, data, int(index), self._wrench)
            world = self._wrench[:3] @ data.contact.frame[index].reshape(3, 3)
            self._force[bodies[index, 0]] -= world
            self._force[bodies[index, 1]] += world
        return bool((np.linalg.norm(self._force[arm], axis=1) > ARM_CONTACT_LIMIT_N).any())

    def _count_success(self) -> None:
        self._goal_now = self.task.at_goal(self.scene, self.data)
        self._streak = self._streak + 1 if self._goal_now else 0
        self._latched = self._latched or self._streak >= SUCCESS_STEPS

    def _info(self, terms: dict[str, float]) -> dict[str, Any]:
        """`success`: held, latched. `success_once`: the same at any time so far. `success_at_end`: held up to now."""
        return {
            "success": self._latched,
            "success_once": self._latched,
            "success_at_end": self._streak >= SUCCESS_STEPS,
            "reward_terms": terms,
        }

    def hand_pose(self) -> tuple[Floats, Floats]:
        """Return the grasp point (3,) m and the hand's rotation (3, 3) in the robot's base frame."""
        scene = self.scene
        position = (self.data.site_xpos[scene.hand_site] - scene.base_position_m) @ scene.base_rotation
        return position, scene.base_rotation.T @ self.data.site_xmat[scene.hand_site].reshape(3, 3)

    def _proprio(self) -> Floats:
        qpos, qvel = self.data.qpos[self.scene.positions], self.data.qvel[self.scene.speeds]
        position, rotation = self.hand_pose()
        scaled = (qpos - self._position_low) * self._position_gain - 1.0
        return np.concatenate([scaled, 0.1 * qvel, position, rotation[:, 0], rotation[:, 1]])

    def _observe(self) -> dict[str, Any]:
        proprio = self._proprio()
        observation: dict[str, Any] = {"proprio": proprio.astype(np.float32)}
        if self.obs_mode in ("state", "all"):
            task_state = self.task.state(self.scene, self.data)
            observation["state"] = np.concatenate([proprio[: 2 * _DRIVEN], task_state]).astype(np.float32)
        if self._cameras:
            observation["pixels"] = self._draw(self._cameras, self._image_size)
        return observation

    def _draw(self, cameras: tuple[str, ...], size: int) -> dict[str, npt.NDArray[np.uint8]]:
        if self._renderer is None:
            self._renderer = CameraRenderer(self.scene.model, self._quality, self._shared_model)
        return self._renderer.draw(self.data, cameras, size, size)

    def _observation_space(self) -> spaces.Dict:
        entries: dict[str, spaces.Space[Any]] = {"proprio": _box(len(self.task_spec.proprio_names))}
        if self.obs_mode in ("state", "all"):
            entries["state"] = _box(len(self.state_names))
        if self._cameras:
            shape = (self._image_size, self._image_size, 3)
            entries["pixels"] = spaces.Dict({name: spaces.Box(0, 255, shape, np.uint8) for name in self._cameras})
        return spaces.Dict(entries)

    def _spec(self, preset: str, action_mode: str) -> specs.TaskSpec:
        names, units, scale = specs.action_layout(action_mode, self.preset, self.task.robot)
        proprio_names, proprio_units = specs.proprio_layout(self.task.robot)
        return specs.TaskSpec(
            env_id=self.task.env_id,
            preset=preset,
            robot=self.task.robot.name,
            control_rate_hz=self.preset.control_rate_hz,
            horizon_steps=self.preset.horizon_steps,
            action_mode=action_mode,
            action_names=names,
            action_units=units,
            action_low=(-1.0,) * len(names),
            action_high=(1.0,) * len(names),
            action_scale=scale,
            proprio_names=proprio_names,
            proprio_units=proprio_units,
            cameras=self._cameras,
            image_size=self._image_size,
            scene_hash=self._scene_hash,
            randomization=self._randomization,
            options=None if self._quality == "lean" else {"render_quality": self._quality},
        )


def _box(entries: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (entries,), np.float32)
