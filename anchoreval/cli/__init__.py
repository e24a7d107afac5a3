"""The command line."""

from __future__ import annotations

from anchoreval.cli.parser import main

__all__ = ["main"]
