"""Is everything ready before an arm moves: `toto_robot deploy check`?

Versions on both sides, real time on this computer, the connection, the distance to the joints' ends, cameras, and the
policy's latency. Moves nothing, unless `hold` lets the tracker hold the arm still.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deploy.camera_check import check_camera
from deploy.drivers import versions
from deploy.drivers.base import ARM_JOINTS, DriverError, Mode, RobotDriver
from deploy.drivers.connect import DEFAULT, REALTIME, check_driver, make_driver
from deploy.host_checks import FAILED, OK, WARNING, Finding, check_host
from deploy.link_check import judge_link, measure_link
from deploy.policy_latency import check_policy
from deploy.realtime.limits import Margins, limits_for
from toto_robot.run_folder import write_json

_ROBOTS = ("emulator", "twin", *DEFAULT)


@dataclass(frozen=True, kw_only=True)
class PreflightConfig:
    """Settings of `toto_robot deploy check`."""

    # Nothing to continue: every run looks anew.
    MAY_CHANGE = (
        *("robot", "address", "driver", "emulated", "realtime", "realtime_priority", "seconds", "hold", "cameras"),
        *("policy", "device"),
    )

    robot: str = "emulator"  # emulator, twin (MuJoCo in this program), fr3 (Franka Research 3) or fer (Panda)
    address: str | None = None  # of a real arm; the emulator takes a free loopback address
    driver: str | None = None  # franky, pylibfranka, panda or twin; null is the arm's default
    emulated: str = "fr3"  # the arm that robot=emulator or twin is
    realtime: str = "ignore"  # or enforce: a kernel without real time is a failure
    realtime_priority: int = 0  # SCHED_FIFO that the control loop will ask for, 1 to 98; 0 is none
    seconds: float = 10.0  # of the communication test
    hold: bool = False  # let the tracker hold the arm still meanwhile; nobody within its reach!
    cameras: tuple[str, ...] = ()  # of a real arm, such as [front=opencv:0,wrist=realsense:<serial>]
    policy: str | None = None  # bundle whose latency is measured; needs torch on this computer
    device: str = "cpu"  # where its encoder runs
    margins: Margins = field(default_factory=Margins)  # that the run will keep

    def __post_init__(self) -> None:
        if self.robot not in _ROBOTS:
            raise ValueError(f"robot must be one of {', '.join(_ROBOTS)}, got {self.robot!r}")
        if self.emulated not in DEFAULT:
            raise ValueError(f"emulated must be one of {', '.join(DEFAULT)}, got {self.emulated!r}")
        if self.realtime not in REALTIME:
            raise ValueError(f"realtime must be one of {', '.join(REALTIME)}, got {self.realtime!r}")
        if not 0.1 <= self.seconds <= 3600.0:
            raise ValueError(f"seconds must be 0.1 to 3600, got {self.seconds}")
        if not 0 <= self.realtime_priority < 99:
            raise ValueError(f"realtime_priority must be 0 to 98, got {self.realtime_priority}")
        if self.robot not in ("emulator", "twin") and not self.address:
            raise ValueError(f"robot={self.robot} needs address=<the robot's address>, such as address=172.16.0.2")
        check_driver(self.driver_name, self.arm)
        if (self.driver_name == "twin") != (self.robot == "twin"):
            raise ValueError(f"driver twin and robot=twin go together, got {self.driver_name} for robot={self.robot}")
        if any("=" not in camera for camera in self.cameras):
            raise ValueError(f"cameras are name=source, such as [front=opencv:0], got {list(self.cameras)}")

    @property
    def arm(self) -> str:
        """Whose limits and protocol."""
        return self.emulated if self.robot in ("emulator", "twin") else self.robot

    @property
    def driver_name(self) -> str:
        """Which driver moves the arm."""
        return self.driver or ("twin" if self.robot == "twin" else DEFAULT[self.arm])


def deploy_check(config: PreflightConfig, run_dir: Path) -> int:
    """Look at everything that a deployment needs, print a table, and say what to do; 1 when something failed.

    Moves nothing unless hold=true. Writes preflight.json.
    """
    findings = check_host(config.realtime == "enforce", config.realtime_priority)
    details: dict[str, Any] = {}
    with _address(config) as address:
        findings += check_robot(config, address, details)
    findings += [check_camera(*camera.split("=", 1)) for camera in config.cameras]
    if config.policy is not None:
        findings.append(check_policy(Path(config.policy), config.device))
    print_table(findings)
    for name, count in details.get("link", {}).get("histogram", {}).items():
        print(f"  {name:>10}  {count}")
    failed = [finding.name for finding in findings if finding.verdict == FAILED]
    write_json(
        run_dir / "preflight.json",
        {
            "config": asdict(config),
            "ready": not failed,
            "findings": [asdict(finding) for finding in findings],
            **details,
        },
    )
    print(f"{'ready' if not failed else 'not ready: ' + ', '.join(failed)}; wrote {run_dir / 'preflight.json'}")
    return 1 if failed else 0


class NotReady(RuntimeError):
    """Something that a deployment needs is missing; the message says what."""


def require_host(config: PreflightConfig) -> None:
    """Look at the computer before anything is contacted; NotReady names what failed, with what to do."""
    _require(check_host(config.realtime == "enforce", config.realtime_priority))


def require_robot(config: PreflightConfig, address: str) -> None:
    """Look at versions, arm and link before a deployment; NotReady names what failed. Moves nothing."""
    _require(check_robot(config, address, {}))


def _require(findings: list[Finding]) -> None:
    """Print what is not in order, and nothing else; NotReady if something failed."""
    wrong = [finding for finding in findings if finding.verdict != OK]
    if wrong:
        print_table(wrong)
    failed = [f"{finding.name}: {finding.text}; {finding.help}" for finding in wrong if finding.verdict == FAILED]
    if failed:
        raise NotReady(f"not ready, nothing has moved: {'; '.join(failed)}. `toto_robot deploy check` looks again")


def check_robot(config: PreflightConfig, address: str, details: dict[str, Any]) -> list[Finding]:
    """Return the findings about versions, connection, state and link; `details` takes the link's figures."""
    name = config.driver_name
    found = [] if name == "twin" else [_client(name), _server(name, config.arm, address)]
    if any(finding.verdict == FAILED for finding in found):
        return found
    driver = make_driver(name, robot=config.arm, address=address, realtime=config.realtime)
    try:
        with driver:
            found += [*_state(driver, config.arm, config.margins), _gripper(driver)]
            if name == "twin":  # no link: it is this process
                return found
            may_hold = config.hold and driver.state().mode is Mode.IDLE
            link = measure_link(driver, config.seconds, may_hold)
            details["link"] = link.report()
            found += judge_link(link)
    except (DriverError, TimeoutError) as error:
        found.append(Finding(name="connection", verdict=FAILED, text=f"{type(error).__name__}: {error}"))
    return found


