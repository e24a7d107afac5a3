"""The shape of a run's header in every format. Any key may be missing; a key that is present has the shape given here.

Only keys that the package reads are listed.
"""

from __future__ import annotations

from anchoreval.files.strict_json import (
    FLAG,
    OBJECT,
    TEXT,
    Shape,
    either,
    list_of,
    map_of,
    number,
    object_of,
    or_null,
    whole,
)
from anchoreval.records.lines import LONGEST

MOST = 10**8  # largest number of samples of a cell
_COUNT, _LENGTH, _SAMPLES = whole(), whole(0, LONGEST), whole(0, MOST)
_TEXT_OR_NULL, _TEXTS = or_null(TEXT), map_of(TEXT)
#: Keys that a header has both at top level and in its identity.
_TWICE: dict[str, Shape] = {
    "seed": whole(-(2**63) + 1), "limit": or_null(_SAMPLES), "document_tokens": or_null(_COUNT), "template": TEXT,
    "template_args": OBJECT, "template_text": _TEXT_OR_NULL, "form": _TEXT_OR_NULL, "anchor": TEXT, "sources": _TEXTS,
}  # fmt: skip


def _parts(**keys: Shape) -> Shape:
    """Return the shape of an object with these optional keys."""
    return object_of({}, keys)


def _table(**keys: Shape) -> Shape:
    """Return the shape of a list of objects that have all these keys."""
    return list_of(object_of(keys))


_VERSIONS = map_of(_TEXT_OR_NULL)
_ENVIRONMENT = _parts(versions=_VERSIONS, device=_TEXT_OR_NULL, server=OBJECT)
_TASK = object_of(
    {"suite": TEXT, "name": TEXT},
    {"scorer": TEXT, "samples": _SAMPLES, "lengths": list_of(_LENGTH), "length_of": TEXT, "generator": TEXT,
     "args": OBJECT, "max_new_tokens": _COUNT, "version": _COUNT, "reference": TEXT,
     "outside": or_null(object_of({"card": TEXT}, {"module": _TEXT_OR_NULL}))},
)  # fmt: skip
_IDENTITY = _parts(
    **_TWICE,
    schema=_COUNT,
    engine=TEXT,
    tokenizer=TEXT,
    tasks=list_of(_TASK),
    lengths=or_null(list_of(_LENGTH)),
    arms=list_of(TEXT),
    length_rule=TEXT,
    documents=TEXT,
    until=_TEXT_OR_NULL,
    files=or_null(_TEXTS),
    eos_token_ids=or_null(list_of(_COUNT)),
    cut=map_of(_LENGTH),
    less=list_of(TEXT),
    pools=map_of(or_null(_COUNT)),
)
_BACKEND = _parts(
    engine=TEXT,
    dtype=_TEXT_OR_NULL,
    kernel=_TEXT_OR_NULL,
    device=_TEXT_OR_NULL,
    device_name=_TEXT_OR_NULL,
    versions=_VERSIONS,
    weights_sha256=_TEXT_OR_NULL,
    files_sha256=or_null(_TEXTS),
    server=or_null(_parts(address=_TEXT_OR_NULL, api=_TEXT_OR_NULL)),
    environment=OBJECT,
)
_MODEL = _parts(
    name=TEXT,
    path=TEXT,
    about=_TEXT_OR_NULL,
    window=or_null(_COUNT),
    sha256=_TEXT_OR_NULL,
    parameters=or_null(_COUNT),
    dtype=_TEXT_OR_NULL,
)
_TOKENIZER = _parts(
    sha256=_TEXT_OR_NULL,
    anchor_token=_TEXT_OR_NULL,
    anchor_id=or_null(_COUNT),
    anchor_from=_TEXT_OR_NULL,
    path=_TEXT_OR_NULL,
    read_by_transformers=TEXT,
)
_VERDICT = object_of({"verdict": TEXT, "pairs": _COUNT}, {"difference": or_null(number()), "low": number(),
                                                          "high": number()})  # fmt: skip
_STOPPED = object_of({"task": TEXT, "length": _LENGTH, "asked": _SAMPLES, "used": _SAMPLES, "arms": map_of(_VERDICT)})
_UNTIL = object_of({"rule": TEXT, "refers": TEXT}, {"method": TEXT, "round": _COUNT, "block": _COUNT,
                                                    "cells": list_of(_STOPPED)})  # fmt: skip

HEADER_SHAPE: Shape = _parts(
    **_TWICE,
    schema=_COUNT,
    run=TEXT,
    created=_TEXT_OR_NULL,
    finished=_TEXT_OR_NULL,
    version=TEXT,
    resumed=_COUNT,
    workers=_COUNT,
    group=whole(1),
    grown=list_of(_SAMPLES),
    comparable=FLAG,
    incomparable=_TEXTS,
    lengths=list_of(_LENGTH),
    tasks=list_of(TEXT),
    scorers=_TEXTS,
    scorer_packages=_TEXTS,
    asked=_table(task=TEXT, length=_LENGTH, samples=_SAMPLES),
    unmakeable=_table(task=TEXT, length=_LENGTH, why=TEXT),
    arms=list_of(
        either("text or an object with a name", TEXT, object_of({"name": TEXT}, {"asked": OBJECT, "applied": OBJECT}))
    ),
    options=OBJECT,
    source_files=map_of(_parts(sha256=TEXT)),
    environments=list_of(_ENVIRONMENT),
    identity=_IDENTITY,
    backend=_BACKEND,
    model=_MODEL,
    tokenizer=_TOKENIZER,
    until=or_null(_UNTIL),
    seal=or_null(_parts(header_sha256=TEXT, records_sha256=TEXT, records=_COUNT, log_probabilities_sha256=TEXT)),
)
