"""Long-context evaluation under controlled RoPE precision.

`evaluate` runs a model over tasks in arms; `load_run` reads a run, `Run.to_pandas()` is its table; `cells` and `paired`
are its statistics, `compare` its verdicts; `write_board` renders it. Importing the package imports neither torch nor
transformers.
"""

from __future__ import annotations

import importlib
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
