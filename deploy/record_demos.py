"""How do demonstrations come from an arm, real or emulated, into the store that simulated ones are in?

    python deploy/record_demos.py env=franka_pick episodes=20
    python deploy/record_demos.py robot=fr3 address=172.16.0.2 operator=guiding cameras=[front=opencv:0,wrist=opencv:2]
    python deploy/record_demos.py policy=<bundle> operator=keyboard

The operator is the task's scripted expert (emulator only), a person's keys or space mouse, or a hand that guides the
arm. With `policy` the policy runs and the operator takes over whenever they act (DAgger). See docs/recording.md.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from deploy.cameras.reader import wait_for_first
from deploy.cameras.start import start_cameras
from deploy.deploy_config import ROBOTS, DeployConfig, control_config, preflight_config
from deploy.drivers.connect import DEFAULT
from deploy.person import confirm_motion, stop_signals
from deploy.policy_loop import InferenceConfig, check_rate, measure
from deploy.preflight import require_host, require_robot
from deploy.realtime.mailbox import memory_folder
from deploy.recording.keys import RecordingKeys
from deploy.recording.operators import Corrected, Keyboard, Operator, Scripted, SpaceMouse
from deploy.recording.recorder import ArmSession, Emulated, Recorded, Recorder
from deploy.recording.twin import SceneTwin
from deploy.servo_model import LASTS_S
from deploy.simulated_cell import emulated_cameras, make_emulator, prepare
from deploy.task_interface import check_task
from policies.collect import CollectConfig, collected_task, create_store
from policies.environment import check_same_task, plain
from toto_robot.data.episodes import EpisodeStore

OPERATORS = ("scripted", "keyboard", "spacemouse", "guiding")
_VAIN_ATTEMPTS = 10  # in a row without an episode to keep: something is wrong


@dataclass(frozen=True, kw_only=True)
class RecordDemosConfig:
    """Settings of `toto_robot record-demos`."""

    MAY_CHANGE = ("episodes",)

    env: str = "franka_pick"  # task that is demonstrated, short name or gymnasium id; a policy's bundle says its own
    operator: str = "scripted"  # scripted (emulator), keyboard, spacemouse or guiding
    policy: str | None = None  # bundle that runs while the operator may take over
    episodes: int = 10  # episodes to keep
    out: str | None = None  # the store; null is <run>/episodes
    seed: int = 0  # of the emulator's first scene; attempt k has seed + k
    robot: str = "emulator"  # emulator, fr3 (Franka Research 3) or fer (Panda)
    address: str | None = None  # of a real arm
    driver: str | None = None  # franky, pylibfranka or panda; null is the arm's default
    emulated: str = "fr3"  # the arm that robot=emulator is: fr3 or fer
    cameras: tuple[str, ...] = ("front", "wrist")  # of a real arm with sources: [front=opencv:0,wrist=opencv:2]
    image_size: int = 64  # height and width of a camera image, px
    horizon: int | None = None  # steps after which an episode has failed; null is the task's
    keep_failures: bool = False  # keep episodes that failed
    takeover: float = 0.5  # the scripted expert takes over from a policy that differs more, in action units
    late_s: float = LASTS_S  # an episode with a later step is dropped; the default is how long a plan lasts
    rate_hz: float = 100.0  # of the control loop
    realtime: str = "ignore"  # or enforce: refuse a kernel without real time
    realtime_priority: int = 0  # SCHED_FIFO of the control loop, 1 to 98; 0 is none
    device: str = "cpu"  # where a policy's encoder runs

    def __post_init__(self) -> None:
        for name, known in (("operator", OPERATORS), ("robot", ROBOTS), ("emulated", tuple(DEFAULT))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.episodes < 1 or self.seed < 0 or not self.cameras:
            raise ValueError(
                f"expected episodes of at least 1, a seed of 0 or more and a camera, got {self.episodes}, {self.seed}, "
                f"{list(self.cameras)}"
            )
        if self.operator == "scripted" and self.robot != "emulator":
            raise ValueError("operator=scripted knows where things are from the emulator: use another one on an arm")
        if self.operator == "guiding" and self.policy:
            raise ValueError("a guided arm cannot run a policy: correct it with operator=keyboard or spacemouse")
        _ = self.deployment

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Names without sources."""
        return tuple(entry.partition("=")[0] for entry in self.cameras)

    @property
    def deployment(self) -> DeployConfig:
        """What a deployment on this arm would be; ValueError for an arm that cannot be reached."""
        return DeployConfig(
            policy=self.policy or "",
            robot=self.robot,
            address=self.address,
            driver=self.driver,
            emulated=self.emulated,
            cameras=() if self.robot == "emulator" else self.cameras,
            first_seed=self.seed,
            rate_hz=self.rate_hz,
            realtime=self.realtime,
            realtime_priority=self.realtime_priority,
            device=self.device,
        )


