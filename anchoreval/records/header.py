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
from anchoreval.files.strict_json import Wrong, parse, unpaired
from anchoreval.records.header_shape import HEADER_SHAPE
from anchoreval.schema import GENERATED, Json, Record, uses_generated
from anchoreval.stats.scores import Place
from anchoreval.stats.subject import Subject, Trained

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
        self.trained = Trained.of(trained if isinstance(trained, Mapping) else {})
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


def problem_of(header: Json) -> str | None:
    """Return what is wrong with a header, with the key; None if every key that is present has the right shape."""
    if not isinstance(header, Mapping):
        return "not a header: expected an object"
    if (place := unpaired(header)) is not None:
        return str(Wrong(place, "whole characters", "half of one (an unpaired surrogate)"))
    wrong = HEADER_SHAPE(header)
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
