"""Are the measures of a tokenizer what can be worked out by hand?"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scripts.compare_tokenizers import main
from tests.pretrain.toy import DVAE_SIZES, SIZES, frame_store
from toto_robot.data.sources import find_sources
from toto_robot.data.tokenize import tokenize_sources
from toto_robot.models.hub import save_pretrained
from toto_robot.models.toto import Toto
from toto_robot.pretrain.tokenizer_measures import agreement, cost, largest_change, measure, next_token_nats
from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, save_dvae


class MeanTokenizer(nn.Module):
    """Codes a patch by its mean grey level in 16 steps: everything about it can be worked out by hand."""

    vocab, stride = 16, 8

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def encode(self, images: Tensor) -> Tensor:
        B, h, w, _ = images.shape
        return (images.float().mean(-1).view(B, h // 8, 8, w // 8, 8).mean((2, 4)) / 16).long()

    def decode(self, codes: Tensor) -> Tensor:
        grey = (codes * 16 + 8).repeat_interleave(8, 1).repeat_interleave(8, 2)
        return grey.unsqueeze(-1).expand(-1, -1, -1, 3).to(torch.uint8)


class Frames:
    """Frames in memory with the `clip` of a frame store."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames = frames

    def clip(self, start: int, frames: int) -> np.ndarray:
        return self.frames[start : start + frames]


def test_measure_by_hand():
    frames = np.full((4, 16, 16, 3), 40, np.uint8)  # code 2, decoded as 40
    frames[1, 0, 0] = 41  # changes a pixel of one patch, not its code
    frames[2:, :8, :8] = 100  # code 6, decoded as 104: error 4 on a quarter of two frames
    measured = measure(MeanTokenizer(), Frames(frames), [(0, 4)])
    error = (2 * 0.25 * 16 + 1 / 256) / 4  # mean square over four frames
    assert measured["psnr_db"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.01)
    assert measured["codes_used"] == 2
    entropy = -(2 / 16 * np.log(2 / 16) + 14 / 16 * np.log(14 / 16))
    assert measured["perplexity"] == pytest.approx(np.exp(entropy), abs=0.1)
    assert measured["stability"] == 1.0


def test_stability_counts_still_patches_whose_code_moved():
    class Flicker(MeanTokenizer):
        def encode(self, images: Tensor) -> Tensor:
            codes = super().encode(images)
            codes[1, 0, 0] += 1  # one of the four still patches of the second frame
            return codes

    measured = measure(Flicker(), Frames(np.full((2, 16, 16, 3), 40, np.uint8)), [(0, 2)])
    assert measured["stability"] == 0.75
    moving = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    assert measure(MeanTokenizer(), Frames(moving), [(0, 2)])["stability"] is None


def test_nearly_still_patches_are_those_that_moved_by_two_grey_levels_at_most():
    frames = np.full((2, 16, 16, 3), 47, np.uint8)  # a level below the next code
    frames[1, :8, :8] = 49  # + 2: another code, nearly still
    frames[1, :8, 8:] = 44  # - 3: the same code, but it moved
    measured = measure(MeanTokenizer(), Frames(frames), [(0, 2)])
    assert measured["stability"] == 1.0  # of two patches
    assert measured["stability_near"] == pytest.approx(2 / 3, abs=1e-4)


def test_largest_change_of_a_patch_does_not_wrap_around():
    images = torch.zeros(2, 8, 16, 3, dtype=torch.uint8)
    images[0, 3, 9, 1] = 255
    assert largest_change(images, 8).tolist() == [[[0, 255]]]


def test_agreement_counts_equal_codes():
    class Shifted(MeanTokenizer):
        def encode(self, images: Tensor) -> Tensor:
            codes = super().encode(images)
            codes[:, 0, 0] += 1
            return codes

    frames = Frames(np.full((4, 16, 16, 3), 40, np.uint8))
    assert agreement(MeanTokenizer(), Shifted(), frames, [(0, 2), (2, 2)], "fp32") == 0.75


def test_cost_counts_every_multiply_add_of_the_encoder_twice():
    model = DVAE(DVAEConfig(name="toy", hidden=8, blocks_per_group=1, vocab=16, decoder_init=8))
    counted = []

    def count(conv: nn.Conv2d, _: tuple[Tensor], output: Tensor) -> None:
        if output.shape[0] == 1:  # the frame that is counted, not the batch that is timed
            counted.append(2 * conv.weight.numel() * output[0, 0].numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    found = cost(model, 32)
    assert found["encoder_gflop"] == pytest.approx(sum(counted) / 1e9, abs=1e-4)
    assert found["encoder_parameters"] == sum(parameter.numel() for parameter in model.encoder.parameters())
    assert found["frames_per_s"] > 0


def test_next_token_nats_are_those_of_stored_tokens(tmp_path):
    """Toto's loss on tokens made on the way is the cross-entropy on the stored tokens of the same videos."""
    frames = frame_store(tmp_path / "frames")
    tokenizer = DVAE(DVAE_SIZES, generator=torch.Generator().manual_seed(0)).eval()
    toto = Toto(SIZES, generator=torch.Generator().manual_seed(0)).eval()
    sources = find_sources(tmp_path / "frames_videos")
    tokens = tokenize_sources(sources, tokenizer, tmp_path / "tokens", image_px=16, progress=False)
    windows = torch.from_numpy(np.stack([tokens.window(start, 4, 1) for start in (0, 4)]).astype(np.int64))
    inputs, targets = toto.pack(windows)
    with torch.no_grad():
        logits = toto(inputs).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, :-1].flatten())
    found = next_token_nats(toto, tokenizer, frames, [(0, 9)])  # the ninth frame is of no window
    assert found == pytest.approx(expected.item(), rel=1e-4)
    with pytest.raises(ValueError, match="no held-out clip has the 4 frames"):
        next_token_nats(toto, tokenizer, frames, [(0, 3)])


def test_the_table_of_several_tokenizers(tmp_path, capsys):
    frames = frame_store(tmp_path / "frames")
    for name, seed in (("a", 0), ("b", 1)):
        save_dvae(DVAE(DVAE_SIZES, generator=torch.Generator().manual_seed(seed)), tmp_path / name)
    save_pretrained(Toto(SIZES, generator=torch.Generator().manual_seed(0)), tmp_path / "toto")
    save_dvae(DVAE(DVAE_SIZES, generator=torch.Generator().manual_seed(0)), tmp_path / "toto" / "tokenizer")
    common = [f"frames={frames.path}", f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}"]
    out = tmp_path / "table.md"
    assert main([*common, "teacher=a", f"toto={tmp_path / 'toto'}", f"out={out}"]) == 0
    head, _, a, b, *_ = [[cell.strip() for cell in line.split("|")] for line in out.read_text().splitlines()]
    column = head.index("agreement")
    assert a[1] == "a" and float(a[column]) == 1.0 and 0 <= float(b[column]) < 1
    assert float(a[head.index("Toto nats/token")]) == pytest.approx(np.log(20), abs=1)
    assert main(common) == 0
    assert "agreement" not in capsys.readouterr().out.splitlines()[-6:][0]
    assert main(common[1:]) == 2
    assert "expected frames=" in capsys.readouterr().err
