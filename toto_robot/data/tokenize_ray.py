"""How do workers on a Ray cluster share the units of a tokenizing job?

The units that have no shard yet go through Ray Data, one at a time to whichever actor is free. Each actor has its own
tokenizer (and GPU, where there is one) and decodes beside it in threads, as a single process does; what it makes is on
the disk that all of them see before it says so. Ray repeats a unit whose worker died; what is done stays done.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from toto_robot.data.manifest import Manifest
from toto_robot.data.token_job import TokenJob
from toto_robot.data.tokenize import TokenizeConfig, choose_job_device, decoder_threads, job_sources
from toto_robot.data.tokens import MANIFEST
from toto_robot.run_folder import provenance
from toto_robot.tokenizers.load import load_tokenizer

_UNITS_AHEAD = 2  # given to an actor at once: one to work on and the next, so that all end at about the same time


def run_with_ray(config: TokenizeConfig, out: Path, manifest: Manifest, units: Sequence[int]) -> None:
    """Do these units with `config.workers` actors; ImportError with advice where Ray is missing.

    A cluster is taken from the environment (RAY_ADDRESS, or `ray job submit`), else one is started on this machine.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("engine=ray needs Ray: pip install 'toto-robot[ray]'") from error
    if not units:
        return
    started_here = not ray.is_initialized()
    ray.init(ignore_reinit_error=True, log_to_driver=False, configure_logging=False)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        queue = ray.data.from_items([{"unit": unit} for unit in units], override_num_blocks=len(units))
        done = queue.map_batches(
            UnitWorker,
            fn_constructor_args=(config, str(out.resolve())),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                size=min(config.workers, len(units)), max_tasks_in_flight_per_actor=_UNITS_AHEAD
            ),
            num_gpus=gpus,
        )
        frames = sum(_expected(manifest, unit) for unit in units)
        with tqdm(total=frames, desc="tokens", unit="frame") as bar:
            for row in done.iter_rows():
                bar.update(_expected(manifest, int(row["unit"])))
    finally:
        if started_here:
            ray.shutdown()


class UnitWorker:
    """An actor that does one unit a call."""

    def __init__(self, config: TokenizeConfig, out: str) -> None:
        device = choose_job_device(config.device)
        tokenizer = load_tokenizer(config.tokenizer, device)
        about = provenance(tokenizer=tokenizer.fingerprint(), data=list(config.data), engine="ray", worker=os.getpid())
        self._job = TokenJob(
            Path(out), Manifest.read(Path(out) / MANIFEST), job_sources(config), tokenizer,
            batch_size=config.batch_size, device=device, decoders=decoder_threads(config),
            provenance={**about, "batch_size": config.batch_size},
        )  # fmt: skip

    def __call__(self, batch: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Do the units of a batch; return them."""
        done = list(self._job.run([int(unit) for unit in batch["unit"]], progress=False))
        return {"unit": np.array(done, np.int64)}


def _expected(manifest: Manifest, unit: int) -> int:
    return sum(entry.expected_frames for entry in manifest.units[unit])
