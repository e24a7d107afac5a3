"""What a user may choose about prompts by name: settings of suites and arguments of chat templates."""

from __future__ import annotations

import json
from dataclasses import dataclass

from anchoreval.errors import AnchorEvalError
from anchoreval.tokenizer.chat_template import Scalar


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of a suite: what it is for, and its values: one of `values`, else a whole number from 1 upwards."""

    about: str
    values: tuple[str, ...] | None = None

    @property
    def kind(self) -> type[str] | type[int]:
        """The type of the setting's value."""
        return str if self.values else int


SETTINGS = {
    "depths": Setting("niah: depths of the grid (default: 11)"),
    "depth_spacing": Setting("niah: how the depths are spread (default: linear)", ("linear", "sigmoid")),
    "repeats": Setting("niah: samples of each length and depth (default: 1)"),
    "needles": Setting("niah/multi: needles in a prompt (default: 3)"),
    "windows": Setting("nll: windows of each text (default: all)"),
    "prompting": Setting("longbench_v2: the prompt (default: zero_shot)", ("zero_shot", "cot", "no_context")),
}


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
