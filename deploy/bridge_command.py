"""How do the two computers of a run start their sides of the bridge?

    python -m deploy.bridge_command side=policy host=192.168.7.1 policy=<bundle>
    python -m deploy.bridge_command side=robot host=192.168.7.1 bundle=<hash> robot=fr3 address=172.16.0.2 cameras=[...]

The robot's side owns the run: it looks whether all is ready, asks the person, counts episodes and keeps the control
process's log. It needs no torch. The policy's side infers, and keeps what the policy saw.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.bridge.policy_end import PolicyEnd, camera_file, connect, create_all
from deploy.bridge.robot_end import RobotEnd, greet
from deploy.bridge.wire import PORT, Channel, Hello, Refused, WireError, make_hello
from deploy.cameras.capture import CaptureProcess, CaptureSettings, make_source
from deploy.cameras.reader import CameraSettings
from deploy.drivers.connect import DEFAULT
from deploy.emulator.client import Emulator
from deploy.operator_keys import OperatorKeys
from deploy.policy_loop import InferenceConfig, InferenceProcess, check_rate
from deploy.preflight import PreflightConfig, require_ready
from deploy.realtime.controller import ControlConfig
from deploy.realtime.machine import MachineSettings
from deploy.realtime.mailbox import Mailbox, memory_folder
from deploy.realtime.records import EPISODE, EPISODE_FILE, INFERENCE, INFERENCE_FILE, frame_dtype
from deploy.session import Session, Watch
from deploy.task_interface import check_task
from toto_robot.run_folder import write_json

_AGAIN_S = 1.0
_SETTLE_S = 0.5
_EMULATED_LINK_S = 0.2
_PICTURES_S = 30.0  # until the first: cameras adjust their exposure, and a scene is drawn anew
_TROUBLE_S = 15.0  # without a policy step
Cameras = dict[str, tuple[Path, tuple[int, int]]]


@dataclass(frozen=True, kw_only=True)
class BridgeConfig:
    """Settings of the bridge's two sides."""

    side: str  # robot: the computer beside the arm; policy: the computer with the bundle
    host: str = (
        "127.0.0.1"  # address of the robot's computer, the same on both sides: it listens there and nowhere else
    )
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
            _ = self.preflight  # refuses an arm without an address

    @property
    def arm(self) -> str:
        """Whose limits hold."""
        return self.emulated if self.robot == "emulator" else self.robot

    @property
    def preflight(self) -> PreflightConfig:
        """What is looked at before a motion."""
        return PreflightConfig(
            robot=self.robot,
            address=self.address,
            driver=self.driver,
            emulated=self.emulated,
            realtime=self.realtime,
            seconds=_EMULATED_LINK_S if self.robot == "emulator" else self.preflight_s,
        )


class RemotePolicy(InferenceProcess):
    """Stands in a session where the inference process stands, which runs on the other computer."""

    def __init__(self, channel: Channel, hello: Hello, folder: Path, cameras: Cameras) -> None:
        self._folder, self._hello, self.process = folder, hello, None
        self._link, self._cameras = channel, cameras
        self.end: RobotEnd | None = None

    def __enter__(self) -> RemotePolicy:
        Mailbox(self._folder / EPISODE_FILE, EPISODE, create=True).close()
        Mailbox(self._folder / INFERENCE_FILE, INFERENCE, create=True).close()
        self.end = RobotEnd(self._link, self._hello, self._folder, self._cameras).__enter__()
        return self

    def alive(self) -> bool:
        """Say whether the link stands."""
        return self.end is not None and self.end.alive()

    def wait_ready(self, timeout_s: float = 0.0) -> dict[str, float]:
        """Return what a step costs on the other computer, measured before it connected."""
        return dict(self._hello.policy_ms)

    def __exit__(self, *error: Any) -> None:
        if self.end is not None:
            self.end.__exit__()


