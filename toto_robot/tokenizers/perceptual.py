"""How far apart are two pictures to the eye? LPIPS with VGG16 (arXiv 1801.03924), from weights that were published.

Two public files hold them, by the names that are read here: torchvision's VGG16 (`features.0.weight`, ...) and the
linear heads of the `lpips` package, version 0.1 (`lin0.model.1.weight`, ...). They are read as numbers only; nothing is
downloaded. Note that VGG was trained on ImageNet's labels, so a tokenizer trained with this has seen them indirectly.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from toto_robot.foreign_weights import Checkpoint, state_dict
from toto_robot.weights import check_fit

_WIDTHS = (64, 128, 256, 512, 512)  # of the five stages
_CONVS = (2, 2, 3, 3, 3)  # in each stage
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels in [-1, 1], by channel
_EPS = 1e-10
_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")


class Perceptual(nn.Module):
    """The distance; frozen. Build it with `load_perceptual`."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict()  # "0", "2", "5", ...: the places of the convs in torchvision's `features`
        place, width_in = 0, 3
        for width, convs in zip(_WIDTHS, _CONVS, strict=True):
            for _ in range(convs):
                self.features[str(place)] = nn.utils.skip_init(nn.Conv2d, width_in, width, 3, padding=1)
                place, width_in = place + 2, width  # a ReLU follows each
            place += 1  # the max-pool
        self.heads = nn.ParameterList(torch.zeros(width) for width in _WIDTHS)
        self.register_buffer("shift", torch.tensor(_SHIFT)[None, :, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[None, :, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the distance (B,) of pictures (B, 3, h, w) in [-1, 1], at least 16 px a side."""
        distance = first.new_zeros(len(first), dtype=torch.float32)
        stages = zip(self.heads, self._stages(first), self._stages(second), strict=True)
        for head, a, b in stages:
            difference = (_unit(a.float()) - _unit(b.float())).square()  # (B, C, h, w)
            distance = distance + (difference * head[:, None, None]).sum(dim=1).mean(dim=(1, 2))
        return distance

    def _stages(self, pixels: Tensor) -> list[Tensor]:
        """Return the features after the last ReLU of each stage."""
        convs = iter(self.features.values())
        x, stages = (pixels - self.shift) / self.scale, []
        for index, count in enumerate(_CONVS):
            x = F.max_pool2d(x, 2) if index else x
            for _ in range(count):
                x = F.relu(next(convs)(x))
            stages.append(x)
        return stages


def load_perceptual(path: Path | str, device: torch.device | str = "cpu") -> Perceptual:
    """Read the weights from a file that holds all of them, or from the files of a folder.

    Files are safetensors or what torch.save writes (read without running anything). ValueError where the path or a
    tensor is missing, or one has another shape.
    """
    path = Path(path)
    files = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ValueError(
            f"no perceptual weights at {path}: give a folder with torchvision's VGG16 (vgg16-397923af.pth) and the "
            "heads of the lpips package (lpips/weights/v0.1/vgg.pth), or one safetensors file with the tensors of both"
        )
    found: dict[str, Tensor] = {}
    for file in files:
        found |= {name: tensor.float() for name, tensor in _read(file).items() if _wanted(name)}
    model = Perceptual()
    stored = {_own_name(name): tensor.flatten() if name.startswith("lin") else tensor for name, tensor in found.items()}
    check_fit(model.state_dict(), stored, str(path))
    model.load_state_dict(stored)
    return model.to(device)


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} is not a readable safetensors file: {error}") from error
    with Checkpoint(file) as checkpoint:
        return {name: checkpoint.tensor(at) for name, at in state_dict(checkpoint.content).items() if _wanted(name)}


def _wanted(name: str) -> bool:
    return re.fullmatch(r"features\.\d+\.(weight|bias)|lin\d\.model\.1\.weight", name) is not None


def _own_name(name: str) -> str:
    return f"heads.{name[3]}" if name.startswith("lin") else name


def _unit(features: Tensor) -> Tensor:
    """Scale the feature vector of every place to length 1."""
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + _EPS)
