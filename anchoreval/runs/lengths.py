"""`LengthRule`: which tokens a length counts; the lengths that a task is run at; the room that a model has.

A length counts everything that the model is fed plus the answer budget: the anchor token in front, the chat template
(also a server's own, counted with the given tokenizer) and the prompt. Only `LengthRule` defines this. Recipes, answer
budgets, windows, and prompts that are made again from a header all use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from anchoreval.cards import Task
from anchoreval.errors import LengthError
from anchoreval.prompt import NO_ARGS, Anchor, positions, wrap_of
from anchoreval.records.parts import TaskSaid
from anchoreval.schema import NATURAL, Json, Request, Sample
from anchoreval.suites import generator_of
from anchoreval.tokenizer import TextTokenizer

ANCHOR_TOKENS = 1


@dataclass(frozen=True, slots=True)
class LengthRule:
    """The tokens that a length counts besides the prompt's own text and the answer budget."""

    anchor: int = ANCHOR_TOKENS
    template: int = 0

    @property
    def outside(self) -> int:
        """The number of tokens that the model is fed besides a prompt's own text."""
        return self.anchor + self.template

    def uncounted(self, task: Task) -> int:
        """Return how many of the tokens `outside` the prompts of a task leave no room for."""
        return self.anchor if generator_of(task).published else 0

    def settled(self, sample: Sample, task: Task, tokenizer: TextTokenizer, room: int | None) -> Sample:
        """Return the sample with its facts on the length, and a smaller answer budget if only the anchor is too much.

        That happens to published prompts: RULER's may exceed their length, prompts that are cut may exceed the model's
        `room`. The fact `budget_less` is the number of tokens that the budget lost.
        """
        if self.template:
            sample = replace(sample, facts={**sample.facts, "template_tokens": self.template})
        if task.length_of == "sample":
            over = int(sample.facts.get("tokens", 0)) + self.outside - sample.length
        elif task.length_of == "natural" or room is None or not self.anchor:
            return sample
        else:
            over = len(tokenizer.encode(sample.prompt)) + self.outside + sample.max_new_tokens - room
        if not 0 < over <= self.anchor or over >= sample.max_new_tokens:
            return sample
        facts: dict[str, Json] = {**sample.facts, "budget_less": over}
        if "tokens" in facts:
            facts["tokens"] -= over
        return replace(sample, max_new_tokens=sample.max_new_tokens - over, facts=facts)

    def positions(self, request: Request) -> int:
        """Return the number of positions that a request takes, including a server's own template."""
        return positions(request) + self.template


#: The rule of runs whose header names none: a length counts only the prompt and the answer budget.
PUBLISHED_RULE = LengthRule(anchor=0)


def template_tokens(tokenizer: TextTokenizer, anchor: Anchor = "auto", args: Mapping[str, Json] = NO_ARGS) -> int:
    """Return the number of tokens that the tokenizer's chat template puts around a user's turn.

    If no anchor is counted, the BOS in front is included, because a server puts it there anyway. Without a chat
    template, that BOS is all that is known.
    """
    if not tokenizer.chat_template:
        return 0 if anchor == "auto" else len(tokenizer.front)
    wrap = wrap_of(tokenizer, "chat", args, anchor)
    return len(tokenizer.encode(wrap.opening)) + len(tokenizer.encode(wrap.closing))


def lengths_of(task: Task | TaskSaid, asked: Sequence[int] | None, window: int | None) -> tuple[int, ...]:
    """Return the lengths that a task is run at: those asked for, else its card's.

    For a task that cuts prompts, the default is the card's longest length that the model's `window` holds. A task that
    neither fills nor cuts prompts has NATURAL as its only length.
    """
    if task.length_of == "natural":
        return (NATURAL,)
    if asked or task.length_of == "sample":
        return tuple(asked or task.lengths)
    return (max((length for length in task.lengths if window is None or length <= window), default=min(task.lengths)),)


def room_of(task: Task, window: int | None) -> int | None:
    """Return the number of positions that a prompt and its answer may take; None for no limit.

    A window that equals one of the card's cut lengths is upstream's max_length: prompts are cut at it, and answers come
    on top of it.
    """
    return None if task.length_of == "prompt" and window in task.lengths else window


def require_lengths(pairs: Sequence[tuple[Task, int]], window: int | None) -> list[str]:
    """Return a notice for each length beyond the model's window; raise LengthError if all lengths are beyond it.

    Only tasks whose prompts are filled to a length count. Samples beyond the window are made and counted, and get the
    outcome `does_not_fit` instead of an answer.
    """
    filled = sorted({length for task, length in pairs if task.length_of == "sample"})
    over = [length for length in filled if window is not None and length > window]
    limit = f"over the model's limit of {window} positions"
    if over and len(over) == len(filled):
        raise LengthError(f"length {over[0]} is {limit}: --lengths up to {window}")
    return [f"length {length} is {limit}: its samples get no answer (does_not_fit)" for length in over]