def deploy_bridge(config: BridgeConfig, run_dir: Path) -> int:
    """Run a policy on one computer and the arm on another.

    Start both sides in any order; the policy's prints the hash that the robot's side has to be given. Ctrl-C on the
    robot's side, and the keys that `toto_robot deploy` has, stop the arm in a ramp; so does a lost link.
    """
    with _stop_signals():
        return _robot_side(config, run_dir) if config.side == "robot" else _policy_side(config, run_dir)


# --- beside the policy ------------------------------------------------------------------------------------------------


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


# --- beside the arm ---------------------------------------------------------------------------------------------------


def _robot_side(config: BridgeConfig, run_dir: Path) -> int:
    with contextlib.ExitStack() as stack:
        channel, hello = _welcome(config)
        stack.callback(channel.close)
        check_task(hello.task)
        folder = memory_folder()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        emulator = stack.enter_context(_emulator(config, hello, run_dir)) if config.robot == "emulator" else None
        size = (hello.image_size, hello.image_size)
        cameras = (
            {name: (path, size) for name, path in emulator.cameras.items()}
            if emulator
            else _start_cameras(config, hello, folder, stack)
        )
        address = emulator.address if emulator else str(config.address)
        require_ready(config.preflight, address)
        period_s = 1.0 / float(hello.task["control_rate_hz"])
        driver = config.driver or DEFAULT[config.arm]
        control = ControlConfig(
            driver=driver,
            driver_settings={"collision": 100.0} if emulator and driver == "franky" else {},
            robot=config.arm,
            address=address,
            realtime=config.realtime,
            rate_hz=config.rate_hz,
            realtime_priority=config.realtime_priority,
            machine=MachineSettings(stale_s=min(2.0 * period_s, 0.5)),
            dry_run=config.dry_run,
            log_folder=run_dir,
        )
        session = Session(folder, control, InferenceConfig(bundle=Path(), cameras={}, log_folder=run_dir))
        session.inference = remote = RemotePolicy(channel, hello, folder, cameras)
        stack.push(remote)
        stack.enter_context(session)
        check_rate(remote.wait_ready(), 1.0 / period_s)
        session.wait_connected()
        if emulator is None and not config.dry_run:
            _confirm_motion(config)
        outcomes = _episodes(config, hello, session, emulator, cameras, run_dir)
        reason = remote.end.error if remote.end else ""
        rejected = dict(remote.end.rejected) if remote.end else {}
    write_json(
        run_dir / "bridge.json",
        {"bundle": hello.bundle, "policy_ms": hello.policy_ms, "link": reason, "rejected_plans": rejected},
    )
    ended = [outcome["ended"] for outcome in outcomes]
    print(f"{ended.count('success')} of {len(ended)} episodes succeeded; wrote {run_dir / 'bridge.json'}")
    return 1 if "died" in ended else 0


def _welcome(config: BridgeConfig) -> tuple[Channel, Hello]:
    """Wait for the policy's computer; whoever does not belong here is told, and the next one is waited for."""
    with socket.create_server((config.host, config.port), backlog=1) as door:
        print(f"waiting for the policy's computer at {config.host}:{config.port}", flush=True)
        while True:
            connection, peer = door.accept()
            try:
                channel, hello = greet(connection, str(config.bundle))
            except (Refused, WireError) as error:
                print(f"{peer[0]} was not let in: {error}", flush=True)
                continue
            print(f"{peer[0]} has bundle {hello.bundle[:16]}, {hello.policy_ms['p50_ms']:.1f} ms a step", flush=True)
            return channel, hello


def _emulator(config: BridgeConfig, hello: Hello, run_dir: Path) -> Emulator:
    task = hello.task
    options: dict[str, Any] = {"preset": task["preset"], **(task.get("options") or {})}
    if task.get("randomization"):
        options["randomize"] = task["randomization"]
    return Emulator(
        task["env_id"],
        robot=config.emulated,
        seed=config.first_seed,
        cameras=hello.cameras,
        image_size=hello.image_size,
        options=options,
        event_file=run_dir / "robot_events.jsonl",
    )


