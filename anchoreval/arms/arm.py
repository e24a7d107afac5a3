"""An arm: what is computed, apart from the weights and the prompt. Parsed from one spelling, printed back in it.

Grammar: `[attention/]rope[+positions][~placebo]`, for instance `fp32`, `bf16`, `rope:table=bf16,rotate=fp32`,
`anchor/fp32`, `bf16+shift:4096`, `bf16~placebo`. Position schemes are those of
arms/positions.py, attention patterns those of arms/patterns.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from anchoreval.arms.patterns import parse_pattern
from anchoreval.arms.positions import parse_positions
from anchoreval.arms.rope import DIGITS, RopeLevel, parse_level
from anchoreval.errors import AnchorEvalError
from anchoreval.schema import PLACEBO

#: The attention kernel where none is asked for: sdpa, or eager where sdpa would leave out a part of the model.
DEFAULT_KERNEL = "default"
DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class Arm:
    """RoPE precision, position scheme, attention pattern, model dtype and attention kernel.

    A `placebo` is the same arm, computed in other chunks and other batches: what it changes is noise.

    `dtype` is that of the weights and activations ("auto": the checkpoint's own); `kernel` is the attention
    implementation, which is one and the same for all arms that are compared ("default": that of the backend).
    """

    rope: RopeLevel
    positions: str = "contiguous"
    attention: str = "full"
    dtype: str = "auto"
    kernel: str = DEFAULT_KERNEL
    placebo: bool = False

    @property
    def name(self) -> str:
        """The spelling that `parse_arm` reads; the kernel and the run's own dtype are left out."""
        attention = "" if self.attention == "full" else f"{self.attention}/"
        positions = "" if self.positions == "contiguous" else f"+{self.positions}"
        return f"{attention}{self.rope}{positions}{PLACEBO if self.placebo else ''}"

    def asked(self) -> dict[str, Any]:
        """The arm as JSON, the way it was asked for."""
        return {
            "name": self.name,
            "rope": {"level": str(self.rope), "sites": self.rope.sites},
            "positions": self.positions,
            "attention": self.attention,
            "dtype": self.dtype,
            "kernel": self.kernel,
        } | ({"placebo": True} if self.placebo else {})

    def fingerprint(self) -> str:
        """SHA-256 over everything the arm computes."""
        return hashlib.sha256(json.dumps(self.asked(), sort_keys=True).encode()).hexdigest()


def parse_arm(text: str, dtype: str = "auto", kernel: str = DEFAULT_KERNEL) -> Arm:
    """The arm that `text` spells; UnknownName or AnchorEvalError for what is not in the grammar."""
    if dtype not in DTYPES:
        raise AnchorEvalError(f"unknown dtype {dtype!r}: one of {', '.join(DTYPES)}")
    spelling = text.removesuffix(PLACEBO)
    attention, slash, rest = spelling.partition("/")
    rope, plus, positions = (rest if slash else spelling).partition("+")
    return Arm(
        rope=parse_level(rope),
        positions=str(parse_positions(positions)) if plus else "contiguous",
        attention=parse_pattern(attention) if slash else "full",
        dtype=dtype,
        kernel=kernel,
        placebo=spelling != text,
    )


def parse_arms(text: str, dtype: str = "auto", kernel: str = DEFAULT_KERNEL) -> tuple[Arm, ...]:
    """The arms of a comma-separated list, each once, in order; commas inside `rope:site=...,site=...` belong to it."""
    pieces: list[str] = []
    for piece in text.replace(" ", ",").split(","):
        if "=" in piece and ":" not in piece and pieces and "=" in pieces[-1]:
            pieces[-1] += f",{piece}"
        elif piece:
            pieces.append(piece)
    if not pieces:
        raise AnchorEvalError("no arm was named: --rope takes levels such as native,bf16,fp32")
    return tuple(dict.fromkeys(parse_arm(piece, dtype, kernel) for piece in pieces))


def widest_product(arms: Iterable[Arm]) -> str:
    """The product of the arms that holds most digits, `model` where none names another than the model's."""
    named = [arm.rope.product for arm in arms if arm.rope.product in DIGITS]
    return max(named, key=DIGITS.__getitem__, default="model")
