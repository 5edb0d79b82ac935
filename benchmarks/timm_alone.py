"""timm without torchvision, of which its networks need nothing.

PyPI's torchvision is built for CUDA: beside a torch for the CPU it cannot be imported, and while it
is installed transformers cannot either. `make setup` takes it out then, and timm, which imports it
for the reading of images, gets modules of that name that hold nothing.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest import mock

__all__ = ["load_timm"]


def load_timm() -> ModuleType:
    """timm, with torchvision if it can be imported, and else without.

    Raises
    ------
    ModuleNotFoundError
        If timm is not installed.
    """
    try:
        importlib.import_module("torchvision")
    except (ModuleNotFoundError, RuntimeError, OSError):
        with mock.patch.dict(sys.modules):
            _forget()
            finder = _Finder()
            sys.meta_path.insert(0, finder)
            try:
                loaded = importlib.import_module("timm")
                kept = {n: m for n, m in sys.modules.items() if not n.startswith("torchvision")}
            finally:
                sys.meta_path.remove(finder)
        sys.modules.update(kept)
        _forget()
        return loaded
    return importlib.import_module("timm")


def _forget() -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


class _Anything(type):
    """Classes of which every attribute is another."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _Empty(ModuleType):
    """A module in which every name is a class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _Finder(MetaPathFinder, Loader):
    """Finds torchvision and all of its modules, empty."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] != "torchvision":
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass
