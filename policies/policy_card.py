"""What does a person have to know of a policy: what it sees, does, learned from, has earned, and may be used for?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NO_LICENCE = (
    "Not stated. The code is Apache-2.0; whether the weights may be passed on also depends on the rights in the "
    "demonstrations and in the encoder's data. State a licence here, and in `license:` above, before you share them."
)


def demonstrated_by(provenance: Mapping[str, Any]) -> str:
    """Say who made the demonstrations of a store and where, as far as its provenance tells."""
    if "collect" in provenance:
        return "the scripted expert in simulation"
    if "record_demos" in provenance:
        settings = provenance["record_demos"]
        who = {"scripted": "the scripted expert", "guiding": "a person guiding the arm"}.get(
            settings["operator"], f"a person with the {settings['operator']}"
        )
        robot = settings.get("robot", "unknown")
        on = "the emulated arm" if robot == "emulator" else f"a real arm ({robot})"
        return f"{who} on {on}" + (", correcting a policy" if settings.get("policy") else "")
    if "dagger" in provenance:
        return "an expert correcting a policy in simulation"
    for kind, said in (("lerobot", "a LeRobot data set"), ("robomimic", "a robomimic file")):
        if kind in provenance:
            named = provenance[kind]
            return f"{said} ({named['name']})" if isinstance(named, Mapping) and "name" in named else said
    return "somebody unknown: the store does not say"


def model_card(description: Mapping[str, Any], policy_hash: str, evaluation: Mapping[str, Any] | None) -> str:
    """Return MODEL_CARD.md, with the header of model hubs."""
    task, encoder, training = description["task"], description["encoder"], description["training"]
    actions = zip(task["action_names"], task["action_units"], task["action_scale"], strict=True)
    earned = "not evaluated yet"
    if evaluation is not None:
        low, high = evaluation["wilson95"]
        earned = (
            f"{evaluation['successes']} of {evaluation['episodes']} held-out episodes = {evaluation['rate']:.1%} "
            f"(Wilson 95 %: {low:.1%} to {high:.1%}), seeds {evaluation['seeds'][0]} to {evaluation['seeds'][1]}"
            + (f", under {evaluation['conditions']}" if evaluation.get("conditions") else "")
        )
    hashes = {
        "policy (all files of this folder that it is made of)": policy_hash,
        "encoder": encoder["fingerprint"],
        "demonstrations": training.get("demonstrations_hash"),
        "scene": task.get("scene_hash"),
    }
    lines = [
        *("---", "license: unknown", "library_name: toto_robot", "tags:", "- robotics", "---", ""),
        f"# Policy for {task['env_id']} (preset {task['preset']})",
        "",
        f"**Success:** {earned}.",
        "",
        f"- Robot: {task['robot']}; control rate {task['control_rate_hz']} Hz; at most {task['horizon_steps']} steps",
        f"- Encoder: {encoder['name']}, layer {encoder['layer']}, {encoder['context_frames']} frames of context, "
        f"{encoder['parameters']:,} parameters, {_learned(training)}",
        f"- Cameras: {', '.join(description['cameras']) or 'none'} at {task['image_size']} px; "
        f"proprioception: {len(task['proprio_names'])} values",
        f"- Trained by {_how(training)}, policy seed {training['seed']}",
        "",
        "| action | at 1.0 | unit |",
        "|---|---|---|",
        *(f"| {name} | {scale:g} | {unit} |" for name, unit, scale in actions),
        "",
        "| SHA-256 of | |",
        "|---|---|",
        *(f"| {name} | `{value}` |" for name, value in hashes.items() if value),
        "",
        "Evaluated in simulation only, in the scene it was trained in (varied where it says so). A success rate says",
        "nothing about other scenes, cameras or a real arm. Load it with `policies.bundle.load_policy(<this folder>)`.",
        "",
        *("## Licence", "", _NO_LICENCE, ""),
    ]
    return "\n".join(lines)


def _learned(training: Mapping[str, Any]) -> str:
    mode = training.get("finetune", "none")
    return "frozen" if mode == "none" else f"trained with the head ({mode})"


def _how(training: Mapping[str, Any]) -> str:
    if training.get("learner") == "ppo":
        return f"PPO in {training['env_steps']:,} environment steps"
    if training.get("learner") == "dagger":
        return (
            f"DAgger on {training['demonstrations']} demonstrations{_by(training)} and {training['rollouts']} "
            f"corrected episodes ({training['env_steps']:,} environment steps)"
        )
    weights = (
        "the weights of the lowest validation loss" if training.get("checkpoint") == "best" else "the last weights"
    )
    shown = f"{training['demonstrations']} demonstrations ({training['frames']} frames){_by(training)}"
    return f"behaviour cloning on {shown}; {weights}"


def _by(training: Mapping[str, Any]) -> str:
    """Name who demonstrated; bundles from before that was recorded name nobody."""
    return f" by {training['demonstrated_by']}" if "demonstrated_by" in training else ""
