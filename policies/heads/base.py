"""What is a head: from features and proprioception to the next K actions, and what does it learn from?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.observation import Inputs

if TYPE_CHECKING:
    from policies.heads.config import HeadConfig

LOSSES = ("mse", "l1", "huber")
Generators = torch.Generator | Sequence[torch.Generator] | None  # one for all rows, or one a row


@dataclass(frozen=True, kw_only=True)
class InputSizes:
    """What a head is given."""

    cameras: tuple[str, ...]  # none: a head of proprioception alone
    tokens_per_frame: int  # P, each camera
    token_width: int  # D
    proprio_dim: int  # Dp
    history: int = 1  # frames a head sees, the current one included (Ho); 1 drops the axis from `Inputs`

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> InputSizes:
        """Read what `asdict` and JSON have made of it."""
        return cls(**{**stored, "cameras": tuple(stored["cameras"])})


class Head(nn.Module):
    """A head: `Inputs` to chunks of normalised actions."""

    multimodal: ClassVar[bool] = False  # draws one of several ways to act; an average of two draws may be no way at all

    def __init__(self, config: HeadConfig, sizes: InputSizes, action_dim: int) -> None:
        super().__init__()
        self.config, self.sizes, self.action_dim = config, sizes, action_dim

    @property
    def chunk_steps(self) -> int:
        """Actions that are predicted at once, K."""
        return self.config.steps

    def forward(self, inputs: Inputs, generator: Generators = None) -> Tensor:
        """Return the normalised actions to execute, (B, K, A); what is random is drawn from `generator`."""
        raise NotImplementedError

    def loss(self, inputs: Inputs, target: Tensor, inside: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return what training lowers, a scalar, for target chunks (B, K, A) of which `inside` (B, K) count.

        Dropout is applied in training mode only. Everything random is drawn from `generator`.
        """
        raise NotImplementedError

    @property
    def dropout(self) -> float:
        """The part of the features that is zeroed now: `config.feature_dropout` in training mode, else none."""
        return self.config.feature_dropout if self.training else 0.0


def draw_normal(shape: tuple[int, ...], generator: Generators) -> Tensor:
    """Draw N(0, 1) of shape (B, ...); with a generator a row, a row's numbers do not depend on the other rows."""
    if isinstance(generator, Sequence):
        return torch.stack([torch.randn(shape[1:], generator=one) for one in generator])
    return torch.randn(shape, generator=generator)


def draw_uniform(shape: tuple[int, ...], generator: Generators) -> Tensor:
    """Draw from [0, 1) of shape (B, ...), as `draw_normal` does."""
    if isinstance(generator, Sequence):
        return torch.stack([torch.rand(shape[1:], generator=one) for one in generator])
    return torch.rand(shape, generator=generator)


def elementwise(kind: str, predicted: Tensor, target: Tensor) -> Tensor:
    """Return the loss of every number; `kind` is one of LOSSES."""
    loss: Any = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}[kind]
    return loss(predicted, target, reduction="none")


def mean_inside(error: Tensor, inside: Tensor) -> Tensor:
    """Average (B, K, A) over the actions that lie inside their episode (B, K)."""
    return (error * inside[..., None]).sum() / (inside.sum() * error.shape[-1])
