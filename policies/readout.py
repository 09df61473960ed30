"""How well can a place be read off the tokens of frames, from few labels, in seconds?

The readout is a policy's trunk (`heads/trunk.py`) with one linear layer behind it, trained for a few hundred steps on
the labelled frames. So that this takes seconds, and wide encoders have no larger readout than narrow ones, tokens are
reduced to their first principal directions before, which no label decides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.heads.base import InputSizes
from policies.heads.trunk import Trunk, TrunkConfig
from policies.observation import Inputs
from toto_robot.pretrain.optim import adamw, learning_rate, set_learning_rate

REDUCED = 64  # principal directions of the tokens that are kept
_WARMUP, _BATCH, _PEAK = 20, 64, 2e-3
_PROPRIO_NOISE, _DROPOUT, _DECAY = 0.05, 0.1, 1e-2  # those of behaviour cloning


@torch.no_grad()
def reduce_tokens(tokens: Tensor) -> Tensor:
    """Map tokens (n, P, D) to their first principal directions, (n, P, min(D, REDUCED)) float16, of mean square 1."""
    rows = tokens.flatten(0, 1).float()
    rows = rows - rows.mean(dim=0)
    values, directions = torch.linalg.eigh((rows.T @ rows / len(rows)).double())
    kept = directions[:, -REDUCED:].float()
    size = max(float(values[-REDUCED:].mean()), 1e-12) ** 0.5
    return (rows @ kept / size).half().unflatten(0, tokens.shape[:2])


@dataclass(frozen=True)
class Asked:
    """What a readout is given beside pictures, and asked; all of the same n frames."""

    proprio: Tensor  # (n, Dp) float32
    target: Tensor  # (n, C) float32


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread: steps this small gain nothing from more, and on a busy machine mostly wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def read_off(
    tokens: Mapping[str, Tensor], asked: Asked, labelled: Tensor, held_out: Tensor, *, steps: int = 300, seed: int = 0
) -> Tensor:
    """Train on the labelled frames and return predictions (m, C) for those held out.

    `tokens`: camera -> (n, P, D), none for proprioception alone; `labelled` and `held_out` are frame indices. Weights,
    order and noise follow `seed`; the global generator is left as it was.
    """
    proprio = _standardised(asked.proprio, labelled)
    mean, deviation = asked.target[labelled].mean(dim=0), asked.target[labelled].std(dim=0).clamp_min(1e-6)
    generator = torch.Generator().manual_seed(seed)
    net = _build(tokens, proprio.shape[1], asked.target.shape[1], seed)
    optimizer = adamw(net.named_parameters(), lr=_PEAK, weight_decay=_DECAY)
    for step in range(steps):
        rate = learning_rate(step, peak=_PEAK, warmup_steps=_WARMUP, steps=steps, final_ratio=0.0)
        set_learning_rate(optimizer, rate)
        rows = labelled[torch.randint(len(labelled), (_BATCH,), generator=generator)]
        noise = _PROPRIO_NOISE * torch.randn(len(rows), proprio.shape[1], generator=generator)
        predicted = net(_inputs(tokens, proprio[rows] + noise, rows), generator)
        loss = F.l1_loss(predicted, (asked.target[rows] - mean) / deviation)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        parts = [net(_inputs(tokens, proprio[rows], rows)) for rows in held_out.split(256)]
    return torch.cat(parts) * deviation + mean


class _Readout(nn.Module):
    def __init__(self, sizes: InputSizes, outputs: int) -> None:
        super().__init__()
        self.trunk = Trunk(TrunkConfig(), sizes)
        self.out = nn.Linear(self.trunk.width, outputs)

    def forward(self, inputs: Inputs, generator: torch.Generator | None = None) -> Tensor:
        found: Tensor = self.out(self.trunk(inputs, _DROPOUT if self.training else 0.0, generator))
        return found


def _build(tokens: Mapping[str, Tensor], proprio_dim: int, outputs: int, seed: int) -> _Readout:
    shape = next(iter(tokens.values())).shape if tokens else (0, 0, 0)
    sizes = InputSizes(cameras=tuple(tokens), tokens_per_frame=shape[1], token_width=shape[2], proprio_dim=proprio_dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _Readout(sizes, outputs)


def _inputs(tokens: Mapping[str, Tensor], proprio: Tensor, rows: Tensor) -> Inputs:
    return Inputs(proprio, {camera: part[rows].float() for camera, part in tokens.items()})


def _standardised(proprio: Tensor, labelled: Tensor) -> Tensor:
    """Give every entry mean 0 and deviation 1 on the labelled frames; one that does not vary there stays small."""
    mean, deviation = proprio[labelled].mean(dim=0), proprio[labelled].std(dim=0)
    return (proprio - mean) / deviation.clamp_min(1e-2)
