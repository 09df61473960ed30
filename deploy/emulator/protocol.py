"""What bytes do an arm, a hand and their clients exchange over the Franka Control Interface?

Layouts of protocol 10 (FR3, system 5.9 and newer) and 5 (FER, system 4.2.1 and newer), after the public headers
`research_interface/robot/rbk_types.h`, `service_types.h` and `research_interface/gripper/types.h` of
frankarobotics/libfranka-common (version 10) and frankaemika/libfranka-common (version 5). Packed, little endian.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

ROBOT_PORT, GRIPPER_PORT = 1337, 1338
GRIPPER_VERSION = 3
JOINTS = 7

ERRORS = (  # research_interface/robot/error.h, in the order of the flags
    "joint_position_limits_violation",
    "cartesian_position_limits_violation",
    "self_collision_avoidance_violation",
    "joint_velocity_violation",
    "cartesian_velocity_violation",
    "force_control_safety_violation",
    "joint_reflex",
    "cartesian_reflex",
    "max_goal_pose_deviation_violation",
    "max_path_pose_deviation_violation",
    "cartesian_velocity_profile_safety_violation",
    "joint_position_motion_generator_start_pose_invalid",
    "joint_motion_generator_position_limits_violation",
    "joint_motion_generator_velocity_limits_violation",
    "joint_motion_generator_velocity_discontinuity",
    "joint_motion_generator_acceleration_discontinuity",
    "cartesian_position_motion_generator_start_pose_invalid",
    "cartesian_motion_generator_elbow_limit_violation",
    "cartesian_motion_generator_velocity_limits_violation",
    "cartesian_motion_generator_velocity_discontinuity",
    "cartesian_motion_generator_acceleration_discontinuity",
    "cartesian_motion_generator_elbow_sign_inconsistent",
    "cartesian_motion_generator_start_elbow_invalid",
    "force_controller_desired_force_tolerance_violation",
    "start_elbow_sign_inconsistent",
    "communication_constraints_violation",
    "power_limit_violation",
    "cartesian_motion_generator_joint_position_limits_violation",
    "cartesian_motion_generator_joint_velocity_limits_violation",
    "cartesian_motion_generator_joint_velocity_discontinuity",
    "cartesian_motion_generator_joint_acceleration_discontinuity",
    "cartesian_position_motion_generator_invalid_frame_flag",
    "controller_torque_discontinuity",
    "joint_p2p_insufficient_torque_for_planning",
    "tau_J_range_violation",
    "instability_detected",
    "joint_move_in_wrong_direction",
    "cartesian_spline_motion_generator_violation",
    "joint_via_motion_generator_planning_joint_limit_violation",
    "base_acceleration_initialization_timeout",
    "base_acceleration_invalid_reading",
)


class RobotMode(enum.IntEnum):
    """`robot_mode` of the state."""

    OTHER = 0
    IDLE = 1
    MOVE = 2
    GUIDING = 3
    REFLEX = 4
    USER_STOPPED = 5
    RECOVERY = 6


class Generator(enum.IntEnum):
    """Motion generator of a Move request; the state shows the value + 1, 0 when idle."""

    JOINT_POSITION = 0
    JOINT_VELOCITY = 1
    CARTESIAN_POSE = 2
    CARTESIAN_VELOCITY = 3
    NONE = 4  # torques alone, protocol 7 and newer


class Controller(enum.IntEnum):
    """Controller of a Move request and of the state."""

    JOINT_IMPEDANCE = 0
    CARTESIAN_IMPEDANCE = 1
    EXTERNAL = 2
    OTHER = 3  # of the state, when nothing runs


class Command(enum.Enum):
    """A request of a robot client, whatever its number in a version."""

    CONNECT = enum.auto()
    MOVE = enum.auto()
    STOP_MOVE = enum.auto()
    GET_CARTESIAN_LIMIT = enum.auto()
    SET_COLLISION_BEHAVIOR = enum.auto()
    SET_JOINT_IMPEDANCE = enum.auto()
    SET_CARTESIAN_IMPEDANCE = enum.auto()
    SET_GUIDING_MODE = enum.auto()
    SET_EE_TO_K = enum.auto()
    SET_NE_TO_EE = enum.auto()
    SET_LOAD = enum.auto()
    SET_FILTERS = enum.auto()
    AUTOMATIC_ERROR_RECOVERY = enum.auto()
    LOAD_MODEL_LIBRARY = enum.auto()
    GET_ROBOT_MODEL = enum.auto()


class MoveStatus(enum.Enum):
    """Answer to a Move request, whatever its number in a version."""

    SUCCESS = enum.auto()
    MOTION_STARTED = enum.auto()
    PREEMPTED = enum.auto()
    NOT_POSSIBLE = enum.auto()
    INVALID_ARGUMENT = enum.auto()
    REFLEX_ABORTED = enum.auto()
    EMERGENCY_ABORTED = enum.auto()
    INPUT_ERROR_ABORTED = enum.auto()
    ABORTED = enum.auto()


# Numbers that every setter and recovery shares in both versions.
SUCCESS, NOT_POSSIBLE = 0, 1
INCOMPATIBLE_VERSION = 1  # of Connect


def _state(real: str, accelerometers: bool) -> np.dtype:
    top = [("accelerometer_top", real, (6, 3)), ("accelerometer_bottom", real, (6, 3))] if accelerometers else []
    shapes: list[tuple[str, int]] = [
        *((name, 16) for name in ("O_T_EE", "O_T_EE_d", "F_T_EE", "EE_T_K", "F_T_NE", "NE_T_EE")),
        *(("m_ee", 1), ("I_ee", 9), ("F_x_Cee", 3), ("m_load", 1), ("I_load", 9), ("F_x_Cload", 3)),
        *(("elbow", 2), ("elbow_d", 2)),
        *((name, 7) for name in ("tau_J", "tau_J_d", "dtau_J", "q", "q_d", "dq", "dq_d", "ddq_d")),
        *(("joint_contact", 7), ("cartesian_contact", 6), ("joint_collision", 7), ("cartesian_collision", 6)),
        *(("tau_ext_hat_filtered", 7), ("O_F_ext_hat_K", 6), ("K_F_ext_hat_K", 6), ("O_dP_EE_d", 6), ("O_ddP_O", 3)),
        *(("elbow_c", 2), ("delbow_c", 2), ("ddelbow_c", 2), ("O_T_EE_c", 16), ("O_dP_EE_c", 6), ("O_ddP_EE_c", 6)),
        *(("theta", 7), ("dtheta", 7)),
    ]
    fields: list[tuple] = [("message_id", "<u8")]
    fields += [(name, real) if size == 1 else (name, real, (size,)) for name, size in shapes]
    fields += top
    fields += [("motion_generator_mode", "u1"), ("controller_mode", "u1")]
    fields += [("errors", "?", (len(ERRORS),)), ("reflex_reason", "?", (len(ERRORS),))]
    fields += [("robot_mode", "u1"), ("control_command_success_rate", real)]
    return np.dtype(fields)


def _command(torque_flag: bool) -> np.dtype:
    fields: list[tuple] = [("message_id", "<u8"), ("q_c", "<f8", (7,)), ("dq_c", "<f8", (7,))]
    fields += [("O_T_EE_c", "<f8", (16,)), ("O_dP_EE_c", "<f8", (6,)), ("elbow_c", "<f8", (2,))]
    fields += [("valid_elbow", "u1"), ("motion_finished", "u1"), ("tau_J_d", "<f8", (7,))]
    return np.dtype(fields + ([("torque_finished", "u1")] if torque_flag else []))


def _move(asynchronous: bool) -> np.dtype:
    fields: list[tuple] = [("controller", "<u4"), ("generator", "<u4"), ("path", "<f8", (3,)), ("goal", "<f8", (3,))]
    return np.dtype(fields + ([("asynchronous", "u1"), ("max_velocity", "<f8", (7,))] if asynchronous else []))


HEADER = np.dtype([("command", "<u4"), ("id", "<u4"), ("size", "<u4")])  # size with the header
CONNECT = np.dtype([("version", "<u2"), ("udp_port", "<u2")])
COLLISION = np.dtype(
    [(f"torque_{end}_{phase}", "<f8", (7,)) for phase in ("acceleration", "nominal") for end in ("lower", "upper")]
    + [(f"force_{end}_{phase}", "<f8", (6,)) for phase in ("acceleration", "nominal") for end in ("lower", "upper")]
)
LOAD = np.dtype([("mass", "<f8"), ("center", "<f8", (3,)), ("inertia", "<f8", (9,))])
CARTESIAN_LIMIT_ANSWER = 3 * 8 + 16 * 8 + 1  # bytes behind the status of protocol 5's GetCartesianLimit

GRIPPER_HEADER = np.dtype([("command", "<u2"), ("id", "<u4"), ("size", "<u4")])
GRASP = np.dtype([(name, "<f8") for name in ("width", "epsilon_inner", "epsilon_outer", "speed", "force")])
GRIPPER_MOVE = np.dtype([("width", "<f8"), ("speed", "<f8")])
GRIPPER_STATE = np.dtype(
    [("message_id", "<u4"), ("width", "<f8"), ("max_width", "<f8"), ("is_grasped", "?"), ("temperature", "<u2")]
)


class GripperCommand(enum.IntEnum):
    """A request of a gripper client."""

    CONNECT = 0
    HOMING = 1
    GRASP = 2
    MOVE = 3
    STOP = 4


class GripperStatus(enum.IntEnum):
    """Answer to a gripper request."""

    SUCCESS = 0
    FAIL = 1
    UNSUCCESSFUL = 2
    ABORTED = 3


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of the robot's interface."""

    number: int
    commands: tuple[Command, ...]  # in the order of their numbers
    move_statuses: tuple[MoveStatus | None, ...]  # None: never sent
    state: np.dtype
    command: np.dtype
    move: np.dtype

    def named(self, number: int) -> Command | None:
        """Return the request of a number, None for an unknown one."""
        return self.commands[number] if number < len(self.commands) else None

    def status_byte(self, status: MoveStatus) -> bytes:
        """Return a Move status as it is sent."""
        return bytes([self.move_statuses.index(status)])


