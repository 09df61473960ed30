"""How does the whole chain run once, small: video, tokenizer, Toto, MAE, demonstrations, policies, one report?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from policies.bc import BCConfig
from policies.chunks import ExecutionConfig
from policies.compare import compare_encoders
from policies.compare_plan import CompareConfig
from policies.demo_report import write_report
from policies.evaluate import EvaluationConfig
from policies.train import TrainPolicyConfig
from toto_robot.cli import run_command
from toto_robot.pretrain.stages import Stages
from toto_robot.run_folder import git_commit, machine, read_json, write_json

# Three ranges of start seeds that never meet: labelled demonstrations from 0, unlabelled video, held-out evaluation.
_VIDEO_SEED = 500_000
_ENCODERS = ("toto", "mae", "random_vit", "random_toto", "none", "state")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Settings of `toto_robot demo`: the defaults fit two CPU cores."""

    video_episodes: int = 150  # unlabelled episodes to pretrain on, recorded from seed 500000 on
    video_noise: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5)  # expert noise in the video, cycled (action units)
    tokenizer_steps: int = 700  # training steps of the tokenizer
    toto_steps: int = 500  # training steps of Toto
    mae_steps: int = 1100  # training steps of MAE
    pretrained: str | None = None  # another demo's run folder, to take its trained encoders from
    demonstrations: tuple[int, ...] = (50,)  # labelled episodes to clone, one table row each
    encoders: tuple[str, ...] = ("toto", "mae", "random_vit", "random_toto", "none")  # rows of the table
    policy_seeds: int = 1  # heads trained per row, with seeds 0, 1, ...
    episodes: int = 100  # held-out episodes for each head
    envs_per_worker: int = 8  # environments in lock-step in a process of the evaluation
    context_frames: int | None = 1  # frames that the Toto stream looks back on; 1 did best at this size
    bc: BCConfig = field(default_factory=BCConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.encoders) - set(_ENCODERS))
        if unknown or not self.encoders:
            raise ValueError(f"encoders must be some of {', '.join(_ENCODERS)}, got {list(self.encoders)}")
        if not self.demonstrations or min(self.demonstrations) < 2:
            raise ValueError(f"demonstrations must be numbers of 2 or more, got {list(self.demonstrations)}")
        if self.policy_seeds < 1:
            raise ValueError(f"policy_seeds must be 1 or more, got {self.policy_seeds}")


def demo(config: DemoConfig, run_dir: Path) -> int:
    """Run the chain on two CPU cores and write report.html and summary.json; a killed demo continues where it was.

    The policy table holds Toto, an MAE of equal size trained on the same frames by the same loop, and three controls: a
    random ViT, a random Toto and no pixels at all. Every rate has its episodes and its Wilson 95 % interval.
    """
    stages = Stages(run_dir, _json(asdict(config)))
    encoders = _pretrain(config, run_dir, stages)
    store = run_dir / "demonstrations"
    count = max(config.demonstrations)
    stages.run("demonstrations", lambda: _collect(run_dir / "collect", store, count, 0, None))
    stages.run("policies", lambda: _policies(config, run_dir, store, encoders))
    result = read_json(run_dir / "policies" / "comparison.json")
    _report(config, run_dir, stages, result)
    _summary(config, run_dir, stages, result)
    print(f"\nopen {run_dir / 'report.html'}")
    return 0


# --------------------------------------------------------------------------------------------------------------- stages


def _pretrain(config: DemoConfig, run_dir: Path, stages: Stages) -> dict[str, str]:
    """Make the video and train both encoders, or take another demo's; return each row's entry of `compare`."""
    source = run_dir
    if config.pretrained:
        source = Path(config.pretrained)
        for name in ("toto", "mae"):
            if not (source / name / "pretrained_model" / "config.json").exists():
                raise ValueError(f"{source} has no finished {name}; finish that demo first, or leave pretrained out")
    else:
        video = run_dir / "video"
        noise = config.video_noise
        stages.run(
            "video", lambda: _collect(run_dir / "collect_video", video, config.video_episodes, _VIDEO_SEED, noise)
        )
        stages.run("Toto", lambda: _train_toto(config, run_dir / "toto", video))
        stages.run("MAE", lambda: _train_mae(config, run_dir / "mae", run_dir / "toto" / "frames"))
    toto, mae = (str(source / name / "pretrained_model") for name in ("toto", "mae"))
    window = "" if config.context_frames is None else f"@context_frames={config.context_frames}"
    return {
        "toto": f"toto={toto}{window}",
        "mae": f"mae={mae}",
        "random_vit": f"random_vit={mae}",
        "random_toto": f"random_toto={toto}{window}",
        "none": "none",
        "state": "state",
    }


def _collect(run_dir: Path, out: Path, episodes: int, seed: int, noise: tuple[float, ...] | None) -> dict[str, Any]:
    overrides = [f"out={_quoted(out)}", f"episodes={episodes}", f"seed={seed}"]
    if noise is not None:  # unlabelled video may show failures; demonstrations may not
        overrides += [f"noise=[{','.join(map(str, noise))}]", "keep_failures=true"]
    run_command("collect", overrides, run_dir)
    return {"summary": f"{episodes} episodes from seed {seed}"}


def _train_toto(config: DemoConfig, run_dir: Path, video: Path) -> dict[str, Any]:
    overrides = [f"data={_quoted(video)}", f"tokenizer_steps={config.tokenizer_steps}", f"steps={config.toto_steps}"]
    run_command("pretrain", overrides, run_dir)
    found = read_json(run_dir / "summary.json")
    return {**found, "summary": f"{found['val_loss']:.3f} nats a token on held-out video"}


