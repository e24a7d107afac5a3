"""What a run's header says to a reader of its scores: the form of its prompts, its anchor, where it was computed, and
which of its tasks stand beside published scores. Headers of every format are taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from anchoreval.schema import GENERATED, Json, Record, uses_generated

Form = Literal["base", "chat", "server"]
FORMS: Mapping[str, str] = {
    "base": "base text",
    "chat": "the model's chat template",
    "server": "the server's own chat template",
}


#: A header's key, true where the model has a chat template, prompts were raw text and `--template` was not given.
UNUSED_TEMPLATE = "unused_chat_template"
RAW_TEXT = "raw text is sent to a model that has a chat template: --template chat puts prompts into it"


def raw_words(header: Mapping[str, Json]) -> str:
    """What to say of raw text that was sent to a model with a chat template; empty for every other run."""
    return RAW_TEXT if header.get(UNUSED_TEMPLATE) is True else ""


def section(header: Mapping[str, Json], key: str) -> Mapping[str, Json]:
    """The object under `key` of a header; empty where there is none."""
    value = header.get(key)
    return value if isinstance(value, Mapping) else {}


def form_of(header: Mapping[str, Json]) -> str:
    """In what form the prompts reached the model: one of FORMS; empty where the header does not say it.

    A server that is asked by its chat interface applies its own template, whatever the run's was.
    """
    if section(section(header, "backend"), "server").get("api") == "chat" and "form" not in header:
        return "server"
    return str(header.get("form") or header.get("template") or "")


def form_words(header: Mapping[str, Json]) -> str:
    """The form in words; empty where the header does not say it."""
    form = form_of(header)
    return FORMS.get(form, f"{form} template" if form else "")


def other_prompts(ours: Mapping[str, Json], theirs: Mapping[str, Json]) -> list[str]:
    """What made the model see other prompts in the second run than in the first, the samples being the same ones."""
    found = []
    if form_of(ours) != form_of(theirs):
        found.append(f"{form_words(theirs) or 'an unknown form'} against {form_words(ours) or 'an unknown form'}")
    for name, keys in _BESIDE_THE_TEXT.items():
        one, other = (_at(header, *keys) for header in (theirs, ours))
        if one != other:
            found.append(f"{name} {_said(one)} against {_said(other)}")
    return found


_BESIDE_THE_TEXT = {
    "template arguments": ("identity", "template_args"),
    "anchor token": ("tokenizer", "anchor_token"),
}


def _at(header: Json, *keys: str) -> Json:
    for key in keys:
        header = header.get(key) if isinstance(header, Mapping) else None
    return header or None


def _said(value: Json) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={one}" for key, one in sorted(value.items()))
    return "none" if value is None else str(value)


def anchor_words(header: Mapping[str, Json]) -> str:
    """The anchor token and who puts it in front of a prompt; empty where the header does not say it."""
    tokenizer = section(header, "tokenizer")
    token, source = tokenizer.get("anchor_token"), tokenizer.get("anchor_from")
    if source == "none" or (token is None and "anchor_token" in tokenizer):
        return "none"
    if token is None:
        return ""
    who = {"tokenizer": ", put by the tokenizer", "anchoreval": ", put by anchoreval: the tokenizer puts none"}
    return f"{token}{who.get(str(source), '')}"


def environments(header: Mapping[str, Json]) -> list[Mapping[str, Json]]:
    """The machines and versions that computed the run, one after the other; empty where the header does not say it."""
    listed = header.get("environments")
    return [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []


def environment_words(header: Mapping[str, Json]) -> str:
    """`2 environments (threads, versions differ)`; empty for a run of one."""
    listed = environments(header)
    if len(listed) < 2:
        return ""
    keys = sorted({key for one in listed for key in one})
    differ = [key for key in keys if any(one.get(key) != listed[0].get(key) for one in listed)]
    return f"{len(listed)} environments" + (f" ({', '.join(differ)} differ)" if differ else "")


def incomparable(header: Mapping[str, Json], records: Iterable[Record] = ()) -> Mapping[str, str]:
    """Task -> why its scores do not stand beside published ones.

    A header says it by the first sample of each cell; where any of `records` holds generated text, so does its task. A
    header without this field says it of the run as a whole, by the sources that were asked for.
    """
    if isinstance(found := header.get("incomparable"), Mapping):
        made = {record.task: f"haystack {GENERATED}" for record in records if uses_generated(record.facts)}
        return made | {str(task): str(why) for task, why in found.items()}
    if header.get("comparable") is not False:
        return {}
    why = ", ".join(_own_sources(header)) or "see header.json"
    return {str(task): why for task in header.get("tasks") or ["all tasks"]}


def incomparable_words(
    header: Mapping[str, Json], shown: Iterable[str] | None = None, records: Iterable[Record] = ()
) -> str:
    """Why scores do not stand beside published ones, and which tasks where it is not all; empty where all do.

    `shown` are the tasks that are asked about, where that is not every task of the run; `records` as in `incomparable`.
    """
    found = incomparable(header, records)
    tasks = [str(task) for task in header.get("tasks") or found] if shown is None else list(shown)
    by_reason: dict[str, list[str]] = {}
    for task in tasks:
        if task in found or "all tasks" in found:
            by_reason.setdefault(found.get(task) or found["all tasks"], []).append(task)
    parts = []
    for why, of in by_reason.items():
        named = [task.partition("/")[2] or task for task in of]
        listed = ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
        parts.append(why if len(of) == len(tasks) else f"{why} ({listed})")
    return "; ".join(parts)


def _own_sources(header: Mapping[str, Json]) -> list[str]:
    """Sources that are not the published ones: `haystack generated`."""
    return [
        f"{name} {value}"
        for name, value in section(header, "sources").items()
        if value != "published" and name != "wordlists"
    ]
