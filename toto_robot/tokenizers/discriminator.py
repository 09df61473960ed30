"""Who tells decoded pictures from true ones, patch by patch? taming-transformers' PatchGAN and its losses.

Module names and arithmetic are those of taming's `NLayerDiscriminator` and `VQLPIPSWithDiscriminator` (arXiv
2012.09841): hinge losses, and a weight that makes the adversarial gradient as long as the reconstruction's where the
two meet, at the decoder's last layer.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LAYERS = 3  # strided ones, as published; fewer on frames that are too small for them
_MAX_WEIGHT = 1e4


class Discriminator(nn.Module):
    """Pixels in [-1, 1] (B, 3, h, w) to one logit a patch (B, 1, ...), above 0 for "true"."""

    def __init__(self, width: int, layers: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        parts: list[nn.Module] = [_conv(3, width, stride=2, bias=True), nn.LeakyReLU(0.2)]
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        for i in range(layers):
            stride = 2 if i + 1 < layers else 1
            parts += [_conv(widths[i], widths[i + 1], stride, bias=False), nn.BatchNorm2d(widths[i + 1])]
            parts.append(nn.LeakyReLU(0.2))
        self.main = nn.Sequential(*parts, _conv(widths[-1], 1, stride=1, bias=True))
        self._initialise(generator)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits."""
        return self.main(pixels)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(0.0, 0.02, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.normal_(1.0, 0.02, generator=generator)


def layers_for(image_px: int) -> int:
    """Return how many strided layers leave at least one patch of a frame; ValueError below 8 px."""
    if image_px < 8:
        raise ValueError(f"a discriminator needs frames of at least 8 px, got {image_px}")
    return min(_LAYERS, int(math.log2(image_px)) - 2)


def hinge_loss(true: Tensor, decoded: Tensor) -> Tensor:
    """Return the discriminator's loss, from its logits of true and of decoded pictures."""
    return 0.5 * (F.relu(1.0 - true).mean() + F.relu(1.0 + decoded).mean())


def fooling_loss(discriminator: Discriminator, decoded: Tensor) -> Tensor:
    """Return the decoder's loss, whose gradient reaches the pictures and leaves the discriminator's weights alone."""
    fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    return -torch.func.functional_call(discriminator, fixed, (decoded,)).mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Return the factor that makes the gradient of `adversarial` at `last_layer` as long as that of `reconstruction`.

    Detached, at most 10,000; both graphs stay for the backward pass.
    """
    lengths = [
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)
    ]
    return (lengths[0] / (lengths[1] + 1e-4)).clamp(0.0, _MAX_WEIGHT).detach()


def _conv(width_in: int, width_out: int, stride: int, bias: bool) -> nn.Conv2d:
    return nn.utils.skip_init(nn.Conv2d, width_in, width_out, 4, stride=stride, padding=1, bias=bias)
