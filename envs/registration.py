"""Which environments does gymnasium find here?"""

from __future__ import annotations

# The module, not the package: the entry point runs while gymnasium is still being imported (envs/plugin.py).
from gymnasium.envs.registration import register, registry

from envs.robosuite_tasks import register_robosuite_envs

IDS = {
    "toto_robot/FrankaPick-v0": "envs.pick:make_franka_pick",
    "toto_robot/FrankaCabinet-v0": "envs.cabinet:make_franka_cabinet",
    "toto_robot/KukaPick-v0": "envs.pick:make_kuka_pick",
    "toto_robot/KukaCabinet-v0": "envs.cabinet:make_kuka_cabinet",
}


def register_envs() -> None:
    """Register every environment once; safe to call again."""
    for env_id, entry_point in IDS.items():
        if env_id not in registry:
            # No TimeLimit wrapper, no passive checker: the environment truncates and checks its actions itself.
            register(env_id, entry_point, disable_env_checker=True)
    register_robosuite_envs()


register_envs()  # on import, for `gymnasium.make("envs.registration:toto_robot/FrankaPick-v0")`
