"""How do the tokens of a frame become one vector?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionPooling(nn.Module):
    """Learned queries attend to all tokens of a frame: softmax(q K^T / sqrt(k)) V with learned K and V projections.

    The paper's probe has one query and one head (facts/toto.md 1.6); norm, output and query init are undisclosed, so
    ours: RMSNorm on the tokens, queries N(0, 0.02), no output projection (the policy's first layer is one). `positions`
    adds a learned vector a token: causal features say what is at a place, but only weakly which place it is.
    """

    def __init__(self, width: int, queries: int = 1, heads: int = 1, positions: int | None = None) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} must be a multiple of heads {heads}")
        self.width, self.queries, self.heads = width, queries, heads
        self.norm = nn.RMSNorm(width)
        self.query = nn.Parameter(torch.empty(queries, width).normal_(0.0, 0.02))
        self.position = None if positions is None else nn.Parameter(torch.empty(positions, width).normal_(0.0, 0.02))
        self.key_value = nn.Linear(width, 2 * width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, P, D) to (B, queries * D)."""
        B = tokens.shape[0]
        x = self.norm(tokens)
        if self.position is not None:
            x = x + self.position
        k, v = self.key_value(x).view(B, -1, 2, self.heads, self.width // self.heads).permute(2, 0, 3, 1, 4)
        q = self.query.view(self.queries, self.heads, -1).transpose(0, 1).expand(B, -1, -1, -1)  # (B, H, Q, K)
        pooled = F.scaled_dot_product_attention(q.to(k.dtype), k, v)
        return pooled.transpose(1, 2).reshape(B, -1)
