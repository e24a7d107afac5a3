"""A run's header: header.json as it stands, its facts typed, and what they say to a reader of its scores.

Headers of every format are taken; what one does not say is empty. What prompts follow from is in parts.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from anchoreval.errors import RunError
from anchoreval.files.strict_json import parse
from anchoreval.records.header_shape import problem_of
from anchoreval.records.parts import HeaderParts
from anchoreval.records.plain_files import content_of
from anchoreval.schema import GENERATED, Json, Record, uses_generated

HEADER = "header.json"
SCHEMA = 2  # of runs that are written
READ = (1, 2)  # of runs that are read
FORMS: Mapping[str, str] = {
    "base": "base text",
    "chat": "the model's chat template",
    "server": "the server's own chat template",
}
#: A header's key, true where the model has a chat template, prompts were raw text and `--template` was not given.
UNUSED_TEMPLATE = "unused_chat_template"
RAW_TEXT = "raw text is sent to a model that has a chat template: --template chat puts prompts into it"
#: What of a run's identity stands beside it too; verification compares the two.
TWICE = ("seed", "template", "template_args", "template_text", "anchor", "form", "document_tokens")
Place = tuple[str, int]  # a task and a length


def fingerprint(identity: Mapping[str, Json]) -> str:
    """Sixteen hexadecimal digits over a canonical JSON of everything that changes a record."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


class Part:
    """An attribute of a header that is the object under its key; empty where there is none."""

    def __set_name__(self, owner: type[Header], name: str) -> None:
        self._key = name

    def __get__(self, header: Header, owner: type[Header]) -> Mapping[str, Json]:
        return header.part(self._key)