def record_demos(config: RecordDemosConfig, run_dir: Path) -> int:
    """Record demonstrations on a Franka arm, or on the emulator, into an episode store like `toto_robot collect`'s.

    The same command continues a store that was interrupted. Only whole episodes are stored.
    """
    path = Path(config.out) if config.out else run_dir / "episodes"
    description = described(config)
    task = description["task"]
    check_task(task)
    deployment = config.deployment
    require_host(preflight_config(deployment))
    demos = Demos(config, task, description["cameras"], path)
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop_signals())
        stack.callback(demos.close)
        folder = memory_folder()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        emulated = None
        if config.robot == "emulator":
            emulated = Emulated(stack.enter_context(make_emulator(deployment, description, run_dir)), SceneTwin(task))
            cameras, address = emulated_cameras(emulated.emulator, description), emulated.emulator.address
        else:
            cameras = start_cameras(deployment.cameras, description["cameras"], folder, stack)
            address = str(config.address)
        require_robot(preflight_config(deployment), address)
        wait_for_first(cameras, deployment.camera_s)
        control = control_config(deployment, address, description, run_dir)
        session = stack.enter_context(ArmSession(folder, control))
        session.wait_connected()
        if emulated is None and config.operator != "guiding":
            confirm_motion(deployment.address)
        keys = stack.enter_context(RecordingKeys(session))
        recorder = Recorder(
            InferenceConfig(bundle=Path(config.policy or ""), cameras=cameras, log_folder=run_dir),
            folder,
            task,
            make_operator(config, keys, emulated),
            emulated,
            corrects=config.policy is not None,
            late_s=config.late_s,
        )
        record_episodes(config, demos, session, recorder, keys, emulated)
    print(f"{path}: {demos.kept} episodes of {demos.attempt} attempts")
    print(f"next: toto_robot data check {path}; toto_robot train-policy env={config.env} demos={path}")
    return 0 if demos.kept >= config.episodes else 1


def described(config: RecordDemosConfig) -> dict[str, Any]:
    """Return `task` and `cameras` of what is recorded: a bundle's, or the environment's own."""
    if config.policy:
        from policies.bundle import check_bundle

        found = check_bundle(Path(config.policy))
        return {"task": found["task"], "cameras": list(found["cameras"])}
    cameras = config.camera_names
    task, _ = collected_task(CollectConfig(env=config.env, cameras=cameras, image_size=config.image_size))
    return {"task": task, "cameras": list(cameras)}


