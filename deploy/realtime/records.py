"""What do the processes of a run tell each other? The numpy dtypes of every mailbox and of the tick log.

Times are `time.monotonic()` seconds of this host, joint values rad, rad/s, N m in the order of the arm, lengths m.
A record with a time of 0 was never written.
"""

from __future__ import annotations

import enum
from pathlib import Path

import numpy as np

from deploy.drivers.base import ARM_JOINTS, RobotState
from deploy.realtime.mailbox import Mailbox

MAX_WAYPOINTS = 64
TEXT_BYTES = 240

# Names of the mailbox files in a run's folder.
STATE_FILE, CHUNK_FILE, OPERATOR_FILE = "state", "chunk", "operator"
TICK_FILE, REPORT_FILE = "ticks.bin", "control.json"  # in the log folder: the control process's ticks and figures


class Machine(enum.IntEnum):
    """State of the control process's machine."""

    IDLE = 0  # connected, no motion; a fresh chunk starts one
    RUNNING = 1  # follows chunks
    HOLDING = 2  # in control, at rest: the newest chunk is older than two periods
    STOPPING = 3  # ramps down, then ends the motion
    REFLEX = 4  # the robot stopped itself; waits for the next try to recover
    USER_STOPPED = 5  # the user stop was pressed: an operator must confirm
    RECOVERING = 6  # `recover` is under way
    LOST = 7  # no connection; waits for the next try to connect


class Guard(enum.IntFlag):
    """Which guards of the safety filter changed what was asked for, in their order."""

    FINITE = 1  # a NaN or infinity: the whole target is dropped
    FRESH = 2  # the newest chunk is too old: the arm ramps to rest
    RANGE = 4  # the target is beyond the arm's mechanical range or moves faster than the arm can
    WORKSPACE = 8  # the grasp point would leave the box
    POSITION = 16  # joint soft limits
    STEP = 32  # too far from the measured position
    VELOCITY = 64
    ACCELERATION = 128
    JERK = 256
    STOP = 512  # the step asked for could not have been stopped inside the limits


# The robot as the control process sees it, written every tick.
STATE = np.dtype(
    [
        ("time_s", "<f8"),  # when this host received the state
        ("robot_time_s", "<f8"),  # the robot's own clock
        ("tick", "<u8"),
        ("machine", "<i4"),  # Machine
        ("mode", "<i4"),  # deploy.drivers.base.Mode
        ("q_rad", "<f8", (ARM_JOINTS,)),
        ("dq_rad_s", "<f8", (ARM_JOINTS,)),
        ("q_desired_rad", "<f8", (ARM_JOINTS,)),  # the robot's own command
        ("tau_nm", "<f8", (ARM_JOINTS,)),
        ("tau_external_nm", "<f8", (ARM_JOINTS,)),
        ("wrench_n_nm", "<f8", (6,)),
        ("success_rate", "<f8"),  # of the last 100 cycles, 0 outside a motion
        ("command_q_rad", "<f8", (ARM_JOINTS,)),  # what this host commanded last
        ("command_dq_rad_s", "<f8", (ARM_JOINTS,)),
        ("gripper_time_s", "<f8"),  # 0: no gripper
        ("gripper_width_m", "<f8"),
        ("gripper_max_width_m", "<f8"),
        ("gripper_grasped", "?"),
        ("gripper_target", "<f8"),  # -1 open .. +1 closed, after hysteresis
        ("chunk_sequence", "<u8"),  # newest chunk that was accepted
        ("recoveries", "<u4"),  # tries to recover or to connect so far
        ("gave_up", "?"),  # no more tries without an operator's confirmation
        ("errors", f"S{TEXT_BYTES}"),  # names, comma separated; or why the machine left RUNNING
    ]
)

# A plan of the policy: where to be when. Times never decrease inside a chunk; the first `count` waypoints hold.
CHUNK = np.dtype(
    [
        ("made_s", "<f8"),  # stamp: when inference finished; a chunk with an older stamp than the last is dropped
        ("capture_s", "<f8"),  # of the newest frame it came from
        ("state_s", "<f8"),  # of the robot state it came from
        ("episode", "<u4"),  # number of the episode; a stop ends it
        ("step", "<u4"),  # policy step in the episode
        ("stop", "?"),  # ramp to rest and end the motion; waypoints do not matter
        ("count", "<u4"),  # 0 .. MAX_WAYPOINTS
        ("time_s", "<f8", (MAX_WAYPOINTS,)),
        ("q_rad", "<f8", (MAX_WAYPOINTS, ARM_JOINTS)),
        ("dq_rad_s", "<f8", (MAX_WAYPOINTS, ARM_JOINTS)),
        ("gripper", "<f8", (MAX_WAYPOINTS,)),  # -1 open .. +1 closed
    ]
)

