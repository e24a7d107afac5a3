"""The checkpoint that training starts from: its folder, configuration and RoPE, read before any weight is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anchoreval.cards import find_model
from anchoreval.errors import LengthError, ModelError, UnsupportedArm
from anchoreval.model.checkpoint import find_checkpoint, folder_of

#: What the paper trained with (arXiv 2411.13476, T1 and 4.3), for models of theta 1e4.
PAPER_THETA = {16384: 1e6, 32768: 1e6, 65536: 5e6, 131072: 1e7, 262144: 5e7}
#: RoPE types whose tables do not depend on the longest position, so that variants differ by the variant alone.
_STATIC = ("default", "linear", "llama3", "yarn")


def folder_of_model(name: str, weights: bool = True) -> Path:
    """Return the folder of a card, a local folder or a hub id."""
    return folder_of(find_model(name)[1].checkpoint, weights=weights)


def weights_sha256(folder: Path) -> str:
    """Return the hash of a checkpoint's configuration and weights."""
    return find_checkpoint(str(folder)).weights_sha256


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
