"""JSON values of wrong kinds, and every place of a value where one may stand."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

Place = tuple[str | int, ...]
GONE = "gone"
#: Name -> the JSON text that stands in a value's place.
WRONG = {
    "null": "null",
    "true": "true",
    "-1": "-1",
    "1e999": "1e999",
    "NaN": "NaN",
    "huge": "1" + "0" * 400,
    "large": str(2**70),
    "empty": '""',
    "half": '"\\ud800"',
    "text": '"x"',
    "list": "[[1, null]]",
    "dict": '{"a": {"b": [{}]}}',
    "deep": "[" * 400 + "]" * 400,
    "fraction": "0.5",
}
_MARK = "the value that is replaced"


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Every place in a value, one of each list's entries."""
    if place:
        yield place
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*place, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*place, 0))


def mutated(value: Any, place: Place, kind: str) -> str:
    """The value as JSON text with a value of a wrong kind at one place, or without its key."""
    made = copy.deepcopy(value)
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    if kind == GONE:
        del inner[place[-1]]
        return json.dumps(made)
    inner[place[-1]] = _MARK
    return json.dumps(made).replace(json.dumps(_MARK), WRONG[kind])