class Demos:
    """The store, made with the first episode that is kept."""

    def __init__(self, config: RecordDemosConfig, task: dict[str, Any], cameras: list[str], path: Path) -> None:
        self._config, self.task, self._path = config, task, path
        self._store: EpisodeStore | None = None
        self.attempt = 0  # number of the next one
        if path.exists():
            self._store = EpisodeStore.open(path)
            check_same_task(task, self._store.env, str(path), tuple(cameras))
            if len(self._store):
                self.attempt = int(self._store.meta["attempt"][-1]) + 1

    @property
    def kept(self) -> int:
        """Return the number of stored episodes."""
        return 0 if self._store is None else len(self._store)

    def take(self, recorded: Recorded) -> bool:
        """Store an episode that should be kept; say whether it was."""
        number, self.attempt = self.attempt, self.attempt + 1
        wanted = ("success", "failure", "horizon") if self._config.keep_failures else ("success",)
        if recorded.ended not in wanted or not recorded.arrays:
            return False
        if self._store is None:
            settings = {key: value for key, value in plain(asdict(self._config)).items() if key != "out"}
            self._store = create_store(self._path, self.task, recorded.arrays, record_demos=settings)
        seed = {"seed": self._config.seed + number} if self._config.robot == "emulator" else {}
        success = recorded.ended == "success"
        self._store.append(recorded.arrays, {**seed, "attempt": number, "noise": 0.0, "success": success})
        return True

    def close(self) -> None:
        """Let another process append."""
        if self._store is not None:
            self._store.close()


def make_operator(config: RecordDemosConfig, keys: RecordingKeys, emulated: Emulated | None) -> Operator | None:
    """Return who decides; None for a hand that guides the arm. RuntimeError where it has no terminal or device."""
    if config.operator == "guiding":
        return None
    if config.operator == "scripted":
        assert emulated is not None  # RecordDemosConfig refuses it elsewhere
        operator: Operator = Scripted(emulated.twin, takeover=config.takeover)
    elif config.operator == "spacemouse":
        operator = SpaceMouse()
    else:
        if not sys.stdin.isatty():
            raise RuntimeError("operator=keyboard reads keys: run this in a terminal")
        operator = Keyboard(keys)
    if not config.policy:
        return operator
    from policies.bundle import load_policy

    policy = load_policy(Path(config.policy), config.device)
    check_rate(measure(policy), float(policy.task["control_rate_hz"]))
    return Corrected(policy, operator)


def record_episodes(
    config: RecordDemosConfig,
    demos: Demos,
    session: ArmSession,
    recorder: Recorder,
    keys: RecordingKeys,
    emulated: Emulated | None,
) -> None:
    """Record until enough are kept or the person ends the run. RuntimeError after too many in vain."""
    task_horizon, vain = int(demos.task["horizon_steps"]), 0
    with tqdm(total=config.episodes, initial=demos.kept, desc="record", unit="episode") as bar:
        while demos.kept < config.episodes:
            seed = config.seed + demos.attempt
            if emulated:
                prepare(emulated.emulator, session, seed)
            keys.forget()
            if config.operator != "scripted" and sys.stdin.isatty():
                tqdm.write(f"attempt {demos.attempt}: enter begins, y success, e failure, x discards, s ends the run")
                if not keys.wait_for_start():
                    return
            with guided(emulated, config.operator == "guiding"):
                recorded = recorder.record(demos.attempt + 1, seed, config.horizon or task_horizon, keys.verdict)
            session.check_alive()
            kept = demos.take(recorded)
            bar.update(int(kept))
            if not kept:
                tqdm.write(f"attempt {demos.attempt - 1} not kept: {recorded.ended} {recorded.reason}")
            if recorded.ended == "operator":
                return
            vain = 0 if kept else vain + 1
            if vain >= _VAIN_ATTEMPTS:
                raise RuntimeError(f"{vain} attempts in a row were not kept; the last: {recorded.ended}")


@contextlib.contextmanager
def guided(emulated: Emulated | None, wanted: bool) -> Any:
    """Switch the emulator's guiding mode on for an episode; a real arm has a button for it."""
    on = emulated is not None and wanted
    if emulated and on:
        emulated.emulator.guiding(True)
    try:
        yield
    finally:
        if emulated and on:
            emulated.emulator.guiding(False)


if __name__ == "__main__":
    from toto_robot.cli import main

    main(["record-demos", *sys.argv[1:]])