_C, _M = Command, MoveStatus
_SETTERS = (
    _C.SET_COLLISION_BEHAVIOR,
    _C.SET_JOINT_IMPEDANCE,
    _C.SET_CARTESIAN_IMPEDANCE,
    _C.SET_GUIDING_MODE,
    _C.SET_EE_TO_K,
    _C.SET_NE_TO_EE,
    _C.SET_LOAD,
)
_LAST = (_M.INVALID_ARGUMENT, _M.REFLEX_ABORTED, _M.EMERGENCY_ABORTED, _M.INPUT_ERROR_ABORTED, _M.ABORTED)

V10 = Version(
    number=10,
    commands=(_C.CONNECT, _C.MOVE, _C.STOP_MOVE, *_SETTERS, _C.AUTOMATIC_ERROR_RECOVERY, _C.GET_ROBOT_MODEL),
    # The two of safety functions, and the start at a singular pose, are never sent.
    move_statuses=(_M.SUCCESS, _M.MOTION_STARTED, _M.PREEMPTED, None, None, _M.NOT_POSSIBLE, None, *_LAST),
    state=_state("<f4", accelerometers=True),
    command=_command(torque_flag=True),
    move=_move(asynchronous=True),
)
V5 = Version(
    number=5,
    commands=(
        *(_C.CONNECT, _C.MOVE, _C.STOP_MOVE, _C.GET_CARTESIAN_LIMIT, *_SETTERS),
        *(_C.SET_FILTERS, _C.AUTOMATIC_ERROR_RECOVERY, _C.LOAD_MODEL_LIBRARY),
    ),
    move_statuses=(_M.SUCCESS, _M.MOTION_STARTED, _M.PREEMPTED, _M.NOT_POSSIBLE, None, *_LAST),
    state=_state("<f8", accelerometers=False),
    command=_command(torque_flag=False),
    move=_move(asynchronous=False),
)
