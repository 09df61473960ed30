"""How does `toto_robot <command> key=value ...` find, check and start a command?

Commands are known by name only and imported when called, so nothing here imports upward. A command is a function
`(config, run_dir) -> exit code`; the dataclass of its first parameter is its schema, `configs/<command>.yaml` holds its
defaults. Hydra composes the two with what stands on the command line; no `DictConfig` leaves this file. A command may
have two words (`data info`, file `configs/data-info.yaml`), and its schema may name keys that are given without a name
(`POSITIONAL`).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import functools
import hashlib
import importlib
import inspect
import os
import re
import sys
import textwrap
import traceback
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import omegaconf
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from toto_robot.run_folder import provenance, write_json, write_text


class UsageError(ValueError):
    """The command line names something that does not exist or has the wrong type: exit code 2."""


@dataclasses.dataclass(frozen=True)
class Command:
    """One line of the table: where the function is, what it does, command lines that show it, options of its own."""

    target: str  # "module:function"
    summary: str
    examples: tuple[str, ...] = ()
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)  # option -> the override that it means


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "policies.demo:demo",
        "the whole chain, small: video, tokens, backbone, features, policy, report",
        ("demo", "demo experiment=demo_full", "demo run=outputs/demo policy_seeds=3"),
    ),
    "doctor": Command("toto_robot.doctor:doctor", "versions, devices, rendering tried for real, disk, what is missing"),
    "collect": Command(
        "policies.collect:collect",
        "record scripted-expert episodes into a zarr episode store",
        ("collect env=franka_pick episodes=200", "collect episodes=50 noise=[0.0,0.3] image_size=128 workers=8"),
    ),
    "export-video": Command(
        "toto_robot.data.export:export_video",
        "write the episodes of a store as mp4 files and a contact sheet",
        ("export-video data=outputs/collect/default/episodes",),
    ),
    "train-tokenizer": Command(
        "toto_robot.pretrain.tokenizer:train_tokenizer",
        "train a dVAE, a VQGAN or a student of one on the frames of a video folder or an episode store",
        ("train-tokenizer data=my_videos", "train-tokenizer data=my_videos steps=5000 vocab=8192"),
    ),
    "import-tokenizer": Command(
        "toto_robot.tokenizers.import_tokenizer:import_tokenizer",
        "read OpenAI's dVAE or a taming VQGAN, without running the file, into a tokenizer folder",
        (
            "import-tokenizer source=dalle_files format=dalle out=tokenizers/dvae",
            "import-tokenizer source=last.ckpt format=taming out=tokenizers/vqgan",
        ),
    ),
    "import-encoder": Command(
        "toto_robot.encoders.import_encoder:import_encoder",
        "read a published MAE (facebook's, MVP's, transformers'), without running the file, for encoder=mae",
        (
            "import-encoder source=mae_pretrain_vit_base.pth format=mae out=encoders/mae_base",
            "import-encoder source=vits-mae-hoi.pth format=mvp out=encoders/mvp_small",
        ),
    ),
    "tokenize": Command(
        "toto_robot.data.tokenize:tokenize",
        "turn videos, pictures or episodes into token shards; run it in as many processes as you like",
        (
            "tokenize data=my_videos tokenizer=outputs/train-tokenizer/default/pretrained_model",
            "tokenize data=my_videos,my_photos tokenizer=tokenizers/dvae image_px=128 out=/data/tokens engine=plan",
        ),
    ),
    "pretrain": Command(
        "toto_robot.pretrain.command:pretrain",
        "from videos to a trained backbone: Toto, or MAE on the same frames",
        (
            "pretrain",
            "pretrain data=my_videos model=small steps=20000",
            "pretrain data=my_videos,my_photos,my_demos weights=60,20,20 strides=4",
            "pretrain model=mae_nano frames=outputs/pretrain/toto/frames run=outputs/pretrain/mae",
        ),
    ),
    "generate": Command(
        "toto_robot.pretrain.generate:generate_command",
        "continue videos with a trained Toto, beside the truth; where the truth surprised it",
        (
            "generate model=outputs/pretrain/toto/pretrained_model data=my_videos prompt_frames=4 frames=12",
            "generate model=outputs/pretrain/toto/pretrained_model data=clip.mp4 clips=1 temperature=0.8 top_p=0.95",
        ),
    ),
    "train-policy": Command(
        "policies.train:train_policy",
        "cloning, DAgger or PPO on a frozen encoder, then evaluation on held-out seeds; collects demonstrations itself",
        (
            "train-policy env=franka_pick",
            "train-policy encoder=toto encoder.path=outputs/pretrain/toto/pretrained_model demonstrations=100",
            "train-policy encoder=mae demonstrations=50 seed=1",
            "train-policy policy=ppo env=franka_pick preset=pixmc encoder=state",
            "train-policy --multirun encoder=toto,mae,random_vit seed=0,1,2",
        ),
    ),
    "probe": Command(
        "policies.probe_command:probe",
        "what every layer of some encoders knows of where things are, in centimetres, from few labels",
        (
            "probe env=franka_pick encoders=[toto,mae,random_vit]",
            "probe encoders=[mine:toto=outputs/pretrain/mine/pretrained_model@context_frames=1] readout.labels=[20,80]",
        ),
    ),
    "evaluate": Command(
        "policies.evaluate_command:evaluate",
        "closed-loop success of policy bundles with Wilson intervals, paired differences, robustness",
        (
            "evaluate policy=outputs/train-policy/default/bundle episodes=200",
            "evaluate policy=first/bundle,second/bundle episodes=200",
            "evaluate policy=outputs/train-policy/default/bundle sweep=[lights,cameras,latency] latency_s=0.08",
        ),
    ),
    "compare": Command(
        "policies.compare:compare",
        "encoders against each other: same data, seeds, head and budget; curves, intervals, one report",
        (
            "compare env=franka_pick encoders=[toto,mae,random_vit,none] demonstrations=[20,50] seeds=10",
            "compare envs=[franka_pick,kuka_pick] encoders=[toto,short:toto@context_frames=1] tests=[plain,cameras]",
            "compare encoders=[toto=outputs/pretrain/toto/pretrained_model,mae] layers=[0,mid,last] run=outputs/mine",
        ),
    ),
    "export": Command(
        "policies.export:export",
        "write a policy bundle as one program (torch.export or ONNX), checked for equal answers",
        (
            "export policy=outputs/train-policy/default/bundle",
            "export policy=my_bundle format=onnx part=head out=robot",
        ),
    ),
    "deploy": Command(
        "deploy.run_franka:deploy",
        "run a policy bundle on a Franka arm, or on the emulator through the real client library",
        (
            "deploy policy=outputs/train-policy/default/bundle robot=emulator episodes=10",
            "deploy policy=my_bundle robot=twin",
            "deploy policy=my_bundle robot=fr3 address=172.16.0.2 cameras=[front=opencv:0,wrist=opencv:2] --dry-run",
        ),
        {"--dry-run": "dry_run=true"},
    ),
    "deploy check": Command(
        "deploy.preflight:deploy_check",
        "is everything ready before an arm moves: versions, real time, connection, joints, cameras, policy latency",
        (
            "deploy check robot=fr3 address=172.16.0.2",
            "deploy check robot=fr3 address=172.16.0.2 hold=true cameras=[front=opencv:0] policy=my_bundle",
        ),
    ),
    "deploy bridge": Command(
        "deploy.bridge_command:deploy_bridge",
        "the policy on one computer, the arm on another: one side of the bridge",
        (
            "deploy bridge side=policy host=192.168.7.1 policy=my_bundle device=cuda",
            "deploy bridge side=robot host=192.168.7.1 bundle=0123456789abcdef robot=fr3 address=172.16.0.2",
        ),
    ),
    "deploy report": Command(
        "deploy.report:deploy_report",
        "draw a deployment: joint tracking, latencies, guards, pictures, and a replay in the twin",
        ("deploy report data=outputs/deploy/default episode=3",),
    ),
    "record-demos": Command(
        "deploy.record_demos:record_demos",
        "record demonstrations on a Franka arm, or on the emulator: guiding, keys, space mouse, script, DAgger",
        (
            "record-demos env=franka_pick episodes=20",
            "record-demos robot=fr3 address=172.16.0.2 operator=guiding cameras=[front=opencv:0,wrist=opencv:2]",
            "record-demos policy=outputs/train-policy/default/bundle operator=keyboard",
        ),
    ),
    "emulator": Command(
        "deploy.emulator.command:emulator",
        "a Franka arm in software: unmodified libfranka clients drive the scene of a task over the real protocol",
        (
            "emulator env=franka_pick",
            "emulator env=franka_pick robot=fer address=127.0.0.2 cameras=[front,wrist]",
            "emulator pacing=strict seconds=60",
        ),
    ),
    "data info": Command(
        "toto_robot.data.commands:info",
        "what is in a data set: episodes, features, units, ranges, success, size, origin",
        ("data info outputs/collect/default/episodes", "data info demos.hdf5 json=true"),
    ),
    "data check": Command(
        "toto_robot.data.commands:check",
        "find what is wrong with a data set: NaN, gaps, lengths, units, pictures, another scene",
        ("data check outputs/collect/default/episodes", "data check my_lerobot_folder environment=false"),
    ),
    "data view": Command(
        "toto_robot.data.commands:view",
        "a contact sheet (PNG) and a video (mp4) of a data set",
        ("data view outputs/collect/default/episodes", "data view demos.hdf5 sheet_episodes=4 fps=20"),
    ),
    "data replay": Command(
        "policies.replay:replay",
        "simulate the stored actions again and say how far the states drift",
        ("data replay outputs/collect/default/episodes", "data replay my_lerobot_folder episodes=5"),
    ),
    "data convert": Command(
        "toto_robot.data.commands:convert_data",
        "between our store, LeRobot v3 and robomimic, both ways",
        (
            "data convert outputs/collect/default/episodes demos_lerobot format=lerobot",
            "data convert outputs/collect/default/episodes demos.hdf5 format=robomimic",
            "data convert my_lerobot_folder episodes format=toto",
        ),
    ),
}

# Where a command without overrides works, if not in outputs/<command>/default: places that the documents name.
_RUNS = {"demo": "demo", "pretrain": "pretrain/toto"}

_FLAGS = {
    "--help": "show this and exit (-h)",
    "--multirun": "run once per combination of comma-separated values; Hydra launchers work (-m)",
    "--config": "print the composed configuration and exit",
    "--debug": "show the traceback of an error",
}


def main(arguments: Sequence[str] | None = None) -> typing.NoReturn:
    """Run the console and leave the process with its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        code = _dispatch([argument for argument in arguments if argument != "--debug"])
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal that was closed
            print("\ninterrupted: the same command continues from here", file=sys.stderr)
        code = 130
    except UsageError as error:
        code = _fail(error, 2, debug)
    except (ValueError, OSError, MemoryError, ImportError) as error:
        code = _fail(error, 1, debug)
    except Exception as error:
        code = _fail(error, 1, debug)
    sys.stdout.flush()
    sys.exit(code)


