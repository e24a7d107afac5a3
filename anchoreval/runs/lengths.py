"""What a length is, at which lengths a task is run, and what the model has room for.

A length is everything that the model is fed, and the answer budget: the anchor token in front, the chat template (a
server's own too, counted with the tokenizer given), the prompt. `LengthRule` is the one place that says so; recipes,
answer budgets, windows and what is made again from a header take it from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from anchoreval.cards import LengthOf, Task
from anchoreval.errors import LengthError
from anchoreval.prompt import NO_ARGS, Anchor, Form, PromptTokenizer, positions, wrap_of
from anchoreval.records.parts import RuleName
from anchoreval.schema import NATURAL, Json, Request, Sample

ANCHOR_TOKENS = 1
#: Generators whose prompts keep their published bytes, and so their published count, which has no anchor.
PUBLISHED = frozenset({"ruler_niah", "ruler_vt", "ruler_cwe", "ruler_fwe", "ruler_qa", "babilong_published"})


@dataclass(frozen=True, slots=True)
class LengthRule:
    """What is counted of a length beside the prompt's own text and the answer budget, in tokens."""

    anchor: int = ANCHOR_TOKENS
    template: int = 0

    @property
    def outside(self) -> int:
        """What the model is fed beside a prompt's own text."""
        return self.anchor + self.template

    def uncounted(self, task: Task) -> int:
        """What of it the prompts of a task leave no room for."""
        return self.anchor if task.generator in PUBLISHED else 0

    def settled(self, sample: Sample, task: Task, tokenizer: PromptTokenizer, room: int | None) -> Sample:
        """The sample with its facts on the length; asked for less where it is over by the anchor alone.

        Published prompts may be: RULER's over their length, those that are cut over the `room` of the model.
        """
        if self.template:
            sample = replace(sample, facts={**sample.facts, "template_tokens": self.template})
        over = self._over(sample, task, tokenizer, room)
        if not 0 < over <= self.anchor or over >= sample.max_new_tokens:
            return sample
        facts: dict[str, Json] = {**sample.facts, "budget_less": over}
        if "tokens" in facts:
            facts["tokens"] -= over
        return replace(sample, max_new_tokens=sample.max_new_tokens - over, facts=facts)

    def _over(self, sample: Sample, task: Task, tokenizer: PromptTokenizer, room: int | None) -> int:
        if task.length_of == "sample":
            return int(sample.facts.get("tokens", 0)) + self.outside - sample.length
        if task.length_of == "natural" or room is None or not self.anchor:
            return 0
        return len(tokenizer.encode(sample.prompt)) + self.outside + sample.max_new_tokens - room

    def positions(self, request: Request) -> int:
        """The positions that a request takes, a server's own template among them."""
        return positions(request) + self.template


#: The rule of runs whose header names none: nothing is counted but the prompt and the answer budget.
PUBLISHED_RULE = LengthRule(anchor=0)


def rule_of(
    name: RuleName, form: Form, tokenizer: PromptTokenizer, anchor: Anchor = "auto", args: Mapping[str, Json] = NO_ARGS
) -> LengthRule:
    """The rule of that name for prompts of a form, with the anchor token in front or with none."""
    if name == "published":
        return PUBLISHED_RULE
    template = template_tokens(tokenizer, anchor, args) if form == "server" else 0
    return LengthRule(ANCHOR_TOKENS if anchor == "auto" else 0, template)


def template_tokens(tokenizer: PromptTokenizer, anchor: Anchor = "auto", args: Mapping[str, Json] = NO_ARGS) -> int:
    """Return the tokens that the tokenizer's chat template puts around a user's turn.

    The BOS in front is among them where no anchor is counted, since a server puts it there all the same. Without a
    template nothing is known but that.
    """
    if not tokenizer.chat_template:
        return 0 if anchor == "auto" else len(tokenizer.front)
    wrap = wrap_of(tokenizer, "chat", args, anchor)
    return len(tokenizer.encode(wrap.opening)) + len(tokenizer.encode(wrap.closing))


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
    """
    return None if task.length_of == "prompt" and window in task.lengths else window


def require_lengths(pairs: Sequence[tuple[Task, int]], window: int | None) -> list[str]:
    """What is to be said of lengths to be filled that the model does not have; LengthError where it has none of them.

    Their samples are made and counted, and get no answer: each says so.
    """
    filled = sorted({length for task, length in pairs if task.length_of == "sample"})
    over = [length for length in filled if window is not None and length > window]
    limit = f"over the model's limit of {window} positions"
    if over and len(over) == len(filled):
        raise LengthError(f"length {over[0]} is {limit}: --lengths up to {window}")
    return [f"length {length} is {limit}: its samples get no answer (does_not_fit)" for length in over]
