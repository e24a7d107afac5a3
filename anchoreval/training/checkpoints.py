"""Checkpoints of a run: which are whole, which are torn, and the model that stands at the end.

Trainer writes a checkpoint in place, `trainer_state.json` last, and its own `get_last_checkpoint` takes the highest
number, torn or not. Here one is whole when that file parses and names its own step, and every file of weights and
states is of its format. The tokenizer's files and the card lie there before Trainer writes the first weight.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from anchoreval.files import write_errors, write_whole

CARD, ASKED = "anchoreval_training.json", "training.json"
_STATE = "trainer_state.json"
_STATES = (("optimizer.pt", "optimizer.bin"), ("scheduler.pt",))  # .bin: of FSDP
_NAME = re.compile(r"checkpoint-(\d{1,9})")
#: Files of the base that a checkpoint is read with; weights and configuration are the trained model's own.
_BESIDE = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of all checkpoints, whole or torn, newest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)


def torn(path: Path) -> str | None:
    """Return what a checkpoint lacks, None for a whole one."""
    step = _NAME.fullmatch(path.name)
    try:
        state = json.loads((path / _STATE).read_text("utf-8"))
    except (OSError, ValueError):
        return f"{_STATE} is not whole"
    if not isinstance(state, dict) or step is None or state.get("global_step") != int(step[1]):
        return f"{_STATE} is of another step"
    states = [next((path / name for name in names if (path / name).is_file()), path / names[0]) for names in _STATES]
    for file in (*states, *sorted(path.glob("rng_state*.pth"))):
        if not (file.is_file() and zipfile.is_zipfile(file)):
            return f"{file.name} is not whole"
    weights = sorted(path.glob("*.safetensors"))
    if not weights or any(not _is_safetensors(file) for file in weights):
        return f"{weights[0].name if weights else 'model.safetensors'} is not whole"
    return None


def unfinished(folder: Path) -> str | None:
    """Return why the model in a folder is torn or its training has not ended, with what to do; None for any other."""
    if (folder / ASKED).is_file() and not (folder / "config.json").is_file():
        whole = next((path.name for _, path in checkpoints(folder) if torn(path) is None), None)
        other = f", {whole} is its newest whole checkpoint" if whole else ""
        return f"its training has not ended: the same `anchoreval train` goes on{other}"
    weights = sorted(folder.glob("*.safetensors")) if (folder / CARD).is_file() else []
    cut = next((file.name for file in weights if not _is_safetensors(file)), None)
    return cut and f"{cut} is not whole: the same `anchoreval train` makes it again"


def _is_safetensors(path: Path) -> bool:
    """Whether the file is as long as its header says."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, 1 << 27)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return path.stat().st_size == 8 + size + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return False


def complete(checkpoint: Path, base: Path, card: dict[str, Any]) -> None:
    """Put the tokenizer's files and the training card beside the weights, each whole or not at all."""
    for name in _BESIDE:
        if (base / name).is_file():
            write_whole(checkpoint / name, [(base / name).read_bytes()])
    write_whole(checkpoint / CARD, [json.dumps(card, indent=1, sort_keys=True) + "\n"])


def set_up_model(folder: Path, checkpoint: Path) -> None:
    """Make the run's folder itself a model: the files of its last checkpoint, as links that take no space."""
    kinds = (".json", ".safetensors", *(Path(name).suffix for name in _BESIDE))
    names = sorted(path.name for path in checkpoint.iterdir() if path.suffix in kinds and path.name != _STATE)
    _link(checkpoint, folder, names)


def _link(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        part = target / f"{name}.{os.getpid()}.part"
        with write_errors(target / name):
            part.unlink(missing_ok=True)
            try:
                part.hardlink_to(source / name)
            except OSError:  # a file system without links
                shutil.copyfile(source / name, part)
            part.replace(target / name)


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint that is not whole, its state first, so that what is left is never taken for one."""
    with contextlib.suppress(OSError):
        (checkpoint / _STATE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)
