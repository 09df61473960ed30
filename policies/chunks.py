"""Which action is executed when the head predicts the next K of them at every step?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

EXECUTIONS = ("auto", "ensemble", "first", "receding")


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How a stream of predicted action chunks becomes actions."""

    # ensemble: average what the last K chunks say about now; first: newest chunk only; receding: `steps` actions of a
    # chunk, then the next chunk. The average of two ways around an obstacle leads into it, so heads that draw recede.
    kind: str = "auto"  # ensemble, first or receding; auto is receding for gmm and diffusion, ensemble for mlp and act
    decay: float = 0.3  # weight exp(-decay * age) of a chunk made `age` steps ago; 0 is the plain average
    steps: int = 8  # of receding: actions taken of a chunk before the next chunk, at most the chunk's length

    def __post_init__(self) -> None:
        if self.kind not in EXECUTIONS:
            raise ValueError(f"expected execution.kind {', '.join(EXECUTIONS)}, got {self.kind!r}")
        if self.decay < 0:
            raise ValueError(f"expected execution.decay of 0 or more, got {self.decay}")
        if self.steps < 1:
            raise ValueError(f"expected execution.steps of at least 1, got {self.steps}")

    def resolved(self, multimodal: bool) -> ExecutionConfig:
        """Return the same with `auto` decided."""
        if self.kind != "auto":
            return self
        return replace(self, kind="receding" if multimodal else "ensemble")


class ChunkExecution:
    """Remembers the last K chunks of B running episodes and says what to do now (temporal ensembling, ACT).

    Zhao et al. (2023), "Learning fine-grained bimanual manipulation", weigh old predictions most; here the newest
    weighs most, because a grasp must react to the last image.
    """

    def __init__(self, config: ExecutionConfig, batch: int, chunk_steps: int, action_dim: int) -> None:
        assert config.kind != "auto", "resolve it first"
        self._config = config
        self._span = min(config.steps, chunk_steps)
        # Slot a holds the chunk made a steps ago; its entry a speaks about now.
        self._chunks = np.zeros((chunk_steps, batch, chunk_steps, action_dim), dtype=np.float32)
        self._made = np.zeros(batch, dtype=np.int64)  # chunks made since the reset

    def next(self, chunk: np.ndarray, reset: np.ndarray) -> np.ndarray:
        """Take the newest chunks (B, K, A) and return the actions for now (B, A)."""
        self._made = np.where(reset, 1, self._made + 1)
        self._chunks = np.roll(self._chunks, 1, axis=0)
        self._chunks[0] = chunk
        if self._config.kind == "first":
            return chunk[:, 0]
        if self._config.kind == "receding":
            age = (self._made - 1) % self._span
            return self._chunks[age, np.arange(len(age)), age]
        ages = np.arange(len(self._chunks))
        weights = np.exp(-self._config.decay * ages)[:, None] * (ages[:, None] < self._made)  # (K, B)
        said = self._chunks[ages, :, ages]  # (K, B, A): what the chunk of age a says about now
        return ((weights[..., None] * said).sum(axis=0) / weights.sum(axis=0)[:, None]).astype(np.float32)