def run_command(name: str, overrides: Sequence[str], run_dir: Path) -> int:
    """Run a command by name from inside another one, in `run_dir`; return its exit code. Errors are raised."""
    function, schema = _load(name)
    return function(_compose(name, schema, overrides), _open_run(name, schema, overrides, run_dir))


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_overview())
        return 0 if arguments else 2
    name, rest = _command_name(arguments)
    if name in _families() - set(COMMANDS) and (not rest or rest[0] in ("--help", "-h")):
        print(_family_overview(name))
        return 0 if rest else 2
    if name == "--version":
        from importlib.metadata import version

        print(version("toto-robot"))
        return 0
    if name not in COMMANDS:
        raise UsageError(f"unknown command {name!r}{_did_you_mean(name, COMMANDS)}; commands: {', '.join(COMMANDS)}")
    flags = COMMANDS[name].flags
    known = [*_FLAGS, *flags]
    unknown = [word for word in rest if word.startswith("-") and word not in {*known, "-h", "-m"}]
    if unknown:
        raise UsageError(
            f"unknown option {unknown[0]!r}{_did_you_mean(unknown[0], known)}; options: {', '.join(known)}"
        )
    rest = [flags.get(word, word) for word in rest]
    function, schema = _load(name)
    overrides = [word for word in rest if not word.startswith("-")]
    if "--help" in rest or "-h" in rest:
        print(_command_help(name, function, schema))
        return 0
    overrides = _named(name, schema, overrides)
    run = [word.removeprefix("run=") for word in overrides if word.startswith("run=")]
    overrides = [word for word in overrides if not word.startswith("run=")]
    if "--multirun" in rest or "-m" in rest:
        return _multirun(name, schema, overrides, run[-1] if run else None)
    if "--config" in rest:
        print(_yaml(_compose(name, schema, overrides)), end="")
        return 0
    config = _compose(name, schema, overrides)
    _set_threads()
    run_dir = Path(run[-1]) if run else default_run_dir(name, overrides)
    return function(config, _open_run(name, schema, overrides, run_dir))


