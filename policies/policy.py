"""How does an observation become an action, in evaluation and on the robot alike?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.chunks import ChunkExecution, ExecutionConfig
from policies.failure import ACTION
from policies.heads.base import Head
from policies.normalize import Normalizer, check_finite
from policies.observation import Observer, sees_state
from toto_robot.encoders.base import Encoder


@dataclass
class StepTime:
    """Where the last `act` spent its time."""

    encode_s: float = 0.0
    head_s: float = 0.0


class Policy:
    """A trained policy: encoder stream, head, normalisers, chunk execution, and the task it was made for.

    Called with one observation it controls one robot; with a batch, that many episodes in lock-step, each with its own
    memory. The first call, or `reset(batch=B)`, decides the batch.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        head: Head,
        proprio: Normalizer,
        actions: Normalizer,
        execution: ExecutionConfig,
        task: Mapping[str, Any],
        cameras: tuple[str, ...],
    ) -> None:
        self.oracle = sees_state(encoder)
        proprio.require(proprio.names if self.oracle else task["proprio_names"])
        actions.require(task["action_names"])
        self.task = dict(task)
        self.cameras = cameras  # that the policy looks through; none without an encoder
        self.time = StepTime()
        self._encoder, self._head, self._execution_config = encoder, head.eval(), execution
        self._proprio, self._actions = proprio, actions
        self._low, self._high = (np.asarray(task[key], dtype=np.float32) for key in ("action_low", "action_high"))
        self._observer: Observer | None = None
        self._execution: ChunkExecution | None = None
        self._reset_rows = np.ones(1, dtype=bool)
        self._generators = [torch.Generator().manual_seed(0)]  # of a head that draws its actions, one a row

    @property
    def control_rate_hz(self) -> float:
        """The rate at which `act` must be called."""
        return float(self.task["control_rate_hz"])

    @property
    def tokens(self) -> dict[str, Tensor]:
        """Camera -> (B, P, D): the features of the frames that the last `act` saw, rounded to float16."""
        return {} if self._observer is None else self._observer.tokens

    @property
    def codes(self) -> dict[str, Tensor]:
        """Camera -> (B, P) int64: the same frames in the codes of a Toto's tokenizer; {} for another encoder."""
        return {} if self._observer is None else self._observer.codes

    @property
    def encoder(self) -> Encoder:
        """What the policy sees through."""
        return self._encoder

    def reset(
        self, rows: np.ndarray | None = None, batch: int | None = None, seeds: Sequence[int] | None = None
    ) -> None:
        """Forget the past of `rows` (B,) bool, or of all: their next observation begins an episode.

        With `batch` the number of episodes in lock-step is set anew. What a head draws in an episode follows from the
        row's number in `seeds` (0 without), never from the other rows.
        """
        if batch is not None and (self._observer is None or self._observer.batch != batch):
            self._open(batch)
        fresh = np.ones(len(self._reset_rows), dtype=bool) if rows is None else rows
        self._reset_rows |= fresh
        for row in np.flatnonzero(fresh):
            self._generators[row].manual_seed(0 if seeds is None else int(seeds[row]))

    @torch.inference_mode()
    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the action (A,) for one observation, or (B, A) for a batch, inside the action box, float32.

        ValueError for a missing camera, images of another size, NaN in the proprioception, or a policy that answers
        with a number that is not finite.
        """
        single = np.ndim(observation["proprio"]) == 1
        batch = _as_batch(observation) if single else observation
        rows = len(batch["proprio"])
        if self._observer is None:
            self._open(rows)
        assert self._observer is not None and self._execution is not None
        inputs = self._observer.step(batch, self._reset_rows)
        began = time.perf_counter()
        chunk = self._actions.restore(self._head(inputs, self._generators).numpy())
        action = self._execution.next(chunk, self._reset_rows)
        self._reset_rows = np.zeros(rows, dtype=bool)
        check_finite(action, self._actions.names, ACTION)
        action = np.clip(action, self._low, self._high)
        self.time = StepTime(self._observer.encode_s, time.perf_counter() - began)
        return action[0] if single else action

    def _open(self, batch: int) -> None:
        image_size, history = int(self.task["image_size"]), self._head.sizes.history
        self._observer = Observer(self._encoder, self.cameras, image_size, self._proprio, batch, history)
        head = self._head
        self._execution = ChunkExecution(
            self._execution_config.resolved(head.multimodal), batch, head.chunk_steps, head.action_dim
        )
        self._reset_rows = np.ones(batch, dtype=bool)
        if len(self._generators) != batch:  # else a reset may have given them their seeds already
            self._generators = [torch.Generator().manual_seed(0) for _ in range(batch)]


def _as_batch(observation: Mapping[str, Any]) -> dict[str, Any]:
    pixels = {camera: np.asarray(image)[None] for camera, image in observation.get("pixels", {}).items()}
    told = {key: np.asarray(observation[key])[None] for key in ("proprio", "state") if key in observation}
    return {**told, "pixels": pixels}
