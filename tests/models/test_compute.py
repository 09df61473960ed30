"""Is MFU the share of the peak in both conventions, and is a peak known where it should be?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from toto_robot.encoders.load import load_encoder
from toto_robot.models.compute import counted_flops, mfu, peak_flops_per_s, toto_training_flops, transformer_flops
from toto_robot.models.presets import preset


def test_mfu_of_base_by_hand_in_both_conventions() -> None:
    """380k tokens/s of base on one H200: the figures of a calculation that does not use ours."""
    weights = 12 * (4 * 768**2 + 3 * 768 * 3072) + 768 * 8196
    by_hand = [380e3 * (6 * weights + factor * 12 * 4096 * 768) / 989e12 for factor in (12, 6)]
    assert mfu(preset("base"), 380e3, 989e12) == pytest.approx(by_hand, rel=1e-3)
    assert 0.44 < by_hand[0] < 0.47 and by_hand[1] < 0.39


def test_a_window_counts_what_is_in_reach() -> None:
    full = preset("base")
    banded = replace(full, context_frames=4)
    saved = toto_training_flops(full, 1) - toto_training_flops(banded, 1)
    assert saved == pytest.approx(12 * 12 * 12 * 256 * 768, rel=1e-3)  # 12 of 16 frames of 256 tokens are out of reach


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA T4", None),
    ],
)
def test_the_peak_of_a_gpu_is_found_by_its_name(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops_per_s(torch.device("cuda"), torch.bfloat16) == peak
    assert peak_flops_per_s(torch.device("cuda"), torch.float32) is None


def test_a_cpu_is_measured_once() -> None:
    device = torch.device("cpu")
    peak = peak_flops_per_s(device, torch.float32)
    assert peak is not None and 1e9 < peak < 1e15
    assert peak_flops_per_s(device, torch.float32) == peak


def test_counted_flops_are_those_of_the_formula() -> None:
    """A forward pass of the packaged MAE, attention included, is a third of its training by the closed form."""
    mae = load_encoder("mae", path="mae-small-sim", layer="last", precision="fp32")
    frame = np.zeros((1, 64, 64, 3), np.uint8)
    blocks = transformer_flops(256, 2 * 1152, 6, positions=1 + 64) / 3
    patches = 2 * 64 * (3 * 8 * 8) * 256
    assert counted_flops(lambda: mae.encode(frame)) == pytest.approx(blocks + patches, rel=1e-6)
    q = torch.zeros(1, 2, 10, 16)
    attention = counted_flops(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert attention == 2 * (2 * 2 * 10 * 10 * 16)