class Header(dict[str, Json]):
    """header.json as it stands on disk, which the seal is over, with its facts as attributes."""

    identity = Part()  # everything that changes a record, over which the name of the run is a fingerprint
    model = Part()  # name, path, hash and size
    backend = Part()  # what it says of itself
    sources = Part()  # of texts that prompts are made of
    scorers = Part()  # by task

    def at(self, *keys: str) -> Json:
        """The value under these keys, one in the other; None where there is none."""
        found: Json = self
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def part(self, *keys: str) -> Mapping[str, Json]:
        """The object under these keys; empty where there is none."""
        found = self.at(*keys)
        return found if isinstance(found, Mapping) else {}

    @cached_property
    def parts(self) -> HeaderParts:
        """What the prompts of the run follow from; pydantic's ValidationError where one is absent or wrong."""
        return HeaderParts.model_validate(self)

    @property
    def run(self) -> str:
        """The name of the run, which follows from its identity."""
        return str(self.get("run") or "")

    @property
    def tasks(self) -> list[str]:
        """The tasks in their order."""
        return [str(task) for task in self.get("tasks") or []]

    @property
    def cards(self) -> dict[str, Mapping[str, Json]]:
        """The card of every task that the identity holds, by the task's address."""
        return {f"{card['suite']}/{card['name']}": card for card in self.at("identity", "tasks") or []}

    @property
    def lengths(self) -> list[int]:
        """The lengths that were asked for."""
        return [int(length) for length in self.get("lengths") or []]

    @property
    def arm_rows(self) -> list[Mapping[str, Json]]:
        """Every arm by name, as asked and as applied where the header says it."""
        return [row if isinstance(row, Mapping) else {"name": str(row)} for row in self.get("arms") or []]

    @property
    def arms(self) -> list[str]:
        """The names of the arms in their order."""
        return [str(row["name"]) for row in self.arm_rows]

    @property
    def asked(self) -> dict[Place, int]:
        """(task, length) -> how many samples were asked for."""
        return {(str(row["task"]), int(row["length"])): int(row["samples"]) for row in self.get("asked") or []}

    @property
    def unmakeable(self) -> dict[Place, str]:
        """(task, length) -> why no such sample can be made."""
        return {(str(row["task"]), int(row["length"])): str(row["why"]) for row in self.get("unmakeable") or []}

    @property
    def environments(self) -> list[Mapping[str, Json]]:
        """The machines and versions that computed the run, one after the other."""
        listed = self.get("environments")
        return [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []

    @property
    def stopped(self) -> dict[str, dict[Place, str]]:
        """Arm -> (task, length) -> the words of the verdict with which a rule stopped the cell."""
        found: dict[str, dict[Place, str]] = {}
        for cell in self.at("until", "cells") or []:
            for arm, said in cell["arms"].items():
                after = f"{said['sources']} sources" if said.get("sources") else said["pairs"]
                words = f"{said['verdict']} ({self['until']['rule']} after {after})"
                found.setdefault(arm, {})[cell["task"], cell["length"]] = words
        return found

    @property
    def samples(self) -> int | None:
        """How many samples each arm of the finished run has; None where the header does not say it."""
        if self.get("until"):  # stopped by verdicts: known when they are in
            return sum(int(cell["used"]) for cell in self.at("until", "cells") or []) or None
        return sum(self.asked.values()) if self.get("asked") else None

    @property
    def form(self) -> str:
        """In what form the prompts reached the model, one of FORMS.

        A server that is asked by its chat interface applies its own template, whatever the run's was.
        """
        if self.at("backend", "server", "api") == "chat" and "form" not in self:
            return "server"
        return str(self.get("form") or self.get("template") or "")

    @property
    def form_words(self) -> str:
        """The form in words."""
        return FORMS.get(self.form, f"{self.form} template" if self.form else "")

    @property
    def raw_words(self) -> str:
        """What to say of raw text that was sent to a model with a chat template; empty for every other run."""
        return RAW_TEXT if self.get(UNUSED_TEMPLATE) is True else ""

    @property
    def anchor_words(self) -> str:
        """The anchor token and who puts it in front of a prompt."""
        tokenizer = self.part("tokenizer")
        token, source = tokenizer.get("anchor_token"), tokenizer.get("anchor_from")
        if source == "none" or (token is None and "anchor_token" in tokenizer):
            return "none"
        if token is None:
            return ""
        who = {"tokenizer": ", put by the tokenizer", "anchoreval": ", put by anchoreval: the tokenizer puts none"}
        return f"{token}{who.get(str(source), '')}"

    @property
    def environment_words(self) -> str:
        """`2 environments (threads, versions differ)`; empty for a run of one."""
        listed = self.environments
        if len(listed) < 2:
            return ""
        keys = sorted({key for one in listed for key in one})
        differ = [key for key in keys if any(one.get(key) != listed[0].get(key) for one in listed)]
        return f"{len(listed)} environments" + (f" ({', '.join(differ)} differ)" if differ else "")

    def incomparable(self, records: Iterable[Record] = ()) -> Mapping[str, str]:
        """Task -> why its scores do not stand beside published ones.

        A header says it by the first sample of each cell; where any of `records` holds generated text, so does its
        task. A header without this field says it of the run as a whole, by the sources that were asked for.
        """
        if isinstance(found := self.get("incomparable"), Mapping):
            made = {record.task: f"haystack {GENERATED}" for record in records if uses_generated(record.facts)}
            return made | {str(task): str(why) for task, why in found.items()}
        if self.get("comparable") is not False:
            return {}
        other = [f"{name} {text}" for name, text in self.sources.items() if text != "published" and name != "wordlists"]
        return {task: ", ".join(other) or "see header.json" for task in self.tasks or ["all tasks"]}

    def incomparable_words(self, shown: Iterable[str] | None = None, records: Iterable[Record] = ()) -> str:
        """Why scores do not stand beside published ones, and which tasks where it is not all; empty where all do.

        `shown` are the tasks that are asked about, where that is not every task of the run; `records` as in
        `incomparable`.
        """
        found = self.incomparable(records)
        tasks = (self.tasks or list(found)) if shown is None else list(shown)
        by_reason: dict[str, list[str]] = {}
        for task in tasks:
            if task in found or "all tasks" in found:
                why = found.get(task) or found.get("all tasks") or "see header.json"
                by_reason.setdefault(why, []).append(task)
        parts = []
        for why, of in by_reason.items():
            named = [task.partition("/")[2] or task for task in of]
            listed = ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
            parts.append(why if len(of) == len(tasks) else f"{why} ({listed})")
        return "; ".join(parts)

    def other_prompts(self, first: Header) -> list[str]:
        """What made the model see other prompts than in the run of `first`, the samples being the same ones."""
        found = []
        if self.form != first.form:
            found.append(f"{first.form_words or 'an unknown form'} against {self.form_words or 'an unknown form'}")
        for name, keys in _BESIDE_THE_TEXT.items():
            one, other = first.at(*keys) or None, self.at(*keys) or None
            if one != other:
                found.append(f"{name} {_spelled(one)} against {_spelled(other)}")
        return found


_BESIDE_THE_TEXT = {
    "template arguments": ("identity", "template_args"),
    "anchor token": ("tokenizer", "anchor_token"),
}


def _spelled(value: Json) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={one}" for key, one in sorted(value.items()))
    return "none" if value is None else str(value)


def read_header(path: Path) -> Header:
    """A header file, each key that is there of its kind; RunError names the first that is not."""
    try:
        header = parse(content_of(path))
    except ValueError as error:
        raise RunError(f"{path}: cannot be read ({error}): no run here") from error
    if problem := problem_of(header):
        raise RunError(f"{path}: {problem}")
    return Header(header)
