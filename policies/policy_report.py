"""What did one training make, how good is it, how sure is that, and what comes next: on one page?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policies.curve import curve_png, measured_on, read_curve
from policies.page import ENCODER_LABELS, commands, figure, heading, paragraph, picture, table, write_page
from policies.statistics import Rate
from toto_robot.cli import COMMANDS
from toto_robot.run_folder import git_commit, machine, read_json

_ON_THE_ARM = "toto_robot/Franka"  # tasks whose policies `deploy` takes; those of preset pixmc ask for too much speed


def write_policy_report(run_dir: Path, bundle: Path, evaluation: Mapping[str, Any]) -> Path:
    """Write `<run>/report.html`, which needs nothing beside it, and return its path."""
    description = read_json(bundle / "policy.json")
    parts = [
        paragraph(verdict(evaluation), "first"),
        paragraph(
            "One policy, one scene: the interval is that of the episodes alone. Another policy seed gives another "
            "policy, and the noise between policy seeds is not in it.",
            "note",
        ),
        heading("Success on held-out starts"),
        table((), _outcome(evaluation)),
        picture(run_dir / "rollouts.png", "Cameras over time: a success, then a failure if there was one."),
    ]
    points = read_curve(run_dir)
    if points:
        learner = description["training"].get("learner", "bc")
        caption = (
            f"Success on {measured_on(learner)}, while it learned, with Wilson 95 % intervals, over control steps "
            "learned from."
        )
        parts += [heading("Learning curve"), figure(curve_png(points, learner), caption)]
    if (run_dir / "loss.png").exists():
        parts += [heading("Loss"), picture(run_dir / "loss.png", "Of normalised actions; it does not rank policies.")]
    parts += [heading("What was used"), table((), _used(description, evaluation))]
    parts += [heading("What to do next"), commands(next_commands(bundle, description))]
    subtitle = f"{machine()['processor']} · {time.strftime('%Y-%m-%d')} · commit {git_commit()}"
    write_page(run_dir / "report.html", f"A policy for {evaluation['env']}", subtitle, parts)
    return run_dir / "report.html"


def verdict(evaluation: Mapping[str, Any]) -> str:
    """Return the result in a sentence; a policy that never succeeded is said to, with what is not excluded."""
    rate = Rate(successes=evaluation["successes"], episodes=evaluation["episodes"])
    low, high = rate.interval
    under = f" under {evaluation['conditions']}" if evaluation.get("conditions") else ""
    if rate.successes == 0:
        return (
            f"It never succeeded in {rate.episodes} held-out episodes{under}. A success rate of up to {high:.1%} is "
            "not excluded (Wilson 95 %). Look at the failures, then try more demonstrations, another encoder.layer, or "
            "the oracle encoder=state, which shows whether the learner or the encoder is at fault."
        )
    return (
        f"{rate.successes} of {rate.episodes} held-out episodes succeeded{under}: {rate.value:.1%}, "
        f"Wilson 95 % interval {low:.1%} to {high:.1%}."
    )


def next_commands(bundle: Path, description: Mapping[str, Any]) -> list[str]:
    """Return command lines that follow from this policy; only of commands that there are."""
    task, training = description["task"], description["training"]
    lines = [f"toto_robot evaluate policy={bundle} episodes=400 run={bundle.parent}/evaluate"]
    env, preset, learner = f"env={task['env_id']}", f"preset={task['preset']}", training.get("learner", "bc")
    if task["cameras"]:  # then encoders matter
        amount = f"demonstrations=[{training.get('demonstrations') or 1}]"
        if learner == "ppo":
            amount = f"train.ppo.env_steps={training['env_steps']}"
        how = "" if learner == "bc" else f"policy={learner} "
        encoders = "encoders=[toto,mae,random_vit,none]"
        lines.append(f"toto_robot compare {env} train.{preset} {how}{encoders} {amount} seeds=5")
    if task["cameras"] and learner == "bc" and description["encoder"]["name"] != "random_vit":
        count = training["demonstrations"]
        lines.append(f"toto_robot train-policy {env} {preset} encoder=random_vit demonstrations={count}  # a control")
    if (
        task["env_id"].startswith(_ON_THE_ARM)
        and task["preset"] == "real"
        and description["encoder"]["name"] != "state"
    ):
        lines.append(f"toto_robot deploy policy={bundle} robot=emulator episodes=10")
    return [line for line in lines if line.split()[1] in COMMANDS]


def _outcome(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    ended, steps = evaluation["ended"], evaluation["steps_to_success"]
    rows = [
        ("episodes", f"{evaluation['episodes']}, seeds {evaluation['seeds'][0]} to {evaluation['seeds'][1]}"),
        ("success", f"{ended['success']}"),
        ("ended by the task without success", f"{ended['failure']}"),
        ("out of time", f"{ended['horizon']}"),
    ]
    if steps:
        rows.append(
            ("steps to success", f"median {steps['median']:.0f}, quartiles {steps['q25']:.0f} {steps['q75']:.0f}")
        )
    if evaluation.get("conditions"):
        rows.append(("conditions", evaluation["conditions"]))
    return rows


def _used(description: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[tuple[str, Any]]:
    task, encoder, training = description["task"], description["encoder"], description["training"]
    told: list[tuple[str, Any]] = [
        ("task", f"{task['env_id']}, {task['robot']}, preset {task['preset']}, {task['control_rate_hz']} Hz"),
        ("cameras", f"{', '.join(description['cameras']) or 'none'}, {task['image_size']} px"),
        ("encoder", ENCODER_LABELS.get(encoder["name"], encoder["name"])),
        ("layer, frames of context", f"{encoder['layer']}, {encoder['context_frames']}"),
        ("parameters that a frame passes", f"{encoder['parameters']:,}"),
        ("learner", training.get("settings", {}).get("policy", "bc")),
        ("head", description["head"]),
    ]
    told += [(key.replace("_", " "), value) for key, value in training.items() if not isinstance(value, dict | list)]
    return told + [(f"SHA-256 of the {name}", value) for name, value in evaluation["hashes"].items() if value]
