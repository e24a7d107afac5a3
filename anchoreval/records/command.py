"""The command line that asks for a run again, as its header tells it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping

from anchoreval.records.header import Header
from anchoreval.schema import Json

#: Default of a flag -> what a header of a run without it says.
_USUAL: Mapping[str, Json] = {
    "seed": 42, "template": "base", "anchor": "auto", "haystack": "published", "wordlists": "3.0.1", "backend": "hf",
    "kernel": "default", "dtype": "auto",
}  # fmt: skip


def words_of(options: Mapping[str, Json]) -> list[str]:
    """Return the words of a command line that give these options, keyed by their names in Python."""
    return [word for name, value in options.items() for word in _words(f"--{name.replace('_', '-')}", value)]


def _words(flag: str, value: Json) -> Iterator[str]:
    if value is True:
        yield flag
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from (flag, f"{name}={part if isinstance(part, str) else json.dumps(part)}")
    elif value is not None and value is not False:
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        yield from [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def command_of(header: Header) -> str:
    """Return the `anchoreval run` line that asks for this run.

    It gives the options that were given. For a run of before headers held these, they are read from what was asked for,
    and options that only change the speed are left out.
    """
    asked = dict(header.part("options") or _facts(header))
    if isinstance(header.get("limit"), int):
        asked["limit"] = header["limit"]  # a run may have been continued with more samples
    first = {name: asked.pop(name) for name in ("model", "tasks", "lengths", "arms", "limit") if name in asked}
    return shlex.join(["anchoreval", "run", *words_of(first | asked)])


def _facts(header: Header) -> dict[str, Json]:
    """Return the options that a header tells of without the key `options`, where they are not the usual ones."""
    server, arm = header.part("backend", "server"), next(iter(header.arm_rows), {}).get("asked") or {}
    sources = header.sources
    facts: dict[str, Json] = {
        "model": header.model.get("path"),
        "tasks": header.tasks,
        "lengths": header.at("identity", "lengths"),
        "arms": header.arms,
        "limit": header.get("limit"),
        "template": header.get("template"),
        "template_args": header.get("template_args"),
        "anchor": header.get("anchor"),
        "haystack": sources.get("haystack"),
        "wordlists": str(sources.get("wordlists")).rpartition(" ")[2],
        "no_context": sources.get("context") == "none",
        "seed": header.get("seed"),
        "document_tokens": header.get("document_tokens"),
        "until": header.at("identity", "until"),
        "backend": header.backend.get("engine"),
        "base_url": server.get("address"),
        "tokenizer": header.tokenizer.get("path"),
        "dtype": arm.get("dtype"),
        "kernel": arm.get("kernel"),
    }
    return {name: value for name, value in facts.items() if value and value != _USUAL.get(name)}
