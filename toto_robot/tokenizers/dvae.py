"""What is the dVAE tokenizer: OpenAI's DALL-E layout, at any width and depth?

The module names are those of the `DALL-E` package with `.w`/`.b` called `.weight`/`.bias`, so its published weights
load after that renaming. Encoder: 7x7 conv, four groups of residual blocks at widths 1, 2, 4, 8 times `hidden`, 2x2
max-pool after the first three (stride 8), 1x1 conv to one logit a code. The code is the argmax. The decoder mirrors it
and gives six channels; the picture is the sigmoid of the first three, un-mapped (the other three are the log scale of
its logit-Laplace likelihood, which nothing at inference reads).

That encoder sees most of a small frame from every place, so an arm that moves in one corner changes codes in the other.
`encoder="local"` is the alternative: a code depends on its own 8x8 pixels and nothing else, so a patch that stands
still keeps its code by construction. The decoder is the same and sees neighbours, as it should.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toto_robot import weights
from toto_robot.tokenizers.base import check_images

_EPS = 0.1  # logit-Laplace: pixels live in [0.1, 0.9] so that their logits are finite
_GROUPS = 4
_STRIDE = 8


ENCODERS = ("dalle", "local")


@dataclass(frozen=True, kw_only=True)
class DVAEConfig:
    """Sizes of a dVAE."""

    name: str
    hidden: int  # width of the first group
    blocks_per_group: int
    vocab: int
    decoder_init: int  # width after the decoder's first conv
    encoder: str = "dalle"  # dalle: OpenAI's; local: each code sees its own square of pixels only
    decoder_hidden: int | None = None  # width of the decoder's last group; null: hidden
    decoder_blocks_per_group: int | None = None  # null: blocks_per_group

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ValueError(f"expected encoder {' or '.join(ENCODERS)}, got {self.encoder!r}")
        sizes = (self.hidden, self.blocks_per_group, self.vocab, self.decoder_init, *self.decoder_sizes)
        if self.hidden % 4 or self.decoder_sizes[0] % 4 or min(sizes) < 1:
            raise ValueError(f"hidden must be a multiple of 4 and every size at least 1, got {self}")

    @property
    def stride(self) -> int:
        """Pixels a code, along a side."""
        return _STRIDE

    @property
    def decoder_sizes(self) -> tuple[int, int]:
        """Width of the decoder's last group, and its blocks a group."""
        hidden = self.hidden if self.decoder_hidden is None else self.decoder_hidden
        blocks = self.blocks_per_group if self.decoder_blocks_per_group is None else self.decoder_blocks_per_group
        return hidden, blocks


PRESETS = {
    "dvae": DVAEConfig(name="dvae", hidden=256, blocks_per_group=2, vocab=8192, decoder_init=128),
    # One block a group: 1.4x as fast as two, and a smaller receptive field, so far-away motion flips fewer codes.
    "dvae_nano": DVAEConfig(name="dvae_nano", hidden=32, blocks_per_group=1, vocab=1024, decoder_init=32),
    "dvae_local": DVAEConfig(
        name="dvae_local", hidden=32, blocks_per_group=1, vocab=1024, decoder_init=32, encoder="local"
    ),
}


