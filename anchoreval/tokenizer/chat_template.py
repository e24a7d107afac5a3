"""Find what a checkpoint's chat template writes around one user turn, rendered by transformers itself.

`transformers.utils.chat_template_utils` renders it in a process that is bounded in time and memory (child.py). The
template gets what `apply_chat_template` gives it: `tools` and `documents` None, the named special tokens, and the
arguments asked for. `strftime_now` gives one date (transformers_child.py), so that prompts are the same on every day.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anchoreval.errors import AnchorEvalError, ModelError
from anchoreval.tokenizer.child import Child, answer_of

Scalar = str | int | float | bool | None
SECONDS, MEGABYTES = 3, 256  # a rendering takes milliseconds
_SENTINEL = "anchoreval-user-turn"
#: A turn whose text no template may change; white space at its edges is tested separately.
_HARD = f"{_SENTINEL} 1 < 2 & \"quoted\" 'text' \\n \\\\ {{{{ x }}}} {{% y %}}\n\n  é 中文 🙂 <b>{_SENTINEL[::-1]}"
_EDGED = f" \n{_HARD}\n "
_NEWLINES = f"\n \n{_HARD}\n \n"
#: Names that anchoreval, or `apply_chat_template`, passes to every template.
_GIVEN = frozenset(
    {
        "messages", "conversations", "tools", "documents", "chat_template", "add_generation_prompt",
        "continue_final_message", "return_assistant_tokens_mask",
    }
)  # fmt: skip
_BASE = "use --template base"


@dataclass(frozen=True, slots=True)
class Around:
    """The text before and after the user's turn; `trims` says whether the turn loses white space at its edges."""

    opening: str
    closing: str
    trims: bool = False


def around(template: str, special: Mapping[str, str], args: Mapping[str, Scalar]) -> Around:
    """Return what a template writes around a user turn, once per process; raise a one-line ModelError if it fails.

    `special` are the named special tokens, `args` the arguments of --template-args.
    """
    for name in args:
        if name in _GIVEN or name in special:
            raise ModelError(f"--template-args {name}: anchoreval gives it to every template itself: leave it out")
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise ModelError(f"--template-args {name}: the chat template reads no {name}: leave it out")
    answer = _texts(template, json.dumps(dict(special) | dict(args)))
    if "error" in answer:
        raise ModelError(f"the chat template cannot be rendered ({_line(answer['error'])}): {_BASE}")
    if "refused" in answer:
        raise ModelError(f"the chat template refuses a plain user turn: {_line(answer['refused'])}: {_BASE}")
    plain, hard, *edged = answer["texts"]
    opening, turn, closing = plain.partition(_SENTINEL)
    if not turn:
        raise ModelError(f"the chat template drops the user's turn: {_BASE}")
    if _SENTINEL in closing:
        raise ModelError(f"the chat template writes the user's turn more than once: {_BASE}")
    if hard != opening + _HARD + closing:
        raise ModelError(f"the chat template changes the text of the user's turn: {_BASE}")
    if edged == [opening + turn + closing for turn in (_EDGED, _NEWLINES)]:
        return Around(opening, closing)
    if edged == [opening + _HARD + closing] * 2:
        return Around(opening, closing, trims=True)
    raise ModelError(f"the chat template changes the white space of the user's turn: {_BASE}")


class Renderer:
    """Renders conversation after conversation with one template, each bounded in time and memory.

    `special` are the named special tokens. One process serves all conversations: it costs 0.8 s once.
    """

    def __init__(self, template: str, special: Mapping[str, str]) -> None:
        self._template, self._special, self._child = template, dict(special), Child()

    def text(self, chat: Sequence[Mapping[str, Any]], kind: Mapping[str, bool]) -> str:
        """Return the text that the template makes of a conversation; `kind` are arguments of `apply_chat_template`.

        Raise TurnRefused if Jinja or the template raises, and a one-line ModelError for any other failure.
        """
        job: dict[str, Any] = {"do": "render", "template": self._template, "chats": [list(chat)]}
        job |= {"values": self._special, "kind": dict(kind), "today": True, "seconds": SECONDS, "megabytes": MEGABYTES}
        answer = self._child.answer(job)
        if "texts" in answer:
            return str(answer["texts"][0])
        reason = _line(str(answer.get("refused", answer.get("error"))))
        raise (TurnRefused if answer.get("jinja") else ModelError)(f"the chat template cannot be rendered ({reason})")


class TurnRefused(ModelError):
    """A conversation that the chat template itself refuses."""


@functools.lru_cache(maxsize=64)
def _texts(template: str, values: str) -> dict[str, Any]:
    """Return the rendered texts of four conversations, or the reason why there are none."""
    chats = [[{"role": "user", "content": turn}] for turn in (_SENTINEL, _HARD, _EDGED, _NEWLINES)]
    job = {"do": "render", "template": template, "chats": chats, "values": json.loads(values)}
    return answer_of(job | {"seconds": SECONDS, "megabytes": MEGABYTES})


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def read_template_arg(text: str) -> tuple[str, Scalar]:
    """Return name and value of KEY=VALUE. true, false, null and numbers are read as JSON, anything else is text.

    Raise AnchorEvalError if the text is not KEY=VALUE, or the value is a list or an object.
    """
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise AnchorEvalError(f"{text!r} is no KEY=VALUE such as enable_thinking=false")
    try:
        read = json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
    except ValueError:
        return name, value
    if isinstance(read, dict | list):
        raise AnchorEvalError(f"{text!r}: a value is text, a number, true, false or null")
    return name, read
