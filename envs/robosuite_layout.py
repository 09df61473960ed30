"""What do the entries of a robosuite action and of its proprioception mean, in which unit?"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

# robosuite's proprioception without what repeats it: sines, cosines, a second quaternion; and without acceleration,
# which is not part of the simulator's state.
LEFT_OUT = ("joint_pos_cos", "joint_pos_sin", "joint_acc", "eef_quat_site")


def action_layout(env: Any) -> tuple[tuple[str, ...], tuple[str, ...], tuple[float, ...]]:
    """Return names, units, and what action 1 means in that unit, part by part as robosuite orders them."""
    names: list[str] = []
    units: list[str] = []
    scale: list[float] = []
    for robot in env.robots:
        prefix = "" if len(env.robots) == 1 and len(robot.arms) == 1 else robot.robot_model.naming_prefix
        for part, (first, last) in robot.composite_controller._action_split_indexes.items():
            controller = robot.part_controllers[part]
            of_part = prefix if len(robot.arms) == 1 else f"{prefix}{part}_"
            if controller.name.startswith("OSC") and controller.impedance_mode == "fixed":
                names += [f"{of_part}{entry}" for entry in ("dx", "dy", "dz", "drx", "dry", "drz")[: last - first]]
                units += (["m"] * 3 + ["rad"] * 3)[: last - first]
                scale += [float(value) for value in controller.output_max]
            elif "gripper" in part:
                numbers = [""] if last - first == 1 else [str(i) for i in range(last - first)]
                names += [f"{of_part}gripper{number}" for number in numbers]
                # robosuite takes the sign: it closes or opens by a fifth of the range at each step.
                units += ["opening sign -1, closing sign +1"] * (last - first)
                scale += [1.0] * (last - first)
            else:
                joints = controller.name == "JOINT_POSITION"
                names += [f"{of_part}{'dq' if joints else part}{i + 1}" for i in range(last - first)]
                units += ["rad" if joints else "robosuite's"] * (last - first)
                scale += np.broadcast_to(controller.output_max if joints else 1.0, last - first).tolist()
    return tuple(names), tuple(units), tuple(scale)


_UNITS = {"joint_pos": "rad", "joint_vel": "rad/s", "eef_pos": "m", "eef_quat": "1"}


def proprio_layout(env: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return names (robosuite's, numbered) and units of the proprioception entries, in the world frame."""
    names, units = [], []
    slides = _gripper_slides(env)
    for name, observable in env._observables.items():
        if not observable.modality.endswith("proprio") or name.endswith(LEFT_OUT) or not observable.is_active():
            continue
        entries = np.asarray(observable._sensor({})).size
        unit = next((unit for suffix, unit in _UNITS.items() if name.endswith(suffix)), "1")
        if "gripper_q" in name:
            unit = ("m" if slides else "rad") + ("/s" if name.endswith("qvel") else "")
        names += [f"{name}_{i}" for i in range(entries)]
        units += [unit] * entries
    return tuple(names), tuple(units)


def _gripper_slides(env: Any) -> bool:
    model = env.sim.model._model
    joints = [joint for robot in env.robots for arm in robot.arms for joint in robot.gripper_joints[arm] or ()]
    return all(model.joint(name).type[0] == mujoco.mjtJoint.mjJNT_SLIDE for name in joints)
