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

    @property
    def loss_unit(self) -> str:
        """What the numbers of `loss` are."""
        return f"{self.config.loss} loss of normalised actions"

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of the normal noise that one row's actions are made of; (0,) where nothing is random."""
        return (0,)

    def forward(self, inputs: Inputs, generator: Generators = None) -> Tensor:
        """Return the normalised actions to execute, (B, K, A); what is random is drawn from `generator`."""
        return self.act(inputs, draw_noise(len(inputs.proprio), self.noise_shape, generator))

    def act(self, inputs: Inputs, noise: Tensor) -> Tensor:
        """Return the actions (B, K, A) that follow from the inputs and from noise (B, *noise_shape)."""
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


def draw_noise(batch: int, shape: tuple[int, ...], generator: Generators) -> Tensor:
    """Draw N(0, 1) of (B, *shape); with a generator a row, what a row gets does not depend on the other rows."""
    if isinstance(generator, Sequence):
        return torch.stack([torch.randn(shape, generator=one) for one in generator])
    return torch.randn((batch, *shape), generator=generator)


def elementwise(kind: str, predicted: Tensor, target: Tensor) -> Tensor:
    """Return the loss of every number; `kind` is one of LOSSES."""
    loss: Any = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}[kind]
    return loss(predicted, target, reduction="none")


def mean_inside(error: Tensor, inside: Tensor) -> Tensor:
    """Average (B, K, A) over the actions that lie inside their episode (B, K)."""
    return (error * inside[..., None]).sum() / (inside.sum() * error.shape[-1])
