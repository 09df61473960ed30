"""Which action is executed when the head predicts the next K of them at every step?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EXECUTIONS = ("ensemble", "first")


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How a stream of predicted action chunks becomes actions."""

    kind: str = "ensemble"  # ensemble: average what the last K chunks say about now; first: newest chunk only
    decay: float = 0.3  # weight exp(-decay * age) of a chunk made `age` steps ago; 0 is the plain average

    def __post_init__(self) -> None:
        if self.kind not in EXECUTIONS:
            raise ValueError(f"expected execution.kind {' or '.join(EXECUTIONS)}, got {self.kind!r}")
        if self.decay < 0:
            raise ValueError(f"expected execution.decay of 0 or more, got {self.decay}")


class ChunkExecution:
    """Remembers the last K chunks of B running episodes and says what to do now (temporal ensembling, ACT).

    Zhao et al. (2023), "Learning fine-grained bimanual manipulation", weigh old predictions most; here the newest
    weighs most, because a grasp must react to the last image.
    """

    def __init__(self, config: ExecutionConfig, batch: int, chunk_steps: int, action_dim: int) -> None:
        self._config = config
        # Slot a holds the chunk made a steps ago; its entry a speaks about now.
        self._chunks = np.zeros((chunk_steps, batch, chunk_steps, action_dim), dtype=np.float32)
        self._age_limit = np.zeros(batch, dtype=np.int64)  # chunks made since the reset, at most K

    def next(self, chunk: np.ndarray, reset: np.ndarray) -> np.ndarray:
        """Take the newest chunks (B, K, A) and return the actions for now (B, A)."""
        steps = len(self._chunks)
        self._age_limit = np.where(reset, 0, self._age_limit)
        self._chunks = np.roll(self._chunks, 1, axis=0)
        self._chunks[0] = chunk
        self._age_limit = np.minimum(self._age_limit + 1, steps)
        if self._config.kind == "first":
            return chunk[:, 0]
        ages = np.arange(steps)
        weights = np.exp(-self._config.decay * ages)[:, None] * (ages[:, None] < self._age_limit)  # (K, B)
        said = self._chunks[ages, :, ages]  # (K, B, A): what the chunk of age a says about now
        return ((weights[..., None] * said).sum(axis=0) / weights.sum(axis=0)[:, None]).astype(np.float32)
