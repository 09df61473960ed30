"""What happened in a deployment: `toto_robot deploy report` draws tracking, latencies, guards, pictures, and a replay.

The replay feeds the commands that went to the robot, at the robot's own times, to the task's scene in the twin, and
says how far the real arm was from it: what the simulation does not know of the arm.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.drivers.base import ARM_JOINTS
from deploy.episode_log import STORE, read_rows, rows_file
from deploy.realtime.machine import IN_CONTROL
from deploy.realtime.records import REPORT_FILE, TICK_FILE, Guard
from deploy.realtime.ticklog import read_ticks
from deploy.replay import replay
from policies import page
from policies.videos import write_rollout
from toto_robot.data.episodes import IMAGE_PREFIX, EpisodeStore
from toto_robot.run_folder import read_json


@dataclass(frozen=True, kw_only=True)
class DeployReportConfig:
    """Settings of `toto_robot deploy report`."""

    MAY_CHANGE = ("data", "episode", "replay")

    data: str  # run folder of `toto_robot deploy`
    episode: int = 1  # whose joints, pictures and replay are shown
    replay: bool = True  # replay its commands in the twin; a real arm's scene is seed 0's


def deploy_report(config: DeployReportConfig, run_dir: Path) -> int:
    """Write report.html, and the episode's video, into the run folder of a deployment."""
    data = Path(config.data)
    if not (data / "deploy.json").exists():
        raise ValueError(f"{data} is no finished run of `toto_robot deploy` (deploy.json is missing)")
    deployed, control = read_json(data / "deploy.json"), read_json(data / REPORT_FILE)
    outcomes = {outcome["episode"]: outcome for outcome in _lines(data / "episodes.jsonl")}
    if config.episode not in outcomes:
        raise ValueError(f"{data} has episodes {min(outcomes)} to {max(outcomes)}, not {config.episode}")
    outcome = outcomes[config.episode]
    rows = read_rows(rows_file(data, config.episode))
    ticks = episode_ticks(read_ticks(data / TICK_FILE), rows)
    parts = [*_words(deployed, control), *_episodes(list(outcomes.values())), *surprises(rows)]
    if len(ticks):
        parts += [*_tracking(ticks, config.episode), *_timing(read_ticks(data / TICK_FILE), rows), *_guards(control)]
        if config.replay:
            task = EpisodeStore.open(data / STORE).env
            parts += _replayed(ticks, deployed["config"], task, max(0, outcome["seed"]))
        parts += _pictures(data, rows, outcome)
    title = f"{deployed['env']} on {deployed['config']['robot']}"
    page.write_page(data / "report.html", title, f"bundle {deployed['bundle'][:16]}", parts)
    print(f"wrote {data / 'report.html'}")
    return 0


def episode_ticks(ticks: np.ndarray, rows: dict[str, np.ndarray]) -> np.ndarray:
    """Return the ticks in control from the first step of an episode until the arm rests after the last one."""
    if "inference.end_s" not in rows:
        return ticks[:0]
    first_s, last_s = rows["inference.end_s"][0], rows["inference.end_s"][-1]
    start_s, controlled = ticks["start_s"], np.isin(ticks["machine"], IN_CONTROL)
    rests_s = start_s[(start_s > last_s) & ~controlled]
    until_s = rests_s[0] if rests_s.size else np.inf
    return ticks[(start_s >= first_s) & (start_s < until_s) & controlled]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _words(deployed: Any, control: Any) -> list[str]:
    low, high = deployed["wilson95"]
    latency, policy = control["capture_to_command_ms"], deployed["policy_ms"]
    captured = f"{latency['p50']:.1f}, {latency['p99']:.1f}" if latency["n"] else "none"
    periods = ", ".join(f"{control['period_ms'][key]:.1f}" for key in ("p50", "p99", "max"))
    starved, ended = ("none in motion" if control.get(key) is None else f"{control[key]:.2%}"
                      for key in ("starved_share", "plan_ended_share"))  # fmt: skip
    first = (
        f"{deployed['successes']} of {deployed['episodes']} episodes succeeded "
        f"(95 % Wilson interval {low:.1%} to {high:.1%})."
    )
    figures = [
        ["policy step, ms (p50, p99), before the run", f"{policy['p50_ms']:.1f}, {policy['p99_ms']:.1f}"],
        ["capture to command, ms (p50, p99)", captured],
        ["control ticks without a fresh plan, of those in which one was due", starved],
        ["of these: the plan had run out altogether", ended],
        ["control period, ms (p50, p99, max)", periods],
        ["tries to recover", control["recovery_tries"]],
        ["last failure", control["last_failure"] or "none"],
        ["limits", f"{control['limits']}: {control['limits_source']}"],
    ]
    return [page.paragraph(first, "first"), page.table(["", ""], figures)]


def _episodes(outcomes: list[Any]) -> list[str]:
    rows = [
        [entry["episode"], entry["seed"], entry["ended"], entry["steps"], f"{entry['seconds']:.1f}", entry["reason"]]
        for entry in outcomes
    ]
    return [page.heading("Episodes"), page.table(["episode", "seed", "ended", "steps", "s", "reason"], rows)]


