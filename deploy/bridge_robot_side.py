"""What does the computer beside the arm do in a run whose policy is on another one? Without torch."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.bridge.robot_end import RobotEnd, greet
from deploy.bridge.wire import Channel, Hello, Refused, WireError
from deploy.bridge_command import BridgeConfig
from deploy.cameras.reader import CameraSettings
from deploy.cameras.start import CameraPlaces, start_cameras
from deploy.deploy_config import control_config, preflight_config
from deploy.emulator.client import Emulator
from deploy.operator_keys import OperatorKeys
from deploy.person import begun_by_person, confirm_motion
from deploy.policy_loop import InferenceConfig, InferenceProcess, check_rate
from deploy.preflight import require_host, require_robot
from deploy.realtime.mailbox import Mailbox, memory_folder
from deploy.realtime.records import EPISODE, EPISODE_FILE, INFERENCE, INFERENCE_FILE, frame_dtype
from deploy.session import Session, Watch
from deploy.simulated_cell import emulated_cameras, make_emulator
from deploy.task_interface import check_task
from toto_robot.run_folder import write_json

_SETTLE_S = 0.5
_TROUBLE_S = 15.0  # without a policy step


def robot_side(config: BridgeConfig, run_dir: Path) -> int:
    """Wait for the policy's computer, then do everything that a run needs beside an arm."""
    require_host(preflight_config(config.deployment))
    with contextlib.ExitStack() as stack:
        channel, hello = _welcome(config)
        stack.callback(channel.close)
        check_task(hello.task)
        folder = memory_folder()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        description, emulator = {"task": hello.task, "cameras": hello.cameras}, None
        if config.robot == "emulator":
            emulator = stack.enter_context(make_emulator(config.deployment, description, run_dir))
            cameras = emulated_cameras(emulator, description)
        else:
            cameras = start_cameras(config.cameras, hello.cameras, folder, stack)
        address = emulator.address if emulator else str(config.address)
        require_robot(preflight_config(config.deployment), address)
        period_s = 1.0 / float(hello.task["control_rate_hz"])
        control = control_config(config.deployment, address, description, run_dir)
        session = Session(folder, control, InferenceConfig(bundle=Path(), cameras={}, log_folder=run_dir))
        session.inference = remote = RemotePolicy(channel, hello, folder, cameras)
        stack.push(remote)
        stack.enter_context(session)
        check_rate(remote.wait_ready(), 1.0 / period_s)
        session.wait_connected()
        if emulator is None and not config.dry_run:
            confirm_motion(config.address)
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


class RemotePolicy(InferenceProcess):
    """Stands in a session where the inference process stands, which runs on the other computer."""

    def __init__(self, channel: Channel, hello: Hello, folder: Path, cameras: CameraPlaces) -> None:
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

    def why_dead(self) -> str:
        """Say how the link has ended."""
        told = self.end.error if self.end is not None else ""
        return f"the link to the policy's computer has ended: {told or 'it hung up'}"

    def wait_ready(self, timeout_s: float = 0.0) -> dict[str, float]:
        """Return what a step costs on the other computer, measured before it connected."""
        return dict(self._hello.policy_ms)

    def __exit__(self, *error: Any) -> None:
        if self.end is not None:
            self.end.__exit__()


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


def _episodes(
    config: BridgeConfig,
    hello: Hello,
    session: Session,
    emulator: Emulator | None,
    cameras: CameraPlaces,
    run_dir: Path,
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
            elif number > 1 and not config.dry_run and not begun_by_person(keys, number):
                break
            _wait_for_pictures(cameras, config.camera_s)
            outcome = session.run_episode(number, seed, watch, judge)
            outcomes.append({"episode": number, "seed": seed, **asdict(outcome)})
            lines.write(json.dumps(outcomes[-1]) + "\n")
            lines.flush()
            print(f"episode {number}: {outcome.ended} after {outcome.steps} steps {outcome.reason}", flush=True)
            if outcome.ended in ("died", "operator"):
                break
    return outcomes


def _wait_for_pictures(cameras: CameraPlaces, camera_s: float) -> None:
    """Wait until every camera gives frames; RuntimeError names one that does not."""
    until_s = time.monotonic() + camera_s
    for name, (path, shape) in cameras.items():
        with Mailbox(path, frame_dtype(*shape)) as box:
            while time.monotonic() - float(box.newest()[1]["capture_s"]) > CameraSettings().stale_s:
                if time.monotonic() > until_s:
                    raise RuntimeError(f"camera {name} gives no pictures; nothing has moved")
                time.sleep(0.02)
