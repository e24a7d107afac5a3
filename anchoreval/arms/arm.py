"""An arm: what is computed, apart from the weights and the prompt. It is parsed from, and printed in, one spelling.

Grammar: `[attention/]rope[+field:value...][~setting:value...]`, for instance `fp32`, `rope:table=bf16,rotate=fp32`,
`anchor/fp32`, `bf16+shift:4096`, `fp32+x:evict:window`, `bf16~placebo`. The fields are those of FIELDS: they
may stand in any order and are printed in the order of that table. A new field is a row there and an attribute of `Arm`
with the same default, and a row of docs/arms.md; a new value of a field is added where its `parse` is (layout.py,
patterns.py, rope.py). Imports no torch: `install` names a function, which is imported when an arm with that field is
installed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from anchoreval.arms.layout import CONTIGUOUS, SCHEMES, Arrangement, PositionScheme, parse_positions
from anchoreval.arms.outside import Outside, X, offered, parse_outside
from anchoreval.arms.patterns import NUMBERED, PATTERNS, isolates, parse_pattern
from anchoreval.arms.rope import DIGITS, RopeLevel, parse_level
from anchoreval.errors import AnchorEvalError, UnknownName, UnsupportedArm
from anchoreval.schema import PLACEBO, Json

#: The default attention kernel: sdpa, or eager if sdpa would leave out a part of the model.
DEFAULT_KERNEL = "default"
DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an arm.

    `name` is the attribute of `Arm`, `spelling` an example of how it is written. `sign` stands before it (`+` for a
    field, `~` for a setting), and its text may begin with any of `words`. `parse` reads the text after the sign, and
    `spell` returns it with the sign, for a value other than the default. `many`: it may stand several times, and its
    value is a tuple. `as_json` is for fields that `asked` leaves out at their default. `install` names a context
    manager of (transformers model, value) that yields what holds inside as JSON; the RoPE is installed together with
    the kernel (patch_hf.applied). `backends` are those that compute the field; if it is empty, any backend may, and
    refuses by itself the values that it cannot compute.
    """

    name: str
    spelling: str
    about: str
    parse: Callable[[str], Any]
    spell: Callable[[Any], str]
    sign: str = ""
    words: tuple[str, ...] = ()
    default: Any = None
    backends: tuple[str, ...] = ()
    many: bool = False
    as_json: Callable[[Any], Json] | None = None
    install: str = ""


def _parse_placebo(text: str) -> bool:
    """Return True for the word alone; raise AnchorEvalError if anything follows it."""
    if text != PLACEBO[1:]:
        raise AnchorEvalError(f"{PLACEBO} takes no value, not ~{text}")
    return True


#: The fields, in the order in which they are printed.
FIELDS = (
    Field(
        "attention", "anchor/", "what documents see: " + ", ".join((*PATTERNS, *NUMBERED)), parse_pattern, "{}/".format,
        sign="/", default="full",
    ),
    Field("rope", "fp32", "the precision of the rotary embedding, a level or rope:site=dtype,...", parse_level, str),
    Field(
        "positions", "+shift:4096", "where tokens stand: " + ", ".join(SCHEMES), parse_positions, "+{}".format,
        sign="+", words=tuple(spelled.partition(":")[0] for spelled in SCHEMES), default=CONTIGUOUS,
    ),
    Field(
        "outside", "+x:package.module:factory", "a context manager on the model, of a module or an installed package",
        parse_outside, lambda chosen: "".join(f"+{item}" for item in chosen), sign="+", words=(X,), default=(),
        backends=("hf",), many=True, as_json=lambda chosen: [item.as_json() for item in chosen],
        install="anchoreval.arms.outside:installed",
    ),
    Field(
        "placebo", PLACEBO, "the same arm in other chunks and batches: the noise floor", _parse_placebo,
        lambda _: PLACEBO, sign="~", words=(PLACEBO[1:],), default=False, as_json=bool,
    ),
)  # fmt: skip


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
    #: The spelling that `parse_arm` reads, without the kernel and the run's dtype.
    name: str = field(init=False, compare=False, repr=False)
    #: Whether tokens stand elsewhere than at 0, 1, 2, ...
    moves_positions: bool = field(init=False, compare=False, repr=False)
    #: Whether tokens stand where the model puts them, and see what the model lets them see.
    stock: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        moved, name = self.positions != CONTIGUOUS, "".join(each.spell(value) for each, value in self._used())
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "moves_positions", moved)
        object.__setattr__(self, "stock", not moved and self.attention == "full")

    def asked(self) -> dict[str, Any]:
        """Return the arm as JSON, as it was asked for. Fields that were added later appear only if they are used."""
        later = {each.name: each.as_json(value) for each, value in self._used() if each.as_json}
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
    def masks_documents(self) -> bool:
        """Whether documents, or blocks, cannot see what is outside them."""
        return isolates(self.attention)

    def settled(self, backend: str) -> Arm:
        """Return the arm with the hash of each source from outside. This imports the sources: use it for typed arms.

        Raise UnsupportedArm, before anything is imported, if `backend` cannot compute the arm.
        """
        self.require(backend)
        return replace(self, outside=tuple(item.settled() for item in self.outside)) if self.outside else self

    def require(self, backend: str) -> None:
        """Raise UnsupportedArm, with the field and the backends that can, if `backend` cannot compute the arm."""
        for each, value in self._used():
            if each.backends and backend not in each.backends:
                what = f"{each.name} {each.spell(value).strip('/+~')!r}, only {' and '.join(each.backends)} can"
                raise UnsupportedArm(f"arm {self.name!r}: {backend} cannot compute {what}")

    def require_one_of(self, known: Collection[str], field: str, backend: str) -> None:
        """Raise UnsupportedArm if the value of `field` is not among those that `backend` knows."""
        if (value := getattr(self, field)) not in known:
            text = f"{backend} cannot compute {field} {value!r}, only {' or '.join(known)}"
            raise UnsupportedArm(f"arm {self.name!r}: {text}")

    def _used(self) -> Iterator[tuple[Field, Any]]:
        """Return the fields that differ from their default, with their values."""
        values = ((each, getattr(self, each.name)) for each in FIELDS)
        return ((each, value) for each, value in values if value != each.default)


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
    given: dict[Field, list[Any]] = {}
    for sign, piece in (*(("+", piece) for piece in fields), *(("~", piece) for piece in settings)):
        word = piece.partition(":")[0]
        known = {name: each for each in FIELDS if each.sign == sign for name in each.words}
        if word not in known and sign == "+":
            names = offered() if outside is None else (name.partition(":")[0] for name in outside)
            known |= dict.fromkeys(names, known[X])
        if word not in known:
            raise UnknownName("field of an arm" if sign == "+" else "setting of an arm", piece, known)
        given.setdefault(known[word], []).append(known[word].parse(piece))
    for each, several in given.items():
        if len(several) > 1 and (not each.many or len(set(several)) < len(several)):
            raise AnchorEvalError(f"one arm takes {each.name} once, not {len(several)} times")
    values: dict[str, Any] = {
        each.name: tuple(sorted(several)) if each.many else several[0] for each, several in given.items()
    }
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
