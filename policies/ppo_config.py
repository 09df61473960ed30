"""What are PPO's settings, which of them are PixMC's, and which differ?

The defaults are those of MVP's PixMC (`configs/ppo/train/FrankaPickPixels.yaml`; docs/policies.md has the table), but
for: rollouts of `num_envs` environments as this machine carries them, with as many steps each as give PixMC's batch of
8192; shuffled minibatches; time limits that are bootstrapped from; running normalisation of what is told and of rewards
(the critic's gradients would drown the policy's under one clipped norm: returns reach thousands here); and a standard
deviation that is exp(log_std), where PixMC's density squares it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.heads.trunk import TrunkConfig

PROPRIO_NORMALIZERS = ("mean_std", "none")
SELECTED = ("best", "last")


def _pixmc_trunk() -> TrunkConfig:
    return TrunkConfig(activation="selu", camera_width=128, proprio_width=128, hidden=(256, 128, 64))


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Settings of PPO on a frozen encoder (Schulman et al. 2017)."""

    env_steps: int = 16_384_000  # environment steps of the whole training; PixMC: pick this, cabinet half
    num_envs: int = 64  # environments in lock-step; PixMC 256
    rollout_steps: int = 128  # steps of each environment between updates; PixMC 32
    workers: int | None = None  # processes that step environments (on a CPU also act); null: one a core; 0: this one
    groups: int = 2  # on a GPU: parts of the environments, one of which moves while the policy thinks for another
    action_mode: str = "ee_delta"  # ee_delta (as demonstrations) or joint_delta (PixMC's)
    image_size: int = 64  # height and width of a camera image, px
    epochs: int = 10  # passes over a rollout
    minibatches: int = 4  # parts of a rollout, an optimizer step each
    clip: float = 0.1  # largest change of an action's probability ratio that is rewarded
    discount: float = 0.99  # gamma
    trace_decay: float = 0.95  # lambda
    learning_rate: float | None = None  # Adam, cosine to 0; null is PixMC's: 5e-4 for Kuka from pixels, else 1e-3
    value_weight: float = 2.0  # of the squared error of the return
    entropy_weight: float = 0.0  # of the entropy of actions
    clip_norm: float = 1.0  # largest gradient norm
    target_kl: float | None = None  # no further epoch once the policy has moved this far; null never stops
    init_std: float = 1.0  # of actions, in action units
    normalize_rewards: bool = True  # divide rewards by the running deviation of the discounted return
    proprio_normalizer: str = "mean_std"  # mean_std (running, of all frames so far) or none
    randomize: tuple[str, ...] = ()  # axes that change every episode: lights, colors, textures, cameras, ..., or all
    randomize_strength: float = 1.0  # 1 is the whole range of each axis
    device: str = "cpu"  # of actor and critic: cpu or cuda; encoder.device is the encoder's
    threads: int | None = None  # of the update; null is one a core
    window_episodes: int = 200  # finished episodes that success, return and length are averaged over (PixMC)
    checkpoint_every: int = 20  # updates between checkpoints
    select: str = "best"  # which weights become <run>/bundle: best (success of the window, then return) or last
    trunk: TrunkConfig = field(default_factory=_pixmc_trunk)

    def __post_init__(self) -> None:
        for name in (
            *("env_steps", "num_envs", "rollout_steps", "groups", "image_size", "epochs", "minibatches"),
            *("window_episodes", "checkpoint_every"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"expected ppo.{name} of at least 1, got {getattr(self, name)}")
        for name in ("discount", "trace_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"expected ppo.{name} in [0, 1], got {getattr(self, name)}")
        for name in ("clip", "clip_norm", "init_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected ppo.{name} above 0, got {getattr(self, name)}")
        if self.proprio_normalizer not in PROPRIO_NORMALIZERS:
            raise ValueError(
                f"expected ppo.proprio_normalizer {' or '.join(PROPRIO_NORMALIZERS)}, got {self.proprio_normalizer!r}"
            )
        if self.select not in SELECTED:
            raise ValueError(f"expected ppo.select {' or '.join(SELECTED)}, got {self.select!r}")
        if self.minibatches > self.batch_steps:
            raise ValueError(f"expected at most {self.batch_steps} minibatches, one a step, got {self.minibatches}")
        if self.updates < 2:
            raise ValueError(
                f"expected ppo.env_steps above {self.batch_steps} (num_envs x rollout_steps), got {self.env_steps}: "
                "the first rollout is for the statistics, and nothing is learned from it"
            )

    @property
    def batch_steps(self) -> int:
        """Environment steps between updates."""
        return self.num_envs * self.rollout_steps

    @property
    def updates(self) -> int:
        """Updates of the whole training: at least `env_steps` steps."""
        return -(-self.env_steps // self.batch_steps)
