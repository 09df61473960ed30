"""Which head, and what are its settings?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from policies.heads.act import ACTConfig
from policies.heads.base import LOSSES
from policies.heads.diffusion import DiffusionConfig
from policies.heads.gmm import GMMConfig
from policies.heads.trunk import TrunkConfig

# Actions at once, and frames seen, where the settings do not say. ACT's 100 actions are 2 s at 50 Hz, more than half of
# an episode here; Diffusion Policy has Tp = 16 and To = 2.
_CHUNK_STEPS = {"mlp": 1, "gmm": 1, "act": 20, "diffusion": 16}
_HISTORY = {"mlp": 1, "gmm": 1, "act": 1, "diffusion": 2}
HEADS = tuple(_CHUNK_STEPS)


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Settings of a head."""

    name: str = "mlp"  # mlp, gmm, act or diffusion
    chunk_steps: int | None = None  # actions predicted at once; null is 1 for mlp and gmm, 20 for act, 16 for diffusion
    history: int | None = None  # frames it sees, the current one included; null is 2 for diffusion, else 1
    loss: str = "l1"  # of mlp and act: mse, l1 or huber, on normalised actions
    feature_dropout: float = 0.1  # part of the pooled features that training zeroes
    trunk: TrunkConfig = field(default_factory=TrunkConfig)  # of all but act
    gmm: GMMConfig = field(default_factory=GMMConfig)
    act: ACTConfig = field(default_factory=ACTConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

    def __post_init__(self) -> None:
        if self.name not in HEADS:
            raise ValueError(f"expected head.name {', '.join(HEADS)}, got {self.name!r}")
        if self.loss not in LOSSES:
            raise ValueError(f"expected head.loss {', '.join(LOSSES)}, got {self.loss!r}")
        for name, value in (("chunk_steps", self.steps), ("history", self.frames)):
            if value < 1:
                raise ValueError(f"expected head.{name} of at least 1, got {value}")
        if not 0 <= self.feature_dropout < 1:
            raise ValueError(f"expected head.feature_dropout in [0, 1), got {self.feature_dropout}")

    @property
    def steps(self) -> int:
        """Actions predicted at once, K."""
        return _CHUNK_STEPS[self.name] if self.chunk_steps is None else self.chunk_steps

    @property
    def frames(self) -> int:
        """Frames seen, the current one included, Ho."""
        return _HISTORY[self.name] if self.history is None else self.history


_SECTIONS: dict[str, Callable[..., Any]] = {
    "trunk": TrunkConfig,
    "gmm": GMMConfig,
    "act": ACTConfig,
    "diffusion": DiffusionConfig,
}


def head_config_from_json(stored: Mapping[str, Any]) -> HeadConfig:
    """Read what `asdict` and JSON have made of a HeadConfig; settings that came later have their defaults."""
    values = dict(stored)
    for name, section in _SECTIONS.items():
        if name in values:
            values[name] = section(**{key: _tupled(value) for key, value in values[name].items()})
    return HeadConfig(**values)


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
