"""Changes modules right after they were loaded: for switching off what has no switch (`bench.techniques`)."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

Patches = Mapping[str, Callable[[Any], None]]


def install(patches: Patches) -> None:
    """Each function gets the module of its name when that is loaded, once it is complete."""
    sys.meta_path.insert(0, _PatchingFinder(patches))


def patched_line(module: str) -> str:
    """What is printed when `module` has been patched."""
    return f"patched for a benchmark: {module}."


class _PatchingFinder(MetaPathFinder):
    def __init__(self, patches: Patches) -> None:
        self._patches = patches

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._patches:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchingLoader(spec.loader, self._patches[fullname])
        return spec


class _PatchingLoader(Loader):
    def __init__(self, loader: Loader, patch: Callable[[Any], None]) -> None:
        self._loader = loader
        self._patch = patch

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._patch(module)
        print(patched_line(module.__name__), file=sys.stderr, flush=True)

    def __getattr__(self, name: str) -> Any:
        # Triton and inspect ask the loader for the source.
        return getattr(self._loader, name)
