"""At which lengths a task is run, and what the model has room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from anchoreval.cards import LengthOf, Task
from anchoreval.errors import LengthError
from anchoreval.prompt import positions
from anchoreval.schema import NATURAL, Output, Request, Sample
from anchoreval.steps import Answered

Asked = Mapping[str, tuple[Sample, Request]]  # by sample id


class Measured(Protocol):
    """What says at which lengths a task can be run: a `Task`, or its row in a header."""

    @property
    def lengths(self) -> Sequence[int]:
        """The card's."""
        ...

    @property
    def length_of(self) -> LengthOf:
        """What a length is."""
        ...


def lengths_of(task: Measured, asked: Sequence[int] | None, window: int | None) -> tuple[int, ...]:
    """The lengths that a task is run at: those asked for, else its card's.

    Where a length says at which a prompt is cut, the card's longest that the model's `window` holds; NATURAL alone
    where prompts are as long as they are.
    """
    if task.length_of == "natural":
        return (NATURAL,)
    if asked or task.length_of == "sample":
        return tuple(asked or task.lengths)
    return (max((length for length in task.lengths if window is None or length <= window), default=min(task.lengths)),)


def room_of(task: Task, window: int | None) -> int | None:
    """The positions that a prompt and its answer may take; None: any number.

    A window that is itself one of the card's cuts is upstream's max_length: prompts are cut at it, answers come on top.
    Prompts of natural length are told apart one by one (`fitting`).
    """
    if task.length_of == "natural":
        return None
    return None if task.length_of == "prompt" and window in task.lengths else window


def check_room(task: Task, length: int, window: int | None, new_tokens: int) -> None:
    """LengthError for a length that the model does not have, with `new_tokens` of the answer."""
    if window is None:
        return
    if length > window:
        raise LengthError(f"length {length} is over the model's limit of {window} positions: --lengths up to {window}")
    room, needed = room_of(task, window), length + new_tokens
    if task.length_of == "prompt" and room is not None and needed > room:
        raise LengthError(
            f"{task.address} cuts prompts at {length} tokens and adds {new_tokens} of the answer, the "
            f"model has {room} positions: --lengths up to {room - new_tokens}"
        )


def fitting(task: Task, asked: Asked, window: int | None) -> tuple[Asked, list[Answered]]:
    """The samples that the model has room for, and those of natural length that it has none for, with the reason.

    Of the other kinds all are taken to fit: a prompt of theirs that does not is an error before it is sent.
    """
    if task.length_of != "natural" or window is None:
        return asked, []
    long = {name: needed for name, (_, request) in asked.items() if (needed := positions(request)) > window}
    refused = []
    for name, needed in long.items():
        why = f"needs {needed} positions, the model has {window}, and nothing is cut"
        refused.append(Answered(*asked[name], Output(name, "", (), "error", None, 0.0, why)))
    return {name: pair for name, pair in asked.items() if name not in long}, refused
