"""How do many environments in one process draw their cameras, fast and without showing each other's pictures?

One GL context a process and one MjrContext a compiled model, shared by all environments with that model; the GL context
is made current before every draw and every release. (robosuite 1.5.2 omits both and returns other environments' frames
or noise.) The software renderer's cost is triangles, so the quality flags are off and the meshes are small.
"""

from __future__ import annotations

import atexit
import ctypes.util
import os
import threading
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

_APT = {"egl": "libegl1 libgl1", "osmesa": "libosmesa6"}
_LIBRARY = {"egl": ("EGL", "GL"), "osmesa": ("OSMesa",)}


class CameraRenderer:
    """Draws one environment's data; the GL objects behind it are shared and outlive it."""

    def __init__(self, model: Any, quality: str, shared: Any = None) -> None:
        """`model` may be an environment's own variation of a `shared` one, whose meshes and textures are then used."""
        self._model = model
        self._device = _device()
        self._context = self._device.context(model if shared is None else shared)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = [1, 1, 0, 0, 0, 0]  # 0, 1 drawn; 3 collision hulls
        self._option.sitegroup[:] = 0
        self._scene = mujoco.MjvScene(model, maxgeom=model.ngeom + 50)
        self._headlight = bool(model.vis.headlight.active)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        full = quality == "full"
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = full
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = False
        self._scene.flags[mujoco.mjtRndFlag.mjRND_HAZE] = False

    def draw(self, data: Any, cameras: tuple[str, ...], width: int, height: int) -> dict[str, npt.NDArray[np.uint8]]:
        """Return an image (height, width, 3) a camera, RGB, origin top left; `data` needs up-to-date kinematics."""
        self._device.make_current()
        self._device.fit(self._context, width, height)
        viewport = mujoco.MjrRect(0, 0, width, height)
        images = {}
        for index, name in enumerate(cameras):
            self._camera.fixedcamid = self._model.camera(name).id
            if index == 0 or self._headlight:  # which is where the camera is when the scene is made
                everything = mujoco.mjtCatBit.mjCAT_ALL
                mujoco.mjv_updateScene(self._model, data, self._option, None, self._camera, everything, self._scene)
            else:
                mujoco.mjv_updateCamera(self._model, data, self._camera, self._scene)
            mujoco.mjr_render(viewport, self._scene, self._context)
            bottom_up = np.empty((height, width, 3), np.uint8)
            mujoco.mjr_readPixels(bottom_up, None, viewport, self._context)
            images[name] = np.ascontiguousarray(bottom_up[::-1])
        return images


class _Device:
    """The process's GL context and the MjrContext of each model drawn with it."""

    def __init__(self) -> None:
        self.process, self.thread = os.getpid(), threading.get_ident()
        self._gl = _open_gl()
        self._gl.make_current()
        self._contexts: dict[int, tuple[Any, Any]] = {}  # by id(model), with the model so that the id stays taken
        self._size: dict[int, tuple[int, int]] = {}
        atexit.register(self._close)

    def make_current(self) -> None:
        """Make the GL context this thread's; RuntimeError where it would hang or draw noise."""
        if self.process != os.getpid():
            raise RuntimeError(
                "this process was forked from one that already renders, and its GL context does not survive a fork; "
                "start workers with context='forkserver' or 'spawn'"
            )
        if self.thread != threading.get_ident():
            raise RuntimeError("environments with images must all be made and stepped by one thread of a process")
        self._gl.make_current()

    def context(self, model: Any) -> Any:
        """Return the MjrContext of `model`, made on first use. Models are few (preset x quality) and stay."""
        if id(model) not in self._contexts:
            self.make_current()
            context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
            self._contexts[id(model)] = (model, context)
            self._size[id(context)] = (int(context.offWidth), int(context.offHeight))
        return self._contexts[id(model)][1]

    def fit(self, context: Any, width: int, height: int) -> None:
        """Grow the context's framebuffer to hold an image, and select it."""
        have = self._size[id(context)]
        if width > have[0] or height > have[1]:
            size = max(width, have[0]), max(height, have[1])
            mujoco.mjr_resizeOffscreen(*size, context)
            self._size[id(context)] = size
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)

    def _close(self) -> None:
        if os.getpid() != self.process:
            return  # a forked child must not free its parent's objects
        self.make_current()
        for _, context in self._contexts.values():
            context.free()
        self._contexts.clear()
        self._gl.free()


_shared: _Device | None = None


def _device() -> _Device:
    """Return the process's device; RuntimeError after a fork or in a second thread."""
    global _shared
    if _shared is None:
        _shared = _Device()
    _shared.make_current()
    return _shared


def _open_gl() -> Any:
    """Return a current-able GL context: `MUJOCO_GL` when set, else EGL (a GPU or Mesa's llvmpipe), else OSMesa."""
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    names = {"": ("egl", "osmesa"), "egl": ("egl",), "osmesa": ("osmesa",)}.get(asked)
    if names is None:
        raise ValueError(f"MUJOCO_GL must be egl or osmesa (or unset) to render without a window, got {asked!r}")
    failures = []
    for name in names:
        missing = [f"lib{library}" for library in _LIBRARY[name] if ctypes.util.find_library(library) is None]
        if missing:  # look first: a failed import binds PyOpenGL to this platform for the rest of the process
            failures.append(f"{name}: {', '.join(missing)} not found")
            continue
        try:
            return _open_backend(name)
        except (ImportError, AttributeError, RuntimeError, OSError, TypeError) as error:
            failures.append(f"{name}: {error}")
    raise RuntimeError(
        f"cannot render without a display ({'; '.join(failures)}). On Debian or Ubuntu run: "
        f"apt-get install -y --no-install-recommends {_APT[names[0]]}"
    )


def _open_backend(name: str) -> Any:
    # PyOpenGL binds to one platform at its first import, so an earlier choice in this process decides.
    os.environ["PYOPENGL_PLATFORM"] = name
    if name == "egl":
        from mujoco.egl import GLContext
    else:
        from mujoco.osmesa import GLContext
    context = GLContext(64, 64)
    context.make_current()
    return context
