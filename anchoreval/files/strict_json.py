"""Read JSON that somebody else may have written: finite numbers only, nested at most DEEPEST deep.

A `Shape` checks what a value has to be, so that later readers of the value need not check it again. pydantic-core does
the checking; the words of its errors are ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from pydantic_core import SchemaValidator, ValidationError
from pydantic_core import core_schema as core

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


class Shape:
    """What a JSON value has to be: called with a value, it returns the first thing that is wrong, or None."""

    def __init__(self, schema: core.CoreSchema) -> None:
        self.schema = schema
        self._validator = SchemaValidator(schema)

    def __call__(self, value: Json) -> Wrong | None:
        try:
            self._validator.validate_python(value)
        except ValidationError as error:
            # a key that is missing comes before a value of another shape
            first = min(error.errors(include_url=False), key=lambda each: each["type"] != "missing")
            place = tuple(map(str, first["loc"]))
            if first["type"] == "missing":
                return Wrong(place, "a value", "none")
            return Wrong(place, first["msg"], brief(first["input"]))
        return None


def _said(what: str, schema: core.CoreSchema) -> Shape:
    """Return a shape whose error reads `expected WHAT`."""
    return Shape(core.custom_error_schema(schema, custom_error_type="shape", custom_error_message=what))


def whole(low: int = 0, high: int = WIDEST) -> Shape:
    """Return a shape that accepts a whole number from `low` to `high`."""
    span = f"from {low}" if high == WIDEST else f"from {low} to {high}"
    return _said(f"a whole number {span}", core.int_schema(strict=True, ge=low, le=high))


def number(low: float = -LARGEST, high: float = LARGEST) -> Shape:
    """Return a shape that accepts a number from `low` to `high`."""
    return _said(f"a number from {low:g} to {high:g}", core.float_schema(strict=True, ge=low, le=high))


TEXT = _said("text", core.is_instance_schema(str))  # a str schema refuses unpaired surrogates
FLAG = _said("true or false", core.bool_schema(strict=True))
OBJECT = _said("an object", core.is_instance_schema(dict))
_LIST = _said("a list", core.is_instance_schema(list)).schema


def word(*known: str) -> Shape:
    """Return a shape that accepts one of the texts in `known`."""
    return _said(f"one of {', '.join(known)}", core.literal_schema([*known]))


def or_null(shape: Shape) -> Shape:
    """Return a shape that accepts null and whatever `shape` accepts."""
    return Shape(core.nullable_schema(shape.schema))


def either(what: str, *shapes: Shape) -> Shape:
    """Return a shape that accepts what any of `shapes` accepts; `what` is said to be expected of other values."""
    return _said(what, core.union_schema([shape.schema for shape in shapes], mode="left_to_right"))


def list_of(shape: Shape) -> Shape:
    """Return a shape that accepts a list whose entries all fit `shape`."""
    return Shape(core.chain_schema([_LIST, core.list_schema(shape.schema, fail_fast=True)]))


def row_of(*shapes: Shape) -> Shape:
    """Return a shape that accepts a list with one entry per shape, in the order of the shapes."""
    sized = _said(f"a list of {len(shapes)}", core.list_schema(min_length=len(shapes), max_length=len(shapes)))
    return Shape(core.chain_schema([sized.schema, core.tuple_schema([shape.schema for shape in shapes])]))


def map_of(shape: Shape) -> Shape:
    """Return a shape that accepts an object whose values all fit `shape`."""
    return Shape(core.chain_schema([OBJECT.schema, core.dict_schema(values_schema=shape.schema)]))


def object_of(needed: Mapping[str, Shape], may_have: Mapping[str, Shape] | None = None) -> Shape:
    """Return a shape that accepts an object with the keys `needed`.

    Keys of `may_have` are checked if present; other keys are ignored.
    """
    fields = {key: core.typed_dict_field(shape.schema, required=True) for key, shape in needed.items()}
    fields |= {key: core.typed_dict_field(shape.schema, required=False) for key, shape in (may_have or {}).items()}
    return Shape(core.chain_schema([OBJECT.schema, core.typed_dict_schema(fields, extra_behavior="ignore")]))
