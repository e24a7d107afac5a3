"""BABILong's prompts and labels, from prompts.yaml."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from anchoreval.schema import Json, Segment, Wrap

DataSet = Literal[
    "qa1", "qa2", "qa3", "qa4", "qa5", "qa6", "qa7", "qa8", "qa9", "qa10",
    "qa11", "qa12", "qa13", "qa14", "qa15", "qa16", "qa17", "qa18", "qa19", "qa20",
]  # fmt: skip


class Parts(NamedTuple):
    """The texts that stand before the context of a task."""

    instruction: str
    examples: str
    post_prompt: str

    @property
    def opening(self) -> str:
        """The prompt up to the context."""
        return f"{self.instruction}\n\n{self.examples}\n\n{self.post_prompt}\n\n<context>\n"


CLOSING = "\n</context>\n\nQuestion: "


@cache
def _read() -> dict[str, dict[str, Any]]:
    from anchoreval.cards.strict_yaml import read_yaml

    rows: dict[str, dict[str, Any]] = read_yaml(Path(__file__).with_suffix(".yaml"))
    return rows


def parts(data: str) -> Parts:
    """Return the texts before the context of a task."""
    row = _read()[data]
    return Parts(row["instruction"], row["examples"], row["post_prompt"])


def labels(data: str) -> tuple[str, ...]:
    """Return the possible answers to a task."""
    return tuple(_read()[data]["labels"])


def prompt_of(data: DataSet, context: str, question: str, wrap: Wrap) -> tuple[Segment, ...]:
    """Return upstream's prompt with all its parts (get_formatted_input); the context is one document."""
    segments = (
        Segment("preamble", wrap.opening + parts(data).opening),
        Segment("document", context.strip()),
        Segment("query", CLOSING + question.rstrip()),
        Segment("answer_prefix", wrap.closing),
    )
    return tuple(segment for segment in segments if segment.text)


def judged_by(data: DataSet, question: str) -> dict[str, Json]:
    """Return the facts that the metric needs."""
    return {"labels": list(labels(data)), "question": question}
