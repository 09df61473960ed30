"""How do the substeps of a robosuite control period run without robosuite's Python?

robosuite 1.5.2 spends 85 % of a control step in Python: 25 times its operational space controller (Khatib 1987)
rebuilds matrices through numpy. Here the same law runs compiled, straight on MuJoCo's arrays. Trajectories agree with
robosuite's own to rounding (tests/envs/test_robosuite_tasks.py): a substep differs by the order of sums only.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numba  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

NULLSPACE_KP = 10.0  # robosuite's control_utils.nullspace_torques: pulls to the start posture, critically damped


def why_not_fast(env: Any) -> str:
    """Say what about a robosuite environment the compiled law does not cover; "" when it covers everything."""
    from robosuite.controllers.composite.composite_controller import CompositeController
    from robosuite.controllers.parts.arm.osc import OperationalSpaceController
    from robosuite.controllers.parts.gripper.simple_grip import SimpleGripController
    from robosuite.environments.robot_env import RobotEnv
    from robosuite.robots import FixedBaseRobot

    if len(env.robots) != 1 or len(env.robots[0].arms) != 1:
        return "more than one arm"
    robot, arm = env.robots[0], env.robots[0].arms[0]
    if type(robot) is not FixedBaseRobot or type(robot.composite_controller) is not CompositeController:
        return f"{type(robot).__name__} with {type(robot.composite_controller).__name__}"
    if not env.lite_physics or type(env)._pre_action is not RobotEnv._pre_action:
        return "lite_physics is off, or the task changes how actions are applied"
    parts = dict(robot.part_controllers)
    osc = parts.pop(arm)
    if type(osc) is not OperationalSpaceController:
        return f"controller {osc.name}"
    if osc.impedance_mode != "fixed" or not osc.uncoupling:
        return "variable impedance, or position and orientation coupled"
    if osc.interpolator_pos is not None or osc.interpolator_ori is not None:
        return "interpolated goals"
    if osc.num_ref_sites != 1:
        return "several reference sites"
    if any(type(part) is not SimpleGripController or part.interpolator is not None for part in parts.values()):
        return "a part other than one arm and a plain gripper"
    moving = _ancestor_dofs(env.sim.model._model, env.sim.model.site_name2id(osc.ref_name))
    return "" if moving == [int(dof) for dof in osc.qvel_index] else "the hand hangs on joints that are not the arm's"


class FastSubsteps:
    """Runs the control periods of one episode; robosuite makes new controllers at each reset, so make a new one then.

    With `buffers`, the first substep goes through robosuite, which fills its buffers of recent forces and accelerations
    (Wipe's reward reads them), at a third of the speed.
    """

    def __init__(self, env: Any, buffers: bool) -> None:
        self._env = env
        robot = env.robots[0]
        arm = robot.arms[0]
        self._osc = osc = robot.part_controllers[arm]
        self._through_robosuite = buffers or osc.input_type != "delta" or osc._goal_update_mode != "achieved"
        self._grippers = [_GripperCommand(robot, name, env.sim) for name in robot.part_controllers if name != arm]
        self._goal_m, self._goal_rotation = np.zeros(3), np.eye(3)
        self._model, self._data = env.sim.model._model, env.sim.data._data
        model, data = self._model, self._data
        hand = env.sim.model.site_name2id(osc.ref_name)
        center = env.sim.model.site_name2id(f"{osc.naming_prefix}{osc.part_name}_center")
        actuators = np.array(robot._ref_actuators_indexes_dict[arm])
        on_base = _ancestor_dofs(model, center)
        self._frames = (
            data.site_xpos[hand],
            data.site_xmat[hand].reshape(3, 3),
            data.site_xpos[center],
            data.site_xmat[center].reshape(3, 3),
        )
        self._arguments = (
            np.array([dof in on_base for dof in osc.qvel_index]),
            np.asarray(osc.qvel_index, np.int64),
            np.asarray(osc.qpos_index, np.int64),
            np.asarray(osc.initial_joint, np.float64),
            np.asarray(osc.kp, np.float64),
            np.asarray(osc.kd, np.float64),
            model.dof_parentid,
            model.dof_Madr,
            data.qM,
            data.qpos,
            data.qvel,
            data.qfrc_bias,
            data.cdof,
            # MuJoCo's spatial vectors are about the centre of mass of the kinematic tree.
            data.subtree_com[int(model.body_rootid[model.site_bodyid[hand]])],
            data.site_xpos[hand],
            data.site_xmat[hand],
            data.site_xpos[center],
            data.site_xmat[center],
            actuators,
            model.actuator_ctrlrange,
            data.ctrl,
        )

    def run(self, action: Floats, substeps: int) -> None:
        """Move one control period of `substeps` physics steps under `action` (A,)."""
        model, data = self._model, self._data
        in_base = self._osc.input_ref_frame == "base"
        mujoco.mj_step1(model, data)
        if self._through_robosuite:
            self._env._pre_action(action, policy_step=True)
            self._goal_m, self._goal_rotation = map(np.ascontiguousarray, (self._osc.goal_pos, self._osc.goal_ori))
        else:
            self._set_goal(action, in_base)
            _write_torques(self._goal_m, self._goal_rotation, in_base, *self._arguments)
        mujoco.mj_step2(model, data)
        for _ in range(substeps - 1):
            mujoco.mj_step1(model, data)
            _write_torques(self._goal_m, self._goal_rotation, in_base, *self._arguments)
            mujoco.mj_step2(model, data)

    def _set_goal(self, action: Floats, in_base: bool) -> None:
        """Set the goal to the hand's present pose moved by the action, in the controller's frame; move the grippers."""
        dimensions = self._osc.control_dim
        delta = self._osc.scale_action(action[:dimensions])
        turn = np.zeros((3, 3))
        _write_rotation(delta[3:] if dimensions == 6 else np.zeros(3), turn)
        hand, hand_rotation, center, center_rotation = self._frames
        if in_base:
            hand, hand_rotation = center_rotation.T @ (hand - center), center_rotation.T @ hand_rotation
        self._goal_m, self._goal_rotation = hand + delta[:3], turn @ hand_rotation
        for gripper in self._grippers:
            self._data.ctrl[gripper.actuators] = gripper.command(action)


class _GripperCommand:
    """Turns the gripper's entries of an action into what its position servos are told, as robosuite does."""

    def __init__(self, robot: Any, part: str, sim: Any) -> None:
        self._controller, self._gripper = robot.part_controllers[part], robot.gripper[robot.arms[0]]
        self._entries = slice(*robot.composite_controller._action_split_indexes[part])
        self.actuators = robot._ref_actuators_indexes_dict[part]
        limits = sim.model.actuator_ctrlrange[self.actuators]
        self._low, self._high = limits[:, 0].copy(), limits[:, 1].copy()

    def command(self, action: Floats) -> Floats:
        """Move the gripper's command by the sign of its entry and return it in the actuators' range."""
        formatted = self._gripper.format_action(action[self._entries])
        controller = self._controller
        if not controller.use_action_scaling:
            return np.clip(formatted, self._low, self._high)
        low, high = controller.actuator_min, controller.actuator_max
        scaled = 0.5 * (high + low) + 0.5 * (high - low) * controller.scale_action(formatted)
        return np.clip(scaled, self._low, self._high)


def _ancestor_dofs(model: Any, site: int) -> list[int]:
    """Return the degrees of freedom that move a site, from the root outwards."""
    body, dofs = int(model.site_bodyid[site]), []
    while body > 0:
        first, count = int(model.body_dofadr[body]), int(model.body_dofnum[body])
        dofs += [first + i for i in reversed(range(count))]
        body = int(model.body_parentid[body])
    return dofs[::-1]


@numba.njit(cache=True)  # type: ignore[misc, unused-ignore]
def _cholesky(matrix: Floats, size: int) -> bool:
    """Factor the leading block in place, lower triangle; False when it is not positive definite."""
    for i in range(size):
        for j in range(i + 1):
            total = matrix[i, j]
            for k in range(j):
                total -= matrix[i, k] * matrix[j, k]
            if i > j:
                matrix[i, j] = total / matrix[j, j]
            elif total > 0.0:
                matrix[i, i] = np.sqrt(total)
            else:
                return False
    return True


@numba.njit(cache=True)  # type: ignore[misc, unused-ignore]
def _substitute(factor: Floats, size: int, vector: Floats) -> None:
    """Solve factor factor' x = vector in place."""
    for i in range(size):
        for k in range(i):
            vector[i] -= factor[i, k] * vector[k]
        vector[i] /= factor[i, i]
    for i in range(size - 1, -1, -1):
        for k in range(i + 1, size):
            vector[i] -= factor[k, i] * vector[k]
        vector[i] /= factor[i, i]


@numba.njit(cache=True)  # type: ignore[misc, unused-ignore]
def _solve(matrix: Floats, vector: Floats) -> Floats:
    """Return the solution for a symmetric matrix, through the pseudo-inverse where the arm is singular."""
    factor, solution = matrix.copy(), vector.copy()
    if _cholesky(factor, len(vector)):
        _substitute(factor, len(vector), solution)
        return solution
    return np.linalg.pinv(matrix) @ vector


@numba.njit(cache=True)  # type: ignore[misc, unused-ignore]
def _arm_inertia(dofs: npt.NDArray[np.int64], parent: Any, address: Any, sparse: Floats) -> Floats:
    """Return the arm's block (A, A) of the inertia matrix, which MuJoCo keeps along chains of parents."""
    inertia = np.zeros((len(dofs), len(dofs)))
    for row in range(len(dofs)):
        entry, dof = address[dofs[row]], dofs[row]
        while dof >= 0:
            for column in range(row + 1):
                if dofs[column] == dof:
                    inertia[row, column] = inertia[column, row] = sparse[entry]
            entry, dof = entry + 1, parent[dof]
    return inertia


@numba.njit(cache=True)  # type: ignore[misc, unused-ignore]
def _write_torques(
    goal_m: Floats,
    goal_rotation: Floats,
    in_base: bool,
    on_base: npt.NDArray[np.bool_],
    dofs: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
    rest_rad: Floats,
    kp: Floats,
    kd: Floats,
    parent: Any,
    address: Any,
    sparse_inertia: Floats,
    qpos: Floats,
    qvel: Floats,
    bias: Floats,
    cdof: Floats,
    com: Floats,
    hand: Floats,
    hand_rotation: Floats,
    center: Floats,
    center_rotation: Floats,
    actuators: npt.NDArray[np.int64],
    limits: Floats,
    ctrl: Floats,
) -> None:
    """Write the arm's torques for one substep; the letters are Khatib's: J, M, Lambda."""
    count = len(dofs)
    jacobian, base_speed = np.zeros((6, count)), np.zeros(6)  # rows: linear, angular
    for i in range(count):
        axis, linear = cdof[dofs[i], :3], cdof[dofs[i], 3:]
        jacobian[:3, i] = linear + _cross(axis, hand - com)
        jacobian[3:, i] = axis
        if on_base[i]:  # robosuite takes the speed of its "base" site off, which on some arms sits on the first link
            base_speed[:3] += (linear + _cross(axis, center - com)) * qvel[dofs[i]]
            base_speed[3:] += axis * qvel[dofs[i]]
    speed = -base_speed
    for i in range(count):
        speed += jacobian[:, i] * qvel[dofs[i]]

    error = np.zeros(6)
    for i in range(3):
        error[i] = goal_m[i] - hand[i]
    target = goal_rotation
    if in_base:
        rotation = np.ascontiguousarray(center_rotation).reshape(3, 3)
        target = rotation @ goal_rotation
        error[:3] = center + rotation @ goal_m - hand
    for column in range(3):
        now = np.array([hand_rotation[column], hand_rotation[3 + column], hand_rotation[6 + column]])
        error[3:] += 0.5 * _cross(now, target[:, column])
    desired = kp * error - kd * speed

    # Lambda^-1 = J M^-1 J'; position and orientation are decoupled, as robosuite's default has it.
    inertia = _arm_inertia(dofs, parent, address, sparse_inertia)
    factor = inertia.copy()
    _cholesky(factor, count)
    weighted = np.zeros((count, 6))
    for row in range(6):
        solved = jacobian[row].copy()
        _substitute(factor, count, solved)
        weighted[:, row] = solved
    inverse_lambda = jacobian @ weighted
    wrench = np.empty(6)
    wrench[:3] = _solve(inverse_lambda[:3, :3].copy(), desired[:3].copy())
    wrench[3:] = _solve(inverse_lambda[3:, 3:].copy(), desired[3:].copy())

    # The null space: N' M a = M a - J' Lambda J a.
    pull = np.empty(count)
    for i in range(count):
        offset = rest_rad[i] - qpos[positions[i]]
        pull[i] = NULLSPACE_KP * offset - 2.0 * np.sqrt(NULLSPACE_KP) * qvel[dofs[i]]
    wrench -= _solve(inverse_lambda, jacobian @ pull)
    torque = jacobian.T @ wrench + inertia @ pull
    for i in range(count):
        low, high = limits[actuators[i], 0], limits[actuators[i], 1]
        ctrl[actuators[i]] = min(max(torque[i] + bias[dofs[i]], low), high)


@numba.njit(cache=True)  # type: ignore[misc, unused-ignore]
def _write_rotation(vector: Floats, rotation: Floats) -> None:
    """Write the rotation about a vector by its length (Rodrigues)."""
    angle = np.sqrt(vector[0] ** 2 + vector[1] ** 2 + vector[2] ** 2)
    axis = vector / angle if angle > 0.0 else vector
    sine, rest = np.sin(angle), 1.0 - np.cos(angle)
    for i in range(3):
        for j in range(3):
            rotation[i, j] = rest * axis[i] * axis[j]
        rotation[i, i] += 1.0 - rest
    rotation[0, 1] -= sine * axis[2]
    rotation[1, 0] += sine * axis[2]
    rotation[0, 2] += sine * axis[1]
    rotation[2, 0] -= sine * axis[1]
    rotation[1, 2] -= sine * axis[0]
    rotation[2, 1] += sine * axis[0]


@numba.njit(cache=True)  # type: ignore[misc, unused-ignore]
def _cross(a: Floats, b: Floats) -> Floats:
    out = np.empty(3)
    out[0] = a[1] * b[2] - a[2] * b[1]
    out[1] = a[2] * b[0] - a[0] * b[2]
    out[2] = a[0] * b[1] - a[1] * b[0]
    return out
