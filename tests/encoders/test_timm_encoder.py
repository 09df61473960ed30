"""Does a model of timm give through our protocol what timm's own code gives? Skipped where timm cannot be imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.encoders.small import frames
from toto_robot.encoders.load import load_encoder

try:
    import timm
except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another build than torch
    pytest.skip(f"no timm: {error}", allow_module_level=True)

NAME = "vit_tiny_patch16_224"


@torch.no_grad()
def test_features_are_those_of_timm_with_the_classifier_left_out(tmp_path: Path) -> None:
    home: Any = timm.create_model(NAME, pretrained=False, num_classes=10, img_size=64).eval()
    save_file(home.state_dict(), tmp_path / "tiny.safetensors")
    told = home.pretrained_cfg
    pixels = (frames(2, px=64) / 255 - torch.tensor(told["mean"])) / torch.tensor(told["std"])
    inside: dict[str, torch.Tensor] = {}
    home.blocks[1].register_forward_hook(lambda module, given, found: inside.update(second=found[:, 1:]))
    last = home.forward_features(pixels.permute(0, 3, 1, 2))[:, 1:]
    settings: dict[str, Any] = {
        "path": NAME, "weights": tmp_path / "tiny.safetensors", "image_px": 64, "precision": "fp32"
    }  # fmt: skip
    torch.testing.assert_close(load_encoder("timm", **settings).encode(frames(2, px=64)), last)
    both = load_encoder("timm", **settings, layer=[2, 12])
    torch.testing.assert_close(both.encode(frames(2, px=64)), torch.cat([inside["second"], last], dim=-1))
    both.save(tmp_path / "saved")
    again = load_encoder(tmp_path / "saved", **both.settings())  # type: ignore[arg-type]
    assert again.fingerprint == both.fingerprint


def test_without_weights_the_seed_decides_and_mistakes_say_what_to_do(tmp_path: Path) -> None:
    a, b, c = (load_encoder("timm", path="resnet18", image_px=64, seed=seed) for seed in (0, 0, 1))
    assert a.fingerprint == b.fingerprint != c.fingerprint and a.tokens_per_frame == 4
    for arguments, told in (
        ({"path": "no_such_net"}, "no model 'no_such_net'"),
        ({"path": NAME, "layer": 0}, r"1\.\.12"),
        ({"path": NAME, "weights": tmp_path / "x.pth"}, "safetensors"),
    ):
        with pytest.raises(ValueError, match=told):
            load_encoder("timm", **arguments)  # type: ignore[arg-type]
