"""What is the VQGAN tokenizer: taming-transformers' layout, at any width, depth and number of codes?

The module names are those of taming's `VQModel` without its training loss, so its published weights load as they are.
Encoder: 3x3 conv, levels of residual blocks with a strided conv between (four of them: stride 16), attention over all
places at the deepest level, one projection to the width of the codes. The code is the nearest row of a table. The
decoder mirrors it with one more block a level. Pixels live in [-1, 1]. Source: arXiv 2012.09841 and its repository.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toto_robot import weights
from toto_robot.tokenizers.base import check_images
from toto_robot.tokenizers.dvae import init_convs

_GROUPS = 32  # of every group norm, as in taming
_NORM_EPS = 1e-6
_ROWS = 4096  # latents compared with the table at a time: 256 MB of distances at 16384 codes


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """Sizes of a VQGAN; the stride is 2 to the number of levels but one."""

    name: str
    vocab: int
    width: int = 128  # of the first level
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # width of each level in units of the first one's
    blocks: int = 2  # residual blocks a level; the decoder has one more
    attention_levels: tuple[int, ...] = (4,)  # levels, counted from 0, where attention follows every block
    latent_width: int = 256  # what the encoder gives and the decoder takes
    code_width: int = 256  # of a row of the table

    def __post_init__(self) -> None:
        sizes = (self.vocab, self.width, self.blocks, self.latent_width, self.code_width, *self.multipliers)
        if not self.multipliers or min(sizes) < 1:
            raise ValueError(f"every size of a VQGAN must be at least 1, and it needs one level or more; got {self}")
        if any(self.width * multiplier % _GROUPS for multiplier in self.multipliers):
            raise ValueError(f"the width of every level must be a multiple of {_GROUPS} (its group norms), got {self}")
        if not all(0 <= level < len(self.multipliers) for level in self.attention_levels):
            raise ValueError(f"attention_levels must lie in 0..{len(self.multipliers) - 1}, got {self}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)

    @property
    def stride(self) -> int:
        """Pixels a code, along a side."""
        return 2 ** (len(self.multipliers) - 1)


PRESETS = {
    "vqgan_nano": VQGANConfig(  # stride 8, for CPUs: the grid and number of codes of dvae_nano
        name="vqgan_nano",
        vocab=1024,
        width=32,
        multipliers=(1, 1, 2, 2),
        blocks=1,
        attention_levels=(3,),
        latent_width=64,
        code_width=16,
    ),
    "vqgan_1024": VQGANConfig(name="vqgan_1024", vocab=1024),
    "vqgan_16384": VQGANConfig(name="vqgan_16384", vocab=16384),
}


def vqgan_preset(name: str) -> VQGANConfig:
    """Return the configuration of that name (nano and the two f16 of taming); ValueError lists the names."""
    if name not in PRESETS:
        raise ValueError(f"no VQGAN preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


class ResidualBlock(nn.Module):
    """x + two rounds of (group norm, swish, 3x3 conv); a 1x1 conv on x where the width changes."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(width_in), _conv(width_in, width_out, 3)
        self.norm2, self.conv2 = _norm(width_out), _conv(width_out, width_out, 3)
        if width_in != width_out:
            self.nin_shortcut = _conv(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width_in, h, w) to (B, width_out, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class Attention(nn.Module):
    """x + attention of every place to every place, one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v = _conv(width, width, 1), _conv(width, width, 1), _conv(width, width, 1)
        self.proj_out = _conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep (B, D, h, w)."""
        normed = self.norm(x)
        q, k, v = (conv(normed).flatten(2).transpose(1, 2)[:, None] for conv in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0]  # (B, h * w, D)
        return x + self.proj_out(mixed.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """3x3 conv of stride 2; taming pads right and bottom only, where torch would pad all sides."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.utils.skip_init(nn.Conv2d, width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the sides."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour, then a 3x3 conv."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Double the sides."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks, attention after each where wanted, and what leads to the next level, if any."""

    def __init__(self, width_in: int, width_out: int, blocks: int, attention: bool, leads: str) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(width_out if i else width_in, width_out) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(width_out) for _ in range(blocks if attention else 0))
        if leads == "down":
            self.downsample = Downsample(width_out)
        elif leads == "up":
            self.upsample = Upsample(width_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width_in, h, w) to (B, width_out, ...)."""
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        for lead in ("downsample", "upsample"):
            if hasattr(self, lead):
                x = getattr(self, lead)(x)
        return x


class Middle(nn.Module):
    """Block, attention, block, at the deepest level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = ResidualBlock(width, width), ResidualBlock(width, width)
        self.attn_1 = Attention(width)

    def forward(self, x: Tensor) -> Tensor:
        """Keep (B, width, h, w)."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Pixels in [-1, 1] (B, 3, h, w) to latents (B, latent_width, h / stride, w / stride)."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = _conv(3, config.width, 3)
        self.down = nn.ModuleList(
            Level(widths[i - 1] if i else config.width, widths[i], config.blocks, i in config.attention_levels,
                  "down" if i < last else "")
            for i in range(len(widths))
        )  # fmt: skip
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = _norm(widths[-1]), _conv(widths[-1], config.latent_width, 3)

    def forward(self, mapped: Tensor) -> Tensor:
        """Run everything; the end is float32, because it decides between codes, and stays out of autocast."""
        x = self.conv_in(mapped)
        for level in self.down:
            x = level(x)
        x = self.mid(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.conv_out(F.silu(self.norm_out(x.float())))


class Decoder(nn.Module):
    """Latents (B, latent_width, h / stride, w / stride) to pixels around [-1, 1] (B, 3, h, w)."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = _conv(config.latent_width, widths[-1], 3)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(  # as in taming, `up.0` is the finest level, and runs last
            Level(widths[min(i + 1, last)], widths[i], config.blocks + 1, i in config.attention_levels,
                  "up" if i else "")
            for i in range(len(widths))
        )  # fmt: skip
        self.norm_out, self.conv_out = _norm(widths[0]), _conv(widths[0], 3, 3)

    def forward(self, latents: Tensor) -> Tensor:
        """Run everything."""
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Quantiser(nn.Module):
    """The table of codes."""

    def __init__(self, vocab: int, code_width: int) -> None:
        super().__init__()
        self.embedding = nn.utils.skip_init(nn.Embedding, vocab, code_width)

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents (B, code_width, h, w) to the index of the nearest row, int64 (B, h, w)."""
        B, _, h, w = latents.shape
        table = self.embedding.weight
        half_square = 0.5 * table.square().sum(dim=1)  # |z - e|^2 = |z|^2 - 2 (z.e - |e|^2 / 2)
        rows = latents.permute(0, 2, 3, 1).flatten(0, 2)
        near = [(part @ table.T - half_square).argmax(dim=1) for part in rows.split(_ROWS)]
        return torch.cat(near).view(B, h, w)


class VQGAN(nn.Module):
    """The tokenizer: frames to codes and back (`Tokenizer`).

    Runs in the precision of the autocast around it; the choice of the code is always float32.
    """

    def __init__(self, config: VQGANConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = Quantiser(config.vocab, config.code_width)
        self.quant_conv = _conv(config.latent_width, config.code_width, 1)
        self.post_quant_conv = _conv(config.code_width, config.latent_width, 1)
        init_convs(self, generator)
        with torch.no_grad():
            self.quantize.embedding.weight.uniform_(-1 / config.vocab, 1 / config.vocab, generator=generator)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def vocab(self) -> int:
        """Number of codes."""
        return self.config.vocab

    @property
    def stride(self) -> int:
        """Pixels a code, along a side."""
        return self.config.stride

    @property
    def trunk(self) -> tuple[nn.Module, ...]:
        """The parts of `encode` that may be cast to bf16."""
        return self.encoder.conv_in, self.encoder.down, self.encoder.mid

    @property
    def choice(self) -> tuple[nn.Module, ...]:
        """The parts of `encode` that decide between codes and stay float32."""
        return self.encoder.norm_out, self.encoder.conv_out, self.quant_conv, self.quantize

    def latents(self, mapped: Tensor) -> Tensor:
        """Map pixels in [-1, 1] (B, 3, h, w) to what is compared with the table, (B, code_width, ...) float32."""
        encoded = self.encoder(mapped)
        with torch.autocast(encoded.device.type, enabled=False):
            return self.quant_conv(encoded)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Map uint8 RGB (B, h, w, 3) to codes int64 (B, h / stride, w / stride); ValueError for another input."""
        latents = self.latents(frames_to_input(images, self.stride))
        with torch.autocast(latents.device.type, enabled=False):
            return self.quantize(latents)

    def pixels(self, codes: Tensor) -> Tensor:
        """Map codes (B, h / stride, w / stride) to pixels around [-1, 1] (B, 3, h, w), not clipped."""
        rows = self.quantize.embedding(codes).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(rows))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Map codes (B, h / stride, w / stride) to uint8 RGB (B, h, w, 3)."""
        pixels = self.pixels(codes).float().clamp(-1, 1)
        return ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def fingerprint(self) -> str:
        """Return the hex SHA-256 of configuration and weights."""
        return weights.fingerprint(_describe(self.config), self.state_dict())


def frames_to_input(images: Tensor, stride: int) -> Tensor:
    """Map uint8 RGB (B, h, w, 3) to pixels in [-1, 1] (B, 3, h, w) float32; ValueError for another input."""
    check_images(images, stride)
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def save_vqgan(model: VQGAN, folder: Path | str) -> None:
    """Write config.json ("model_type": "vqgan") and model.safetensors to `folder`, atomically."""
    weights.write_model(Path(folder), _describe(model.config), model.state_dict())


def load_vqgan(folder: Path | str, device: torch.device | str = "cpu") -> VQGAN:
    """Load what `save_vqgan` wrote, in eval mode; ValueError for another folder or the first tensor of a wrong size."""
    folder = Path(folder)
    config = weights.read_config(folder, "vqgan")
    config.pop("model_type")
    tuples = {key: tuple(value) for key, value in config.items() if isinstance(value, list)}
    try:
        model = VQGAN(VQGANConfig(**{**config, **tuples}))
    except TypeError as error:
        raise ValueError(f"{folder / weights.CONFIG_FILE} is not a VQGAN configuration: {error}") from error
    weights.read_weights(folder, model)
    return model.to(device).eval()


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, width, eps=_NORM_EPS)


def _conv(width_in: int, width_out: int, kernel: int) -> nn.Conv2d:
    return nn.utils.skip_init(nn.Conv2d, width_in, width_out, kernel, padding=kernel // 2)


def _describe(config: VQGANConfig) -> dict[str, object]:
    return {"model_type": "vqgan", **asdict(config)}
