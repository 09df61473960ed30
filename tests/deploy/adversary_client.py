"""Do the safety filter's commands pass a robot that checks every millisecond, when an adversary asks for the targets?

    python tests/deploy/adversary_client.py <address> <milliseconds> <seed>

pylibfranka sends the commands as joint positions at 1 kHz: the robot then refuses any step in velocity or acceleration.
The judge of `adversary.py` looks at the same commands. Prints one JSON line: how many commands, the exception that
ended the motion, if one did, and the largest share of every limit that they used.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pylibfranka
from adversary import NAMES, Judge, adversaries

from deploy.kinematics import grasp_point
from deploy.realtime.braking import Motion
from deploy.realtime.limits import FR3, Margins
from deploy.realtime.safety import MAX_DT_S, Box, SafetyLimits, filter_target

BOX = Box(low_m=(0.2, -0.5, 0.2), high_m=(0.7, 0.5, 0.9))
RANGE_RAD = 0.4
STILL_MS = 50
PIECE_MS = 400  # one adversary's turn
DT_S = 0.001


def main() -> None:
    """Let the adversaries take turns for a while, then stop."""
    address, length_ms, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    rng = np.random.default_rng(seed)
    robot = pylibfranka.Robot(address, pylibfranka.RealtimeConfig.kIgnore)
    robot.set_collision_behavior([1e4] * 7, [1e4] * 7, [1e4] * 6, [1e4] * 6)  # an adversary leans on tables
    control = robot.start_joint_position_control(pylibfranka.ControllerMode.JointImpedance)
    state, _ = control.readOnce()
    start = np.array(state.q_d)[None]
    now = Motion(start, np.zeros_like(start), np.zeros_like(start))
    # A range of joints and a box where the arm touches neither itself nor the table: what a blow does to the measured
    # state is not the command's fault. The margins are the loop's: at the full acceleration of all joints at once the
    # arm's torques would not do.
    near = dataclasses.replace(
        FR3,
        low_rad=np.maximum(FR3.low_rad, start[0] - RANGE_RAD),
        high_rad=np.minimum(FR3.high_rad, start[0] + RANGE_RAD),
    )
    limits = SafetyLimits(robot=near, margins=Margins(), box=BOX, grasp_point=grasp_point)
    limits = limits.starting_at(start[0])
    dt_s = DT_S
    error, sent, ages = "", 0, np.zeros(1)
    positions, times_s = [start] * 4, [DT_S * tick for tick in range(4)]
    try:
        for tick in range(length_ms):
            # At first only the start position: until an answer came within its millisecond the robot drops late ones.
            since = tick - STILL_MS
            if since >= 0:
                if since % PIECE_MS == 0:
                    adversary = adversaries(limits, now.q_rad, rng)[NAMES[since // PIECE_MS % len(NAMES)]]
                # Lies about the measured position are for the test without a robot: here it leans on real things.
                with np.errstate(all="ignore"):
                    q, dq, _, age = adversary(tick // 5, now, 5 * DT_S)
                age_s = ages + (np.inf if tick > length_ms - STILL_MS - PIECE_MS else age)
                now, _ = filter_target(now, (q, dq), np.array(state.q)[None], age_s, limits, dt_s)
                positions.append(now.q_rad)
                times_s.append(times_s[-1] + dt_s)
            command = pylibfranka.JointPositions(now.q_rad[0].tolist())
            command.motion_finished = tick == length_ms - 1
            control.writeOnce(command)
            sent += 1
            if tick < length_ms - 1:
                state, passed = control.readOnce()
                dt_s = min(max(passed.to_sec(), DT_S), MAX_DT_S)  # more than one cycle where one was lost
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
    judge = Judge()
    judge.see(np.stack(positions), np.array(times_s), limits.joint)
    moved_rad = float(np.abs(now.q_rad - start).max())
    told = {"sent": sent, "error": error, "moved_rad": moved_rad, "worst": judge.worst, "outside": judge.outside()}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
