"""What do facebookresearch/mae and ir413/mvp publish? Their layout (timm's) once more, with its forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toto_robot.models.mae import sine_positions


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.transpose(-2, -1)) * (D // self.heads) ** -0.5).softmax(dim=-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(B, N, D))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_px, stride=patch_px)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class PublishedMAE(nn.Module):
    """MaskedAutoencoderViT: the encoder, and with `decoder_width` the decoder's tensors."""

    def __init__(
        self, width: int, heads: int, depth: int, image_px: int, patch_px: int = 16, decoder_width: int | None = None
    ) -> None:
        super().__init__()
        side = image_px // patch_px
        self.patch_embed = PatchEmbed(width, patch_px)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(sine_positions(side, width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        if decoder_width is not None:
            self.decoder_embed = nn.Linear(width, decoder_width)
            self.mask_token = nn.Parameter(torch.randn(1, 1, decoder_width))
            self.decoder_pos_embed = nn.Parameter(sine_positions(side, decoder_width), requires_grad=False)
            self.decoder_blocks = nn.ModuleList(Block(decoder_width, 16) for _ in range(2))
            self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
            self.decoder_pred = nn.Linear(decoder_width, patch_px**2 * 3)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map normalised pixels (B, 3, h, w) to normed tokens (B, 1 + P, D), CLS first, nothing masked."""
        x = self.patch_embed(pixels)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def decode(self, latent: Tensor) -> Tensor:
        """Map the encoder's normed tokens (B, 1 + P, D) of an unmasked picture to predicted patches (B, P, 3 p p)."""
        x = self.decoder_embed(latent) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]


def randomised(model: PublishedMAE, seed: int = 0) -> PublishedMAE:
    """Draw every weight, norms and biases too, so that two that are mixed up show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos_embed" in name:
                continue
            centre = 1.0 if name.endswith("weight") and parameter.ndim == 1 else 0.0
            scale = 0.2 if parameter.ndim == 1 else 1.5 / parameter[0].numel() ** 0.5
            parameter.copy_(centre + scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()
