"""How does a robosuite task become a gymnasium environment like ours, with its own wrapper's faults repaired?

Physics, rewards, success and start distributions are robosuite's; docs/robosuite.md lists what is repaired.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import mujoco
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from envs import robosuite_scene
from envs.robosuite_fast import FastSubsteps, why_not_fast
from envs.robosuite_layout import LEFT_OUT, action_layout, proprio_layout
from envs.robosuite_tasks import NAMESPACE, RobosuiteTask
from envs.specs import TaskSpec

Floats = npt.NDArray[np.float64]

CONTROL_RATE_HZ = 20
OBS_MODES = ("state", "proprio", "pixels", "all")
ACTION_MODES = ("ee_delta", "joint_delta")
RENDER_QUALITIES = ("lean", "full")
CAMERA_ALIASES = {"front": "agentview", "wrist": "robot0_eye_in_hand"}

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_EPISODE = 4  # numbers of ours at the end of a simulator state: step, succeeded once, succeeds now, episode seed


class RobosuiteEnv(gymnasium.Env[dict[str, Any], npt.NDArray[np.float32]]):
    """A robosuite task at 20 Hz.

    Args:
        task: which (envs/robosuite_tasks.py).
        obs_mode: `state` {state, proprio}, `proprio` {proprio}, `pixels` {pixels, proprio}, or `all` three. `state` is
            proprioception, then robosuite's `object-state`.
        cameras: which are in `pixels`, each uint8 (h, w, 3): robosuite's names, or `front` (agentview) and `wrist`.
        image_size: side of the square images, pixels.
        robots: robosuite's name of the robot, or a tuple for two arms; default Panda.
        action_mode: `ee_delta` (robosuite's OSC_POSE, world frame) or `joint_delta` (its JOINT_POSITION).
        controller: robosuite's composite controller configuration instead, as robosuite reads it.
        preset: `real`, the only one: robosuite's gains at 20 Hz.
        render_quality: `lean` for learning, `full` as robosuite ships it.
        render_mode: None or `rgb_array` (the front camera, at least 480 px).
        reward_shaping: robosuite's dense reward instead of the sparse one.
        horizon_steps: control steps until truncation; default in envs/robosuite_tasks.py.
        hard_reset: compile a new model at each reset; default where sizes in the model are random (Lift: the cube).
            False keeps one size, which makes resets 30 times faster.
        fast_control: use the compiled control law where it covers the controller; `fast` says whether it does,
            `why_not_fast` why not.
        robosuite_options: further arguments of robosuite's own class, such as {"use_latch": False} for Door.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": CONTROL_RATE_HZ}  # noqa: RUF012 (gymnasium's)

    def __init__(
        self,
        task: RobosuiteTask,
        *,
        obs_mode: str = "state",
        cameras: tuple[str, ...] = ("front", "wrist"),
        image_size: int = 64,
        robots: str | tuple[str, ...] | None = None,
        action_mode: str = "ee_delta",
        controller: Mapping[str, Any] | None = None,
        preset: str = "real",
        render_quality: str = "lean",
        render_mode: str | None = None,
        reward_shaping: bool = False,
        horizon_steps: int | None = None,
        hard_reset: bool | None = None,
        fast_control: bool = True,
        robosuite_options: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value, allowed in (
            ("obs_mode", obs_mode, OBS_MODES),
            ("action_mode", action_mode, ACTION_MODES),
            ("preset", preset, ("real",)),
            ("render_quality", render_quality, RENDER_QUALITIES),
            ("render_mode", render_mode, (None, "rgb_array")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")
        if not isinstance(image_size, int) or not 8 <= image_size <= 1024:
            raise ValueError(f"image_size must be an integer number of pixels in 8..1024, got {image_size!r}")
        self.render_mode, self.obs_mode, self.task = render_mode, obs_mode, task
        self.horizon_steps = task.horizon_steps if horizon_steps is None else horizon_steps
        if not isinstance(self.horizon_steps, int) or self.horizon_steps < 1:
            raise ValueError(f"horizon_steps must be an integer of at least 1, got {horizon_steps!r}")
        names = _check_robots(task, robots)
        self._random = robosuite_scene.EpisodeRandom()
        if controller is None:
            configs = robosuite_scene.controller_configs(names, action_mode)
        else:
            configs = [dict(controller) for _ in names]
        self.robosuite = robosuite_scene.build(
            task.name,
            render_quality,
            self._random,
            robots=list(names),
            controller_configs=configs,
            control_freq=CONTROL_RATE_HZ,
            horizon=self.horizon_steps,
            reward_shaping=reward_shaping,
            hard_reset=task.model_is_drawn if hard_reset is None else hard_reset,
            **_check_robosuite_options(robosuite_options),
        )
        self._digest = robosuite_scene.model_digest(self.robosuite, configs)
        self._pictures = robosuite_scene.Pictures(render_quality)
        self._image_size = image_size
        # Unused cameras are not looked up: robots with two arms have no `wrist`, but two hands by their own names.
        self._cameras = self._check_cameras(cameras) if obs_mode in ("pixels", "all") else ()
        self.why_not_fast = why_not_fast(self.robosuite) if fast_control else "fast_control is False"
        self.fast = not self.why_not_fast
        self._substeps: FastSubsteps | None = None
        self._steps = self._episode_seed = 0
        self._latched = self._succeeds = False
        given = {"robots": robots, "controller": controller, "robosuite_options": robosuite_options}
        options = {key: value for key, value in given.items() if value is not None}
        if render_quality != "lean":
            options["render_quality"] = render_quality
        self.task_spec = self._spec(preset, action_mode if controller is None else "robosuite", names, options)
        low, high = (np.asarray(bound, np.float32) for bound in self.robosuite.action_spec)
        self.action_space = spaces.Box(low, high, dtype=np.float32)
        self.observation_space = self._observation_space()

    # --- gymnasium ------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; `seed` decides it alone, in any process. `options` must be empty."""
        super().reset(seed=seed)
        if options:
            raise ValueError(f"reset takes no options, got {sorted(options)}")
        self._begin(int(self.np_random.integers(2**32)))
        return self._observe(), self._info(0.0)

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move one control period; `action` (A,) in [-1, 1]. Truncates at the horizon; only Wipe terminates."""
        checked = self._check_action(action)
        if self._substeps is None:
            _, reward, ended, _ = self.robosuite.step(checked)
        else:
            reward, ended = self._step_fast(checked, self._substeps)
        self._steps += 1
        self._check_success()
        self._refresh()
        truncated = self._steps >= self.horizon_steps
        return self._observe(), float(reward), bool(ended), truncated, self._info(float(reward))

    def render(self) -> Any:
        """Return the front camera's picture, 480 px or the observation's size if larger; None without a render mode."""
        if self.render_mode is None:
            return None
        return self.picture("front", max(480, self._image_size))

    def close(self) -> None:
        """Drop the pictures; the GL objects are shared and live as long as the process."""
        self._pictures = robosuite_scene.Pictures(self._pictures.quality)

    # --- for demonstrations, evaluation ---------------------------------------------------------------------------

    def picture(self, camera: str, size: int) -> npt.NDArray[np.uint8]:
        """Return a square RGB picture of any camera at any size, without stepping."""
        self._check_cameras((camera,))
        return self._draw((camera,), size)[camera]

    def expert(self, seed: int, noise: float = 0.0) -> Any:
        """Return a scripted expert (Lift, Can; Panda); `noise` is the deviation of what is added to arm actions."""
        from envs.robosuite_expert import RobosuiteExpert

        return RobosuiteExpert(self, seed=seed, noise=noise)

    def simulator_state(self) -> Floats:
        """Return all that the future depends on: MuJoCo's integration state, gripper commands, the episode. (S,)"""
        self._check_restorable()
        model, data = self._model_and_data()
        vector = np.zeros(mujoco.mj_stateSize(model, _STATE))
        mujoco.mj_getState(model, data, vector, _STATE)
        episode = [self._steps, self._latched, self._succeeds, self._episode_seed]
        # robosuite starts with one entry a gripper, and has one an actuator from the first step on.
        commands = [np.broadcast_to(g.current_action, len(g.actuators)) for g in self._grippers()]
        return np.concatenate([vector, *commands, episode])

    def set_simulator_state(self, vector: Floats) -> None:
        """Continue from a state of `simulator_state`; the same actions then give the same bits.

        A state of another episode builds that episode's scene first: sizes and fixtures are drawn at reset.
        """
        self._check_restorable()
        vector, expected = np.asarray(vector, np.float64), self.simulator_state().shape
        if vector.shape != expected:
            raise ValueError(f"a simulator state of {self.task_spec.env_id} is {expected}, got {vector.shape}")
        steps, latched, succeeds, seed = (int(number) for number in vector[-_EPISODE:])
        if seed != self._episode_seed or steps == 0:
            self._begin(seed)
        model, data = self._model_and_data()
        size = mujoco.mj_stateSize(model, _STATE)
        mujoco.mj_setState(model, data, vector[:size], _STATE)
        for gripper in self._grippers():
            gripper.current_action = vector[size : size + len(gripper.actuators)].copy()
            size += len(gripper.actuators)
        if steps > 0:  # in an episode's first step robosuite's controllers still hold what they read at the reset
            for robot in self.robosuite.robots:
                for controller in robot.part_controllers.values():
                    controller.new_update = True
        self._steps = self.robosuite.timestep = steps
        self._latched, self._succeeds = bool(latched), bool(succeeds)
        self._refresh()

    def observation(self) -> dict[str, Any]:
        """Return the observation of the present state, without stepping."""
        return self._observe()

    # --- parts ----------------------------------------------------------------------------------------------------

    def _begin(self, episode_seed: int) -> None:
        self._episode_seed = episode_seed
        self._random.restart(episode_seed)
        self.robosuite.reset()
        self._substeps = FastSubsteps(self.robosuite, buffers=self.task.name == "Wipe") if self.fast else None
        self._steps, self._latched = 0, False
        self._check_success()
        self._refresh()

    def _step_fast(self, action: Floats, substeps: FastSubsteps) -> tuple[float, bool]:
        """Do what robosuite's `step` does, but with the compiled control law, and without its observables."""
        env = self.robosuite
        if env.done:
            raise ValueError("the episode has ended; call reset()")
        env.timestep += 1
        substeps.run(action, int(env.control_timestep / env.model_timestep))
        env.cur_time += env.control_timestep
        reward, ended, _ = env._post_action(action)
        return reward, ended

    def _refresh(self) -> None:
        """Bring positions and contacts up to the joint positions that the last substep reached.

        robosuite's own `step` leaves them one substep behind: an observation would mix two moments.
        """
        mujoco.mj_fwdPosition(*self._model_and_data())

    def _check_success(self) -> None:
        self._succeeds = bool(self.robosuite._check_success())
        self._latched = self._latched or self._succeeds

    def _info(self, reward: float) -> dict[str, Any]:
        """`success`: robosuite's condition was met at any time so far, which is what robomimic counts."""
        return {
            "success": self._latched,
            "success_once": self._latched,
            "success_at_end": self._succeeds,
            "reward_terms": {"task": reward},
        }

    def _model_and_data(self) -> tuple[Any, Any]:
        return self.robosuite.sim.model._model, self.robosuite.sim.data._data

    def _grippers(self) -> list[Any]:
        return [robot.gripper[arm] for robot in self.robosuite.robots for arm in robot.arms if robot.has_gripper[arm]]

    def _check_restorable(self) -> None:
        if self.task.name == "Wipe":
            raise ValueError("Wipe keeps a history outside the simulator (what is wiped, forces); replay its actions")

    def _check_action(self, action: Any) -> Floats:
        checked = np.asarray(action, np.float64)
        low, high = self.action_space.low, self.action_space.high  # type: ignore[attr-defined]
        if checked.shape != low.shape:
            names = ", ".join(self.task_spec.action_names)
            raise ValueError(f"action must have shape {low.shape} ({names}), got {checked.shape}")
        if not ((checked >= low) & (checked <= high)).all():  # also false for NaN
            bounds = "[-1, 1]" if (low == -1).all() and (high == 1).all() else f"[{low.tolist()}, {high.tolist()}]"
            raise ValueError(f"action must lie in {bounds}, got {checked.tolist()}; clip it before step()")
        return checked

    def _check_cameras(self, cameras: Any) -> tuple[str, ...]:
        names = (cameras,) if isinstance(cameras, str) else tuple(cameras)
        model = self.robosuite.sim.model._model
        known = [model.camera(index).name for index in range(model.ncam)]
        for name in names:
            if CAMERA_ALIASES.get(name, name) not in known:
                raise ValueError(f"camera must be one of front, wrist, {', '.join(known)}, got {name!r}")
        if not names or len(set(names)) != len(names):
            raise ValueError(f"cameras must name each camera once, got {names}")
        return names

    def _draw(self, cameras: tuple[str, ...], size: int) -> dict[str, npt.NDArray[np.uint8]]:
        own = {name: CAMERA_ALIASES.get(name, name) for name in cameras}
        drawn = self._pictures.draw(*self._model_and_data(), tuple(dict.fromkeys(own.values())), size)
        return {name: drawn[own[name]] for name in cameras}

    def _sense(self, objects: bool) -> tuple[list[Floats], list[Floats]]:
        """Return the values of robosuite's sensors: proprioception and, if asked for, objects."""
        cache: dict[str, Any] = {}
        asked = {
            name: observable
            for name, observable in self.robosuite._observables.items()
            if observable.is_enabled()
            and (objects or observable.modality.endswith("proprio"))
            and not name.endswith(LEFT_OUT)
        }
        for name, observable in asked.items():
            cache[name] = np.asarray(observable._sensor(cache), np.float64)
        # Where an object is seen from the hand is computed from what PickPlace and others list behind it: robosuite
        # takes that from the step before, and without one it is zero.
        for name in (name for name in asked if "_to_" in name):
            cache[name] = np.asarray(asked[name]._sensor(cache), np.float64)
        proprio: list[Floats] = []
        rest: list[Floats] = []
        for name, observable in asked.items():
            if observable.is_active():
                of_robot = observable.modality.endswith("proprio")
                (proprio if of_robot else rest).append(cache[name].reshape(-1))
        return proprio, rest

    def _observe(self) -> dict[str, Any]:
        with_state = self.obs_mode in ("state", "all")
        proprio, objects = self._sense(with_state)
        observation: dict[str, Any] = {"proprio": np.concatenate(proprio).astype(np.float32)}
        if with_state:
            observation["state"] = np.concatenate([*proprio, *objects]).astype(np.float32)
        if self._cameras:
            observation["pixels"] = self._draw(self._cameras, self._image_size)
        return observation

    def _observation_space(self) -> spaces.Dict:
        proprio, objects = self._sense(True)
        entries: dict[str, spaces.Space[Any]] = {"proprio": _box(sum(map(len, proprio)))}
        if self.obs_mode in ("state", "all"):
            entries["state"] = _box(sum(map(len, [*proprio, *objects])))
        if self._cameras:
            shape = (self._image_size, self._image_size, 3)
            entries["pixels"] = spaces.Dict({name: spaces.Box(0, 255, shape, np.uint8) for name in self._cameras})
        return spaces.Dict(entries)

    def _spec(self, preset: str, action_mode: str, robots: tuple[str, ...], options: dict[str, Any]) -> TaskSpec:
        names, units, scale = action_layout(self.robosuite)
        low, high = self.robosuite.action_spec
        proprio_names, proprio_units = proprio_layout(self.robosuite)
        return TaskSpec(
            env_id=f"{NAMESPACE}/{self.task.name}",
            preset=preset,
            robot="+".join(robots),
            control_rate_hz=CONTROL_RATE_HZ,
            horizon_steps=self.horizon_steps,
            action_mode=action_mode,
            action_names=names,
            action_units=units,
            action_low=tuple(map(float, low)),
            action_high=tuple(map(float, high)),
            action_scale=scale,
            proprio_names=proprio_names,
            proprio_units=proprio_units,
            cameras=self._cameras,
            image_size=self._image_size,
            scene_hash=self._digest,
            options=options or None,
        )


def _box(entries: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (entries,), np.float32)


def _check_robots(task: RobosuiteTask, robots: str | tuple[str, ...] | None) -> tuple[str, ...]:
    robosuite_scene.import_robosuite()
    from robosuite.robots import ROBOT_CLASS_MAPPING

    names = ("Panda",) * task.arms if robots is None else (robots,) if isinstance(robots, str) else tuple(robots)
    for name in names:
        if name not in ROBOT_CLASS_MAPPING:
            raise ValueError(f"robots must be out of {', '.join(sorted(ROBOT_CLASS_MAPPING))}, got {name!r}")
    return names


_OURS = ("robots", "controller_configs", "control_freq", "horizon", "reward_shaping", "hard_reset", "seed", "renderer")
_NOT_NEEDED = ("has_renderer", "has_offscreen_renderer", "use_camera_obs", "ignore_done")


def _check_robosuite_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    taken = sorted(set(options or {}) & {*_OURS, *_NOT_NEEDED})
    if taken:
        raise ValueError(f"robosuite_options must not have {', '.join(taken)}: the environment decides them itself")
    return dict(options or {})
