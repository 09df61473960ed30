"""What may be set of `toto_robot train-tokenizer`, and which recipe does each method bring along?"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from toto_robot.pretrain.clips import check_mixture
from toto_robot.pretrain.loop import LoopConfig
from toto_robot.tokenizers.dvae import DVAEConfig
from toto_robot.tokenizers.load import tokenizer_preset
from toto_robot.tokenizers.vqgan import VQGANConfig

METHODS = ("vq_ema", "gumbel")
_STUDENT_ONLY = ("soft", "toto")
_VQGAN_ONLY = ("perceptual", "adversarial")
_PERCEPTUAL_PX = 16  # VGG halves the sides four times


@dataclass(frozen=True)
class TokenizerRecipe:
    """How a method trains; what the user gives goes before it."""

    lr: float
    lr_per_image: bool = False  # `lr` is multiplied by the batch size
    warmup_steps: int = 50  # at most a tenth of the steps
    final_lr_ratio: float = 0.1
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    cosine_share: float = 1.0
    averaged: bool = False  # publish a moving average of the weights


# DALL-E, appendix A.2: 1e-4 to 1.25e-6 in 1.2 of 3 million steps, AdamW (0.9, 0.999), decay 1e-4, average of 0.999.
_DALLE = TokenizerRecipe(
    lr=1e-4, warmup_steps=0, final_lr_ratio=0.0125, weight_decay=1e-4, beta2=0.999, cosine_share=0.4, averaged=True
)
# taming: 4.5e-6 for each image of a batch, no schedule, Adam (0.5, 0.9).
_TAMING = TokenizerRecipe(lr=4.5e-6, lr_per_image=True, warmup_steps=0, final_lr_ratio=1.0, beta1=0.5, beta2=0.9)
# Nano by VQ: 500 steps on held-out robot video gave 21.3 dB at 1e-3, 22.3 at 3e-3, 22.6 at 6e-3.
_NANO = TokenizerRecipe(lr=6e-3)
_RECIPES = {
    ("vq_ema", "dvae_nano"): _NANO,
    ("vq_ema", "dvae_local"): _NANO,
    ("vq_ema", "dvae"): TokenizerRecipe(lr=1e-4),
    ("gumbel", "dvae_nano"): replace(_DALLE, lr=3e-3),
    ("gumbel", "dvae_local"): replace(_DALLE, lr=3e-3),
    ("gumbel", "dvae"): _DALLE,
    ("vqgan", "vqgan_nano"): TokenizerRecipe(lr=2e-3, beta1=0.5, beta2=0.9),
    ("vqgan", "vqgan_1024"): _TAMING,
    ("vqgan", "vqgan_16384"): _TAMING,
    ("student", None): TokenizerRecipe(lr=3e-3),
}


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig:
    """Settings of `toto_robot train-tokenizer`."""

    MAY_CHANGE = (
        "device",
        "checkpoint_every",
        "eval_every",
        "pictures_every",
        "wandb",
    )  # these do not change the result

    data: tuple[str, ...] | None = None  # folders of videos, pictures or episodes, or recipes, as for pretrain
    weights: tuple[float, ...] | None = None  # share of each of data; null: by frames, of recipes alone the paper's
    limit_files: tuple[int, ...] | None = None  # use only so many videos, episodes or pictures (one number: of each)
    frames: str | None = None  # frames prepared before, by this command, tokenize or pretrain (instead of data)
    model: str | None = None  # dvae_nano (default), dvae_local, dvae (OpenAI's), vqgan_nano, vqgan_1024, vqgan_16384
    method: str = "vq_ema"  # how a dVAE finds its codes: vq_ema or gumbel (OpenAI's, which needs a budget like theirs)
    width: int | None = None  # channels of the first level; null is that of the preset, a student's a quarter
    vocab: int | None = None  # number of codes; null is that of the preset
    student_of: str | None = None  # folder of a dVAE: train a narrower encoder to give its codes, with its decoder
    soft: float = 0.0  # student: share of the teacher's probabilities in the loss, for teachers trained by gumbel
    toto: str | None = None  # student: a Toto on the teacher's tokens, whose change of loss is to be reported
    perceptual: str | None = None  # vqgan: LPIPS weights (folder or file); the published recipe has the term
    adversarial: bool = False  # vqgan: a discriminator; the published recipe has one
    adversarial_from: float = 0.5  # vqgan: share of the steps before the discriminator starts
    image_px: int = 64  # side of the square frames, pixels
    limit_frames: int | None = None  # use only that many frames
    steps: int = 1100  # training steps
    batch_size: int = 32  # frames a step
    lr: float | None = None  # peak learning rate; null is the method's, as in the next three
    warmup_steps: int | None = None  # linear warm-up
    final_lr_ratio: float | None = None  # last learning rate over the peak
    weight_decay: float | None = None  # on conv weights
    clip: float = 1.0  # largest gradient norm
    plain_fraction: float = 0.2  # vq_ema, vqgan: share of the steps that train a plain autoencoder, before codes start
    val_fraction: float = 0.05  # share of the videos or episodes held out
    seed: int = 0  # of weights, batches and codebook
    device: str = "auto"  # auto, cpu, cuda or cuda:<n>
    precision: str = "auto"  # auto, bf16 or fp32
    checkpoint_every: int = 200  # steps
    eval_every: int = 200  # steps
    pictures_every: int | None = None  # steps between pictures on the way; 0: none; null: a fifth of the training
    wandb: str | None = None  # Weights & Biases project that is logged to as well; null: none

    def __post_init__(self) -> None:
        if self.data and self.frames:
            raise ValueError("give data or frames, not both")
        check_mixture(self.data, self.weights, self.limit_files, self.limit_frames)
        for name in ("plain_fraction", "adversarial_from"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 <= self.soft <= 1:
            raise ValueError(f"soft must lie from 0 to 1, got {self.soft}")
        self._check_method()
        stride = 8 if self.student_of else self.sizes().stride
        if self.image_px < stride or self.image_px % stride:
            raise ValueError(f"image_px must be a multiple of {stride} (the tokenizer's stride), got {self.image_px}")
        if self.perceptual and self.image_px < _PERCEPTUAL_PX:
            raise ValueError(f"perceptual needs image_px of at least {_PERCEPTUAL_PX}, got {self.image_px}")
        self.loop()

    @property
    def kind(self) -> str:
        """Say what is trained: vq_ema, gumbel, vqgan or student."""
        if self.student_of:
            return "student"
        return "vqgan" if isinstance(tokenizer_preset(self.preset), VQGANConfig) else self.method

    @property
    def preset(self) -> str:
        """Return the name of the sizes."""
        return self.model or "dvae_nano"

    @property
    def plain_steps(self) -> int:
        """Return how many steps come before the codes."""
        return max(1, round(self.plain_fraction * self.steps))

    def sizes(self) -> DVAEConfig | VQGANConfig:
        """Return the sizes, changed by what was given; a student's are known with its teacher only."""
        assert not self.student_of
        sizes = tokenizer_preset(self.preset)
        if self.vocab is not None:
            sizes = replace(sizes, vocab=self.vocab)
        if self.width is None:
            return sizes
        if isinstance(sizes, VQGANConfig):
            return replace(sizes, width=self.width)
        return replace(sizes, hidden=self.width)

    def loop(self) -> LoopConfig:
        """Return the settings of the loop."""
        recipe = _RECIPES[self.kind, None if self.student_of else self.preset]
        warmup_steps = min(recipe.warmup_steps, self.steps // 10) if self.warmup_steps is None else self.warmup_steps
        return LoopConfig(
            steps=self.steps,
            lr=_given(self.lr, recipe.lr * (self.batch_size if recipe.lr_per_image else 1)),
            warmup_steps=warmup_steps,
            final_lr_ratio=_given(self.final_lr_ratio, recipe.final_lr_ratio),
            weight_decay=_given(self.weight_decay, recipe.weight_decay),
            clip=self.clip,
            seed=self.seed,
            checkpoint_every=self.checkpoint_every,
            eval_every=self.eval_every,
            pictures_every=self.pictures_every,
            wandb=self.wandb,
            cosine_share=recipe.cosine_share,
            beta1=recipe.beta1,
            beta2=recipe.beta2,
            ema_decay=self._average() if recipe.averaged else None,
        )

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide the result."""
        settings = {key: value for key, value in asdict(self).items() if key not in self.MAY_CHANGE}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}

    def _average(self) -> float:
        """Return DALL-E's decay of 0.999, or one that spans a tenth of a short training."""
        return min(0.999, 1 - 1 / max(2.0, 0.1 * self.steps))

    def _check_method(self) -> None:
        """Raise ValueError for options that belong to another method than the one that is asked for."""
        if self.method not in METHODS:
            raise ValueError(f"method must be {' or '.join(METHODS)}, got {self.method!r}")
        kind = self.kind
        if kind == "vqgan" and self.method != "vq_ema":
            raise ValueError(f"method={self.method} is for a dVAE; {self.preset} is trained by vq_ema")
        if kind == "student":
            given = [name for name in ("model", "vocab") if getattr(self, name) is not None]
            if given or self.method != "vq_ema":
                raise ValueError(
                    f"a student has vocabulary and layout of its teacher: drop {', '.join(given) or 'method'}"
                )
        for kind_of, names in (("student", _STUDENT_ONLY), ("vqgan", _VQGAN_ONLY)):
            used = [name for name in names if getattr(self, name)]
            if used and kind != kind_of:
                needs = "student_of=<tokenizer>" if kind_of == "student" else "a vqgan model"
                raise ValueError(f"{', '.join(used)} needs {needs}")


def _given(value: float | None, recipe: float) -> float:
    return recipe if value is None else value
