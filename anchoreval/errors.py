"""Every error that a user can cause, as one tree.

The command line prints such an error as one line and exits with code 2, or with code 1 if work had begun.

AnchorEvalError
|-- CardError            a card: names file, entry and key
|-- UnknownName          a task, model, arm or board that does not exist: names the nearest
|-- UnsupportedArm       a backend cannot compute an arm: names the field
|-- LengthError          a length over the model's limit, or shorter than the task can be made
|   |-- OverlongPrompt   one prompt that does not fit its length
|   `-- TooLong          a length that a task has too few texts for
|-- SourceError          source texts that are absent or differ from their checksum
|-- RunError             a run folder that is locked, torn, foreign or cannot be written
|-- ModelError           a checkpoint that cannot be loaded, or has no RoPE
`-- MissingExtra         an optional package that is not installed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AnchorEvalError(Exception):
    """An error whose message is one line that names what is wrong and how to mend it.

    `while_running` says how far the work had come when the error ended it (`after 2 of 4 records`); it is empty before
    any work began. `goes_on` says what to do about the rest of the work.
    """

    while_running: str = ""
    goes_on: str = ""


class CardError(AnchorEvalError):
    """A card that does not parse; the message names file, entry and key."""


class UnsupportedArm(AnchorEvalError):
    """An arm that this backend or model cannot compute; the message names the field."""


class LengthError(AnchorEvalError):
    """A length that a task or a model cannot serve; `smallest` is the shortest possible one in tokens, if known."""

    def __init__(self, message: str, smallest: int | None = None) -> None:
        super().__init__(message)
        self.smallest = smallest


class OverlongPrompt(LengthError):
    """One tokenised prompt that does not fit its length."""


class TooLong(LengthError):
    """A length for which a task has too few different texts; `longest` is about the longest possible one, if known."""

    def __init__(self, message: str, longest: int | None = None) -> None:
        super().__init__(message)
        self.longest = longest


class SourceError(AnchorEvalError):
    """Source texts that are absent or wrong; the message names the address, the expected file and the flag."""


class RunError(AnchorEvalError):
    """A run folder that is locked, belongs to other settings, or cannot be written."""


class ModelError(AnchorEvalError):
    """A checkpoint or tokenizer that cannot be used as asked."""


class MissingExtra(AnchorEvalError):
    """An optional package that is not installed; the message holds the install command."""


class UnknownName(AnchorEvalError):
    """A name that does not exist; the message names the nearest ones that do."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names[:12]) or 'none'}"
        super().__init__(f"unknown {kind} {name!r}: {hint}")
