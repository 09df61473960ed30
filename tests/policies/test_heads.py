"""Does the fast pooling compute the plain one, does a head learn, and does chunk execution weigh and reset rows?"""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from policies.chunks import ChunkExecution, ExecutionConfig
from policies.heads.act import ACTConfig
from policies.heads.base import InputSizes
from policies.heads.build import build_head, head_config_from_json
from policies.heads.config import HeadConfig
from policies.heads.diffusion import DiffusionConfig
from policies.heads.gmm import GMMConfig
from policies.heads.trunk import TrunkConfig, pool_tokens, token_grid
from policies.observation import History, Inputs
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
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(5, 6))
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
    parameters = list(pool.parameters())
    for got, expected in zip(
        torch.autograd.grad((fast * weights).sum(), parameters),
        torch.autograd.grad((plain * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


HEADS = {
    "mlp": {},
    "gmm": {"gmm": GMMConfig(modes=2, min_std=0.02)},
    "act": {"act": ACTConfig(width=16, heads=2, ffn_width=32)},
    "diffusion": {"diffusion": DiffusionConfig(width=32, blocks=2, kernel=3, step_width=16)},
}


def _head(cameras, pooling="both", **settings):
    trunk = TrunkConfig(pooling=pooling, queries=2, attention_heads=2, camera_width=8, proprio_width=8, hidden=(32,))
    settings = {"history": 1, **HEADS[settings.get("name", "mlp")], **settings}
    history = settings["history"]
    sizes = InputSizes(cameras=cameras, tokens_per_frame=9, token_width=16, proprio_dim=4, history=history)
    return build_head(HeadConfig(chunk_steps=2, trunk=trunk, **settings), sizes, action_dim=3, seed=0)


@pytest.mark.parametrize(
    ("name", "pooling", "lr", "steps"),
    [
        ("mlp", "values", 1e-2, 400),
        ("mlp", "coordinates", 1e-2, 400),
        ("mlp", "both", 1e-2, 400),
        ("act", "both", 5e-3, 300),
    ],
)
def test_a_head_finds_where_a_token_is(name, pooling, lr, steps):
    """The target is the place of a marked token, which only learned positions or attention's coordinates can tell."""
    head = _head(("front",), pooling, name=name, loss="mse", feature_dropout=0)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(head.parameters(), lr=lr)

    def batch():
        place = torch.randint(9, (64,), generator=generator)
        tokens = 0.1 * torch.randn(64, 9, 16, generator=generator)
        tokens[torch.arange(64), place, 0] += 2
        target = torch.stack([place % 3 - 1, place // 3 - 1, 0 * place], dim=1).float()[:, None].expand(-1, 2, -1)
        return Inputs(torch.zeros(64, 4), {"front": tokens}), target

    for _ in range(steps):
        inputs, target = batch()
        loss = head.loss(inputs, target, torch.ones(64, 2, dtype=torch.bool), generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
    inputs, target = batch()
    with torch.no_grad():
        assert (head.eval()(inputs, generator) - target).square().mean() < 0.12  # of a variance of 0.44


def test_a_head_without_cameras_takes_proprioception_alone():
    assert _head(()).eval()(Inputs(torch.zeros(5, 4), {})).shape == (5, 2, 3)


def test_a_head_of_mean_pooling_tells_what_is_there():
    head = _head(("front", "wrist"), "mean")
    assert not list(head.trunk.pools)
    tokens = {camera: torch.randn(5, 9, 16) for camera in ("front", "wrist")}
    moved = {camera: array.flip(1) for camera, array in tokens.items()}
    first, second = (head.eval()(Inputs(torch.zeros(5, 4), each)) for each in (tokens, moved))
    torch.testing.assert_close(first, second)  # a mean does not know where


@pytest.mark.parametrize("name", ["gmm", "diffusion"])
def test_heads_that_draw_learn_both_ways_and_never_the_middle(name):
    """What is seen asks for a large or a small action, whose sign is free: regression would say 0."""
    head = _head((), name=name, feature_dropout=0)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)

    def batch(count):
        inputs = Inputs(torch.randn(count, 4, generator=generator), {})
        return inputs, torch.where(inputs.proprio[:, :1, None] > 0, 0.8, 0.3)

    for _ in range(400):
        inputs, size = batch(64)
        way = torch.randint(2, (64, 1, 1), generator=generator) * 2 - 1
        loss = head.loss(inputs, (way * size).expand(-1, 2, 3), torch.ones(64, 2, dtype=torch.bool), generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
    inputs, size = batch(400)
    with torch.no_grad():
        drawn = head.eval()(inputs, generator)
    up = drawn[:, :1, :1] > 0
    assert 120 < up.sum() < 280
    expected = torch.where(up, size, -size)
    assert ((drawn - expected).abs() < 0.2).float().mean() > 0.85


@pytest.mark.parametrize("name", ["gmm", "diffusion"])
def test_what_a_row_draws_does_not_depend_on_the_other_rows(name):
    head = _head((), name=name, **({"gmm": GMMConfig(modes=2, low_noise_eval=False)} if name == "gmm" else {})).eval()
    proprio = torch.randn(3, 4)

    def drawn(rows, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with torch.no_grad():
            return head(Inputs(proprio[rows], {}), generators)

    together = drawn([0, 1, 2], [7, 8, 9])
    torch.testing.assert_close(drawn([1], [8]), together[1:2])
    assert (drawn([1], [9]) - together[1:2]).abs().max() > 1e-3


def test_the_mixture_is_the_one_that_torch_computes():
    head = _head((), name="gmm", feature_dropout=0).eval()
    inputs, target = Inputs(torch.randn(5, 4), {}), torch.randn(5, 2, 3)
    logits, means, stds = head.mixture(head.trunk(inputs))
    modes = torch.distributions.Independent(torch.distributions.Normal(means.flatten(2), stds.flatten(2)), 1)
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=logits), modes)
    expected = -mixture.log_prob(target.flatten(1)).sum() / 10
    torch.testing.assert_close(head.loss(inputs, target, torch.ones(5, 2, dtype=torch.bool)), expected)


@pytest.mark.parametrize("name", HEADS)
def test_actions_after_an_episodes_end_teach_nothing(name):
    head = _head((), name=name, feature_dropout=0).eval()
    inputs, target = Inputs(torch.randn(5, 4), {}), torch.zeros(5, 2, 3)
    inside = torch.tensor([[True, False]] * 5)
    other = target.clone()
    other[:, 1] = 5
    first, second = (head.loss(inputs, each, inside, torch.Generator().manual_seed(0)) for each in (target, other))
    if name == "diffusion":  # what lies beyond the end is seen through the convolutions, but its noise is not asked for
        noised = head.denoise(torch.zeros(5, 2, 3), torch.zeros(5, dtype=torch.long), head.trunk(inputs))
        assert noised.shape == (5, 2, 3) and not torch.equal(first, second)
    else:
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("history", [1, 2])
def test_a_head_comes_back_from_json(name, history):
    head = _head(("front",), name=name, history=history).eval()
    stored = json.loads(json.dumps([asdict(head.config), asdict(head.sizes)]))
    sizes = InputSizes.from_json(stored[1])
    for other in HEADS.keys() - {name}:
        stored[0].pop(other, None)  # as written before that head was there
    again = build_head(head_config_from_json(stored[0]), sizes, action_dim=3, seed=1).eval()
    again.load_state_dict(head.state_dict())
    frames = (history,) if history > 1 else ()
    inputs = Inputs(torch.randn(4, *frames, 4), {"front": torch.randn(4, *frames, 9, 16)})
    first, second = (each(inputs, torch.Generator().manual_seed(0)) for each in (head, again))
    assert first.shape == (4, 2, 3) and torch.equal(first, second)


def test_history_shifts_and_begins_rows_anew():
    history = History(3)

    def step(value, reset):
        frame = torch.tensor([[value], [value + 100]])
        seen = history.step(Inputs(frame, {"front": frame[:, :, None].repeat(1, 2, 1)}), np.array(reset))
        assert seen.tokens["front"].shape == (2, 3, 2, 1)
        assert torch.equal(seen.tokens["front"][:, :, 1, 0], seen.proprio[:, :, 0])
        return seen.proprio[:, :, 0].tolist()

    assert step(1.0, [True, True]) == [[1, 1, 1], [101, 101, 101]]
    assert step(2.0, [False, False]) == [[1, 1, 2], [101, 101, 102]]
    assert step(3.0, [False, True]) == [[1, 2, 3], [103, 103, 103]]
    assert step(4.0, [False, False]) == [[2, 3, 4], [103, 103, 104]]


def test_a_head_with_history_tells_where_something_was():
    """Speed shows in no single frame: only the difference of two tells it."""
    head = _head((), history=2)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(300):
        proprio = torch.randn(64, 2, 4, generator=generator)
        target = (proprio[:, 1] - proprio[:, 0])[:, None, :3].expand(-1, 2, -1)
        loss = (head(Inputs(proprio, {})) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2  # of a variance of 2


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


def test_receding_takes_a_few_actions_of_a_chunk_then_the_next_each_row_in_its_own_time():
    execution = ChunkExecution(ExecutionConfig(kind="receding", steps=2), batch=2, chunk_steps=3, action_dim=1)

    def chunk(value):
        return np.array([[[value], [value + 1], [value + 2]]] * 2, dtype=np.float32)

    said = [
        execution.next(chunk(10 * step), np.array([step == 1, step in (1, 4)]))[:, 0].tolist() for step in range(1, 7)
    ]
    assert said == [[10, 10], [11, 11], [30, 30], [31, 40], [50, 41], [51, 60]]


def test_auto_recedes_for_heads_that_draw():
    assert ExecutionConfig().resolved(multimodal=True).kind == "receding"
    assert ExecutionConfig().resolved(multimodal=False).kind == "ensemble"
    assert ExecutionConfig(kind="first").resolved(multimodal=True).kind == "first"


def test_coordinates_are_row_and_column_of_where_attention_is():
    grid = token_grid(9)
    assert grid[0].tolist() == [-1, -1] and grid[2].tolist() == [-1, 1] and grid[4].tolist() == [0, 0]
    assert grid[6].tolist() == [1, -1]


@pytest.mark.parametrize("values", [{"name": "forest"}, {"loss": "hinge"}, {"chunk_steps": 0}, {"history": 0}])
def test_bad_settings_are_refused(values):
    with pytest.raises(ValueError, match="expected head"):
        HeadConfig(**values)


@pytest.mark.parametrize("values", [{"pooling": "max"}, {"queries": 0}, {"hidden": ()}])
def test_bad_trunks_are_refused(values):
    with pytest.raises(ValueError, match="trunk"):
        TrunkConfig(**values)
