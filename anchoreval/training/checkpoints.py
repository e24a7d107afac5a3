"""The checkpoint that training starts from, and those of a run: which are whole, which are torn, the model at the end.

The former is its folder, configuration and RoPE, read before any weight is loaded.

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anchoreval.cards import find_model
from anchoreval.errors import LengthError, ModelError, UnsupportedArm
from anchoreval.files import write_errors, write_whole
from anchoreval.model.checkpoint import folder_of

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
    for name in names:
        part = folder / f"{name}.{os.getpid()}.part"
        with write_errors(folder / name):
            part.unlink(missing_ok=True)
            try:
                part.hardlink_to(checkpoint / name)
            except OSError:  # a file system without links
                shutil.copyfile(checkpoint / name, part)
            part.replace(folder / name)


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint that is not whole, its state first, so that what is left is never taken for one."""
    with contextlib.suppress(OSError):
        (checkpoint / _STATE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


#: What the paper trained with (arXiv 2411.13476, T1 and 4.3), for models of theta 1e4.
PAPER_THETA = {16384: 1e6, 32768: 1e6, 65536: 5e6, 131072: 1e7, 262144: 5e7}
#: RoPE types whose tables do not depend on the longest position, so that variants differ by the variant alone.
_STATIC = ("default", "linear", "llama3", "yarn")


def folder_of_model(name: str, weights: bool = True) -> Path:
    """Return the folder of a card, a local folder or a hub id."""
    return folder_of(find_model(name)[1].checkpoint, weights=weights)


def config_of(folder: Path) -> dict[str, Any]:
    """Return config.json; empty where there is none."""
    try:
        content = json.loads((folder / "config.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}


def rope_for(config: Any, length: int, theta: float | None, rope_type: str | None) -> dict[str, Any]:
    """Return the `rope_parameters` to train with at a length: plain RoPE of a stated theta, or those that are kept.

    `config` is that of transformers. `rope_type` "keep" keeps a static type (llama3, yarn). LengthError where the
    length grows and no theta is given, UnsupportedArm for a type whose tables depend on the length.
    """
    text = config.get_text_config()
    given = dict(getattr(text, "rope_parameters", None) or {})
    if any(isinstance(value, Mapping) for value in given.values()):
        if length > text.max_position_embeddings or theta is not None:
            raise UnsupportedArm("rope_type: this model has a RoPE for each kind of layer: its length stays")
        return given
    kind = str(given.get("rope_type", "default"))
    if kind not in _STATIC:
        raise UnsupportedArm(f"rope_type: the tables of {kind} follow the longest position, so variants would differ")
    if kind != "default" and rope_type is None:
        how = f"--rope-type keep trains with {kind} as it is, --rope-type default with plain RoPE and --rope-theta"
        raise UnsupportedArm(f"rope_type: the model has {kind}: {how}")
    if rope_type == "keep" and kind != "default":
        if theta is not None:
            raise UnsupportedArm(f"--rope-theta goes with plain RoPE: --rope-type default instead of keeping {kind}")
        return given
    if theta is None and (length > text.max_position_embeddings or kind != "default"):
        table = ", ".join(f"{size // 1024}K {value:g}" for size, value in PAPER_THETA.items())
        raise LengthError(
            f"--rope-theta is needed: {length} tokens are more than the {text.max_position_embeddings} of the model "
            f"(theta {given.get('rope_theta')}); the paper trained models of theta 1e4 with {table}"
        )
    share = {key: given[key] for key in ("partial_rotary_factor",) if key in given}
    return {"rope_type": "default", "rope_theta": float(theta or given["rope_theta"]), **share}
