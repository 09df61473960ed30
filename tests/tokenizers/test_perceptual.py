"""Is the perceptual distance LPIPS, and are its published files read by their own names?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from toto_robot.tokenizers.perceptual import Perceptual, load_perceptual

CONVS = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]  # places of the convs in torchvision's vgg16().features
ENDS = [2, 7, 14, 21, 28]  # convs whose ReLU ends a stage: relu1_2, 2_2, 3_3, 4_3, 5_3
WIDTHS = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]


@pytest.fixture(scope="module")
def published() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return random tensors in the layout of the two published files."""
    generator = torch.Generator().manual_seed(0)
    vgg: dict[str, Tensor] = {"classifier.6.bias": torch.zeros(10)}  # the whole VGG16 is in torchvision's file
    for place, width_in, width in zip(CONVS, [3, *WIDTHS[:-1]], WIDTHS, strict=True):
        weight = torch.randn(width, width_in, 3, 3, generator=generator) * (2 / (9 * width_in)) ** 0.5
        vgg |= {f"features.{place}.weight": weight, f"features.{place}.bias": torch.zeros(width)}
    heads = {
        f"lin{i}.model.1.weight": torch.rand(1, WIDTHS[CONVS.index(end)], 1, 1, generator=generator)
        for i, end in enumerate(ENDS)
    }
    return vgg, heads


@pytest.fixture(scope="module")
def folder(published: tuple[dict[str, Tensor], dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lpips")
    torch.save(published[0], folder / "vgg16-397923af.pth")
    save_file(published[1], folder / "vgg.safetensors")
    return folder


def reference(vgg: dict[str, Tensor], heads: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Compute LPIPS layer by layer, as torchvision and the lpips package number them."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x = torch.cat([(p - shift.view(1, 3, 1, 1)) / scale.view(1, 3, 1, 1) for p in (a, b)]).double()
    total = torch.zeros(len(a), dtype=torch.float64)
    for place in range(30):
        if place in CONVS:
            x = F.conv2d(x, vgg[f"features.{place}.weight"].double(), vgg[f"features.{place}.bias"].double(), padding=1)
        elif place in (4, 9, 16, 23):
            x = F.max_pool2d(x, 2, 2)
        else:
            x = x.clamp(min=0)
            if place - 1 in ENDS:
                unit = F.normalize(x, dim=1)
                weight = heads[f"lin{ENDS.index(place - 1)}.model.1.weight"].double()
                total += F.conv2d((unit[: len(a)] - unit[len(a) :]) ** 2, weight).mean((1, 2, 3))
    return total


def pictures(seed: int) -> Tensor:
    return torch.rand(2, 3, 32, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_it_is_lpips(published: tuple[dict[str, Tensor], dict[str, Tensor]], folder: Path) -> None:
    model = load_perceptual(folder)
    a, b = pictures(1), pictures(2)
    torch.testing.assert_close(model(a, b).double(), reference(*published, a, b), rtol=1e-4, atol=1e-6)
    assert model(a, a).abs().max() == 0 and model(a, b).min() > 0.01


def test_it_has_a_gradient_to_the_picture_and_none_to_itself(folder: Path) -> None:
    model, picture = load_perceptual(folder), pictures(1).requires_grad_()
    model(picture, pictures(2)).sum().backward()
    assert picture.grad is not None and picture.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_one_file_may_hold_all(
    published: tuple[dict[str, Tensor], dict[str, Tensor]], folder: Path, tmp_path: Path
) -> None:
    save_file({**published[0], **published[1]}, tmp_path / "all.safetensors")
    one, two = load_perceptual(tmp_path / "all.safetensors"), load_perceptual(folder)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert len(one.state_dict()) == len(Perceptual().state_dict()) == 2 * 13 + 5


def test_what_is_missing_is_named(published: tuple[dict[str, Tensor], dict[str, Tensor]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no perceptual weights at .*absent.*vgg16-397923af\.pth"):
        load_perceptual(tmp_path / "absent")
    with pytest.raises(ValueError, match="no perceptual weights at"):
        load_perceptual(tmp_path)  # an empty folder
    save_file(published[1], tmp_path / "heads.safetensors")
    with pytest.raises(ValueError, match=r"has no tensor features\.0\.weight"):
        load_perceptual(tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_perceptual(tmp_path / "bad.safetensors")
