"""The fields of an arm: how each is spelled, what it is, which backends compute it, and what installs it on a model.

A new field is a row of FIELDS and an attribute of `Arm` with the same default, and a row of docs/arms.md; a new value
of a field is added where its `parse` is (positions.py, patterns.py, rope.py). Imports no torch: `install` names a
function, which is imported when an arm with that field is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from anchoreval.arms.outside import X, parse_outside
from anchoreval.arms.patterns import NUMBERED, PATTERNS, parse_pattern
from anchoreval.arms.positions import CONTIGUOUS, SCHEMES, parse_positions
from anchoreval.arms.rope import parse_level
from anchoreval.errors import AnchorEvalError, UnknownName
from anchoreval.schema import PLACEBO, Json


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

    def whole(self, given: list[Any]) -> Any:
        """Return the field's value from all values `given` in one arm; raise AnchorEvalError for one too many."""
        if len(given) > 1 and (not self.many or len(set(given)) < len(given)):
            raise AnchorEvalError(f"one arm takes {self.name} once, not {len(given)} times")
        return tuple(sorted(given)) if self.many else given[0]


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
_OUTSIDE = next(field for field in FIELDS if field.name == "outside")


def field_of(sign: str, text: str, known: Callable[[], Iterable[str]]) -> Field:
    """Return the field of `text` after `sign`, or raise UnknownName. `known` returns the names from outside."""
    word = text.partition(":")[0]
    fields = {word: field for field in FIELDS if field.sign == sign for word in field.words}
    if word not in fields and sign == "+":
        fields |= dict.fromkeys(known(), _OUTSIDE)
    if word not in fields:
        raise UnknownName("field of an arm" if sign == "+" else "setting of an arm", text, fields)
    return fields[word]
