"""What can be set in a pretraining, and what is right for a model where nothing is said?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from toto_robot.models.mae import MAEConfig
from toto_robot.models.presets import mae_preset, preset
from toto_robot.models.toto import TotoConfig
from toto_robot.pretrain.loop import LoopConfig
from toto_robot.tokenizers.dvae import dvae_preset

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


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of `toto_robot pretrain`; null where the size of the model decides."""

    MAY_CHANGE = ("device", "checkpoint_every", "eval_every", "keep_checkpoints")  # these do not change the result

    data: str | None = None  # folder of videos, a video or an episode store; null: recorded in simulation by `collect`
    model: str = "nano"  # Toto: nano tiny small base large 1b a1..a6; baseline: mae_nano mae_base
    episodes: int = 150  # episodes of FrankaPick to record where data is null
    frames: str | None = None  # prepared frames of another run (its frames/ folder), instead of data
    tokens: str | None = None  # tokens of another run (its tokens/ folder), with the tokenizer that made them
    tokenizer: str | None = None  # tokenizer folder; null: one is trained on the same frames
    tokenizer_model: str = "dvae_nano"  # sizes of the tokenizer to train
    tokenizer_steps: int = 1100  # training steps of the tokenizer
    limit_frames: int | None = None  # use only that many frames
    steps: int | None = None  # training steps
    batch_size: int | None = None  # windows of frames (Toto) or images (MAE) a step
    lr: float | None = None  # peak learning rate
    warmup_steps: int | None = None  # linear warm-up
    final_lr_ratio: float = 0.1  # last learning rate over the peak (cosine)
    weight_decay: float | None = None  # on matrices and tables
    clip: float = 1.0  # largest gradient norm
    strides: tuple[int, ...] = (1, 2)  # every how many-th frame a window takes
    val_fraction: float = 0.05  # share of the videos or episodes held out
    val_samples: int | None = None  # held-out windows or images measured at the end
    seed: int = 0  # of weights, batches, masks and division
    device: str = "auto"  # auto, cpu, cuda or cuda:<n>
    precision: str = "auto"  # auto, bf16 or fp32
    compile: bool = False  # torch.compile: 1.1 times the speed on two cores, after half a minute of compilation
    checkpoint_every: int = 100  # steps
    eval_every: int = 100  # steps
    keep_checkpoints: int = 2  # newest ones kept

    def __post_init__(self) -> None:
        self.sizes()
        self.loop()
        if self.data and self.frames:
            raise ValueError("give data or frames, not both")
        if self.tokens and not self.tokenizer:
            raise ValueError("tokens=<folder> needs tokenizer=<the tokenizer that made them>, for the model's folder")
        if self.is_mae and (self.tokens or self.tokenizer):
            raise ValueError(f"{self.model} trains on pixels: give data or frames, not tokens or tokenizer")
        if min(self.strides, default=0) < 1:
            raise ValueError(f"expected strides of 1 or more, such as strides=[1,2], got {list(self.strides)}")
        if self.episodes < 2:
            raise ValueError(f"expected at least 2 episodes (one is held out), got {self.episodes}")
        for name in ("batch_size", "val_samples"):
            if getattr(self.recipe(), name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        dvae_preset(self.tokenizer_model)

    @property
    def is_mae(self) -> bool:
        """Say whether the baseline is to be trained."""
        return self.model.startswith(_MAE)

    def sizes(self) -> TotoConfig | MAEConfig:
        """Return the model's configuration; ValueError lists the names there are."""
        return mae_preset(self.model.removeprefix(_MAE)) if self.is_mae else preset(self.model)

    def recipe(self) -> Recipe:
        """Return the recipe of the model, changed by what was given."""
        family = "mae" if self.is_mae else "toto"
        found = _RECIPES[f"{family} large" if self.sizes().width >= _LARGE else family]
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
        )

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide the result, as JSON gives them back."""
        settings = {key: value for key, value in asdict(self).items() if key not in self.MAY_CHANGE}
        return {**settings, "strides": list(self.strides)}