def _train_mae(config: DemoConfig, run_dir: Path, frames: Path) -> dict[str, Any]:
    run_command("pretrain", ["model=mae_nano", f"frames={_quoted(frames)}", f"steps={config.mae_steps}"], run_dir)
    found = read_json(run_dir / "summary.json")
    return {**found, "summary": f"{found['val_loss']:.3f} held-out loss of masked patches"}


def _policies(config: DemoConfig, run_dir: Path, store: Path, encoders: Mapping[str, str]) -> dict[str, Any]:
    """Train and test all heads: `compare` on this demo's encoders and demonstrations."""
    comparison = CompareConfig(
        encoders=tuple(f"{name}:{encoders[name]}" for name in config.encoders),
        demonstrations=config.demonstrations,
        seeds=config.policy_seeds,
        demos=str(store),
        train=TrainPolicyConfig(
            cache=str(run_dir / "features"),
            bc=config.bc,
            execution=config.execution,
            evaluation=EvaluationConfig(episodes=config.episodes, envs_per_worker=config.envs_per_worker),
        ),
    )
    result = compare_encoders(comparison, run_dir / "policies")
    count = _main_count(config)
    told = [
        f"{cell['encoder']} {cell['pooled']['successes']}/{cell['pooled']['episodes']}"
        for cell in result["cells"]
        if cell["demonstrations"] == count
    ]
    return {"summary": ", ".join(told)}


def _quoted(path: Path) -> str:
    """Quote a path for Hydra, which would read commas and brackets in it."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _json(value: Any) -> Any:
    """Turn tuples into lists at any depth, as JSON gives them back."""
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    return [_json(item) for item in value] if isinstance(value, list | tuple) else value


# -------------------------------------------------------------------------------------------------------------- results


def _main_count(config: DemoConfig) -> int:
    """The number of demonstrations that the summary is about: 50 where it was run, else the largest."""
    return 50 if 50 in config.demonstrations else max(config.demonstrations)


def _summary(config: DemoConfig, run_dir: Path, stages: Stages, result: Mapping[str, Any]) -> None:
    count = _main_count(config)
    table = [
        {
            "encoder": cell["encoder"],
            "demonstrations": cell["demonstrations"],
            **cell["pooled"],
            "policy_seeds": [
                (run["successes"], run["episodes"])
                for run in result["runs"]
                if (run["encoder"], run["demonstrations"]) == (cell["encoder"], cell["demonstrations"])
            ],
        }
        for cell in result["cells"]
    ]
    write_json(
        run_dir / "summary.json",
        {
            "minutes": round(sum(stages.minutes.values()), 2),
            "demonstrations": count,
            "encoders": {row["encoder"]: row for row in table if row["demonstrations"] == count},
            "table": table,
            "minutes_by_stage": stages.minutes,
            "commit": git_commit(),
            "machine": machine(),
            "date": time.strftime("%Y-%m-%d"),
        },
    )


def _report(config: DemoConfig, run_dir: Path, stages: Stages, result: Mapping[str, Any]) -> None:
    source = Path(config.pretrained) if config.pretrained else run_dir
    toto, mae = (read_json(source / name / "summary.json") for name in ("toto", "mae"))
    best = run_dir / "policies" / "cells" / "franka_pick" / config.encoders[0] / f"{_main_count(config)}-0"
    pictures = [
        ("What the policy does", "Held-out episodes, front and wrist camera over time: success, then failure if any.",
         best / "rollouts.png"),
        ("What the tokenizer keeps", "Held-out frames and what is left of them after 64 tokens each.",
         source / "toto" / "tokenizer" / "reconstructions.png"),
        ("What Toto expects to happen", "Held-out video: the truth, and what Toto generates after a prompt.",
         source / "toto" / "continuation.png"),
        ("Learning curve of Toto", "Next-token loss, nats.", source / "toto" / "loss.png"),
        ("What MAE fills in", "Held-out frames with three quarters of the patches hidden.",
         source / "mae" / "reconstructions.png"),
        ("Learning curve of MAE", "Loss on masked patches, normalised pixels.", source / "mae" / "loss.png"),
        ("Learning curve of the policy", "Loss of normalised actions.", best / "loss.png"),
    ]  # fmt: skip
    facts = {
        "machine": "{processor}, {cores} cores, {memory_gib} GiB".format(**machine()),
        "date": time.strftime("%Y-%m-%d"),
        "commit": git_commit(),
        "task": "FrankaPick, preset real (20 Hz), PixMC start ranges, 64 px, front and wrist camera, ee_delta actions",
        "pretraining video": f"{config.video_episodes} unlabelled episodes of the same task (in-domain), other starts",
        "Toto": f"{toto['parameters']:,} parameters, {toto['val_loss']:.3f} nats a token on held-out video",
        "MAE": f"{mae['parameters']:,} parameters with its decoder, the same frames",
        "policy": "attention pooling per camera, proprioception, MLP, action chunks; the encoder is frozen",
        "held-out starts": "seeds 1000000 and up; demonstrations use seeds from 0, the video from 500000",
    }
    next_steps = [
        "make demo-full                                        # 20, 50 and 200 demonstrations, 3 policy seeds",
        f"toto_robot evaluate policy={best / 'bundle'} episodes=400",
        "toto_robot pretrain data=<folder of your videos>      # pretrain on your own video",
        "toto_robot train-policy encoder=toto encoder.path=<run>/pretrained_model demonstrations=100",
        "toto_robot compare encoders=[toto,mae,random_vit,none] demonstrations=[20,50] seeds=5",
    ]
    write_report(
        run_dir / "report.html",
        result=result,
        stages=stages.minutes,
        pictures=pictures,
        facts=facts,
        next_steps=next_steps,
    )