def _command_name(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command, of one word or two, and the words behind it."""
    name, rest = arguments[0], list(arguments[1:])
    if name in _families() and rest and not rest[0].startswith("-"):
        both = f"{name} {rest[0]}"
        if both in COMMANDS or name not in COMMANDS:  # `deploy` is one by itself, too
            return both, rest[1:]
    return name, rest


def _families() -> set[str]:
    """Return the first words of the commands that have two."""
    return {name.split()[0] for name in COMMANDS if " " in name}


def _slug(name: str) -> str:
    """Return the command's name for files: `data info` -> `data-info`."""
    return name.replace(" ", "-")


def _named(name: str, schema: type, words: Sequence[str]) -> list[str]:
    """Give the words without a key theirs: the schema's `POSITIONAL`, in order."""
    positional = list(getattr(schema, "POSITIONAL", ()))
    named: list[str] = []
    for word in words:
        if re.match(r"[+~]*[\w./@]+=", word) or not getattr(schema, "POSITIONAL", ()):
            named.append(word)
        elif not positional:
            places = " ".join(f"<{key}>" for key in schema.POSITIONAL)  # type: ignore[attr-defined]
            raise UsageError(f"expected `toto_robot {name} {places} [key=value]`, got one word more: {word!r}")
        else:
            quoted = word.replace("\\", "\\\\").replace("'", "\\'")
            named.append(f"{positional.pop(0)}='{quoted}'")
    return named


def default_run_dir(name: str, overrides: Sequence[str]) -> Path:
    """Return `outputs/<command>/<name>` where the name is made of the overrides, so that the same command continues."""
    if not overrides:
        return Path("outputs") / _RUNS.get(name, f"{name.replace(' ', '/')}/default")
    words = "-".join(
        re.sub(r"[^A-Za-z0-9.]+", "_", override.split("=", 1)[-1]).strip("_") for override in sorted(overrides)
    )
    digest = hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:6]
    return Path("outputs") / name.replace(" ", "/") / f"{words[:60]}-{digest}"