def print_table(findings: list[Finding]) -> None:
    """Print a line a finding, and below it what to do."""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{finding.verdict:<8} {finding.name:<{width}}  {finding.text}")
        if finding.help and finding.verdict != OK:
            print(f"{'':<8} {'':<{width}}  -> {finding.help}")
    sys.stdout.flush()


@contextlib.contextmanager
def _address(config: PreflightConfig) -> Iterator[str]:
    if config.robot != "emulator":
        yield config.address or ""
        return
    from deploy.emulator.client import Emulator

    with Emulator(robot=config.emulated) as emulator:
        yield emulator.address


def _client(name: str) -> Finding:
    version = versions.installed(name)
    if version is None:
        return Finding(
            name="client", verdict=FAILED, text=f"{name} is not installed", help=f"`{versions.install_command(name)}`"
        )
    return Finding(
        name="client",
        verdict=OK,
        text=f"{versions.DISTRIBUTIONS[name]} {version}, speaks version {versions.speaks(name)}",
    )


def _server(name: str, arm: str, address: str) -> Finding:
    server = versions.ask_version(address)
    if server is None:
        return Finding(
            name="server",
            verdict=FAILED,
            text=f"no answer at {address}:{versions.PORT}",
            help="robot on, brakes open and FCI activated in Desk, cable in the control cabinet, this computer's "
            "address in the same network, no other client connected",
        )
    speaks = versions.speaks(name)
    if server != speaks:
        return Finding(
            name="server", verdict=FAILED, text=f"speaks version {server}, not {speaks}", help=versions.advice(server)
        )
    try:
        limits = limits_for(arm, server)
    except ValueError as error:
        return Finding(name="server", verdict=FAILED, text=str(error), help="set robot to the arm that stands there")
    system = versions.INTERFACES[server].system
    return Finding(name="server", verdict=OK, text=f"speaks version {server} ({system}); limits {limits.name}")


def _state(driver: RobotDriver, arm: str, margins: Margins) -> list[Finding]:
    state = driver.state()
    ready = state.mode in (Mode.IDLE, Mode.MOVE)
    errors = f", errors: {', '.join(state.errors)}" if state.errors else ""
    kept = limits_for(arm, driver.server_version()).tightened(margins)
    room = np.minimum(state.q_rad - kept.low_rad, kept.high_rad - state.q_rad)
    joint = int(np.argmin(room))
    verdict = OK if room[joint] > 0.1 else WARNING if room[joint] > 0.0 else FAILED
    return [
        Finding(
            name="mode",
            verdict=OK if ready else FAILED,
            text=f"{state.mode.name.lower()}{errors}",
            help="release the user stop, leave guiding, or clear the error in Desk",
        ),
        Finding(
            name="joints",
            verdict=verdict,
            text=f"joint {joint + 1} of {ARM_JOINTS} is {room[joint]:.2f} rad from its soft limit",
            help="guide the arm towards the middle of its range",
        ),
    ]


def _gripper(driver: RobotDriver) -> Finding:
    hand = driver.gripper()
    if hand is None:
        return Finding(
            name="gripper", verdict=WARNING, text="nobody answers", help="mount it in Desk, or go on without one"
        )
    state = hand.state()
    if state.max_width_m < 0.07:
        return Finding(
            name="gripper",
            verdict=WARNING,
            text=f"opens to {state.max_width_m:.3f} m only",
            help="run homing in Desk: the hand forgets its range when it loses power",
        )
    return Finding(name="gripper", verdict=OK, text=f"{state.width_m:.3f} of {state.max_width_m:.3f} m open")
