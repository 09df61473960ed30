"""What model of itself does the emulated arm hand out: a URDF (protocol 10), a compiled library (protocol 5)?

Geometry: the Denavit-Hartenberg parameters of the FCI documentation. Masses: those of the scene's links, so a client's
gravity and Coriolis torques are the plant's. The library is a stand-in for the vendor's: same symbols (libfranka 0.9,
`libfcimodels.h`), our arithmetic, compiled when the emulator starts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from deploy.drivers.base import ARM_JOINTS
from deploy.emulator.plant import Plant
from deploy.realtime.limits import JointLimits

# Craig's convention, FCI documentation: a_(i-1), d_i, alpha_(i-1) of joints 1 to 7; the flange is 0.107 m further.
DH = (
    (0.0, 0.333, 0.0),
    (0.0, 0.0, -np.pi / 2),
    (0.0, 0.316, np.pi / 2),
    (0.0825, 0.0, np.pi / 2),
    (-0.0825, 0.384, -np.pi / 2),
    (0.0, 0.0, np.pi / 2),
    (0.088, 0.0, np.pi / 2),
)
FLANGE_M = 0.107
_C_FILE = Path(__file__).with_name("model_library.c")


def urdf(plant: Plant, limits: JointLimits) -> bytes:
    """Return a URDF that libfranka's Pinocchio and velocity limits can read."""
    links = [_link(f"link{number}", *plant.link_inertia(number)) for number in range(ARM_JOINTS + 1)]
    joints = [_joint(joint, limits) for joint in range(ARM_JOINTS)]
    flange = (
        f'<joint name="{limits.name}_joint8" type="fixed"><origin xyz="0 0 {FLANGE_M}" rpy="0 0 0"/>'
        '<parent link="link7"/><child link="link8"/></joint><link name="link8"/>'
    )
    return "\n".join([f'<robot name="{limits.name}">', *links, *joints, flange, "</robot>"]).encode()


def _link(name: str, mass: float, center: np.ndarray, inertia: np.ndarray) -> str:
    entries = zip(("ixx", "ixy", "ixz", "iyy", "iyz", "izz"), inertia[np.triu_indices(3)], strict=True)
    values = " ".join(f'{entry}="{value:.9g}"' for entry, value in entries)
    place = " ".join(f"{value:.9g}" for value in center)
    return (
        f'<link name="{name}"><inertial><origin xyz="{place}" rpy="0 0 0"/><mass value="{mass:.9g}"/>'
        f"<inertia {values}/></inertial></link>"
    )


def _joint(joint: int, limits: JointLimits) -> str:
    a, d, alpha = DH[joint]
    place = f"{a:.9g} {-np.sin(alpha) * d:.9g} {np.cos(alpha) * d:.9g}"
    falling = limits.velocity_offset_rad_s is not None
    offset = limits.velocity_offset_rad_s[joint] if limits.velocity_offset_rad_s is not None else 0.0
    # Without a falling limit: a deceleration that never binds.
    slowing = limits.end_deceleration_rad_s2[joint] if limits.end_deceleration_rad_s2 is not None else 1e6
    low = limits.low_end_rad[joint] if falling and limits.low_end_rad is not None else limits.low_rad[joint]
    high = limits.high_end_rad[joint] if falling and limits.high_end_rad is not None else limits.high_rad[joint]
    return (
        f'<joint name="{limits.name}_joint{joint + 1}" type="revolute"><origin xyz="{place}" rpy="{alpha:.12g} 0 0"/>'
        f'<parent link="link{joint}"/><child link="link{joint + 1}"/><axis xyz="0 0 1"/>'
        f'<limit effort="{limits.torque_nm[joint]:g}" lower="{low:.9g}" upper="{high:.9g}"'
        f' velocity="{limits.velocity_rad_s[joint]:.9g}"/>'
        f'<position_based_velocity_limits deceleration_limit="{slowing:g}" velocity_offset="{offset:.9g}"/></joint>'
    )


def model_library(plant: Plant) -> bytes:
    """Return the compiled library. RuntimeError without a C compiler, or when it fails."""
    compiler = next(
        (found for name in (os.environ.get("CC"), "cc", "gcc") if name and (found := shutil.which(name))), None
    )
    if compiler is None:
        raise RuntimeError(
            "robot=fer needs a C compiler: protocol 5 hands out a compiled model library. Install one "
            "(apt-get install gcc), name it in CC, or use robot=fr3"
        )
    with tempfile.TemporaryDirectory(prefix="toto_robot_model_") as folder:
        path = Path(folder) / "model.so"
        Path(folder, "tables.h").write_text(_tables(plant))
        command = [compiler, "-O2", "-shared", "-fPIC", f"-I{folder}", "-o", str(path), str(_C_FILE), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"compiling the model library failed: {' '.join(command)}\n{done.stderr[-2000:]}")
        return path.read_bytes()


def _tables(plant: Plant) -> str:
    links = [plant.link_inertia(number) for number in range(1, ARM_JOINTS + 1)]
    tables = {
        "DH_A": [a for a, _, _ in DH],
        "DH_D": [d for _, d, _ in DH],
        "DH_ALPHA": [alpha for _, _, alpha in DH],
        "MASS": [mass for mass, _, _ in links],
        "CENTER": np.concatenate([center for _, center, _ in links]),
        "INERTIA": np.concatenate([inertia.ravel() for _, _, inertia in links]),
    }
    lines = [f"#define FLANGE_M {FLANGE_M!r}"]
    for name, values in tables.items():
        numbers = ", ".join(repr(float(value)) for value in values)
        lines.append(f"static const double {name}[{len(values)}] = {{{numbers}}};")
    return "\n".join(lines) + "\n"