# ---------------------------------------------------------------------------------------------------------- composition


def _load(name: str) -> tuple[Callable[[Any, Path], int], type]:
    """Import a command; return its function and the dataclass of its configuration, registered with Hydra."""
    module_name, function_name = COMMANDS[name].target.split(":")
    function = getattr(importlib.import_module(module_name), function_name)
    schema: type = typing.get_type_hints(function)["config"]
    assert dataclasses.is_dataclass(schema), f"{COMMANDS[name].target} takes no dataclass"
    ConfigStore.instance().store(name=f"{_slug(name)}_schema", node=_mutable(schema))
    return function, schema


def _mutable(schema: type) -> type:
    """Return a writable twin of a frozen dataclass: OmegaConf makes frozen ones read-only, and Hydra merges into it."""
    hints = typing.get_type_hints(schema)
    fields: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(schema):
        kind, default = hints[field.name], field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if dataclasses.is_dataclass(kind):
            kind = _mutable(typing.cast(type, kind))
            values = {} if default is dataclasses.MISSING else dataclasses.asdict(default)
            default = dataclasses.field(default_factory=functools.partial(_fill, kind, values))
        elif isinstance(default, tuple | list | dict):
            default = dataclasses.field(default_factory=functools.partial(copy.deepcopy, default))
        elif default is dataclasses.MISSING:
            default = omegaconf.MISSING
        fields.append((field.name, kind, default))
    return dataclasses.make_dataclass(schema.__name__, fields)


