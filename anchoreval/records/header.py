"""`Header`: the content of header.json with typed attributes, and sentences about it for readers of scores.

Headers of every format are accepted; an attribute that a header lacks is empty. The parts that prompts follow from are
in parts.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from anchoreval.errors import RunError
from anchoreval.files import content_of
from anchoreval.files.strict_json import (
    FLAG,
    OBJECT,
    TEXT,
    Shape,
    Wrong,
    either,
    list_of,
    map_of,
    number,
    object_of,
    or_null,
    parse,
    unpaired,
    whole,
)
from anchoreval.records.lines import LONGEST
from anchoreval.schema import GENERATED, Json, Record, uses_generated
from anchoreval.stats.cells import Place
from anchoreval.stats.contrasts import Subject, Trained

HEADER = "header.json"
SCHEMA = 2  # the format that is written
READ = (1, 2)  # the formats that can be read
FORMS: Mapping[str, str] = {
    "base": "base text",
    "chat": "the model's chat template",
    "server": "the server's own chat template",
}
#: The key of a header that is true if the model has a chat template but prompts were raw text without `--template`.
UNUSED_TEMPLATE = "unused_chat_template"
RAW_TEXT = "raw text is sent to a model that has a chat template: --template chat puts prompts into it"
#: Keys that a header has both at top level and in its identity; verification compares the two.
TWICE = ("seed", "template", "template_args", "template_text", "anchor", "form", "document_tokens")


def fingerprint(identity: Mapping[str, Json]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 over canonical JSON: of a run's identity, its name."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


class Header(dict[str, Json]):
    """The dict of header.json as it is on disk, so that the seal covers it, with its values as attributes.

    The attributes are read once, from the content that the header is made of: to change a value, make another header.
    """

    def __init__(self, content: Mapping[str, Json] | Iterable[tuple[str, Json]] = ()) -> None:
        super().__init__(content)
        identity: Mapping[str, Json] = self.get("identity") or {}
        self.identity = identity  # everything that changes a record; its fingerprint is the name of the run
        self.model: Mapping[str, Json] = self.get("model") or {}  # name, path, hash and size
        self.backend: Mapping[str, Json] = self.get("backend") or {}  # the backend's description of itself
        self.sources: Mapping[str, Json] = self.get("sources") or {}  # where the texts of the prompts come from
        self.scorers: Mapping[str, Json] = self.get("scorers") or {}  # task -> scorer
        self.tokenizer: Mapping[str, Json] = self.get("tokenizer") or {}  # its hash, and the anchor token
        self.run, self.created = str(self.get("run") or ""), str(self.get("created") or "")
        limit = self.get("limit")  # the largest number of samples of a cell that was asked for; None for all
        self.limit: int | None = limit if isinstance(limit, int) else None

        self.tasks = [str(task) for task in self.get("tasks") or []]
        #: Address of a task -> its card in the identity.
        self.cards: dict[str, Mapping[str, Json]] = {
            f"{card['suite']}/{card['name']}": card for card in identity.get("tasks") or []
        }
        #: Address of a task of a suite from outside the package -> the SHA-256 of its card and module.
        self.outside: dict[str, Mapping[str, Json]] = {
            address: card["outside"] for address, card in self.cards.items() if card.get("outside")
        }
        hashes = {task.partition("/")[0]: row.get("module") or row["card"] for task, row in self.outside.items()}
        #: Those suites as words, each with the begin of the hash of its module, or card.
        self.outside_words = ", ".join(f"{suite} {digest[:8]}" for suite, digest in sorted(hashes.items()))

        #: A row for every arm: name and, if the header has them, the arm as asked and as applied.
        self.arm_rows: list[Mapping[str, Json]] = [
            row if isinstance(row, Mapping) else {"name": str(row)} for row in self.get("arms") or []
        ]
        self.arms = [str(row["name"]) for row in self.arm_rows]
        trained = self.model.get("trained")  # how the model was trained, if a training card lies beside its weights
        self.trained = Trained.of(trained) if isinstance(trained, Mapping) else None
        #: The environments (machine and versions) that computed the run, in order.
        self.environments: list[Mapping[str, Json]] = list(self.get("environments") or [])

        self.lengths = [int(length) for length in self.get("lengths") or []]
        rows, left = self.get("asked") or [], self.get("unmakeable") or []
        #: (task, length) -> the number of samples that were asked for, and why no such sample can be made.
        self.asked: dict[Place, int] = {(str(row["task"]), int(row["length"])): int(row["samples"]) for row in rows}
        self.unmakeable: dict[Place, str] = {(str(row["task"]), int(row["length"])): str(row["why"]) for row in left}
        until = self.get("until") or {}
        stopped = until.get("cells") or []  # with a stopping rule, cells are known when all verdicts are in
        #: Arm -> (task, length) -> a phrase for the verdict that stopped the cell.
        self.stopped: dict[str, dict[Place, str]] = {}
        for cell in stopped:
            for arm, verdict in cell["arms"].items():
                after = f"{verdict['sources']} sources" if verdict.get("sources") else verdict["pairs"]
                phrase = f"{verdict['verdict']} ({until['rule']} after {after})"
                self.stopped.setdefault(arm, {})[cell["task"], cell["length"]] = phrase
        #: The number of samples that each arm of the finished run has; None if the header does not tell.
        self.samples: int | None = sum(self.asked.values()) if rows else None
        if until:
            self.samples = sum(int(cell["used"]) for cell in stopped) or None

        #: The form in which the prompts reached the model, one of FORMS. A server with a chat interface applies its own
        #: template, whatever the template of the run.
        self.form = str(self.get("form") or self.get("template") or "")
        if (self.backend.get("server") or {}).get("api") == "chat" and "form" not in self:
            self.form = "server"
        named = f"{self.form} template" if self.form else ""
        self.form_words = FORMS.get(self.form, named)
        #: The form with the template's arguments: `chat template, enable_thinking=False`.
        self.prompts = ", ".join([
            *filter(None, ["server's chat template" if self.form == "server" else named]),
            *(f"{key}={value}" for key, value in sorted((identity.get("template_args") or {}).items())),
        ])  # fmt: skip
        #: A notice if raw text was sent to a model that has a chat template; empty for every other run.
        self.raw_words = RAW_TEXT if self.get(UNUSED_TEMPLATE) is True else ""

    def at(self, *keys: str) -> Json:
        """Return the value under these nested keys; None if there is none."""
        value: Json = self
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def part(self, *keys: str) -> Mapping[str, Json]:
        """Return the object under these nested keys; an empty one if there is none."""
        value = self.at(*keys)
        return value if isinstance(value, Mapping) else {}

    def subject(self, arm: str, run: str = "") -> Subject:
        """Return an arm of the run as a subject of comparison; `run` is the name to print for the run."""
        asked = next((row.get("asked") for row in self.arm_rows if row.get("name") == arm), None)
        outside = asked.get("outside") if isinstance(asked, Mapping) else None
        listed = [code for code in outside if isinstance(code, Mapping)] if isinstance(outside, list) else []
        return Subject(
            arm,
            str(self.model.get("name") or run),
            str(self.model.get("sha256") or ""),
            self.prompts,
            str(self.backend.get("engine") or ""),
            str(self.backend.get("dtype") or self.model.get("dtype") or ""),
            str(self.backend.get("kernel") or ""),
            tuple(str(code.get("sha256") or "") for code in listed),
            run,
        )

    @property
    def anchor_words(self) -> str:
        """The anchor token and who puts it in front of a prompt, as a phrase."""
        token, source = self.tokenizer.get("anchor_token"), self.tokenizer.get("anchor_from")
        if source == "none" or (token is None and "anchor_token" in self.tokenizer):
            return "none"
        if token is None:
            return ""
        who = {"tokenizer": ", put by the tokenizer", "anchoreval": ", put by anchoreval: the tokenizer puts none"}
        return f"{token}{who.get(str(source), '')}"

    @property
    def environment_words(self) -> str:
        """`2 environments (threads, versions differ)`; empty for a run with one environment."""
        listed = self.environments
        if len(listed) < 2:
            return ""
        keys = sorted({key for environment in listed for key in environment})
        differ = [key for key in keys if any(environment.get(key) != listed[0].get(key) for environment in listed)]
        return f"{len(listed)} environments" + (f" ({', '.join(differ)} differ)" if differ else "")

    def incomparable(self, records: Iterable[Record] = ()) -> Mapping[str, str]:
        """Return task -> why its scores are not comparable with published ones.

        The header records this for the first sample of each cell. If any of `records` has generated text, its task is
        added. A header without this field only tells whether the whole run is comparable; the reason then follows from
        the sources that were asked for.
        """
        if isinstance(reasons := self.get("incomparable"), Mapping):
            generated = {record.task: f"haystack {GENERATED}" for record in records if uses_generated(record.facts)}
            return generated | {str(task): str(why) for task, why in reasons.items()}
        if self.get("comparable") is not False:
            return {}
        other = [f"{name} {text}" for name, text in self.sources.items() if text != "published" and name != "wordlists"]
        return {task: ", ".join(other) or "see header.json" for task in self.tasks or ["all tasks"]}

    def incomparable_words(self, shown: Iterable[str] | None = None, records: Iterable[Record] = ()) -> str:
        """Return why scores are not comparable with published ones, with the tasks unless it is all; or an empty text.

        `shown` are the tasks to report on; None for every task of the run. `records` are as in `incomparable`.
        """
        reasons = self.incomparable(records)
        tasks = (self.tasks or list(reasons)) if shown is None else list(shown)
        by_reason: dict[str, list[str]] = {}
        for task in tasks:
            if task in reasons or "all tasks" in reasons:
                why = reasons.get(task) or reasons.get("all tasks") or "see header.json"
                by_reason.setdefault(why, []).append(task)
        parts = []
        for why, addresses in by_reason.items():
            named = [task.partition("/")[2] or task for task in addresses]
            listed = ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
            parts.append(why if len(addresses) == len(tasks) else f"{why} ({listed})")
        return "; ".join(parts)

    def other_prompts(self, first: Header) -> list[str]:
        """Return phrases for why the same samples gave other prompts than in the run of `first`."""
        differences = []
        if self.form != first.form:
            differences.append(
                f"{first.form_words or 'an unknown form'} against {self.form_words or 'an unknown form'}"
            )
        for name, keys in _BESIDE_THE_TEXT.items():
            theirs, ours = first.at(*keys) or None, self.at(*keys) or None
            if theirs != ours:
                differences.append(f"{name} {_spelled(theirs)} against {_spelled(ours)}")
        return differences


_BESIDE_THE_TEXT = {"template arguments": ("identity", "template_args"), "anchor token": ("tokenizer", "anchor_token")}


def _spelled(value: Json) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in sorted(value.items()))
    return "none" if value is None else str(value)


MOST_SAMPLES = 10**8  # largest number of samples of a cell
_COUNT, _LENGTH, _SAMPLES = whole(), whole(0, LONGEST), whole(0, MOST_SAMPLES)
_TEXT_OR_NULL, _TEXTS = or_null(TEXT), map_of(TEXT)
#: Keys that a header has both at top level and in its identity.
_SHAPES_TWICE: dict[str, Shape] = {
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
    **_SHAPES_TWICE,
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

#: Any key may be missing; a key that is present has this shape. Only keys that the package reads are listed.
_HEADER: Shape = _parts(
    **_SHAPES_TWICE,
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


def problem_of(header: Json) -> str | None:
    """Return what is wrong with a header, with the key; None if every key that is present has the right shape."""
    if not isinstance(header, Mapping):
        return "not a header: expected an object"
    if (place := unpaired(header)) is not None:
        return str(Wrong(place, "whole characters", "half of one (an unpaired surrogate)"))
    wrong = _HEADER(header)
    return str(wrong) if wrong else None


def read_header(path: Path) -> Header:
    """Return the header in a file; raise RunError with the first key whose value has the wrong shape."""
    try:
        header = parse(content_of(path))
    except ValueError as error:
        raise RunError(f"{path}: cannot be read ({error}): no run here") from error
    if problem := problem_of(header):
        raise RunError(f"{path}: {problem}")
    return Header(header)
