"""Does Toto see what it may see, stop where it is told, and have the sizes it claims?"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.models.small import CONFIG, codes, make
from toto_robot.models.presets import mae_preset, preset
from toto_robot.models.toto import Toto


def changed(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return which positions (L,) of (B, L, D) differ."""
    return (a - b).abs().amax(dim=(0, 2)) > 1e-6


def test_pack_shifts_by_one_and_ends_with_the_end_id() -> None:
    inputs, targets = make().pack(torch.tensor([[[0, 1, 2, 19], [3, 4, 5, 6]]]))
    assert inputs.tolist() == [[1, 4, 5, 6, 23, 7, 8, 9, 10]]
    assert targets.tolist() == [[4, 5, 6, 23, 7, 8, 9, 10, 2]]
    assert make().pack(codes(2, 1), kind="image")[0][:, 0].tolist() == [3, 3]
    mixed, following = make().pack(codes(3, 2), kind=["image", "video", "image"])
    assert mixed[:, 0].tolist() == [3, 1, 3]
    assert torch.equal(mixed[:, 1:], make().pack(codes(3, 2))[0][:, 1:])
    assert torch.equal(following, make().config.targets(mixed))
    with pytest.raises(ValueError, match=r"expected codes \(B, T, 4\)"):
        make().pack(torch.zeros(2, 3, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="kind"):
        make().pack(codes(1, 1), kind="audio")


@torch.no_grad()
def test_no_token_sees_the_future() -> None:
    model, (ids, _) = make(), CONFIG.pack(codes(2, 6))
    before = model(ids, layers=(4,)).features[4]
    for position in (0, 1, 7, 12, 24):
        other = ids.clone()
        other[:, position] = 4 + (other[:, position] - 3) % 20
        after = model(other, layers=(4,)).features[4]
        assert changed(before, after).nonzero().min() == position


@torch.no_grad()
def test_one_block_sees_the_start_and_its_window_of_frames_and_nothing_else() -> None:
    model, (ids, _) = make(), CONFIG.pack(codes(2, 7))
    before = model(ids, layers=(1,)).features[1]
    for frame in range(7):
        other = ids.clone()
        other[:, 1 + 4 * frame] = 4 + (other[:, 1 + 4 * frame] - 3) % 20  # the first token of a frame
        seen = changed(before, model(other, layers=(1,)).features[1])
        last = min(frame + CONFIG.context_frames, 7)
        assert seen.nonzero()[:, 0].tolist() == list(range(1 + 4 * frame, 1 + 4 * last))
    other = ids.clone()
    other[:, 0] = CONFIG.start_image_id
    assert changed(before, model(other, layers=(1,)).features[1]).all()


@torch.no_grad()
def test_a_window_that_covers_the_sample_is_plain_causal_attention() -> None:
    model = make(replace(CONFIG, context_frames=8))
    windowed = make()
    ids, _ = CONFIG.pack(codes(2, 3))
    torch.testing.assert_close(model(ids).logits, windowed(ids).logits)
    ids, _ = CONFIG.pack(codes(2, 5))
    assert not torch.allclose(model(ids).logits, windowed(ids).logits, atol=1e-3)


@torch.no_grad()
def test_deep_frames_do_not_depend_on_where_they_stand() -> None:
    """Once the window slides, a shift of the video by a frame shifts the features of block 1 and changes nothing."""
    model, video = make(), codes(1, 8)
    late = model(CONFIG.pack(video)[0], layers=(1,)).features[1]
    early = model(CONFIG.pack(video[:, 1:])[0], layers=(1,)).features[1]
    torch.testing.assert_close(late[:, 1 + 3 * 4 :], early[:, 1 + 2 * 4 :], atol=1e-5, rtol=1e-5)


def test_forward_stops_at_the_deepest_layer_asked_for() -> None:
    model, (ids, _) = make(), CONFIG.pack(codes(1, 2))
    calls: list[int] = []
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    output = model(ids, layers=(0, 2), logits=False)
    assert calls == [0, 1] and output.logits is None and sorted(output.features) == [0, 2]
    torch.testing.assert_close(output.features[0], model.embed(ids))
    assert model(ids).logits.shape == (1, 9, CONFIG.vocab_size)
    for wrong in (-1, 5):
        with pytest.raises(ValueError, match=r"0\.\.4"):
            model(ids, layers=(wrong,))


def test_initial_weights_come_from_the_generator_alone() -> None:
    state = torch.get_rng_state()
    a, b, c = (Toto(CONFIG, generator=torch.Generator().manual_seed(seed)).state_dict() for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["embed.weight"], c["embed.weight"])
    assert a["blocks.0.ffn.gate_up.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert a["blocks.0.ffn.down.weight"].std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.06)
    assert torch.equal(a["norm.weight"], torch.ones(32))


@pytest.mark.parametrize(
    ("name", "millions"),
    [("nano", 5.64), ("tiny", 16.9), ("base", 125.8), ("large", 285.2), ("1b", 1164.0)],  # facts/toto.md 1.1, untied
)
def test_presets_have_the_published_sizes(name: str, millions: float) -> None:
    count = sum(parameter.numel() for parameter in Toto(preset(name), device="meta").parameters())
    assert count / 1e6 == pytest.approx(millions, rel=1e-3)


def test_every_preset_builds_and_a_wrong_name_lists_them() -> None:
    for name in ("small", "a1", "a2", "a3", "a4", "a5", "a6"):
        assert Toto(preset(name), device="meta").config.name == name
    with pytest.raises(ValueError, match="nano, tiny"):
        preset("huge")
    with pytest.raises(ValueError, match="nano, tiny"):
        mae_preset("huge")


@pytest.mark.parametrize(
    "wrong", [{"heads": 3}, {"context_frames": 9}, {"context_frames": 0}, {"end_id": 1}, {"first_visual_id": 3}]
)
def test_impossible_configurations_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        replace(CONFIG, **wrong)


def test_training_step_lowers_the_loss_in_a_windowed_sample() -> None:
    """Gradients flow through the copies of the start key too."""
    model = Toto(CONFIG, generator=torch.Generator().manual_seed(0))
    inputs, targets = CONFIG.pack(codes(4, 8))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert losses[-1] < 0.6 * losses[0]