def _fill(kind: type, values: dict[str, Any]) -> Any:
    """Build a mutable twin from nested plain values."""
    hints = typing.get_type_hints(kind)
    nested = {
        key: _fill(hints[key], value) if dataclasses.is_dataclass(hints[key]) else value
        for key, value in values.items()
    }
    return kind(**nested)


def _freeze(schema: type, values: dict[str, Any]) -> Any:
    """Build the command's own dataclass, whose `__post_init__` checks the values, from nested plain ones."""
    hints = typing.get_type_hints(schema)
    converted: dict[str, Any] = {}
    for key, value in values.items():
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            value = _freeze(typing.cast(type, kind), value)
        elif isinstance(value, list) and _is_tuple(kind):
            value = tuple(value)
        converted[key] = value
    return schema(**converted)


def _is_tuple(kind: Any) -> bool:
    """Tell whether a key holds a list, or null or a list."""
    return any(typing.get_origin(part) is tuple for part in (kind, *typing.get_args(kind)))


def _compose(name: str, schema: type, overrides: Sequence[str]) -> Any:
    """Return the frozen dataclass that `configs/<name>.yaml` and the overrides make."""
    _check_overrides(name, schema, overrides)
    overrides = _bracketed(schema, overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("configs", version_base="1.3"):
            composed = compose(config_name=_slug(name), overrides=list(overrides))
            values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        places = f" {_places(schema)}" if _places(schema) else ""
        usage = f"usage: toto_robot {name}{places} [key=value]"
        raise UsageError(f"{name} needs {error.full_key}; {usage}; --help lists the keys") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(_one_line(error.__cause__ or error)) from error
    return _freeze(schema, typing.cast(dict[str, Any], values))


def _yaml(config: Any) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(_plain(dataclasses.asdict(config))))