# What a person asks for. One writer: the process with the terminal.
OPERATOR = np.dtype(
    [
        ("time_s", "<f8"),
        ("stop", "?"),  # ramp to rest and stay there while this is set
        ("hold", "?"),  # brake and hold in control while this is set (surprise monitor, frozen camera)
        ("quit", "?"),  # stop, then end the control process
        ("confirm", "<u8"),  # raised by one to confirm after a user stop
    ]
)

# One tick of the control process; TICK_FILE is these records, one after the other.
TICK = np.dtype(
    [
        ("tick", "<u8"),
        ("deadline_s", "<f8"),
        ("start_s", "<f8"),  # when the tick began
        ("end_s", "<f8"),  # when the target was handed to the driver
        ("state_s", "<f8"),
        ("robot_time_s", "<f8"),
        ("machine", "<i4"),
        ("mode", "<i4"),
        ("guards", "<u4"),  # Guard
        ("chunk_sequence", "<u8"),
        ("chunk_made_s", "<f8"),
        ("chunk_capture_s", "<f8"),
        ("starved", "?"),  # no fresh plan is followed in a motion, nor after one that ended for want of it, unasked
        ("plan_ended", "?"),  # RUNNING, and the newest plan has no waypoint ahead
        ("q_rad", "<f8", (ARM_JOINTS,)),
        ("dq_rad_s", "<f8", (ARM_JOINTS,)),
        ("tau_nm", "<f8", (ARM_JOINTS,)),
        ("tau_external_nm", "<f8", (ARM_JOINTS,)),
        ("raw_q_rad", "<f8", (ARM_JOINTS,)),  # what the chunks ask for, before the filter
        ("raw_dq_rad_s", "<f8", (ARM_JOINTS,)),
        ("command_q_rad", "<f8", (ARM_JOINTS,)),  # what went to the robot
        ("command_dq_rad_s", "<f8", (ARM_JOINTS,)),
        ("command_ddq_rad_s2", "<f8", (ARM_JOINTS,)),
        ("gripper_raw", "<f8"),
        ("gripper_target", "<f8"),
        ("gripper_width_m", "<f8"),
        ("success_rate", "<f8"),
    ]
)


def create_mailboxes(folder: Path) -> None:
    """Create the mailboxes of a run; every process opens them afterwards."""
    for name, dtype in ((STATE_FILE, STATE), (CHUNK_FILE, CHUNK), (OPERATOR_FILE, OPERATOR)):
        Mailbox(folder / name, dtype, create=True).close()


def frame_dtype(height: int, width: int) -> np.dtype:
    """Return the dtype of a camera's mailbox: one RGB frame, origin top left."""
    return np.dtype([("capture_s", "<f8"), ("number", "<u8"), ("image", "u1", (height, width, 3))])


def fill_state(record: np.ndarray, state: RobotState) -> None:
    """Write the robot's part of a STATE record (0-d) in place."""
    record["time_s"], record["robot_time_s"] = state.time_s, state.robot_time_s
    record["mode"], record["success_rate"] = state.mode, state.command_success_rate
    record["q_rad"], record["dq_rad_s"], record["q_desired_rad"] = state.q_rad, state.dq_rad_s, state.q_desired_rad
    record["tau_nm"], record["tau_external_nm"] = state.tau_nm, state.tau_external_nm
    record["wrench_n_nm"] = state.wrench_n_nm


def guard_names(guards: int) -> list[str]:
    """Return the names of the guards that are set, lower case, in order."""
    return [guard.name.lower() for guard in Guard if guards & guard and guard.name]


def text(record: np.ndarray, field: str = "errors") -> str:
    """Return a text field of a record."""
    return bytes(record[field]).rstrip(b"\0").decode("utf-8", "replace")


# Which episode runs. One writer: the process with the terminal; inference follows it.
EPISODE_FILE, INFERENCE_FILE, READY_FILE = "episode", "inference", "inference.json"
EPISODE = np.dtype(
    [
        ("number", "<u4"),  # 0 before the first
        ("seed", "<i8"),  # of the scene, -1 where nobody knows it
        ("running", "?"),
        ("quit", "?"),
    ]
)

# What inference did in its newest step.
INFERENCE = np.dtype(
    [
        ("episode", "<u4"),
        ("step", "<u4"),  # policy steps done in the episode
        ("capture_s", "<f8"),  # of the oldest frame used
        ("begin_s", "<f8"),
        ("end_s", "<f8"),
        ("written", "<u4"),  # number of the last episode whose rows are on disk
        ("waits", "<u4"),  # times at which a step was left out: no fresh frame or no fresh state
        ("surprise", "<f8"),  # score of the newest frames (deploy/surprise.py); NaN without a monitor
        ("fault", f"S{TEXT_BYTES}"),  # why no action is sent, empty while all is well
    ]
)
