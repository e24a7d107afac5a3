"""Compare a rotary module's inverse frequencies with those that its own initialiser gives; find and mend damage.

`model.to(torch.bfloat16)` and `.half()` cast the inv_freq buffers too (`.half().float()` even leaves them
typed fp32), while loading in bf16 does not: transformers 4.57 to 5.23, modeling_utils.py
`PreTrainedModel.to`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anchoreval.arms.precision import rope_types
from anchoreval.errors import UnsupportedArm

#: Relative. Another device's pow() may differ by a few units of 2**-24; rounding to fp16 costs 2**-12, to bf16 2**-9.
TOLERANCE = 2.0**-20


@dataclass(frozen=True, slots=True)
class DamagedBuffer:
    """A frequency buffer that differs from what its initialiser gives, and the largest relative error."""

    name: str
    dtype: str
    max_relative_error: float


def frequency_buffers(rotary: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of this module that hold inverse frequencies, by name; empty for other modules."""
    return {name: b for name, b in rotary._buffers.items() if b is not None and name.endswith("inv_freq")}


def sound_copy(rotary: nn.Module, path: str) -> tuple[nn.Module, list[DamagedBuffer]]:
    """Return a private copy of `rotary` with sound frequencies, and what was damaged in the original.

    Frequencies that cannot be checked (see `unchecked`) are copied as they are; raise UnsupportedArm if they are
    narrower than fp32.
    """
    if (why := unchecked(rotary)) is not None:
        narrow = next((b.dtype for b in frequency_buffers(rotary).values() if b.itemsize < 4), None)
        if narrow is not None:
            raise UnsupportedArm(f"rope: the frequencies of {path} are {narrow}, and it cannot be made anew: {why}")
        return private_copy(rotary), []
    damage, fresh = min(((_damage(rotary, new, path), new) for new in _initialised(rotary)), key=_worst)
    if damage:
        return fresh, damage
    return private_copy(rotary), []


def private_copy(rotary: nn.Module) -> nn.Module:
    """Return a copy with its own buffers and state; the configuration is shared."""
    config = getattr(rotary, "config", None)
    clone: nn.Module = copy.deepcopy(rotary, {} if config is None else {id(config): config})
    return clone


def unchecked(rotary: nn.Module) -> str | None:
    """Return why this module's frequencies cannot be compared with its initialiser's; None if they can.

    Modules that a checkpoint's own code makes from numbers (InternLM 2) keep no configuration to make them anew from.
    """
    try:
        type(rotary)(rotary.config)
    except (AttributeError, TypeError, KeyError) as error:
        return " ".join(str(error).split())
    return None


def _worst(found: tuple[list[DamagedBuffer], nn.Module]) -> float:
    return max((buffer.max_relative_error for buffer in found[0]), default=0.0)


def _damage(rotary: nn.Module, fresh: nn.Module, path: str) -> list[DamagedBuffer]:
    """Return the buffers of `rotary` that differ from those of `fresh`, or are narrower."""
    expected, damaged = frequency_buffers(fresh), []
    for name, buffer in frequency_buffers(rotary).items():
        error = _relative_error(buffer, expected[name])
        if error > TOLERANCE or buffer.itemsize < expected[name].itemsize:
            damaged.append(DamagedBuffer(f"{path}.{name}", str(buffer.dtype).removeprefix("torch."), error))
    return damaged


def _relative_error(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape:
        return float("inf")
    want = expected.double()
    scale = torch.where(want == 0, torch.ones_like(want), want.abs())
    return float(((got.double() - want).abs() / scale).max())


def _initialised(rotary: nn.Module) -> list[nn.Module]:
    """Return the module made anew from its configuration: in its first state, and (length-dependent types) grown."""
    device = next(iter(frequency_buffers(rotary).values())).device
    fresh, grown = (type(rotary)(rotary.config).to(device) for _ in range(2))
    for layer_type, length in _grown_lengths(rotary).items():
        position_ids = torch.tensor([[length - 1]], device=device)
        grown(torch.empty(1, 0, device=device), position_ids, *(() if layer_type is None else (layer_type,)))
    return [fresh, grown]


def _grown_lengths(rotary: nn.Module) -> dict[str | None, int]:
    """Return, per layer type, a length (positions) that brings length-dependent frequencies to their grown state."""
    lengths: dict[str | None, int] = {}
    for layer_type, kind in rope_types(rotary).items():
        prefix = "" if layer_type is None else f"{layer_type}_"
        if "dynamic" in kind:
            cached: Any = getattr(rotary, f"{prefix}max_seq_len_cached", rotary.max_seq_len_cached)
            lengths[layer_type] = int(cached)
        elif kind == "longrope":
            config: Any = rotary.config
            parameters = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
            lengths[layer_type] = int(parameters["original_max_position_embeddings"]) + 1
    return lengths
