"""How is an environment named, made and described, without knowing any?

Policies import no environment: gymnasium finds them through the entry point of whoever installed them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from policies.control import PREFIX, ControlProblem

NAMESPACE = "toto_robot"


def environment_id(name: str) -> str:
    """Return the gymnasium id of a short name: `franka_pick` -> `toto_robot/FrankaPick-v0`; full ids pass through."""
    if "/" in name:
        return name
    camel = "".join(word[:1].upper() + word[1:] for word in name.split("_"))
    return f"{NAMESPACE}/{camel}-v0"


def make_environment(name: str, **settings: Any) -> Any:
    """Make an environment by short name or id; ValueError names the ones there are.

    `gymnasium/<id>` is one of gymnasium's own control problems (`policies/control.py`).
    """
    wanted = environment_id(name)
    if wanted.startswith(PREFIX):
        return ControlProblem(wanted, **settings)
    try:
        return gymnasium.make(wanted, **settings)
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.NamespaceNotFound, gymnasium.error.NameNotFound) as error:
        known = sorted(key for key in gymnasium.registry if key.startswith((f"{NAMESPACE}/", "robosuite/")))
        near = difflib.get_close_matches(wanted, known, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise ValueError(f"no environment {wanted!r} (from env={name}){hint}; there are: {', '.join(known)}") from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        what = str(error).rpartition("argument ")[2]
        raise ValueError(f"{wanted} has no setting {what}, such as randomisation or latency; leave it out") from error


def randomization(axes: Sequence[str], strength: float) -> dict[str, Any]:
    """Return the environment setting for some axes of randomisation at one strength; {} for none.

    The environment says which axes it knows; "all" is every one.
    """
    if not 0.0 <= strength <= 3.0:
        raise ValueError(f"expected a randomize_strength in 0..3 (1 is the whole range), got {strength}")
    if not axes or strength == 0.0:
        return {}
    if list(axes) == ["all"] and strength == 1.0:
        return {"randomize": "all"}
    return {"randomize": dict.fromkeys(axes, strength)}


def task_spec(environment: Any) -> dict[str, Any]:
    """Return the task specification of an environment as plain JSON values."""
    return plain(environment.unwrapped.task_spec.as_dict())


def plain(value: Any) -> Any:
    """Turn tuples into lists at any depth: what JSON gives back, so that two specifications can be compared."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.item() if hasattr(value, "item") and not isinstance(value, str) else value


def stack_observations(observations: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Make one observation with a batch axis of several; rows that are None are left out."""
    present = [observation for observation in observations if observation is not None]
    cameras = present[0].get("pixels", {}).keys()
    told = [key for key in ("proprio", "state") if key in present[0]]
    return {
        **{key: np.stack([observation[key] for observation in present]) for key in told},
        "pixels": {camera: np.stack([observation["pixels"][camera] for observation in present]) for camera in cameras},
    }


# What must agree for demonstrations, a policy and an environment to belong together.
_IDENTITY = (
    "env_id",
    "preset",
    "robot",
    "control_rate_hz",
    "action_mode",
    "action_names",
    "action_low",
    "action_high",
    "action_scale",
    "proprio_names",
    "scene_hash",
)


def check_same_task(
    expected: Mapping[str, Any], got: Mapping[str, Any], what: str, cameras: tuple[str, ...] = ()
) -> None:
    """Raise ValueError unless two task specifications agree on what a policy depends on.

    With `cameras`, both must have them, at one image size. The scene hash must agree too: a policy trained on another
    scene gives a number that means nothing.
    """
    for key in (*_IDENTITY, *(("image_size",) if cameras else ())):
        if expected.get(key) != got.get(key):
            raise ValueError(f"{what}: expected {key} {expected.get(key)!r}, got {got.get(key)!r}")
    for camera in cameras:
        for spec, side in ((expected, "expected"), (got, "got")):
            if camera not in spec["cameras"]:
                raise ValueError(
                    f"{what}: no camera {camera!r} in what was {side}; it has {', '.join(spec['cameras'])}"
                )
