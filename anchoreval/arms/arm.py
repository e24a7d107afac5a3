"""An arm: what is computed, apart from the weights and the prompt. It is parsed from, and printed in, one spelling.

Grammar: `[attention/]rope[+field:value...][~setting:value...]`, for instance `fp32`, `rope:table=bf16,rotate=fp32`,
`anchor/fp32`, `bf16+shift:4096`, `fp32+x:evict:window`, `bf16~placebo`. The fields are those of arms/fields.py: they
may stand in any order and are printed in the order of that table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from anchoreval.arms.fields import FIELDS, Field, field_of
from anchoreval.arms.layout import Arrangement
from anchoreval.arms.outside import Outside, offered
from anchoreval.arms.patterns import isolates, parse_pattern
from anchoreval.arms.positions import CONTIGUOUS, PositionScheme
from anchoreval.arms.rope import DIGITS, RopeLevel, parse_level
from anchoreval.errors import AnchorEvalError, UnsupportedArm

#: The default attention kernel: sdpa, or eager if sdpa would leave out a part of the model.
DEFAULT_KERNEL = "default"
DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class Arm:
    """RoPE precision, position scheme, attention pattern, model dtype, attention kernel, and factories from outside.

    A `placebo` is the same arm computed in other chunks and other batches: any difference that it makes is noise.

    `dtype` is that of the weights and activations ("auto": the checkpoint's own). `kernel` is the attention
    implementation; all arms that are compared use the same one ("default": the backend's).
    """

    rope: RopeLevel
    positions: PositionScheme = CONTIGUOUS
    attention: str = "full"
    dtype: str = "auto"
    kernel: str = DEFAULT_KERNEL
    placebo: bool = False
    outside: tuple[Outside, ...] = ()

    @property
    def name(self) -> str:
        """The spelling that `parse_arm` reads, without the kernel and the run's dtype."""
        return "".join(field.spell(value) for field, value in self._used())

    def asked(self) -> dict[str, Any]:
        """Return the arm as JSON, as it was asked for. Fields that were added later appear only if they are used."""
        later = {field.name: field.as_json(value) for field, value in self._used() if field.as_json}
        return {
            "name": self.name,
            "rope": {"level": str(self.rope), "sites": self.rope.sites},
            "positions": str(self.positions),
            "attention": self.attention,
            "dtype": self.dtype,
            "kernel": self.kernel,
        } | later

    def fingerprint(self) -> str:
        """Return the SHA-256 over everything the arm computes."""
        return hashlib.sha256(json.dumps(self.asked(), sort_keys=True).encode()).hexdigest()

    @property
    def arrangement(self) -> Arrangement:
        """Where tokens stand and what they see."""
        return Arrangement(self.positions, self.attention)

    @property
    def stock(self) -> bool:
        """Whether tokens stand where the model puts them, and see what the model lets them see."""
        return (self.positions, self.attention) == (CONTIGUOUS, "full")

    @property
    def masks_documents(self) -> bool:
        """Whether documents, or blocks, cannot see what is outside them."""
        return isolates(self.attention)

    @property
    def moves_positions(self) -> bool:
        """Whether tokens stand elsewhere than at 0, 1, 2, ..."""
        return self.positions != CONTIGUOUS

    def settled(self, backend: str) -> Arm:
        """Return the arm with the hash of each source from outside. This imports the sources: use it for typed arms.

        Raise UnsupportedArm, before anything is imported, if `backend` cannot compute the arm.
        """
        self.require(backend)
        return replace(self, outside=tuple(item.settled() for item in self.outside)) if self.outside else self

    def require(self, backend: str) -> None:
        """Raise UnsupportedArm, with the field and the backends that can, if `backend` cannot compute the arm."""
        for field, value in self._used():
            if field.backends and backend not in field.backends:
                what = f"{field.name} {field.spell(value).strip('/+~')!r}, only {' and '.join(field.backends)} can"
                raise UnsupportedArm(f"arm {self.name!r}: {backend} cannot compute {what}")

    def require_one_of(self, known: Collection[str], field: str, backend: str) -> None:
        """Raise UnsupportedArm if the value of `field` is not among those that `backend` knows."""
        if (value := getattr(self, field)) not in known:
            text = f"{backend} cannot compute {field} {value!r}, only {' or '.join(known)}"
            raise UnsupportedArm(f"arm {self.name!r}: {text}")

    def _used(self) -> Iterator[tuple[Field, Any]]:
        """Return the fields that differ from their default, with their values."""
        values = ((field, getattr(self, field.name)) for field in FIELDS)
        return ((field, value) for field, value in values if value != field.default)


def parse_arm(
    text: str, dtype: str = "auto", kernel: str = DEFAULT_KERNEL, outside: Mapping[str, str] | None = None
) -> Arm:
    """Return the arm that `text` spells; raise UnknownName or AnchorEvalError for what is not in the grammar.

    Nothing is imported. `outside` is for arms of a header: it maps the fields from outside that the header names to
    their hashes, and replaces what is installed here.
    """
    if dtype not in DTYPES:
        raise AnchorEvalError(f"unknown dtype {dtype!r}: one of {', '.join(DTYPES)}")
    spelled, *settings = text.split("~")
    attention, slash, rest = spelled.partition("/")
    rope, *fields = (rest if slash else spelled).split("+")
    known = offered if outside is None else lambda: (name.partition(":")[0] for name in outside)
    given: dict[Field, list[Any]] = {}
    for sign, pieces in (("+", fields), ("~", settings)):
        for piece in pieces:
            field = field_of(sign, piece, known)
            given.setdefault(field, []).append(field.parse(piece))
    values = {field.name: field.whole(each) for field, each in given.items()}
    if outside and "outside" in values:
        values["outside"] = tuple(replace(item, sha256=outside.get(str(item), "")) for item in values["outside"])
    pattern = parse_pattern(attention) if slash else "full"
    return Arm(rope=parse_level(rope), attention=pattern, dtype=dtype, kernel=kernel, **values)


def parse_arms(text: str, dtype: str = "auto", kernel: str = DEFAULT_KERNEL) -> tuple[Arm, ...]:
    """Return the arms of a comma-separated list, each once, in order. `rope:site=...,site=...` is one arm."""
    pieces: list[str] = []
    for piece in text.replace(" ", ",").split(","):
        if "=" in piece and ":" not in piece and pieces and "=" in pieces[-1]:
            pieces[-1] += f",{piece}"
        elif piece:
            pieces.append(piece)
    if not pieces:
        raise AnchorEvalError("no arm was named: --arms takes levels such as native,bf16,fp32")
    return tuple(dict.fromkeys(parse_arm(piece, dtype, kernel) for piece in pieces))


def widest_product(arms: Iterable[Arm]) -> str:
    """Return the product site of the arms with the most digits; `model` if every arm has the model's product."""
    named = [arm.rope.product for arm in arms if arm.rope.product in DIGITS]
    return max(named, key=DIGITS.__getitem__, default="model")