def dvae_preset(name: str) -> DVAEConfig:
    """Return the tokenizer configuration of that name; ValueError lists the names."""
    if name not in PRESETS:
        raise ValueError(f"no tokenizer preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def map_pixels(images: Tensor) -> Tensor:
    """Map pixels in [0, 1] to [0.1, 0.9], what the networks see."""
    return (1 - 2 * _EPS) * images + _EPS


def unmap_pixels(mapped: Tensor) -> Tensor:
    """Map the networks' [0.1, 0.9] back to [0, 1], clipped."""
    return ((mapped - _EPS) / (1 - 2 * _EPS)).clamp(0, 1)


class ResidualBlock(nn.Module):
    """id_path(x) + gain * res_path(x), gain = 1 / (all blocks of the network)^2; kernels of the four convs as given."""

    def __init__(self, width_in: int, width_out: int, kernels: tuple[int, int, int, int], gain: float) -> None:
        super().__init__()
        hidden = width_out // 4
        widths = (width_in, hidden, hidden, hidden, width_out)
        self.gain = gain
        self.id_path = _conv(width_in, width_out, 1) if width_in != width_out else nn.Identity()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, kernel in enumerate(kernels):
            layers[f"relu_{i + 1}"] = nn.ReLU()
            layers[f"conv_{i + 1}"] = _conv(widths[i], widths[i + 1], kernel)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width_in, h, w) to (B, width_out, h, w)."""
        return self.id_path(x) + self.gain * self.res_path(x)


class Encoder(nn.Module):
    """Mapped pixels (B, 3, h, w) to `outputs` channels at stride 8: logits of codes, or the latents of a quantiser."""

    def __init__(self, hidden: int, blocks_per_group: int, outputs: int) -> None:
        super().__init__()
        groups = _groups([hidden, hidden, 2 * hidden, 4 * hidden, 8 * hidden], blocks_per_group, (3, 3, 3, 1))
        for name in ("group_1", "group_2", "group_3"):
            groups[name].add_module("pool", nn.MaxPool2d(2))
        output = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=_conv(8 * hidden, outputs, 1)))
        self.blocks = nn.Sequential(OrderedDict(input=_conv(3, hidden, 7), **groups, output=output))

    def forward(self, mapped: Tensor) -> Tensor:
        """Return (B, outputs, h / 8, w / 8), float32: the last conv decides between codes and stays out of autocast."""
        *trunk, output = self.blocks
        x = mapped
        for block in trunk:
            x = block(x)
        with torch.autocast(x.device.type, enabled=False):
            return output(x.float())


class LocalEncoder(nn.Module):
    """As `Encoder`, of non-overlapping 8x8 patches: one conv of kernel and stride 8, then 1x1 residual blocks."""

    def __init__(self, hidden: int, blocks_per_group: int, outputs: int) -> None:
        super().__init__()
        width, blocks = 8 * hidden, _GROUPS * blocks_per_group
        named: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(blocks):
            named[f"block_{i + 1}"] = ResidualBlock(width, width, (1, 1, 1, 1), 1 / blocks**2)
        output = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=_conv(width, outputs, 1)))
        patches = nn.utils.skip_init(nn.Conv2d, 3, width, _STRIDE, stride=_STRIDE)
        self.blocks = nn.Sequential(OrderedDict(input=patches, group_1=nn.Sequential(named), output=output))

    def forward(self, mapped: Tensor) -> Tensor:
        """Return (B, outputs, h / 8, w / 8), float32; the last conv stays out of autocast."""
        *trunk, output = self.blocks
        x = mapped
        for block in trunk:
            x = block(x)
        with torch.autocast(x.device.type, enabled=False):
            return output(x.float())


def build_encoder(config: DVAEConfig, outputs: int) -> Encoder | LocalEncoder:
    """Return the encoder that the configuration names, with `outputs` channels."""
    kind = LocalEncoder if config.encoder == "local" else Encoder
    return kind(config.hidden, config.blocks_per_group, outputs)


class Decoder(nn.Module):
    """One-hot codes, or quantised latents, (B, inputs, h / 8, w / 8) to six channels (B, 6, h, w)."""

    def __init__(self, hidden: int, blocks_per_group: int, inputs: int, init: int) -> None:
        super().__init__()
        groups = _groups([init, 8 * hidden, 4 * hidden, 2 * hidden, hidden], blocks_per_group, (1, 3, 3, 3))
        for name in ("group_1", "group_2", "group_3"):
            groups[name].add_module("upsample", nn.Upsample(scale_factor=2, mode="nearest"))
        output = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=_conv(hidden, 6, 1)))
        self.blocks = nn.Sequential(OrderedDict(input=_conv(inputs, init, 1), **groups, output=output))

    def forward(self, x: Tensor) -> Tensor:
        """Run all blocks."""
        return self.trunk(self.blocks[0](x))

    def from_codes(self, codes: Tensor) -> Tensor:
        """Equal `forward` of the one-hot codes (B, h / 8, w / 8): a 1x1 conv of a one-hot is a row of a table."""
        first = self.blocks[0]
        assert isinstance(first, nn.Conv2d) and first.bias is not None
        rows = F.embedding(codes, first.weight[:, :, 0, 0].T) + first.bias
        return self.trunk(rows.permute(0, 3, 1, 2))

    def trunk(self, x: Tensor) -> Tensor:
        """Run all blocks but the first conv."""
        for block in list(self.blocks)[1:]:
            x = block(x)
        return x


class DVAE(nn.Module):
    """The tokenizer: frames to codes and back (`Tokenizer`).

    Runs in the precision of the autocast around it (bf16 with channels_last is the fast path of small widths on CPU);
    the logits are always float32.
    """

    def __init__(self, config: DVAEConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config, config.vocab)
        self.decoder = Decoder(*config.decoder_sizes, config.vocab, config.decoder_init)
        init_convs(self, generator)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def vocab(self) -> int:
        """Number of codes."""
        return self.config.vocab

    @property
    def stride(self) -> int:
        """Pixels a code, along a side."""
        return _STRIDE

    @property
    def trunk(self) -> tuple[nn.Module, ...]:
        """The parts of `encode` that may be cast to bf16."""
        return tuple(self.encoder.blocks)[:-1]

    @property
    def choice(self) -> tuple[nn.Module, ...]:
        """The parts of `encode` that decide between codes and stay float32."""
        return (self.encoder.blocks[-1],)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Map uint8 RGB (B, h, w, 3) to codes int64 (B, h / 8, w / 8); ValueError for another shape or dtype."""
        return self.encoder(frames_to_input(images)).argmax(dim=1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Map codes (B, h / 8, w / 8) to uint8 RGB (B, h, w, 3)."""
        pixels = unmap_pixels(self.decoder.from_codes(codes)[:, :3].float().sigmoid())
        return (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def fingerprint(self) -> str:
        """Return the hex SHA-256 of configuration and weights."""
        return weights.fingerprint(_describe(self.config), self.state_dict())


def frames_to_input(images: Tensor) -> Tensor:
    """Map uint8 RGB (B, h, w, 3) to mapped pixels (B, 3, h, w) float32, channels_last; ValueError for another input."""
    check_images(images, _STRIDE)
    return map_pixels(images.permute(0, 3, 1, 2).float() / 255)  # the permuted view already is channels_last


@torch.no_grad()
def init_convs(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw every conv's weight from N(0, 1 / fan_in) and zero its bias, as the DALL-E package does."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            conv.weight.normal_(0.0, 1 / math.sqrt(conv.weight[0].numel()), generator=generator)
            assert conv.bias is not None
            conv.bias.zero_()


def save_dvae(model: DVAE, folder: Path | str) -> None:
    """Write config.json ("model_type": "dvae") and model.safetensors to `folder`, atomically."""
    weights.write_model(Path(folder), _describe(model.config), model.state_dict())


def load_dvae(folder: Path | str, device: torch.device | str = "cpu") -> DVAE:
    """Load what `save_dvae` wrote, in eval mode; ValueError for another folder or the first tensor of a wrong size."""
    folder = Path(folder)
    config = weights.read_config(folder, "dvae")
    config.pop("model_type")
    try:
        model = DVAE(DVAEConfig(**config))
    except TypeError as error:
        raise ValueError(f"{folder / weights.CONFIG_FILE} is not a dVAE configuration: {error}") from error
    weights.read_weights(folder, model)
    return model.to(device).eval()


def _groups(widths: list[int], blocks: int, kernels: tuple[int, int, int, int]) -> OrderedDict[str, nn.Sequential]:
    gain = 1 / (_GROUPS * blocks) ** 2
    groups: OrderedDict[str, nn.Sequential] = OrderedDict()
    for g in range(_GROUPS):
        named: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(blocks):
            named[f"block_{i + 1}"] = ResidualBlock(widths[g + min(i, 1)], widths[g + 1], kernels, gain)
        groups[f"group_{g + 1}"] = nn.Sequential(named)
    return groups


def _conv(width_in: int, width_out: int, kernel: int) -> nn.Conv2d:
    return nn.utils.skip_init(nn.Conv2d, width_in, width_out, kernel, padding=kernel // 2)


def _describe(config: DVAEConfig) -> dict[str, object]:
    """Return the configuration without what is at its default: a new option leaves the hashes of old folders alone."""
    defaults = {field.name: field.default for field in fields(config)}
    told = {name: value for name, value in asdict(config).items() if value != defaults[name]}
    return {"model_type": "dvae", **told}
