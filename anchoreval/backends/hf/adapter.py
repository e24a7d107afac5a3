"""Load a peft adapter on top of the weights of its folder.

transformers could load both at once, but then it reports which weights of the adapter are missing and nothing about the
model: layers that are in no file would be drawn at random without a word.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from anchoreval.errors import ModelError
from anchoreval.model.checkpoint import ADAPTER, Checkpoint


@contextmanager
def bare(checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """Yield the checkpoint without its adapter, for the length of the block."""
    if checkpoint.adapter is None:
        yield checkpoint
        return
    with tempfile.TemporaryDirectory() as beside:
        folder = Path(beside) / checkpoint.folder.resolve().name
        folder.mkdir()
        for path in checkpoint.folder.resolve().iterdir():
            if path.name != ADAPTER:
                (folder / path.name).symlink_to(path)
        yield replace(checkpoint, folder=folder)


def attach(model: Any, checkpoint: Checkpoint) -> None:
    """Load the checkpoint's adapter, if it has one, into its model; raise ModelError if a part of it is missing."""
    if checkpoint.adapter is None:
        return
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        result = model.load_adapter(str(checkpoint.folder))
    except (ValueError, OSError, ImportError, KeyError, RuntimeError, TypeError) as error:
        why = " ".join(str(error).split())[:300]
        raise ModelError(f"{checkpoint.folder}: its adapter cannot be loaded: {why}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    if lacking := sorted([*result.missing_keys, *result.unexpected_keys]):
        raise ModelError(f"{checkpoint.folder}: {len(lacking)} weights of its adapter do not fit: {lacking[0]}, ...")
    model.to(model.device).eval()
