"""Is the environment that a recording was made in installed here, and what does it say about itself?

gymnasium finds it by the id in the recording; nothing of it is known here but three methods: `task_spec.as_dict()`,
`set_simulator_state(vector)` and `observation()` (docs/formats.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

# What of a task specification an environment is made with.
_SETTINGS = ("preset", "action_mode", "cameras", "image_size")


def settings_of(env: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments that make the environment of a task specification with gymnasium."""
    settings = {key: env[key] for key in _SETTINGS if env.get(key)}
    if "cameras" in settings:
        settings["obs_mode"] = "pixels"
    elif "preset" in settings:
        settings["obs_mode"] = "proprio"
        settings.pop("image_size", None)
    if env.get("randomization"):
        settings["randomize"] = env["randomization"]  # the seed of an episode then decides what it was
    return {**settings, **(env.get("options") or {})}


def seed_of(meta: Mapping[str, Any], index: int) -> int:
    """Return the seed that an episode was reset with, 0 where it is not recorded."""
    return int(meta["seed"][index]) if "seed" in meta else 0


class NotInstalled(Exception):
    """The environment cannot be made here; the message is the reason."""


@contextlib.contextmanager
def installed(env: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the environment of a recording without its wrappers, and close it; NotInstalled where it cannot be made."""
    import gymnasium

    settings: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings_of(env).items()
    }
    try:
        environment = gymnasium.make(str(env["env_id"]), **settings)
    except (gymnasium.error.Error, ImportError, TypeError, ValueError, OSError) as error:
        raise NotInstalled(" ".join(str(error).split())) from error
    try:
        yield environment.unwrapped
    finally:
        environment.close()


def specification(environment: Any) -> dict[str, Any]:
    """Return the task specification of an environment; empty where it has none."""
    spec: Any = getattr(environment, "task_spec", None)
    return dict(spec.as_dict()) if hasattr(spec, "as_dict") else {}
