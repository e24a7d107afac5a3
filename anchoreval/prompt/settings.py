"""Read the arguments of chat templates."""

from __future__ import annotations

import json

from anchoreval.errors import AnchorEvalError
from anchoreval.tokenizer.chat_template import Scalar


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
