"""What can be set for a deployment, and what do preflight and the control process make of it?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.drivers.connect import DEFAULT
from deploy.drivers.impedance import CONTROLS
from deploy.preflight import PreflightConfig
from deploy.realtime.controller import ControlConfig
from deploy.realtime.limits import Margins
from deploy.realtime.machine import MachineSettings
from deploy.workspaces import box_of

ROBOTS = ("emulator", "twin", "fr3", "fer")
SIMULATED = ("emulator", "twin")  # they bring their own scene and cameras
_EMULATED_LINK_S = 0.2
_EMULATED_COLLISION = 100.0  # a hand that closes on a thing on a table presses with more than the arm's default of 20


@dataclass(frozen=True, kw_only=True)
class DeployConfig:
    """Settings of `toto_robot deploy`."""

    policy: str  # bundle folder of a trained policy
    robot: str = "emulator"  # emulator, twin (MuJoCo in this program), fr3 (Franka Research 3) or fer (Panda)
    address: str | None = None  # of a real arm; the emulator takes a free loopback address
    driver: str | None = None  # franky, pylibfranka, panda or twin; null is the arm's default
    emulated: str = "fr3"  # the arm that robot=emulator or twin is: fr3 (protocol 10) or fer (protocol 5)
    cameras: tuple[str, ...] = ()  # of a real arm, such as [front=opencv:0,wrist=realsense:<serial>]
    episodes: int = 1  # how many
    first_seed: int = 1_000_000  # of the simulated scenes: first_seed, first_seed + 1, ...
    horizon: int | None = None  # policy steps of an episode; null is the bundle's
    speed: float = 0.7  # share of each action that the arm does; real arms accelerate slower, at 1 they overshoot
    collision: float | None = None  # contact threshold, N and N m (franky); null: the arm's own, 100 if emulated
    control: str = "joint_impedance"  # of driver=franky; or cartesian_impedance
    box_m: tuple[float, ...] | None = ()  # of the grasp point, base frame: [x,y,z low,x,y,z high]; [] the task's
    step_rad: float = 0.3  # farthest target from the measured position, any joint
    margins: Margins = field(default_factory=Margins)
    camera_s: float = 15.0  # for the first frame of every camera
    rate_hz: float = 100.0  # of the control loop
    realtime: str = "ignore"  # or enforce: refuse a kernel without real time
    realtime_priority: int = 0  # SCHED_FIFO of the control loop, 1 to 98; 0 is none
    device: str = "cpu"  # where the encoder runs
    preflight_s: float = 2.0  # of the communication test before the first motion; the emulator's takes 0.2
    surprise: str = "off"  # log, or hold the arm while the cameras show what successful episodes never did
    dry_run: bool = False  # connect, look and compute; move nothing (also --dry-run)

    def __post_init__(self) -> None:
        if self.robot not in ROBOTS:
            raise ValueError(f"robot must be one of {', '.join(ROBOTS)}, got {self.robot!r}")
        if self.emulated not in DEFAULT:
            raise ValueError(f"emulated must be one of {', '.join(DEFAULT)}, got {self.emulated!r}")
        if self.episodes < 1 or (self.horizon is not None and self.horizon < 1):
            raise ValueError(f"expected episodes and horizon of at least 1, got {self.episodes} and {self.horizon}")
        if self.robot not in SIMULATED and not self.address:
            raise ValueError(f"robot={self.robot} needs address=<the robot's address>, such as address=172.16.0.2")
        if self.robot in SIMULATED and (self.address or self.cameras):
            raise ValueError(f"robot={self.robot} brings its own arm and cameras: leave address and cameras out")
        preflight_config(self)  # refuses what it cannot do
        box_of(self.box_m, "")
        if self.control not in CONTROLS or (self.control != CONTROLS[0] and self.driver_name != "franky"):
            raise ValueError(
                f"control must be one of {', '.join(CONTROLS)}, the second with driver=franky only, "
                f"got {self.control!r} and {self.driver_name}"
            )
        if self.collision is not None and (self.driver_name != "franky" or not self.collision > 0):
            raise ValueError(
                "collision is a contact threshold above 0 that driver=franky sets; other drivers leave the arm's own, "
                f"got {self.collision} and {self.driver_name}"
            )
        if not 0.0 < self.step_rad <= 1.0 or not self.camera_s > 0:
            raise ValueError(
                f"expected step_rad above 0 to 1 rad and camera_s above 0, got {self.step_rad} and {self.camera_s}"
            )
        if self.surprise not in ("off", "log", "hold"):
            raise ValueError(f"surprise must be off, log or hold, got {self.surprise!r}")

    @property
    def arm(self) -> str:
        """Whose limits hold."""
        return self.emulated if self.robot in SIMULATED else self.robot

    @property
    def driver_name(self) -> str:
        """Which driver moves the arm."""
        return self.driver or ("twin" if self.robot == "twin" else DEFAULT[self.arm])


def preflight_config(config: DeployConfig) -> PreflightConfig:
    """Return what is looked at before a deployment."""
    return PreflightConfig(
        robot=config.robot,
        address=config.address,
        driver=config.driver,
        emulated=config.emulated,
        realtime=config.realtime,
        realtime_priority=config.realtime_priority,
        seconds=_EMULATED_LINK_S if config.robot in SIMULATED else config.preflight_s,
        margins=config.margins,
    )


def control_config(config: DeployConfig, address: str, description: Any, run_dir: Path) -> ControlConfig:
    """Return the control process's settings: an arm holds after two policy periods without a plan."""
    task = description["task"]
    period_s = 1.0 / float(task["control_rate_hz"])
    collision = _EMULATED_COLLISION if config.robot == "emulator" else None
    collision = collision if config.collision is None else config.collision
    franky: dict[str, Any] = {"control": config.control, **({} if collision is None else {"collision": collision})}
    box = box_of(config.box_m, str(task.get("env_id")))
    if box is None and config.box_m is not None and config.robot not in SIMULATED:
        raise ValueError(
            f"{task.get('env_id')} has no workspace box of its own: give box_m=[x,y,z low,x,y,z high] in metres, frame "
            "of the arm's base, or box_m=null for an arm that may go everywhere"
        )
    return ControlConfig(
        driver=config.driver_name,
        driver_settings=franky if config.driver_name == "franky" else {},
        robot=config.arm,
        address=address,
        realtime=config.realtime,
        rate_hz=config.rate_hz,
        realtime_priority=config.realtime_priority,
        box=box,
        margins=config.margins,
        step_rad=config.step_rad,
        machine=MachineSettings(stale_s=min(2.0 * period_s, 0.5)),
        dry_run=config.dry_run,
        log_folder=run_dir,
    )