def _start_cameras(config: BridgeConfig, hello: Hello, folder: Path, stack: contextlib.ExitStack) -> Cameras:
    given = dict(entry.split("=", 1) for entry in config.cameras if "=" in entry)
    missing = [name for name in hello.cameras if name not in given]
    if missing:
        raise ValueError(
            f"the bundle looks through {', '.join(hello.cameras)}: cameras={list(config.cameras)} lacks one"
        )
    started: Cameras = {}
    for name in hello.cameras:
        settings = CaptureSettings(name=name, source=given[name])
        make_source(settings)  # an unknown kind is refused here
        process = stack.enter_context(CaptureProcess(settings, folder / f"camera_{name}"))
        started[name] = (process.path, (settings.height, settings.width))
    return started


def _episodes(
    config: BridgeConfig, hello: Hello, session: Session, emulator: Emulator | None, cameras: Cameras, run_dir: Path
) -> list[dict[str, Any]]:
    horizon = config.horizon or int(hello.task["horizon_steps"])
    seconds = horizon / float(hello.task["control_rate_hz"])
    slow = 8.0 if emulator else 2.0
    watch = Watch(horizon_steps=horizon, longest_s=slow * seconds + _TROUBLE_S, trouble_s=_TROUBLE_S)
    outcomes: list[dict[str, Any]] = []
    with OperatorKeys(session) as keys, open(run_dir / "episodes.jsonl", "a", encoding="utf-8") as lines:

        def judge() -> str | None:
            return "success" if emulator and emulator.status()["success"] else keys.verdict()

        for number in range(1, config.episodes + 1):
            seed = config.first_seed + number - 1 if emulator else -1
            if emulator:
                emulator.reset(seed)
                session.confirm()
                time.sleep(_SETTLE_S)
            _wait_for_pictures(cameras)
            outcome = session.run_episode(number, seed, watch, judge)
            outcomes.append({"episode": number, "seed": seed, **asdict(outcome)})
            lines.write(json.dumps(outcomes[-1]) + "\n")
            lines.flush()
            print(f"episode {number}: {outcome.ended} after {outcome.steps} steps {outcome.reason}", flush=True)
            if outcome.ended in ("died", "operator"):
                break
    return outcomes


def _wait_for_pictures(cameras: Cameras) -> None:
    """Wait until every camera gives frames; RuntimeError names one that does not."""
    until_s = time.monotonic() + _PICTURES_S
    for name, (path, shape) in cameras.items():
        with Mailbox(path, frame_dtype(*shape)) as box:
            while time.monotonic() - float(box.newest()[1]["capture_s"]) > CameraSettings().stale_s:
                if time.monotonic() > until_s:
                    raise RuntimeError(f"camera {name} gives no pictures; nothing has moved")
                time.sleep(0.02)


def _confirm_motion(config: BridgeConfig) -> None:
    if not sys.stdin.isatty():
        raise RuntimeError("a real arm moves only after a person confirmed it: run this in a terminal, or dry_run=true")
    print(f"\nThe arm at {config.address} will move. Nobody within its reach? The user stop in your hand?")
    if input("type yes to begin: ").strip().lower() != "yes":
        raise RuntimeError("not confirmed; nothing has moved")


@contextlib.contextmanager
def _stop_signals() -> Any:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    from toto_robot import cli

    cli.COMMANDS["deploy bridge"] = cli.Command(
        "deploy.bridge_command:deploy_bridge",
        "the policy on one computer, the arm on another: one side of the bridge",
        ("deploy bridge side=policy policy=my_bundle", "deploy bridge side=robot bundle=0123456789abcdef"),
    )
    cli.main(["deploy", "bridge", *sys.argv[1:]])
