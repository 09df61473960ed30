"""How do the two computers of a run start their sides of the bridge?

    toto_robot deploy bridge side=policy host=192.168.7.1 policy=<bundle>
    toto_robot deploy bridge side=robot host=192.168.7.1 bundle=<hash> robot=fr3 address=172.16.0.2 cameras=[...]

The robot's side owns the run: it looks whether all is ready, asks the person, counts episodes and keeps the control
process's log. It needs no torch. The policy's side infers, and keeps what the policy saw.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from deploy.bridge.policy_end import PolicyEnd, camera_file, connect, create_all
from deploy.bridge.wire import PORT, Channel, Hello, WireError, make_hello
from deploy.deploy_config import DeployConfig
from deploy.person import stop_signals
from deploy.policy_loop import InferenceConfig, InferenceProcess, check_rate
from deploy.realtime.limits import Margins
from deploy.realtime.mailbox import memory_folder
from deploy.task_interface import check_task

_AGAIN_S = 1.0
# Settings of `toto_robot deploy` that the robot's side takes over as they are.
_DEPLOYMENT = (
    *("robot", "address", "driver", "emulated", "cameras", "episodes", "first_seed", "horizon", "collision", "control"),
    *("box_m", "step_rad", "margins", "camera_s", "rate_hz", "realtime", "realtime_priority", "preflight_s", "dry_run"),
)


@dataclass(frozen=True, kw_only=True)
class BridgeConfig:
    """Settings of the bridge's two sides."""

    side: str  # robot: the computer beside the arm; policy: the computer with the bundle
    host: str = "127.0.0.1"  # address of the robot's computer, on both sides: it listens there and nowhere else
    port: int = PORT  # TCP, on the robot's computer
    policy: str | None = None  # side=policy: bundle folder
    device: str = "cpu"  # side=policy: where the encoder runs
    speed: float = 0.7  # side=policy: share of each action that the arm does
    surprise: str = "off"  # side=policy: log, or hold
    bundle: str | None = None  # side=robot: hash of the bundle that may move this arm, as side=policy prints it
    robot: str = "emulator"  # side=robot: emulator, fr3 or fer
    address: str | None = None  # side=robot: of a real arm
    driver: str | None = None  # side=robot: franky, pylibfranka or panda; null is the arm's default
    emulated: str = "fr3"  # side=robot: the arm that robot=emulator is
    cameras: tuple[str, ...] = ()  # side=robot: of a real arm, such as [front=opencv:0,wrist=opencv:2]
    episodes: int = 1  # side=robot: how many
    first_seed: int = 1_000_000  # side=robot: of the emulator's scenes
    horizon: int | None = None  # side=robot: policy steps of an episode; null is the bundle's
    collision: float | None = None  # side=robot: contact threshold, N and N m (franky); null: the arm's own
    control: str = "joint_impedance"  # side=robot: of driver=franky; or cartesian_impedance
    box_m: tuple[float, ...] | None = ()  # side=robot: of the grasp point, [x,y,z low,x,y,z high]; [] the task's
    step_rad: float = 0.3  # side=robot: farthest target from the measured position, any joint
    margins: Margins = field(default_factory=Margins)
    camera_s: float = 15.0  # side=robot: for the first frame of every camera
    rate_hz: float = 100.0  # side=robot: of the control loop
    realtime: str = "ignore"  # side=robot: or enforce
    realtime_priority: int = 0  # side=robot: SCHED_FIFO of the control loop, 1 to 98; 0 is none
    preflight_s: float = 2.0  # side=robot: of the communication test; the emulator's takes 0.2
    dry_run: bool = False  # side=robot: move nothing

    def __post_init__(self) -> None:
        if self.side not in ("robot", "policy"):
            raise ValueError(f"side must be robot or policy, got {self.side!r}")
        if self.side == "policy" and not self.policy:
            raise ValueError("side=policy needs policy=<bundle folder>")
        if self.side == "robot" and not self.bundle:
            raise ValueError("side=robot needs bundle=<hash>, as side=policy prints it")
        if not 1 <= self.port <= 65535 or self.episodes < 1:
            raise ValueError(
                f"expected a port of 1 to 65535 and episodes of 1 or more, got {self.port}, {self.episodes}"
            )
        if self.side == "robot":
            if self.robot == "twin":
                raise ValueError("robot=twin runs in one program: use toto_robot deploy robot=twin")
            _ = self.deployment  # refuses what a deployment here would refuse

    @property
    def deployment(self) -> DeployConfig:
        """What `toto_robot deploy` would be told on the robot's computer: the same limits, checks and box."""
        return DeployConfig(policy="", **{name: getattr(self, name) for name in _DEPLOYMENT})


def deploy_bridge(config: BridgeConfig, run_dir: Path) -> int:
    """Run a policy on one computer and the arm on another.

    Start both sides in any order; the policy's prints the hash that the robot's side has to be given. Ctrl-C on the
    robot's side, and the keys that `toto_robot deploy` has, stop the arm in a ramp; so does a lost link.
    """
    with stop_signals():
        if config.side == "policy":
            return _policy_side(config, run_dir)
        from deploy.bridge_robot_side import robot_side

        return robot_side(config, run_dir)


def _policy_side(config: BridgeConfig, run_dir: Path) -> int:
    from policies.bundle import bundle_hash, check_bundle

    bundle = Path(str(config.policy))
    description = check_bundle(bundle)
    task, cameras, found = description["task"], tuple(description["cameras"]), bundle_hash(bundle)
    check_task(task)
    size = int(task["image_size"])
    with contextlib.ExitStack() as stack:
        folder = memory_folder()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        create_all(folder, cameras, size)
        inference = InferenceConfig(
            bundle=bundle,
            cameras={name: (camera_file(folder, name), (size, size)) for name in cameras},
            log_folder=run_dir,
            device=config.device,
            speed=config.speed,
            surprise=config.surprise,
        )
        process = stack.enter_context(InferenceProcess(inference, folder))
        measured = process.wait_ready()
        check_rate(measured, float(task["control_rate_hz"]))
        print(f"bundle {found}\non the robot's computer: side=robot host={config.host} bundle={found[:16]}", flush=True)
        hello = make_hello(found, task, cameras, measured)
        end = stack.enter_context(PolicyEnd(_connect(config, hello), hello, folder))
        print("connected", flush=True)
        while end.alive() and process.alive():
            time.sleep(0.1)
    print(f"ended: {end.error or 'the inference process has died'}")
    return 0 if end.error else 1


def _connect(config: BridgeConfig, hello: Hello) -> Channel:
    """Try until the robot's computer listens; Refused if it does not want this bundle."""
    told = False
    while True:
        try:
            return connect(config.host, config.port, hello)
        except WireError as error:
            if not told:
                print(f"{error}; trying on", flush=True)
            told = True
            time.sleep(_AGAIN_S)
