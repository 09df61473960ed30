"""Does the fast pooling compute the plain one, does a head learn, and does chunk execution weigh and reset rows?"""

import numpy as np
import pytest
import torch

from policies.chunks import ChunkExecution, ExecutionConfig
from policies.heads.pooled_mlp import HeadConfig, PooledMLP, pool_tokens, token_grid
from policies.observation import Inputs
from toto_robot.models.pooling import AttentionPooling


@pytest.mark.parametrize("positions", [None, 10])
def test_fast_pooling_equals_attention_pooling_and_its_gradients(positions):
    generator = torch.Generator().manual_seed(0)
    pool = AttentionPooling(24, queries=3, heads=2, positions=positions)
    for parameter in pool.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    tokens = 3 * torch.randn(5, 10, 24, generator=generator)
    weights = torch.randn(5, 72, generator=generator)
    plain, (fast, attention) = pool(tokens), pool_tokens(pool, tokens)
    torch.testing.assert_close(attention.sum(dim=1), torch.ones(5, 6))
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
    parameters = list(pool.parameters())
    for got, expected in zip(
        torch.autograd.grad((fast * weights).sum(), parameters),
        torch.autograd.grad((plain * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def _head(cameras, pooling="both"):
    config = HeadConfig(
        pooling=pooling, chunk_steps=2, queries=2, attention_heads=2, camera_width=8, proprio_width=8, hidden=(32,)
    )
    torch.manual_seed(0)
    return PooledMLP(config, cameras=cameras, tokens_per_frame=9, token_width=16, proprio_dim=4, action_dim=3)


@pytest.mark.parametrize("pooling", ["values", "coordinates", "both"])
def test_a_head_finds_where_a_token_is(pooling):
    """The target is the place of a marked token, which only learned positions or attention's coordinates can tell."""
    head = _head(("front",), pooling)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)

    def batch():
        place = torch.randint(9, (64,), generator=generator)
        tokens = 0.1 * torch.randn(64, 9, 16, generator=generator)
        tokens[torch.arange(64), place, 0] += 2
        target = torch.stack([place % 3, place // 3, 0 * place], dim=1).float()[:, None].expand(-1, 2, -1)
        return Inputs(torch.zeros(64, 4), {"front": tokens}), target

    for _ in range(600):
        inputs, target = batch()
        loss = (head(inputs) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    inputs, target = batch()
    assert (head(inputs) - target).square().mean() < 0.05


def test_a_head_without_cameras_takes_proprioception_alone():
    assert _head(()).eval()(Inputs(torch.zeros(5, 4), {})).shape == (5, 2, 3)


def test_first_execution_takes_the_newest_chunk():
    execution = ChunkExecution(ExecutionConfig(kind="first"), batch=1, chunk_steps=3, action_dim=1)
    chunk = np.array([[[1.0], [2.0], [3.0]]], dtype=np.float32)
    assert execution.next(chunk, np.array([True]))[0, 0] == 1
    assert execution.next(chunk + 5, np.array([False]))[0, 0] == 6


def test_ensembling_averages_what_old_chunks_say_about_now_and_resets_rows_alone():
    execution = ChunkExecution(ExecutionConfig(kind="ensemble", decay=np.log(2)), batch=2, chunk_steps=3, action_dim=1)

    def chunk(value):
        return np.full((2, 3, 1), value, dtype=np.float32) + np.arange(3, dtype=np.float32)[None, :, None]

    both, none = np.array([True, True]), np.array([False, False])
    np.testing.assert_allclose(execution.next(chunk(10), both)[:, 0], 10)
    # Now: the new chunk says 20, the one before said 11 about this step; weights 1 and 1/2.
    np.testing.assert_allclose(execution.next(chunk(20), none)[:, 0], (20 + 11 / 2) / 1.5)
    # Row 1 starts again: only its newest chunk counts; row 0 has three.
    action = execution.next(chunk(30), np.array([False, True]))
    np.testing.assert_allclose(action[:, 0], [(30 + 21 / 2 + 12 / 4) / 1.75, 30])
    # The fourth step forgets the first chunk.
    action = execution.next(chunk(40), none)
    np.testing.assert_allclose(action[:, 0], [(40 + 31 / 2 + 22 / 4) / 1.75, (40 + 31 / 2) / 1.5])


def test_coordinates_are_row_and_column_of_where_attention_is():
    grid = token_grid(9)
    assert grid[0].tolist() == [-1, -1] and grid[2].tolist() == [-1, 1] and grid[4].tolist() == [0, 0]
    assert grid[6].tolist() == [1, -1]


@pytest.mark.parametrize("values", [{"pooling": "mean"}, {"queries": 0}, {"hidden": ()}])
def test_bad_settings_are_refused(values):
    with pytest.raises(ValueError, match="head"):
        HeadConfig(**values)