def _plain(value: Any) -> Any:
    """Turn tuples into lists, at any depth: YAML has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _check_overrides(name: str, schema: type, overrides: Sequence[str]) -> None:
    """Refuse words that are no override and keys that the command does not have, naming the nearest one."""
    known = {*_keys(schema), *_groups(name)}
    for override in overrides:
        if "=" not in override:
            raise UsageError(f"expected key=value, got {override!r}; `toto_robot {name} --help` lists the keys")
        key = override.split("=", 1)[0].lstrip("+~").split("@")[0]
        if not key.startswith("hydra") and key not in known:
            raise UsageError(
                f"{name} has no key {key!r}{_did_you_mean(key, known)}; `toto_robot {name} --help` lists the keys"
            )


def _bracketed(schema: type, overrides: Sequence[str]) -> list[str]:
    """Give lists their brackets, which a shell may take for its own: `data=a,b` means `data=[a,b]`.

    Entries with a sign that Hydra keeps for itself get quotes: `encoders=[toto=<folder>]`.
    """
    hints = typing.get_type_hints(schema)
    lists = {key for key, kind in hints.items() if _is_tuple(kind)}
    pairs = [override.partition("=") for override in overrides]
    bracketed = [
        f"{key}=[{value}]" if key.lstrip("+") in lists and value[:1] not in ("", "[", "$") and value != "null" else word
        for word, (key, _, value) in zip(overrides, pairs, strict=True)
    ]
    return [_quote_entries(word) if word.partition("=")[0].lstrip("+") in lists else word for word in bracketed]


def _quote_entries(override: str) -> str:
    """Quote the entries of a flat list that hold an equals sign and no quotes."""
    key, _, value = override.partition("=")
    if "=" not in value or not value.startswith("[") or set("'\"{") & set(value):
        return override
    entries = [entry.strip() for entry in value.strip("[]").split(",")]
    return f"{key}=[{','.join(repr(entry) if '=' in entry else entry for entry in entries)}]"


def _open_run(name: str, schema: type, overrides: Sequence[str], run_dir: Path) -> Path:
    """Make or continue the run folder; ValueError when it holds a run with other settings."""
    config = _yaml(_compose(name, schema, overrides))
    recorded = run_dir / "config.yaml"
    if recorded.exists():
        before = OmegaConf.to_container(OmegaConf.create(recorded.read_text()))
        _check_same_run(run_dir, {**dict(_flatten(_defaults(name))), **dict(_flatten(before))}, config, schema)
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun started, the first one writes
        write_text(recorded, config)
        if not (run_dir / "provenance.json").exists():
            write_json(run_dir / "provenance.json", provenance(toto_robot_command=name))
    return run_dir


def _check_same_run(run_dir: Path, old: dict[str, Any], config: str, schema: type) -> None:
    """Raise ValueError for settings that differ from the old ones; keys that were not known then had their default."""
    new = dict(_flatten(OmegaConf.to_container(OmegaConf.create(config))))
    may_change = getattr(schema, "MAY_CHANGE", ())
    free = {key for key in {**old, **new} if key in may_change or key.split(".")[0] in may_change}
    changed = [key for key in new if old.get(key) != new[key] and key not in free]
    if changed:
        what = ", ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in changed[:3])
        raise ValueError(
            f"{run_dir} holds a run with other settings ({what}); choose another folder with run=<folder>, or delete it"
        )


def _flatten(tree: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flatten(value, f"{prefix}{key}.")
    else:
        yield prefix.rstrip("."), tree


def _set_threads() -> None:
    """Give torch the cores this process may use, once, here: thread counts set elsewhere fight each other.

    Where OMP_NUM_THREADS is set, a user shares the cores among several commands: torch has read it.
    """
    try:
        import torch
    except ImportError:  # the computer beside the arm has none; a command that needs it says so itself
        return
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)))


# ------------------------------------------------------------------------------------------------------------- multirun


def _multirun(name: str, schema: type, overrides: Sequence[str], run: str | None) -> int:
    """Let Hydra sweep comma-separated values; each job gets its own folder below the sweep's."""
    import hydra

    _check_overrides(name, schema, overrides)
    swept = re.compile(r"[^'\"\[]*[,(]")  # what Hydra takes for several jobs
    overrides = [word if swept.match(word) else _bracketed(schema, [word])[0] for word in overrides]
    sweep_dir = Path(run) if run else default_run_dir(name, overrides)
    settings = [
        f"hydra.sweep.dir={sweep_dir}",
        "hydra.job.chdir=false",
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
    ]
    sys.argv = [f"toto_robot {name}", *overrides, *settings, "--multirun"]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach main(), which shows one line
    GlobalHydra.instance().clear()
    task = functools.partial(_sweep_job, name)
    task.__module__, task.__name__ = __name__, _slug(name)  # type: ignore[attr-defined]  # hydra.main asks the task for them
    try:
        hydra.main(version_base="1.3", config_path="pkg://configs", config_name=_slug(name))(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(_one_line(error)) from error
    return 0


def _sweep_job(name: str, composed: Any) -> int:
    """One job of a sweep (runs in the launcher's process)."""
    from hydra.core.hydra_config import HydraConfig

    function, schema = _load(name)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    write_text(run_dir / "config.yaml", OmegaConf.to_yaml(composed))
    if not (run_dir / "provenance.json").exists():
        write_json(run_dir / "provenance.json", provenance(toto_robot_command=name))
    _set_threads()
    print(f"{run_dir}: {' '.join(HydraConfig.get().overrides.task)}")
    values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    return function(_freeze(schema, typing.cast(dict[str, Any], values)), run_dir)


# --------------------------------------------------------------------------------------------------------------- words


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "toto_robot: robot policy learning on a Toto encoder",
            "",
            "usage: toto_robot <command> [group=option] [key=value] [run=<folder>] [--multirun]",
            "",
            "commands:",
            *lines,
            "",
            "first steps:",
            "  toto_robot doctor                 is this machine ready?",
            "  toto_robot demo                   everything once, small; ends in outputs/demo/report.html",
            "  toto_robot pretrain data=<folder of videos>",
            "  toto_robot <command> --help       keys, groups and examples of one command",
        ]
    )


