"""How do these tests make environments?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import pytest

from envs.registration import register_envs
from envs.task import RobotEnv

register_envs()
TASKS = ("FrankaPick", "FrankaCabinet", "KukaPick", "KukaCabinet")


@pytest.fixture
def make() -> Iterator[Callable[..., RobotEnv]]:
    """Return a function that makes the bare environment; all are closed at the end."""
    made: list[gymnasium.Env[Any, Any]] = []

    def make_one(task: str = "FrankaPick", **options: Any) -> RobotEnv:
        made.append(gymnasium.make(f"toto_robot/{task}-v0", **options))
        bare = made[-1].unwrapped
        assert isinstance(bare, RobotEnv)
        return bare

    yield make_one
    for env in made:
        env.close()
