"""How often does surprise at the pictures raise a false alarm, and how soon does it notice an injected fault?

Rolls a policy out in simulation: episodes to fit and to calibrate on, other successful ones for the false alarms, and
episodes with one fault each, from a drawn step on (`FAULTS`). The surprise monitor (`deploy/surprise.py`) stands beside
baselines that get the same episodes and the same calibration: the pixel difference to the last frame, and the distance
of the encoder's features to those of successful episodes. Episodes are kept in `--folder`, so that a second run, with
another window or rate, only scores them.

One JSON object a line for every detector: false alarms of the control episodes, and of each fault how many episodes
were noticed within a second and how many steps that took (median). An alarm before the onset is no detection.

    python benchmarks/surprise_detection.py <bundle> --folder <folder> [--alpha 0.05] [--windows 1 4]
        [--episodes 40] [--each 20] [--first-seed 2000000] [--save <bundle>/surprise.json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from deploy.conformal import Scores, conformal_threshold, episode_score, sustained
from deploy.surprise import SurpriseSettings, calibrate, standard_scores, standardisation
from policies.bundle import bundle_hash, load_policy
from policies.environment import make_environment
from policies.policy import Policy
from policies.rollout import environment_settings
from policies.statistics import rate_summary
from toto_robot.encoders.toto import TotoEncoder
from toto_robot.run_folder import atomic_path, git_commit, machine

Pixels = dict[str, np.ndarray]
ONSET_STEPS = (8, 26)  # drawn: before and while the cube is grasped, which takes about 30 of 58 steps
WATCHED_STEPS = 20  # after the onset, 1 s
MOST_STEPS = 120
GROUPS = ("fit", "calibration", "control")  # of episodes without a fault


# --- faults: of a camera they change its pictures, of the world the simulation ----------------------------------------


@dataclass
class Injection:
    """One episode's fault: from `onset` on; `camera` is the one that breaks, where it is one camera."""

    fault: str
    onset: int
    camera: str
    random: np.random.Generator
    kept: np.ndarray | None = None  # the picture that a frozen camera repeats


def frozen(pixels: Pixels, injection: Injection) -> Pixels:
    if injection.kept is None:
        injection.kept = pixels[injection.camera].copy()
    return {**pixels, injection.camera: injection.kept}


def black(pixels: Pixels, injection: Injection) -> Pixels:
    return {**pixels, injection.camera: np.zeros_like(pixels[injection.camera])}


def noise(pixels: Pixels, injection: Injection) -> Pixels:
    image = pixels[injection.camera]
    noisy = np.clip(image + injection.random.normal(0, 25, image.shape), 0, 255).astype(np.uint8)
    return {**pixels, injection.camera: noisy}


def swapped(pixels: Pixels, injection: Injection) -> Pixels:
    return dict(zip(pixels, reversed(pixels.values()), strict=True))


def camera_moved(environment: Any, injection: Injection) -> None:
    """As `randomize=cameras` at strength 1, every axis at an end of its range."""
    model = environment.scene.model
    camera, signs = model.camera(injection.camera).id, injection.random.choice([-1.0, 1.0], 6)
    near = 0.1 if injection.camera == "wrist" else 1.0
    model.cam_pos[camera] += 0.04 * near * signs[:3]
    turn = np.array([1.0, *(0.03 * signs[3:])])  # half the angle: 0.06 rad about each axis
    model.cam_quat[camera] = _product(turn / np.linalg.norm(turn), model.cam_quat[camera])


def lights_dimmed(environment: Any, injection: Injection) -> None:
    """As `randomize=lights` at strength 1, at the dark end."""
    environment.scene.model.light_diffuse[:] *= 0.4
    environment.scene.model.light_ambient[:] *= 0.4


