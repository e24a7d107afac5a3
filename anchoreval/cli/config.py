"""The file of `--config`: options of a command by their names in Python, read with every check that flags have."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from anchoreval.cards.strict_yaml import read_yaml
from anchoreval.errors import AnchorEvalError, CardError, UnknownName
from anchoreval.records.command import words_of


def words_in(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """Return the words of the command line that a file stands for; raise AnchorEvalError with the key that is wrong."""
    content = read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise CardError(f"{path}: options of a command, each as NAME: VALUE, are expected")
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    actions = {name: action for name, action in actions.items() if name not in ("help", "config")}
    words: list[str] = []
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in actions:
            raise UnknownName(f"option in {path}:", str(key), actions)
        words += (given := words_of({name: value}))
        if why := _wrong(actions[name], value, given):
            raise CardError(f"{path}: {key}: {why}")
    return words


def _wrong(action: Any, value: Any, words: list[str]) -> str:
    """Return what is wrong with the value of an option; an empty text if nothing is."""
    if isinstance(value, bool) is not (action.nargs == 0):
        return f"{value!r}: expected {'true or false' if action.nargs == 0 else 'a value, no true or false'}"
    if value is None:
        return "has no value"
    for text in words[1::2] or [word.partition("=")[2] for word in words if "=" in word]:
        try:
            read = getattr(action, "kind", action.type or str)(text)
        except (argparse.ArgumentTypeError, AnchorEvalError, ValueError) as error:
            return str(error)
        if action.choices is not None and read not in action.choices:
            return f"{read!r}: one of {', '.join(map(str, action.choices))}"
    return ""