def _family_overview(family: str) -> str:
    """Return what the commands that share a first word do, and how they look."""
    members = {name: command for name, command in COMMANDS.items() if name.startswith(f"{family} ")}
    places = {name: _places(_load(name)[1]) for name in members}
    shown = {name: f"{name} {places[name]}".rstrip() for name in members}
    width = max(map(len, shown.values())) + 2
    return "\n".join(
        [
            f"usage: toto_robot {family} <command> ... [key=value]",
            "",
            "commands:",
            *(f"  {shown[name]:<{width}}{command.summary}" for name, command in members.items()),
            "",
            "examples:",
            *(f"  toto_robot {command.examples[0]}" for command in members.values() if command.examples),
            "",
            f"`toto_robot {family} <command> --help` lists the keys of one command.",
        ]
    )


def _places(schema: type) -> str:
    return " ".join(f"<{key}>" for key in getattr(schema, "POSITIONAL", ()))


def _command_help(name: str, function: Callable[..., Any], schema: type) -> str:
    command = COMMANDS[name]
    comments = _comments(schema)
    lines = [f"toto_robot {name}: {command.summary}", ""]
    if _places(schema):
        lines += [f"usage: toto_robot {name} {_places(schema)} [key=value]", ""]
    described = inspect.getdoc(function)
    if described:
        lines += [textwrap.dedent(described), ""]
    groups = _groups(name)
    if groups:
        lines += [
            "groups (group=option):",
            *(f"  {group}: {', '.join(options)}" for group, options in groups.items()),
            "",
        ]
    lines.append("keys (key=value), with their defaults:")
    for key, value in _flatten(_defaults(name)):
        shown = f"{key}={'null' if value is None else str(value).replace(' ', '')}"
        lines.append(f"  {shown:<44}  {comments.get(key, '')}".rstrip())
    lines += [
        "  run=<folder>".ljust(48) + "where to work; the same command with the same run continues it",
        "",
        "options:",
    ]
    flags = {flag: f"the same as {override}" for flag, override in command.flags.items()}
    lines += [f"  {flag:<14}{text}" for flag, text in {**_FLAGS, **flags}.items()]
    if command.examples:
        lines += ["", "examples:", *(f"  toto_robot {example}" for example in command.examples)]
    return "\n".join(lines)


def _defaults(name: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_module("configs", version_base="1.3"):
        return typing.cast(dict[str, Any], OmegaConf.to_container(compose(config_name=_slug(name))))


def _keys(schema: type, prefix: str = "") -> Iterable[str]:
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        yield prefix + field.name
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _keys(typing.cast(type, hints[field.name]), f"{prefix}{field.name}.")


def _comments(schema: type, prefix: str = "") -> dict[str, str]:
    """Return the trailing comment of each field in the dataclass's source: the one place where a key is explained."""
    found: dict[str, str] = {}
    source = inspect.getsource(schema)
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        match = re.search(rf"^    {field.name}\s*:[^\n#]*#\s*(.*)$", source, re.MULTILINE)
        if match:
            found[prefix + field.name] = match.group(1)
        if dataclasses.is_dataclass(hints[field.name]):
            found |= _comments(typing.cast(type, hints[field.name]), f"{prefix}{field.name}.")
    return found


def _groups(name: str) -> dict[str, list[str]]:
    """Return the option names of each group folder that the command's YAML names in its defaults list."""
    root = resources.files("configs")
    text = (root / f"{_slug(name)}.yaml").read_text(encoding="utf-8")
    named = re.findall(r"^\s*- (?:optional |override )?(\w+): *\w+", text, re.MULTILINE)
    return {
        group: sorted(
            item.name.removesuffix(".yaml") for item in (root / group).iterdir() if item.name.endswith(".yaml")
        )
        for group in named
    }


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""


def _one_line(error: BaseException) -> str:
    """Join the lines of a library's message, without the object dumps that Hydra and OmegaConf append."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(
        line for line in lines if line and not line.startswith(("object_type=", "reference_type=", "sub_key="))
    )


def _fail(error: BaseException, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
    message = _one_line(error) or repr(error)
    hint = "" if debug or isinstance(error, ValueError | OSError) else " (--debug shows the traceback)"
    print(f"toto_robot: error: {kind}{message}{hint}", file=sys.stderr)
    return code