def foreign_object(environment: Any, injection: Injection) -> None:
    """A box on the table 15 cm from the cube."""
    scene, data = environment.scene, environment.data
    body = scene.bodies["distractor0"]
    geom, mocap = int(scene.model.body_geomadr[body]), int(scene.model.body_mocapid[body])
    scene.model.geom_size[geom] = injection.random.uniform(0.025, 0.045, 3)
    scene.model.geom_rgba[geom, :3] = injection.random.uniform(0.05, 0.95, 3)
    angle = injection.random.uniform(-np.pi, np.pi)
    cube = data.qpos[scene.joints["cube"] :][:2]
    place = cube + 0.15 * np.array([np.cos(angle), np.sin(angle)])
    data.mocap_pos[mocap] = (*place, 0.4 + scene.model.geom_size[geom, 2])


def cube_moved(environment: Any, injection: Injection) -> None:
    """The cube jumps 10 cm on the table."""
    angle = injection.random.uniform(-np.pi, np.pi)
    address = environment.scene.joints["cube"]
    environment.data.qpos[address : address + 2] += 0.1 * np.array([np.cos(angle), np.sin(angle)])


def cube_gone(environment: Any, injection: Injection) -> None:
    """The cube is far away, on the floor."""
    address = environment.scene.joints["cube"]
    environment.data.qpos[address : address + 3] = (-3.0, 3.0, 0.05)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Multiply quaternions (w, x, y, z)."""
    vector = a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:])
    return np.array([a[0] * b[0] - a[1:] @ b[1:], *vector])


OF_CAMERA: dict[str, Callable[[Pixels, Injection], Pixels]] = {
    "frozen": frozen, "black": black, "noise": noise, "swapped": swapped,
}  # fmt: skip
OF_WORLD: dict[str, Callable[[Any, Injection], None]] = {
    "camera_moved": camera_moved, "lights_dimmed": lights_dimmed, "foreign_object": foreign_object,
    "cube_moved": cube_moved, "cube_gone": cube_gone,
}  # fmt: skip
FAULTS = (*OF_CAMERA, *OF_WORLD)


# --- episodes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trace:
    """What the scores of an episode are made of."""

    codes: np.ndarray  # (T, N, P) int64
    features: np.ndarray  # (T, N, D) float32: the policy's, mean over a frame's tokens
    differences: np.ndarray  # (T, N) float32: mean absolute change of a pixel since the last frame, 0 at the first
    onset: int  # of the fault; -1 without
    success: bool


def roll_out(policy: Policy, environment: Any, seed: int, fault: str | None) -> Trace:
    """Run one episode until success, or until the fault has been watched long enough."""
    random = np.random.default_rng(seed)
    onset, camera = int(random.integers(*ONSET_STEPS)), policy.cameras[seed % len(policy.cameras)]
    injection = Injection(fault or "", onset, camera, random) if fault else None
    last_step = onset + WATCHED_STEPS - 1 if fault else MOST_STEPS
    observation, info = environment.reset(seed=seed)
    policy.reset(seeds=[seed])
    codes, features, images = [], [], []
    for step in range(last_step + 1):
        if injection is not None and step >= onset:
            if fault in OF_WORLD and step == onset:
                OF_WORLD[fault](environment.unwrapped, injection)
                environment.unwrapped._refresh()
                observation = environment.unwrapped.observation()
            if fault in OF_CAMERA:
                observation = {**observation, "pixels": OF_CAMERA[fault](observation["pixels"], injection)}
        action = policy.act(observation)
        codes.append(torch.stack([policy.codes[name][0] for name in policy.cameras]).numpy())
        features.append(torch.stack([policy.tokens[name][0].mean(0) for name in policy.cameras]).numpy())
        images.append(np.stack([observation["pixels"][name] for name in policy.cameras]).astype(np.int16))
        observation, _, _, _, info = environment.step(action)
        if info["success"] and fault is None:
            break
    changes = np.abs(np.diff(np.stack(images), axis=0)).mean(axis=(2, 3, 4), dtype=np.float32)
    return Trace(
        codes=np.stack(codes),
        features=np.stack(features),
        differences=np.concatenate([np.zeros_like(changes[:1]), changes]),
        onset=onset if fault else -1,
        success=bool(info["success"]),
    )


def collect(bundle: Path, folder: Path, wanted: dict[str, range]) -> dict[str, list[Trace]]:
    """Return the traces of every group (`fit`, `calibration`, `control`, a fault), rolling out what is not there."""
    policy: Policy | None = None
    environment = None
    waiting = [(group, seed) for group, seeds in wanted.items() for seed in seeds]
    digest = bundle_hash(bundle)
    found: dict[str, list[Trace]] = {group: [] for group in wanted}
    for group, seed in tqdm(waiting, desc="episodes", unit="episode"):
        path = folder / digest[:16] / group / f"{seed}.npz"
        if not path.exists():
            if policy is None:
                policy = load_policy(bundle)
                # Strength 0 changes nothing, but gives the environment a model of its own, which faults may write.
                environment = make_environment(**environment_settings(policy), randomize={"cameras": 0.0})
            trace = roll_out(policy, environment, seed, group if group in FAULTS else None)
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **vars(trace))
        with np.load(path) as stored:
            onset, success = int(stored["onset"]), bool(stored["success"])
            arrays = (stored["codes"], stored["features"], stored["differences"])
        found[group].append(Trace(*arrays, onset, success))
    return found


# --- detectors --------------------------------------------------------------------------------------------------------

Values = Callable[[str, int], Scores]  # group, index of the episode -> (T, N), larger is stranger


@dataclass(frozen=True)
class Detector:
    """What a method makes of a frame of each camera; the rest is the same for all."""

    name: str
    values: Values
    depth: int = 1  # first frames of an episode that are standardised apart
    consecutive: int = 1


def token_nats(encoder: TotoEncoder, traces: dict[str, list[Trace]], window: int) -> dict[str, list[np.ndarray]]:
    """Return the nats (T, N, P) of every episode, by the stream that the monitor runs, many episodes at a time."""
    found: dict[str, list[np.ndarray]] = {}
    for group, members in tqdm(traces.items(), desc=f"surprise, {window} frames"):
        longest = max(len(trace.codes) for trace in members)
        last = [np.minimum(np.arange(longest), len(trace.codes) - 1) for trace in members]  # a short one waits
        codes = torch.from_numpy(np.stack([trace.codes[i] for trace, i in zip(members, last, strict=True)], axis=1))
        stream = encoder.surprise_stream(codes.shape[1] * codes.shape[2], window)
        nats = np.stack([encoder.surprise(stream, now.flatten(0, 1)).view_as(now).numpy() for now in codes])
        found[group] = [nats[: len(trace.codes), i] for i, trace in enumerate(members)]
    return found


def most_surprising(nats: np.ndarray, top: int) -> Scores:
    """Return (T, N) the mean of the `top` largest nats of (T, N, P)."""
    largest: Scores = np.sort(nats, axis=2)[:, :, -top:].mean(axis=2, dtype=np.float64)
    return largest


def feature_detectors(traces: dict[str, list[Trace]]) -> list[Detector]:
    """Return distances of a frame's mean feature to those of the fit: to the nearest, and Mahalanobis'."""
    seen = np.concatenate([trace.features for trace in traces["fit"]]).astype(np.float64)  # (S, N, D)
    middle, cameras = seen.mean(axis=0), range(seen.shape[1])
    inverses = []
    for camera in cameras:
        covariance = np.cov(seen[:, camera].T)
        ridge = 1e-3 * np.trace(covariance) / len(covariance)  # some directions hardly vary
        inverses.append(np.linalg.inv(covariance + ridge * np.eye(len(covariance))))

    def mahalanobis(group: str, index: int) -> Scores:
        away = traces[group][index].features - middle
        return np.stack([np.sqrt(np.einsum("td,de,te->t", away[:, n], inverses[n], away[:, n])) for n in cameras], 1)

    def nearest(group: str, index: int) -> Scores:
        features = traces[group][index].features.astype(np.float64)
        # Among the fit its own episode would be the nearest.
        length = [len(trace.features) for trace in traces["fit"]]
        episode = np.repeat(np.arange(len(length)), length)
        others = seen[episode != index] if group == "fit" else seen
        found = []
        for n in cameras:
            a, b = features[:, n], others[:, n]
            squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
            found.append(np.sqrt(squares.min(axis=1).clip(min=0)))
        return np.stack(found, axis=1)

    return [Detector("features: Mahalanobis", mahalanobis), Detector("features: nearest", nearest)]


def measure(detector: Detector, traces: dict[str, list[Trace]], alpha: float) -> dict[str, Any]:
    """Standardise on the fit, calibrate, and count alarms of the control and of every fault."""
    fit = [detector.values("fit", i) for i in range(len(traces["fit"]))]
    standard = standardisation(fit, detector.depth)

    def scores(group: str) -> list[Scores]:
        every = [detector.values(group, i) for i in range(len(traces[group]))]
        return [sustained(standard_scores(values, *standard), detector.consecutive) for values in every]

    threshold = conformal_threshold([episode_score(each) for each in scores("calibration")], alpha)
    false = sum(bool((each > threshold).any()) for each in scores("control"))
    row: dict[str, Any] = {"threshold": round(threshold, 3), "control": rate_summary(false, len(traces["control"]))}
    for fault in FAULTS:
        first = [np.flatnonzero(each > threshold) for each in scores(fault)]
        delays = [int(f[0]) - trace.onset for f, trace in zip(first, traces[fault], strict=True) if len(f)]
        noticed = [delay for delay in delays if delay >= 0]
        rate = rate_summary(len(noticed), len(traces[fault]))
        row[fault] = {**rate, "delay_steps": float(np.median(noticed)) if noticed else None}
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="keeps the episodes")
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--episodes", type=int, default=40, help="of each group without a fault")
    parser.add_argument("--each", type=int, default=20, help="episodes of a fault")
    parser.add_argument("--first-seed", type=int, default=2_000_000)
    parser.add_argument("--save", type=Path, help="writes the calibration of the default settings")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    first = options.first_seed
    wanted = {group: range(first + 1000 * i, first + 1000 * i + options.episodes) for i, group in enumerate(GROUPS)}
    for i, fault in enumerate(FAULTS):
        wanted[fault] = range(first + 3000 + 100 * i, first + 3000 + 100 * i + options.each)
    traces = collect(options.bundle, options.folder, wanted)
    failed = {group: sum(not trace.success for trace in traces[group]) for group in GROUPS}
    for group in GROUPS:
        traces[group] = [trace for trace in traces[group] if trace.success]
    policy = load_policy(options.bundle)
    stamp = {"commit": git_commit(), "machine": machine(), "date": time.strftime("%Y-%m-%d"), "failed": failed}

    def report(detector: Detector) -> None:
        print(json.dumps({"detector": detector.name, **measure(detector, traces, options.alpha), **stamp}), flush=True)

    report(Detector("pixel difference", lambda group, i: traces[group][i].differences.astype(np.float64), depth=2))
    still = "pixels still for 3 frames"
    report(Detector(still, lambda group, i: -traces[group][i].differences.astype(np.float64), 2, consecutive=3))
    for detector in feature_detectors(traces):
        report(detector)
    assert isinstance(policy.encoder, TotoEncoder), "surprise needs a Toto"
    for window in options.windows:
        nats = token_nats(policy.encoder, traces, window)
        for top in (policy.encoder.tokens_per_frame, 8, 4, 1):
            name = f"surprise, {window} frames, top {top}"
            report(Detector(name, lambda group, i, n=nats, k=top: most_surprising(n[group][i], k), min(window, 4)))
        settings = SurpriseSettings(alpha=options.alpha)
        if options.save and window == settings.context_frames:
            parts = ([most_surprising(each, settings.top) for each in nats[group]] for group in GROUPS[:2])
            calibrate(options.bundle, policy.encoder, policy.cameras, settings, *parts).save(options.save)


if __name__ == "__main__":
    main()
