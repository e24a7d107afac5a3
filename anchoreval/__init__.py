"""Long-context evaluation under controlled RoPE precision.

`evaluate` runs a model over tasks in arms; `load_run` reads a run, `Run.to_pandas()` is its table; `cells` and `paired`
are its statistics, `compare` its verdicts; `write_board` renders it. Importing the package imports neither torch nor
transformers.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anchoreval.errors import AnchorEvalError as AnchorEvalError
    from anchoreval.records.run import Run as Run
    from anchoreval.records.run import load_run as load_run
    from anchoreval.reports.board import write_board as write_board
    from anchoreval.reports.compare.contrasts import compare as compare
    from anchoreval.runs.evaluate import evaluate as evaluate
    from anchoreval.stats import cells as cells
    from anchoreval.stats import paired as paired

_PUBLIC = {
    "AnchorEvalError": "anchoreval.errors",
    "Run": "anchoreval.records.run",
    "cells": "anchoreval.stats",
    "compare": "anchoreval.reports.compare.contrasts",
    "evaluate": "anchoreval.runs.evaluate",
    "load_run": "anchoreval.records.run",
    "paired": "anchoreval.stats",
    "write_board": "anchoreval.reports.board",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Moved(ModuleType):
    """A module of version 0.1 under its old path: it reads and sets the names of those that hold them now."""

    def __init__(self, name: str, homes: Sequence[ModuleType]) -> None:
        super().__init__(name)
        self.__dict__.update(_homes=homes, __path__=[])

    def __getattr__(self, name: str) -> Any:
        for home in self.__dict__["_homes"]:
            if name in vars(home):
                return vars(home)[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the name where it is used: in the first of the modules that hold it."""
        homes = [home for home in self.__dict__["_homes"] if name in vars(home)]
        setattr(homes[0], name, value) if homes and not name.startswith("__") else super().__setattr__(name, value)


class _MovedModules(MetaPathFinder, Loader):
    """Imports by the module paths of version 0.1, which `moved.txt` leads to today's; to be dropped with 0.3."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        """Return a spec for an old path alone."""
        old = fullname.removeprefix(f"{__name__}.")
        return ModuleSpec(fullname, self) if old != fullname and old in self._table() else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the old module over the new ones, and say what they are called."""
        homes = self._table()[spec.name.removeprefix(f"{__name__}.")]
        warnings.warn(f"{spec.name} is now {' and '.join(homes)}", DeprecationWarning, stacklevel=2)
        return _Moved(spec.name, [importlib.import_module(home) for home in homes])

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do."""

    @staticmethod
    def _table() -> dict[str, list[str]]:
        lines = (Path(__file__).parent / "moved.txt").read_text("utf-8").splitlines()
        return {old: [f"{__name__}.{home}" for home in homes] for old, *homes in map(str.split, lines)}


sys.meta_path.append(_MovedModules())
