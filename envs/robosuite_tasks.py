"""Which robosuite tasks does gymnasium find here, under which ids, and for how long does an episode last?

`robosuite/<Name>` is robosuite 1.5.2's own task, made by envs/robosuite_env.py. Nothing heavy is imported before one is
made: the ids are registered while gymnasium itself is still being imported (envs/plugin.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NAMESPACE = "robosuite"


@dataclass(frozen=True, kw_only=True)
class RobosuiteTask:
    """One task of robosuite 1.5.2."""

    name: str  # robosuite's class
    horizon_steps: int  # at 20 Hz
    arms: int = 1  # robots, by default
    model_is_drawn: bool = False  # sizes of bodies are random: another model every episode


# Horizons: robomimic's evaluation of its proficient-human data sets (arXiv 2108.03298; `ph_horizons` in robomimic's
# __init__.py): lift, can, square 400; transport, tool_hang 700. Tasks robomimic does not have: 500, as in the runs of
# ARISE-Initiative/robosuite-benchmark (their variant.json).
_ROBOSUITE, _SHORT, _LONG = 500, 400, 700

TASKS = {
    task.name: task
    for task in (
        RobosuiteTask(name="Lift", horizon_steps=_SHORT, model_is_drawn=True),  # side of the cube, 4.0 .. 4.4 cm
        RobosuiteTask(name="Stack", horizon_steps=_ROBOSUITE),
        RobosuiteTask(name="Door", horizon_steps=_ROBOSUITE),
        RobosuiteTask(name="Wipe", horizon_steps=_ROBOSUITE),
        RobosuiteTask(name="ToolHang", horizon_steps=_LONG),
        RobosuiteTask(name="NutAssembly", horizon_steps=_ROBOSUITE),
        RobosuiteTask(name="NutAssemblySingle", horizon_steps=_ROBOSUITE),
        RobosuiteTask(name="NutAssemblySquare", horizon_steps=_SHORT),
        RobosuiteTask(name="NutAssemblyRound", horizon_steps=_ROBOSUITE),
        RobosuiteTask(name="PickPlace", horizon_steps=_ROBOSUITE),
        RobosuiteTask(name="PickPlaceSingle", horizon_steps=_ROBOSUITE),
        RobosuiteTask(name="PickPlaceMilk", horizon_steps=_ROBOSUITE),
        RobosuiteTask(name="PickPlaceBread", horizon_steps=_ROBOSUITE),
        RobosuiteTask(name="PickPlaceCereal", horizon_steps=_ROBOSUITE),
        RobosuiteTask(name="PickPlaceCan", horizon_steps=_SHORT),
        RobosuiteTask(name="TwoArmLift", horizon_steps=_ROBOSUITE, arms=2),
        RobosuiteTask(name="TwoArmPegInHole", horizon_steps=_ROBOSUITE, arms=2, model_is_drawn=True),  # radius of peg
        RobosuiteTask(name="TwoArmHandover", horizon_steps=_ROBOSUITE, arms=2, model_is_drawn=True),  # the hammer
        RobosuiteTask(name="TwoArmTransport", horizon_steps=_LONG, arms=2, model_is_drawn=True),  # the payload
    )
}

# robomimic's short names.
ALIASES = {"Can": "PickPlaceCan", "Square": "NutAssemblySquare", "Transport": "TwoArmTransport"}


def register_robosuite_envs() -> None:
    """Register `robosuite/<Name>` for every task and alias once; imports neither robosuite nor gymnasium's package."""
    # The module, not the package: see the head of this file.
    from gymnasium.envs.registration import register, registry

    for short in (*TASKS, *ALIASES):
        env_id = f"{NAMESPACE}/{short}"
        if env_id not in registry:
            # No TimeLimit wrapper, no passive checker: the environment truncates and checks its actions itself.
            register(
                env_id,
                "envs.robosuite_tasks:make_robosuite_env",
                disable_env_checker=True,
                kwargs={"task": ALIASES.get(short, short)},
            )


def make_robosuite_env(task: str, **options: Any) -> Any:
    """Make a robosuite task; `options` are those of `envs.robosuite_env.RobosuiteEnv`."""
    name = ALIASES.get(task, task)
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join((*TASKS, *ALIASES))}, got {task!r}")
    from envs.robosuite_env import RobosuiteEnv

    return RobosuiteEnv(TASKS[name], **options)
