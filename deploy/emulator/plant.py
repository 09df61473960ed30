"""What moves when the emulated robot applies torques: the task's own MuJoCo scene, in steps of one millisecond.

The arm's actuators are silenced; torques act as the real arm's do, on top of gravity compensation (the scene has it in
its bodies) and friction compensation. The hand's own servos drive the fingers. Bodies, contacts and start positions are
those of `gymnasium.make(...)`: `reset(seed)` puts everything where `env.reset(seed=seed)` puts it.
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import mujoco
import numpy as np

from deploy.drivers.base import ARM_JOINTS, Floats
from deploy.realtime.limits import JointLimits

DT_S = 0.001
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
SUCCESS_STEPS = 10  # control steps in a row at the goal, as the simulated task counts
# Rows of the constraint force from here on come from contacts: MuJoCo's kinds are in that order.
_FIRST_CONTACT = int(mujoco.mjtConstraint.mjCNSTR_CONTACT_FRICTIONLESS)
_DAMPING = 1e-4 * np.eye(6)  # of the least squares that turn joint torques into a wrench
_FLANGE_M = np.array([0.0, 0.0, 0.107])  # in the frame of link 7 (FCI documentation, Denavit-Hartenberg parameters)


class Plant:
    """One scene with an arm and a hand; joint values rad and N m, finger positions m."""

    def __init__(self, env_id: str, options: dict[str, Any], limits: JointLimits) -> None:
        """`options` are `gymnasium.make`'s; `limits` give the ends of the joints."""
        made: Any = gymnasium.make(env_id, obs_mode="proprio", **options)
        self.env = made.unwrapped
        robot = getattr(getattr(self.env, "task_spec", None), "robot", None)
        if robot != "franka_panda":
            raise ValueError(f"the emulator is a Franka arm; {env_id} has {robot!r}. Choose a task of franka_panda")
        self.scene = self.env.scene
        self._limits, self._hand = limits, self.scene.robot.gripper
        self._streak_every = round(1.0 / (self.env.task_spec.control_rate_hz * DT_S))
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Put arm, hand and things where `env.reset(seed=seed)` puts them, at rest."""
        self.env.reset(seed=seed)
        # A randomised environment has just drawn its own model, so the copy is made anew.
        self.model = copy.copy(self.env.scene.model)
        self.model.opt.timestep = DT_S
        self.model.jnt_range[:ARM_JOINTS] = np.stack([self._limits.low_rad, self._limits.high_rad], axis=1)
        self.model.actuator_gainprm[:ARM_JOINTS] = 0.0
        self.model.actuator_biasprm[:ARM_JOINTS] = 0.0
        self.model.actuator_ctrllimited[ARM_JOINTS : ARM_JOINTS + 2] = 0  # a grasp's command leads by its force
        self.data = mujoco.MjData(self.model)
        state = np.zeros(mujoco.mj_stateSize(self.model, _STATE))
        mujoco.mj_getState(self.env.scene.model, self.env.data, state, _STATE)
        mujoco.mj_setState(self.model, self.data, state, _STATE)
        self.finger_command_m = float(self.data.qpos[ARM_JOINTS])
        self.finger_force_n = self._hand.force
        self.guide: Floats | None = None  # where a person's hand pulls the joints to
        self.push_n_nm = np.zeros(6)  # external force and torque on the hand, world axes
        self.tau_nm = np.zeros(ARM_JOINTS)
        self.external_nm = np.zeros(ARM_JOINTS)
        self._friction = self.model.dof_damping[:ARM_JOINTS].copy()
        self._jacobian = np.zeros((6, self.model.nv))
        self._full = np.zeros(self.model.nv)
        self.ticks, self._streak = 0, 0
        self.success_s: float | None = None
        self.goal, self.failed = False, False
        self._flange = self.model.body("right_hand").id
        self._fingers = [set(_descendants(self.model, finger)) for finger in self.scene.finger_bodies]
        self._hand_bodies = _descendants(self.model, self._flange)
        mujoco.mj_step1(self.model, self.data)

    @property
    def q_rad(self) -> Floats:
        """Return the arm's joint positions, a view."""
        return self.data.qpos[:ARM_JOINTS]

    @property
    def dq_rad_s(self) -> Floats:
        """Return the arm's joint velocities, a view."""
        return self.data.qvel[:ARM_JOINTS]

    @property
    def gravity_nm(self) -> Floats:
        """Return what holds the arm against gravity, (7,)."""
        return self.data.qfrc_gravcomp[:ARM_JOINTS]

    @property
    def coriolis_nm(self) -> Floats:
        """Return Coriolis and centrifugal torques, (7,)."""
        return self.data.qfrc_bias[:ARM_JOINTS] - self.data.qfrc_gravcomp[:ARM_JOINTS]

    def inertia_times(self, acceleration: Floats) -> Floats:
        """Return the torques that accelerate the arm by `acceleration` (7,)."""
        self._full[:] = 0.0
        self._full[:ARM_JOINTS] = acceleration
        result = np.zeros_like(self._full)
        mujoco.mj_mulM(self.model, self.data, result, self._full)
        return result[:ARM_JOINTS]

    def inertia_diagonal(self) -> Floats:
        """Return the inertia that each joint feels, (7,) kg m2."""
        return np.array([self.inertia_times(unit)[joint] for joint, unit in enumerate(np.eye(ARM_JOINTS))])

    def finger_width_m(self) -> float:
        """Return the opening between the fingers."""
        return float(self.data.qpos[ARM_JOINTS] + self._hand.right_sign * self.data.qpos[ARM_JOINTS + 1])

    def finger_blocked(self) -> bool:
        """Say whether both fingers press on something."""
        touched = set(self.model.geom_bodyid[self.data.contact.geom].ravel().tolist()) if self.data.ncon else set()
        return all(touched & family for family in self._fingers)

    def touching(self) -> list[str]:
        """Return pairs of bodies in contact, `first-second`."""
        pairs = self.model.geom_bodyid[self.data.contact.geom] if self.data.ncon else []
        return sorted({f"{self.model.body(a).name}-{self.model.body(b).name}" for a, b in pairs})

    def finger_saturated(self) -> bool:
        """Say whether the fingers' servos are at the limit of their force."""
        force = np.abs(self.data.actuator_force[ARM_JOINTS : ARM_JOINTS + 2])
        return bool((force >= 0.99 * self.finger_force_n).all())

    @property
    def hand_force_n(self) -> float:
        """Return the force that the simulated hand grasps with."""
        return self._hand.force

    def hand_inertia(self) -> tuple[float, Floats, Floats]:
        """Return mass kg, centre (3,) m and inertia (3, 3) kg m2 about it of hand and fingers, in the flange's axes."""
        return composite(self.model, self.env.data, self._flange - 1, self._hand_bodies, _FLANGE_M)

    def link_inertia(self, number: int) -> tuple[float, Floats, Floats]:
        """Return mass, centre and inertia of link 0 to 7 in its own frame."""
        body = self.model.body(f"link{number}").id
        return composite(self.model, self.env.data, body, [body], np.zeros(3))

    def available(self, tau_nm: Floats) -> Floats:
        """Cut torques (7,) to what the motors give beyond gravity."""
        most, gravity = self._limits.torque_nm, self.gravity_nm
        return np.minimum(np.maximum(tau_nm, -most - gravity), most - gravity)

    def step(self, tau_nm: Floats) -> None:
        """Apply torques (7,), those of gravity compensation not included, for one millisecond."""
        data, model = self.data, self.model
        self.tau_nm = self.available(tau_nm)
        applied = self.tau_nm + self._friction * self.dq_rad_s
        if self.guide is not None:  # a hand's soft pull
            applied = applied + np.clip(60.0 * (self.guide - self.q_rad) - 8.0 * self.dq_rad_s, -20.0, 20.0)
        data.qfrc_applied[:ARM_JOINTS] = applied
        data.xfrc_applied[self._flange] = self.push_n_nm
        data.ctrl[ARM_JOINTS] = self.finger_command_m
        data.ctrl[ARM_JOINTS + 1] = self._hand.right_sign * self.finger_command_m
        force = min(self.finger_force_n, 70.0)
        model.actuator_forcerange[ARM_JOINTS : ARM_JOINTS + 2] = (-force, force)
        mujoco.mj_step2(model, data)
        self._measure_external()
        mujoco.mj_step1(model, data)
        self.ticks += 1
        if self.ticks % self._streak_every == 0:
            self._judge()

    def pose(self) -> Floats:
        """Return the flange in the base frame, (4, 4)."""
        pose = np.eye(4)
        rotation = self.data.xmat[self._flange - 1].reshape(3, 3)
        pose[:3, :3] = self.scene.base_rotation.T @ rotation
        flange = self.data.xpos[self._flange - 1] + rotation @ _FLANGE_M
        pose[:3, 3] = (flange - self.scene.base_position_m) @ self.scene.base_rotation
        return pose

    def external_wrench(self, external_nm: Floats) -> Floats:
        """Return the wrench of external torques (7,) at the hand (6,), base axes, by damped least squares."""
        mujoco.mj_jacBody(self.model, self.data, self._jacobian[:3], self._jacobian[3:], self._flange)
        jacobian = self._jacobian[:, :ARM_JOINTS]
        gram, world = jacobian @ jacobian.T + _DAMPING, np.empty(6)
        mujoco.mju_cholFactor(gram, 0.0)  # in place
        mujoco.mju_cholSolve(world, gram, jacobian @ external_nm)
        return (world.reshape(2, 3) @ self.scene.base_rotation).ravel()

    # --- parts --------------------------------------------------------------------------------------------------------

    def _measure_external(self) -> None:
        """Sum what contacts, a guiding hand and a push do to the joints, signed as libfranka does: robot on world."""
        data = self.data
        external = np.zeros(ARM_JOINTS)
        if data.ncon and data.nefc:
            force = np.where(data.efc_type >= _FIRST_CONTACT, data.efc_force, 0.0)
            mujoco.mj_mulJacTVec(self.model, data, self._full, force)
            external += self._full[:ARM_JOINTS]
        if self.push_n_nm.any():
            mujoco.mj_jacBodyCom(self.model, data, self._jacobian[:3], self._jacobian[3:], self._flange)
            external += self._jacobian[:, :ARM_JOINTS].T @ self.push_n_nm
        if self.guide is not None:
            external += data.qfrc_applied[:ARM_JOINTS] - self.tau_nm - self._friction * self.dq_rad_s
        self.external_nm = -external

    def _judge(self) -> None:
        task = self.env.task
        self.goal = bool(task.at_goal(self.scene, self.data))
        self.failed = self.failed or bool(task.failed(self.scene, self.data))
        self._streak = self._streak + 1 if self.goal else 0
        if self._streak >= SUCCESS_STEPS and self.success_s is None:
            self.success_s = self.ticks * DT_S


def composite(model: Any, data: Any, frame: int, bodies: list[int], origin: Floats) -> tuple[float, Floats, Floats]:
    """Return mass, centre and inertia about it of some bodies, in a body's axes, from `origin` in its frame."""
    rotation = data.xmat[frame].reshape(3, 3)
    masses = model.body_mass[bodies]
    centers = (data.xipos[bodies] - data.xpos[frame]) @ rotation - origin
    mass = float(masses.sum())
    center = masses @ centers / mass
    total = np.zeros((3, 3))
    for body, body_mass, offset in zip(bodies, masses, centers - center, strict=True):
        axes = rotation.T @ data.ximat[body].reshape(3, 3)
        total += axes @ np.diag(model.body_inertia[body]) @ axes.T
        total += body_mass * (offset @ offset * np.eye(3) - np.outer(offset, offset))
    return mass, center, total


def _descendants(model: Any, body: int) -> list[int]:
    found = [body]
    for other in range(body + 1, model.nbody):
        if model.body_parentid[other] in found:
            found.append(other)
    return found
