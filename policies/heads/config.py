"""Which head, and what are its settings?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from policies.heads.base import LOSSES
from policies.heads.trunk import TrunkConfig

HEADS = ("mlp",)


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Settings of a head."""

    name: str = "mlp"  # mlp
    chunk_steps: int = 1  # actions predicted at once, K
    history: int = 1  # frames it sees, the current one included
    loss: str = "l1"  # mse, l1 or huber, on normalised actions
    feature_dropout: float = 0.1  # part of the pooled features that training zeroes
    trunk: TrunkConfig = field(default_factory=TrunkConfig)

    def __post_init__(self) -> None:
        if self.name not in HEADS:
            raise ValueError(f"expected head.name {', '.join(HEADS)}, got {self.name!r}")
        if self.loss not in LOSSES:
            raise ValueError(f"expected head.loss {', '.join(LOSSES)}, got {self.loss!r}")
        for name in ("chunk_steps", "history"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected head.{name} of at least 1, got {getattr(self, name)}")
        if not 0 <= self.feature_dropout < 1:
            raise ValueError(f"expected head.feature_dropout in [0, 1), got {self.feature_dropout}")


def head_config_from_json(stored: Mapping[str, Any]) -> HeadConfig:
    """Read what `asdict` and JSON have made of a HeadConfig."""
    trunk = stored["trunk"]
    return HeadConfig(**{**stored, "trunk": TrunkConfig(**{**trunk, "hidden": tuple(trunk["hidden"])})})
