"""Why does a plain `gymnasium.make("toto_robot/FrankaPick-v0")` work without importing us?

Up to 0.29 gymnasium loaded the packaging entry points of the group `gymnasium.envs` when it was imported; 1.0 dropped
that. The wheel's `toto_robot_environments.pth` imports this module when Python starts. It waits for somebody to import
gymnasium and then loads our entry point of that group, as 0.29 did. Nothing else is touched; standard library only.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_AWAITED = "gymnasium.envs.registration"
_GROUP, _NAME = "gymnasium.envs", "toto_robot"


class RegistrationFinder:
    """Lets the real finders find gymnasium's registry, and registers our environments when it has been executed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer for the registry's module alone, once."""
        if name != _AWAITED:
            return None
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)  # type: ignore[assignment]  # a loader by its methods
        return spec


class _ThenRegister:
    """A loader that registers after the module it loads has been executed."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as the real loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the registry's module, then let our entry point use it."""
        self._loader.exec_module(module)
        for entry_point in metadata.entry_points(group=_GROUP, name=_NAME):
            entry_point.load()()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # get_source and the like, for tracebacks


if _AWAITED not in sys.modules and not any(isinstance(finder, RegistrationFinder) for finder in sys.meta_path):
    sys.meta_path.insert(0, RegistrationFinder())  # type: ignore[arg-type]
