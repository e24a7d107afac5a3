"""Read a server's answer, whatever its shape: text, reasoning, how it ended, what was counted.

Servers differ in the names of these and in what they leave out. Nothing that they send raises anything but `Unread`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from anchoreval.schema import Json

#: How an answer ended; `unknown` where the server does not say.
Ended = Literal["stop", "length", "refused", "tool", "unknown", "broken"]
_ENDED: dict[str, Ended] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence", "stop_sequences"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "max_length", "max_output_tokens"), "length"),
    **dict.fromkeys(("content_filter", "safety", "refusal", "recitation", "prohibited_content"), "refused"),
    **dict.fromkeys(("tool_calls", "tool_call", "tool_use", "function_call"), "tool"),
}
_REASONING = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
_CACHED = ("cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens")
_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character: JSON can say one, text cannot hold it
_HIGHEST_TOKEN = 2**31
_HIGHEST_COUNT = 2**40


class Unread(Exception):
    """Says why an answer is not of OpenAI's form."""


@dataclass(frozen=True, slots=True)
class Message:
    """One choice of an answer. `text` is None if the choice has no text, which differs from an empty text."""

    text: str | None
    reasons: bool
    refusal: str
    ended: Ended
    reason: Json  # as the server names how it ended
    token_ids: list[int] | None
    prompt_token_ids: list[int] | None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a server counted, None if it does not say; `cached` and `reasoning` are parts of the other two."""

    prompt: int | None
    cached: int
    completion: int | None
    reasoning: int


def message_of(said: Json, chat: bool) -> Message:
    """Return the first choice of an answer; raise Unread if it has none."""
    choices = _dict(said).get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise Unread("it holds no choice")
    message = choice.get("message") if chat else choice
    if not isinstance(message, dict):
        raise Unread("its choice holds no message")
    content = message.get("content" if chat else "text")
    if content is not None and not isinstance(content, str | list):
        raise Unread(f"its text is of type {type(content).__name__}")
    reason, refusal = choice.get("finish_reason"), message.get("refusal")
    return Message(
        text=_text(content),
        reasons=any(_says(message.get(name)) for name in _REASONING) or any(_thoughts(content)),
        refusal=refusal if isinstance(refusal, str) else "",
        ended="tool" if message.get("tool_calls") and content in (None, "") else _ended(reason),
        reason=reason,
        token_ids=_token_ids(choice.get("token_ids")),
        prompt_token_ids=_token_ids(choice.get("prompt_token_ids")) or _token_ids(said.get("prompt_token_ids")),
    )


def usage_of(said: Json) -> Usage:
    """Return the counts that came with an answer; a value that is no count is ignored."""
    usage = _dict(_dict(said).get("usage"))
    of_prompt, of_answer = _dict(usage.get("prompt_tokens_details")), _dict(usage.get("completion_tokens_details"))
    return Usage(
        prompt=count_of(usage.get("prompt_tokens")),
        cached=max((count_of(part.get(name)) or 0 for part in (usage, of_prompt) for name in _CACHED), default=0),
        completion=count_of(usage.get("completion_tokens")),
        reasoning=max(count_of(part.get("reasoning_tokens")) or 0 for part in (usage, of_answer)),
    )


def count_of(value: Json) -> int | None:
    """Return a number of tokens from 1 upwards; None for anything else."""
    return value if type(value) is int and 0 < value < _HIGHEST_COUNT else None


def rows_of(said: Json) -> list[Mapping[str, Any]] | None:
    """Return the rows of a list of models, whatever server made it; None if it is no such list."""
    rows = said
    if isinstance(said, dict):
        rows = next((said[name] for name in ("data", "models", "model_list") if said.get(name) is not None), None)
    if isinstance(rows, dict):  # by name
        rows = [{"id": name} | dict(_dict(row)) for name, row in rows.items()]
    if not isinstance(rows, list):
        return None
    rows = [{"id": row} if isinstance(row, str) else row for row in rows]
    return [row for row in rows if isinstance(row, dict) and names_of(row)]


def names_of(row: Mapping[str, Any]) -> list[str]:
    """Return the names that a row of a list of models gives its model."""
    names = (row.get(key) for key in ("id", "model", "name"))
    return list(dict.fromkeys(name for name in names if isinstance(name, str) and name))


def one_line(said: object, most: int = 240) -> str:
    """Return what a server said as one short line of printable characters."""
    try:
        words = " ".join(str(said).split())
    except RecursionError:
        words = "nested too deeply"
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in words[:most])


def whole_characters(text: str) -> str:
    """Return the text with halves of characters replaced, as a decoder prints them."""
    return _SURROGATE.sub("\ufffd", text)


def _ended(reason: Json) -> Ended:
    if reason is None:
        return "unknown"
    return _ENDED.get(reason.lower(), "broken") if isinstance(reason, str) else "broken"


def _text(content: Json) -> str | None:
    """Return the text of a message, joined if it comes in parts."""
    if content is None or isinstance(content, str):
        return None if content is None else whole_characters(content)
    parts = [part if isinstance(part, str) else _dict(part).get("text") for part in content if not _is_thought(part)]
    texts = [part for part in parts if isinstance(part, str)]
    return whole_characters("".join(texts)) if texts else None


def _thoughts(content: Json) -> Iterator[bool]:
    return (_is_thought(part) for part in content) if isinstance(content, list) else iter(())


def _is_thought(part: Json) -> bool:
    return _dict(part).get("type") in ("thinking", "reasoning", "redacted_thinking")


def _says(value: Json) -> bool:
    """Return whether a field holds anything but white space."""
    return bool(value.strip()) if isinstance(value, str) else bool(value) and isinstance(value, list | dict)


def _token_ids(value: Json) -> list[int] | None:
    """Return ids of tokens; None for anything else."""
    known = isinstance(value, list) and all(type(token) is int and 0 <= token < _HIGHEST_TOKEN for token in value)
    return list(value) if known else None


def _dict(value: Json) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