def _tracking(ticks: np.ndarray, number: int) -> list[str]:
    seconds = ticks["start_s"] - ticks["start_s"][0]
    with page.plot(11, 3.2, 2) as drawn:
        left, right = drawn.axes[0]
        for joint in range(ARM_JOINTS):
            (line,) = left.plot(seconds, ticks["q_rad"][:, joint], label=f"q{joint + 1}")
            left.plot(seconds, ticks["command_q_rad"][:, joint], ":", color=line.get_color())
            right.plot(seconds, np.degrees(ticks["command_q_rad"] - ticks["q_rad"])[:, joint], color=line.get_color())
        left.set(xlabel="s", ylabel="rad", title="measured, and commanded (dotted)")
        right.set(xlabel="s", ylabel="deg", title="commanded minus measured")
        left.legend(fontsize=7, ncol=4)
    error = np.degrees(np.abs(ticks["command_q_rad"] - ticks["q_rad"])).max()
    return [page.heading(f"Joints of episode {number}"), page.figure(drawn.png, f"largest difference {error:.2f} deg")]


def _timing(ticks: np.ndarray, rows: dict[str, np.ndarray]) -> list[str]:
    first = np.flatnonzero(np.diff(ticks["chunk_sequence"], prepend=0) != 0)
    first = first[(ticks["chunk_capture_s"][first] > 0) & np.isin(ticks["machine"][first], IN_CONTROL)]
    latency_ms = 1e3 * (ticks["end_s"] - ticks["chunk_capture_s"])[first]
    inference_ms = 1e3 * (rows["inference.end_s"] - rows["inference.begin_s"])
    with page.plot(11, 2.8, 3) as drawn:
        for axes, values, title in zip(
            drawn.axes[0],
            (latency_ms, inference_ms, 1e3 * np.diff(ticks["start_s"])),
            ("capture to command", "inference (this episode)", "control period"),
            strict=True,
        ):
            axes.hist(values, bins=60, color="#1f6feb")
            axes.set(xlabel="ms", title=title, yscale="log")
    return [page.heading("Latencies"), page.figure(drawn.png, "how often each occurred")]


def _guards(control: Any) -> list[str]:
    counts = [[name, count] for name, count in control["guards"].items()]
    return [page.heading("Guards: ticks in which each changed the target"), page.table(["guard", "ticks"], counts)]


def surprises(rows: dict[str, np.ndarray]) -> list[str]:
    """Return the section of the surprise monitor's scores, those of steps without a plan too; nothing without one."""
    if "surprise.score" not in rows:
        return []
    time_s, score, threshold = (rows[f"surprise.{name}"] for name in ("time_s", "score", "threshold"))
    with page.plot(11, 2.8) as drawn:
        axes = drawn.axes[0, 0]
        axes.plot(time_s - time_s[0], score, ".-", color="#1f6feb", label="score")
        axes.plot(time_s - time_s[0], threshold, "--", color="#cf222e", label="threshold")
        axes.set(xlabel="s", ylabel="standard deviations")
        axes.legend(fontsize=8)
    above = int((~(score <= threshold)).sum())
    words = f"{above} of {len(score)} steps above the threshold of {threshold[-1]:.2f}, largest {np.max(score):.2f}"
    return [page.heading("Surprise of what the cameras showed"), page.figure(drawn.png, words)]


def _replayed(ticks: np.ndarray, config: Any, task: Any, seed: int) -> list[str]:
    if config["dry_run"]:
        return [page.paragraph("A dry run: nothing moved, so there is nothing to compare with a replay.", "note")]
    robot = config["emulated"] if config["robot"] == "emulator" else config["robot"]
    path = replay(ticks, robot, task, seed)
    deviation = np.degrees(path - ticks["q_rad"][: len(path)])
    seconds = ticks["start_s"] - ticks["start_s"][0]
    active = np.stack([(ticks["guards"] & guard) > 0 for guard in Guard])
    with page.plot(11, 3.2, 2) as drawn:
        left, right = drawn.axes[0]
        left.plot(seconds[: len(path)], deviation)
        left.set(xlabel="s", ylabel="deg", title="twin minus robot, each joint")
        right.imshow(active, aspect="auto", interpolation="nearest", extent=(0, seconds[-1], len(Guard), 0))
        right.set_yticks(np.arange(len(Guard)) + 0.5, [str(guard.name).lower() for guard in Guard], fontsize=7)
        right.set(xlabel="s", title="guards over time")
    ended = "" if len(path) == len(ticks) else f"; the twin stopped by a reflex after {seconds[len(path)]:.2f} s"
    words = (
        f"root mean square {np.sqrt((deviation**2).mean()):.2f} deg, largest {np.abs(deviation).max():.2f} deg{ended}"
    )
    return [page.heading("Replay in the twin, and guards"), page.figure(drawn.png, words)]


def _pictures(data: Path, rows: dict[str, np.ndarray], outcome: Any) -> list[str]:
    cameras = [key for key in rows if key.startswith(IMAGE_PREFIX)]
    if not cameras:
        return []
    frames = [
        {key.removeprefix(IMAGE_PREFIX): rows[key][step] for key in cameras} for step in range(len(rows["action"]))
    ]
    success = outcome["ended"] == "success"
    number = outcome["seed"] if outcome["seed"] >= 0 else outcome["episode"]
    write_rollout(data / "videos", number, success, frames)
    name = f"{'success' if success else 'failure'}_{number}"
    return [
        page.heading("What the policy saw"),
        page.picture(data / "videos" / f"{name}.png", f"videos/{name}.mp4 has every frame"),
    ]
