"""Read JSON that somebody else may have written: finite numbers only, nested at most DEEPEST deep.

A `Shape` checks what a value has to be, so that later readers of the value need not check it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from anchoreval.schema import Json

DEEPEST = 64  # levels of nested lists and objects
DIGITS = 300  # most digits of a whole number: a longer one overflows a float
WIDEST = 2**63 - 1  # the largest whole number that a table can hold
LARGEST = 1e15  # the largest number with a decimal point


class Wrong(NamedTuple):
    """What is wrong with a value: the keys that lead there, what was expected, and what was found."""

    place: tuple[str, ...]
    expected: str
    found: str

    @property
    def where(self) -> str:
        """The path of keys as text: `asked > 0 > samples`."""
        return " > ".join(key if whole_characters(key) else ascii(key)[1:-1] for key in self.place) or "top level"

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, found {self.found}"


#: Takes a value; returns what is wrong with it, or None if it has the shape.
Shape = Callable[[Json], Wrong | None]


def parse(text: bytes) -> Json:
    """Return the value of a JSON text in UTF-8; raise ValueError, with the reason in words, for a refused text."""
    try:
        value = _JSON.decode(text.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    brackets = text.count(b"[") + text.count(b"{")
    if brackets > DEEPEST and _depth(value) > DEEPEST:
        raise ValueError("nested too deeply")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0.0:
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"{text[:40]} is too large a number")
    return int(text)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_JSON = json.JSONDecoder(parse_float=_finite, parse_int=_whole, parse_constant=_refuse)


def _depth(value: Json) -> int:
    """Return how deep lists and objects are nested, counted without recursion."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, list | dict)]:
        depth += 1
        level = [part for each in level for part in (each.values() if isinstance(each, dict) else each)]
    return depth


def whole_characters(text: str) -> bool:
    """Return whether a text holds no unpaired surrogate, so that it can be written as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def unpaired(value: Json) -> tuple[str, ...] | None:
    """Return the keys that lead to the first text or key with an unpaired surrogate; None if there is no such text."""
    left: list[tuple[tuple[str, ...], Json]] = [((), value)]
    while left:
        place, each = left.pop()
        if isinstance(each, str) and not whole_characters(each):
            return place
        if isinstance(each, dict):
            if bad := next((key for key in each if not whole_characters(key)), None):
                return (*place, ascii(bad)[1:-1])
            left += [((*place, key), part) for key, part in each.items()]
        elif isinstance(each, list):
            left += [((*place, str(number)), part) for number, part in enumerate(each)]
    return None


def brief(value: Json) -> str:
    """Return a value as JSON, cut to 40 characters, for a message."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _a(what: str, fits: Callable[[Json], bool]) -> Shape:
    return lambda value: None if fits(value) else Wrong((), what, brief(value))


def whole(low: int = 0, high: int = WIDEST) -> Shape:
    """Return a shape that accepts a whole number from `low` to `high`."""
    span = f"from {low}" if high == WIDEST else f"from {low} to {high}"
    return _a(f"a whole number {span}", lambda value: type(value) is int and low <= value <= high)


def number(low: float = -LARGEST, high: float = LARGEST) -> Shape:
    """Return a shape that accepts a number from `low` to `high`."""
    return _a(f"a number from {low:g} to {high:g}", lambda value: type(value) in (int, float) and low <= value <= high)


TEXT: Shape = _a("text", lambda value: isinstance(value, str))
FLAG: Shape = _a("true or false", lambda value: type(value) is bool)
OBJECT: Shape = _a("an object", lambda value: isinstance(value, dict))


def word(*known: str) -> Shape:
    """Return a shape that accepts one of the texts in `known`."""
    return _a(f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known)


def or_null(shape: Shape) -> Shape:
    """Return a shape that accepts null and whatever `shape` accepts."""

    def check(value: Json) -> Wrong | None:
        return None if value is None else shape(value)

    return check


def either(*shapes: Shape) -> Shape:
    """Return a shape that accepts what any of `shapes` accepts; the last one says what is wrong with other values."""

    def check(value: Json) -> Wrong | None:
        problems = [shape(value) for shape in shapes]
        return None if None in problems else problems[-1]

    return check


def list_of(shape: Shape) -> Shape:
    """Return a shape that accepts a list whose entries all fit `shape`."""

    def check(value: Json) -> Wrong | None:
        if not isinstance(value, list):
            return Wrong((), "a list", brief(value))
        return _first((str(place), each, shape) for place, each in enumerate(value))

    return check


def row_of(*shapes: Shape) -> Shape:
    """Return a shape that accepts a list with one entry per shape, in the order of the shapes."""

    def check(value: Json) -> Wrong | None:
        if not isinstance(value, list) or len(value) != len(shapes):
            return Wrong((), f"a list of {len(shapes)}", brief(value))
        return _first((str(place), each, shape) for place, (each, shape) in enumerate(zip(value, shapes, strict=True)))

    return check


def map_of(shape: Shape) -> Shape:
    """Return a shape that accepts an object whose values all fit `shape`."""

    def check(value: Json) -> Wrong | None:
        if not isinstance(value, dict):
            return Wrong((), "an object", brief(value))
        return _first((key, each, shape) for key, each in value.items())

    return check


def object_of(needed: Mapping[str, Shape], may_have: Mapping[str, Shape] | None = None) -> Shape:
    """Return a shape that accepts an object with the keys `needed`.

    Keys of `may_have` are checked if present; other keys are ignored.
    """
    known: dict[str, Shape] = {**needed, **(may_have or {})}

    def check(value: Json) -> Wrong | None:
        if not isinstance(value, dict):
            return Wrong((), "an object", brief(value))
        if (missing := next((key for key in needed if key not in value), None)) is not None:
            return Wrong((missing,), "a value", "none")
        return _first((key, value[key], shape) for key, shape in known.items() if key in value)

    return check


def _first(parts: Iterable[tuple[str, Any, Shape]]) -> Wrong | None:
    for key, value, shape in parts:
        if (wrong := shape(value)) is not None:
            return Wrong((key, *wrong.place), wrong.expected, wrong.found)
    return None
