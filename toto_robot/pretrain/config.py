"""What can be set in a pretraining, and what is right for a model where nothing is said?"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from toto_robot.models.loss import LOSS_CHUNK_TOKENS
from toto_robot.models.mae import MAEConfig
from toto_robot.models.mup import with_mup
from toto_robot.models.presets import mae_preset, preset
from toto_robot.models.recompute import check_mode
from toto_robot.models.toto import TotoConfig
from toto_robot.pretrain.clips import check_mixture
from toto_robot.pretrain.loop import LoopConfig
from toto_robot.pretrain.resolution import at_resolution
from toto_robot.tokenizers.load import tokenizer_preset

_MAE = "mae_"  # of a model name: the rest is an MAE preset


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is right for a family and size of model where the command line says nothing."""

    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_steps: int
    val_samples: int


# Small: what two CPU cores do in about six minutes. Large Toto: arXiv 2501.05453 (lr 3e-4, 2000 warm-up steps, 2^20
# tokens a step), with LLaMA's weight decay, which the paper leaves open. Large MAE: arXiv 2111.06377 (lr 1.5e-4 for
# every 256 images).
_RECIPES = {
    "toto": Recipe(steps=450, batch_size=4, lr=1.5e-3, weight_decay=0.1, warmup_steps=50, val_samples=128),
    "toto large": Recipe(
        steps=1_000_000, batch_size=256, lr=3e-4, weight_decay=0.1, warmup_steps=2000, val_samples=1024
    ),
    "mae": Recipe(steps=1100, batch_size=64, lr=1e-3, weight_decay=0.05, warmup_steps=50, val_samples=2048),
    "mae large": Recipe(
        steps=250_000, batch_size=4096, lr=2.4e-3, weight_decay=0.05, warmup_steps=12_500, val_samples=50_000
    ),
}
_LARGE = 768  # width from which the papers' recipes hold
_TOTO_ONLY = ("start", "image_px", "window_frames", "rope_base", "mup_base", "batch_tokens")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of `toto_robot pretrain`; null where the size of the model decides."""

    # These do not change the result.
    MAY_CHANGE = (
        "device", "checkpoint_every", "eval_every", "keep_checkpoints", "pictures_every", "wandb", "replicas",
        "activation_checkpointing", "loader_workers",
    )  # fmt: skip

    data: tuple[str, ...] | None = None  # folders of videos, pictures, episodes; ego4d:<folder>; null: `collect`
    weights: tuple[float, ...] | None = None  # share of each of data; null: by frames, of recipes alone the paper's
    limit_files: tuple[int, ...] | None = None  # use only so many videos, episodes or pictures (one number: of each)
    model: str = "nano"  # Toto: nano tiny small base large 1b a1..a6; MAE: mae_nano _tiny _small _vit_s16 _vit_b16
    episodes: int = 150  # episodes of FrankaPick to record where data is null
    frames: str | None = None  # prepared frames of another run (its frames/ folder), instead of data
    tokens: str | None = None  # tokens of another run (its tokens/ folder), with the tokenizer that made them
    tokenizer: str | None = None  # tokenizer folder or packaged name; null: one is trained on the same frames
    tokenizer_model: str = "dvae_nano"  # sizes of the tokenizer to train
    tokenizer_steps: int = 1100  # training steps of the tokenizer
    limit_frames: int | None = None  # use only that many frames
    start: str | None = None  # pretrained_model folder or packaged name of the first weights; null: from the seed
    image_px: int | None = None  # side of the frames, for the high-resolution stage; null: the preset's
    window_frames: int | None = None  # frames in a sample; null: the preset's
    rope_base: float | None = None  # base of the rotary positions; null: 10 000 (paper at 32x32 tokens: 50 000)
    mup_base: str | None = None  # preset whose learning rate is right at every width (muP); null: standard
    steps: int | None = None  # training steps
    equal_to: str | None = None  # MAE: run folder of a finished Toto, whose clips and amount of training it shall have
    equal: str = "tokens"  # what is equal then: tokens (patches seen, hidden ones too) or compute (training FLOPs)
    batch_size: int | None = None  # windows of frames (Toto) or images (MAE) a step
    batch_tokens: int | None = None  # instead of batch_size: tokens a step (paper: 1048576)
    micro_batch: int | None = None  # those computed at once by all processes, their gradients add up; null: all
    lr: float | None = None  # peak learning rate
    warmup_steps: int | None = None  # linear warm-up
    final_lr_ratio: float = 0.1  # last learning rate over the peak
    wsd_decay: float | None = None  # share of the steps, the last, in which a constant rate falls (WSD); null: cosine
    ema_decay: float | None = None  # of the moving average of the weights, which is then published; null: none
    weight_decay: float | None = None  # on matrices and tables
    clip: float = 1.0  # largest gradient norm
    strides: tuple[int, ...] = (1, 2)  # every how many-th frame a window takes
    val_fraction: float = 0.05  # share of the videos or episodes held out
    val_samples: int | None = None  # held-out windows or images measured at the end
    seed: int = 0  # of weights, batches, masks and division
    device: str = "auto"  # auto, cpu, cuda or cuda:<n>
    precision: str = "auto"  # auto, bf16 or fp32
    compile: bool = False  # torch.compile: 1.1 times the speed on a CPU, after half a minute of compilation
    activation_checkpointing: str = "none"  # none, selective or full: less memory for Toto, the same result, slower
    loss_chunk_tokens: int = LOSS_CHUNK_TOKENS  # positions whose logits are there at once; on a GPU 8192 may be faster
    checkpoint_every: int = 100  # steps
    eval_every: int = 100  # steps
    keep_checkpoints: int = 2  # newest ones kept
    pictures_every: int | None = None  # steps between pictures on the way; 0: none; null: a fifth, but at least 50
    wandb: str | None = None  # Weights & Biases project that is logged to as well; null: none
    loader_workers: int = 0  # threads that read the coming batches, which stay the same; 0: each is read when it is due
    replicas: int = 1  # with torchrun: groups of processes (nodes) that hold a whole model each (HSDP)

    def __post_init__(self) -> None:
        if self.is_mae and (given := [name for name in _TOTO_ONLY if getattr(self, name) is not None]):
            raise ValueError(f"{', '.join(given)} change a Toto; {self.model} has its sizes from its preset")
        self.sizes()
        if check_mode(self.activation_checkpointing) != "none" and self.is_mae:
            raise ValueError(
                f"activation_checkpointing is Toto's; train {self.model} with activation_checkpointing=none"
            )
        if self.loss_chunk_tokens < 1:
            raise ValueError(f"expected loss_chunk_tokens of at least 1, got {self.loss_chunk_tokens}")
        for name in ("batch_size", "val_samples"):
            if getattr(self.recipe(), name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        self.loop()
        if self.start and not self.tokenizer:
            raise ValueError(f"start={self.start} needs the tokenizer of its codes: tokenizer={self.start}/tokenizer")
        if self.equal not in ("tokens", "compute"):
            raise ValueError(f"expected equal=tokens or equal=compute, got {self.equal!r}")
        if self.equal_to and not self.is_mae:
            raise ValueError(f"equal_to={self.equal_to} is for the baseline, model=mae_...; {self.model} is a Toto")
        if self.data and self.frames:
            raise ValueError("give data or frames, not both")
        check_mixture(self.data, self.weights, self.limit_files, self.limit_frames)
        if self.tokens and not self.tokenizer:
            raise ValueError("tokens=<folder> needs tokenizer=<the tokenizer that made them>, for the model's folder")
        if self.is_mae and (self.tokens or self.tokenizer):
            raise ValueError(f"{self.model} trains on pixels: give data or frames, not tokens or tokenizer")
        if min(self.strides, default=0) < 1:
            raise ValueError(f"expected strides of 1 or more, such as strides=[1,2], got {list(self.strides)}")
        if self.episodes < 2:
            raise ValueError(f"expected at least 2 episodes (one is held out), got {self.episodes}")
        tokenizer_preset(self.tokenizer_model)

    @property
    def is_mae(self) -> bool:
        """Say whether the baseline is to be trained."""
        return self.model.startswith(_MAE)

    def sizes(self) -> TotoConfig | MAEConfig:
        """Return the model's configuration; ValueError lists the names there are."""
        if self.is_mae:
            return mae_preset(self.model.removeprefix(_MAE))
        sizes = at_resolution(
            preset(self.model), image_px=self.image_px, frames=self.window_frames, rope_base=self.rope_base
        )
        return with_mup(sizes, preset(self.mup_base)) if self.mup_base else sizes

    def recipe(self) -> Recipe:
        """Return the recipe of the model, changed by what was given."""
        sizes, family = self.sizes(), "mae" if self.is_mae else "toto"
        found = _recipe_of(family, sizes.width)
        if self.mup_base:
            found = replace(found, lr=_recipe_of(family, preset(self.mup_base).width).lr)
        if self.batch_tokens is not None:
            assert isinstance(sizes, TotoConfig)
            found = replace(found, batch_size=self._windows_of(self.batch_tokens, sizes))
        given = {name: getattr(self, name) for name in asdict(found) if getattr(self, name) is not None}
        if "steps" in given and "warmup_steps" not in given:  # a short trial keeps the proportion
            given["warmup_steps"] = min(found.warmup_steps, given["steps"] // 10)
        return Recipe(**{**asdict(found), **given})

    def loop(self) -> LoopConfig:
        """Return the settings of the loop."""
        recipe = self.recipe()
        return LoopConfig(
            steps=recipe.steps,
            lr=recipe.lr,
            warmup_steps=recipe.warmup_steps,
            final_lr_ratio=self.final_lr_ratio,
            weight_decay=recipe.weight_decay,
            clip=self.clip,
            seed=self.seed,
            checkpoint_every=self.checkpoint_every,
            keep_checkpoints=self.keep_checkpoints,
            eval_every=self.eval_every,
            pictures_every=self.pictures_every,
            wandb=self.wandb,
            wsd_decay=self.wsd_decay,
            ema_decay=self.ema_decay,
            accumulate=recipe.batch_size // self.computed_at_once(),
            loader_workers=self.loader_workers,
        )

    def computed_at_once(self) -> int:
        """Return how many windows or images one forward pass takes; ValueError where they do not divide the batch."""
        batch_size = self.recipe().batch_size
        if self.micro_batch is None:
            return batch_size
        if self.micro_batch < 1 or batch_size % self.micro_batch:
            raise ValueError(f"expected micro_batch to divide batch_size {batch_size}, got {self.micro_batch}")
        return self.micro_batch

    def _windows_of(self, tokens: int, sizes: TotoConfig) -> int:
        """Return how many windows hold so many tokens; ValueError names the nearest number below that fits."""
        window = sizes.frames * sizes.tokens_per_frame
        if self.batch_size is not None:
            raise ValueError("give batch_size or batch_tokens, not both")
        if tokens < window or tokens % window:
            fits = max(1, tokens // window) * window
            raise ValueError(
                f"expected batch_tokens as a multiple of the {window} of a window, such as {fits}, got {tokens}"
            )
        return tokens // window

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide the result, as JSON gives them back."""
        settings = {key: value for key, value in asdict(self).items() if key not in self.MAY_CHANGE}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}


def _recipe_of(family: str, width: int) -> Recipe:
    return _RECIPES[f"{family} large" if width >= _LARGE else family]
