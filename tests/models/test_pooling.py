"""Does attention pooling pool?"""

from __future__ import annotations

import pytest
import torch

from toto_robot.models.pooling import AttentionPooling


def test_output_is_queries_times_width_and_equals_the_formula() -> None:
    torch.manual_seed(0)
    pool, tokens = AttentionPooling(8, queries=3, heads=2, positions=5), torch.randn(4, 5, 8)
    out = pool(tokens)
    assert out.shape == (4, 24)
    k, v = (pool.norm(tokens) + pool.position).matmul(pool.key_value.weight.T).chunk(2, dim=-1)  # (B, P, D)
    for query in range(3):
        for head in (slice(0, 4), slice(4, 8)):
            weight = (k[..., head] @ pool.query[query, head] / 2).softmax(dim=1)
            expected = (weight[:, :, None] * v[..., head]).sum(dim=1)
            torch.testing.assert_close(out[:, query * 8 + head.start : query * 8 + head.stop], expected)


def test_without_positions_the_order_of_tokens_does_not_matter() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 6, 8)
    blind, seeing = AttentionPooling(8), AttentionPooling(8, positions=6)
    torch.testing.assert_close(blind(tokens), blind(tokens.flip(1)))
    assert not torch.allclose(seeing(tokens), seeing(tokens.flip(1)))
    with pytest.raises(ValueError, match="multiple of heads"):
        AttentionPooling(8, heads=3)
