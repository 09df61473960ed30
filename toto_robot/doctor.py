"""Is this machine ready, and if not, which command mends it?"""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from toto_robot.run_folder import machine, write_json

_PACKAGES = (
    "torch",
    "numpy",
    "mujoco",
    "robosuite",
    "gymnasium",
    "zarr",
    "transformers",
    "hydra-core",
    "av",
    "opencv-python",
)
_RENDER_PROBE = """
import mujoco, numpy
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 2"/><geom type="sphere" size=".3" rgba="1 0 0 1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 48, 48) as renderer:
    renderer.update_scene(data)
    picture = renderer.render()
assert numpy.ptp(picture[..., 0].astype(int)) > 50, "the picture is blank"
"""
_GL_PACKAGES = {"egl": "libegl1 libgl1", "osmesa": "libosmesa6"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What to look at."""

    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("minimum_free_gib", "render_timeout_s")  # nothing to continue, so all may

    minimum_free_gib: float = 5.0  # GiB of free disk below which it complains
    render_timeout_s: float = 60.0  # how long one rendering probe may take


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    ok: bool
    text: str
    mend: str = ""  # the command that helps, where there is one
    essential: bool = True


def doctor(config: DoctorConfig, run_dir: Path) -> int:
    """Print versions, devices, rendering tried for real, codecs and disk; 1 when something essential is missing."""
    findings = [
        *(_package(name) for name in _PACKAGES),
        _processor(),
        _accelerator(),
        *_rendering(config.render_timeout_s),
        _video_codecs(),
        _disk(config.minimum_free_gib, run_dir),
    ]
    for finding in findings:
        mark = "ok  " if finding.ok else ("FAIL" if finding.essential else "none")
        print(f"{mark} {finding.name:<16} {finding.text}")
        if not finding.ok and finding.mend:
            print(f"     {'':<16} to mend: {finding.mend}")
    write_json(run_dir / "doctor.json", [dataclasses.asdict(finding) for finding in findings])
    failed = [finding.name for finding in findings if finding.essential and not finding.ok]
    print("\nready" if not failed else f"\nnot ready: {', '.join(failed)}")
    return 1 if failed else 0


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", f"pip install {name}")


def _processor() -> Finding:
    import torch

    facts = machine()
    fast = "bf16 in hardware" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no bf16 in hardware: fp32 is used"
    return Finding(
        "processor", True, f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {fast}"
    )


def _accelerator() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("cuda", False, "no CUDA device; everything runs on the CPU", essential=False)
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("cuda", True, ", ".join(names))


def _rendering(timeout_s: float) -> list[Finding]:
    """Render a sphere in a fresh process per backend: a library that loads can still fail to draw."""
    findings = []
    for backend, packages in _GL_PACKAGES.items():
        try:
            subprocess.run(
                [sys.executable, "-c", _RENDER_PROBE],
                env={**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend},
                capture_output=True, text=True, check=True, timeout=timeout_s,
            )  # fmt: skip
            findings.append(Finding(f"render {backend}", True, "drew a picture"))
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            why = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1][:120]
            mend = f"apt-get install -y --no-install-recommends {packages}"
            findings.append(Finding(f"render {backend}", False, why, mend, essential=False))
    works = [finding.name.split()[1] for finding in findings if finding.ok]
    choice = f"MuJoCo will use {works[0]}" if works else "no backend draws: tasks with cameras cannot run"
    mend = f"apt-get install -y --no-install-recommends {_GL_PACKAGES['egl']}"
    return [*findings, Finding("rendering", bool(works), choice, mend)]


def _video_codecs() -> Finding:
    """Encode and decode four frames, since a wheel may come without an encoder."""
    import av
    import numpy as np

    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width = stream.height = 64
            for value in range(4):
                frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 40 * value, np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        buffer.seek(0)
        with av.open(buffer) as container:
            count = sum(1 for _ in container.decode(video=0))
    except (av.FFmpegError, ValueError) as error:
        return Finding("video", False, f"PyAV cannot encode H.264: {error}", "pip install --force-reinstall av")
    return Finding("video", count == 4, f"PyAV {av.__version__} encodes and decodes H.264")


def _disk(minimum_gib: float, folder: Path) -> Finding:
    free_gib = shutil.disk_usage(folder).free / 2**30
    return Finding(
        "disk",
        free_gib >= minimum_gib,
        f"{free_gib:.0f} GiB free at {folder}",
        f"free {minimum_gib:.0f} GiB or choose run=<folder>",
    )
