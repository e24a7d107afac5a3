"""A record as one JSON line in ASCII and back; every field is there and of its kind, or it is no record."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import cache
from operator import itemgetter
from typing import Any

from anchoreval.schema import OUTCOMES, SCORED, ChoiceScore, Json, Record, outcome_of

_NUMBER = (int, float, type(None))
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("key", "sample_id", "task", "arm", "prompt_sha256", "output", "finish"), str),
    **dict.fromkeys(("length", "index", "prompt_tokens", "output_tokens", "reference_tokens"), int),
    **dict.fromkeys(("score", "reference_logprob"), _NUMBER),
    "references": list, "facts": dict, "why": (str, type(None)), "seconds": (int, float),
}  # fmt: skip
_FIELDS = itemgetter(*_KINDS)
_SINCE_FORMAT_2 = frozenset({"outcome", "environment"})  # fields that lines of format 1 lack
_OPTIONAL = _SINCE_FORMAT_2 | {"choices"}


def to_line(record: Record) -> bytes:
    """Return the record as one JSON line in UTF-8; unpaired surrogates are escaped, so any text survives.

    A record of format 1, which names no environment, has no outcome on its line: it follows from the rest.
    """
    values = dataclasses.asdict(record)
    if not record.choices:
        del values["choices"]
    if record.environment is None:
        del values["environment"]
        if record.outcome == outcome_of(record.finish, record.output, bool(record.choices)):
            del values["outcome"]
    return (json.dumps(values, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def from_line(line: bytes) -> Record:
    """The record of one line; ValueError when it is torn or has other fields."""
    return record_of(checked(line))


def record_of(values: Mapping[str, Any]) -> Record:
    """The record of checked fields."""
    lists = {"references": tuple(values["references"])}
    if "choices" in values:
        lists["choices"] = tuple(ChoiceScore(*each) for each in values["choices"])
    return Record(**{**values, **lists})


def checked(line: bytes) -> dict[str, Any]:
    """The fields of one line, all there and of the right kind; ValueError otherwise."""
    try:
        values: Any = _PLAIN.decode(line.decode("ascii")) if line.isascii() else _decoded(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(values, dict) or values.keys() - _OPTIONAL != _KINDS.keys():
        raise ValueError("not a record")
    if name := _first_wrong(tuple(map(type, _FIELDS(values)))):
        raise ValueError(f"not a record: {name} is {json.dumps(values[name])[:40]}")
    for text in values["references"]:
        if not isinstance(text, str):
            raise ValueError("not a record: references are not all text")
    if not _are_choices(values.get("choices", [])):
        raise ValueError("not a record: choices are no pairs of a log-probability and a yes or no")
    if values.get("outcome", OUTCOMES[0]) not in OUTCOMES:
        raise ValueError(f"not a record: outcome is {json.dumps(values['outcome'])[:40]}")
    if type(environment := values.get("environment", 0)) is not int or environment < 0:
        raise ValueError(f"not a record: environment is {json.dumps(environment)[:40]}")
    return values


def _are_choices(values: Json) -> bool:
    return isinstance(values, list) and all(
        isinstance(each, list) and len(each) == 2 and type(each[0]) in (int, float) and type(each[1]) is bool
        for each in values
    )


@cache
def _first_wrong(kinds: tuple[type, ...]) -> str | None:
    """The first field, in the order of `_KINDS`, of another kind; None where all are right. JSON has seven types."""
    for (name, kind), found in zip(_KINDS.items(), kinds, strict=True):
        if not issubclass(found, kind) or found is bool:
            return name
    return None


def _decoded(line: bytes) -> Json:
    return json.loads(line, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_PLAIN = json.JSONDecoder(parse_constant=_refuse)


def unanswered(values: Mapping[str, Any]) -> bool:
    """Whether checked fields hold an outcome that is not scored, so that the sample is asked again."""
    outcome = values.get("outcome") or ("failed" if values["finish"] == "error" else "answered")
    return outcome not in SCORED
