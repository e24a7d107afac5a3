"""Sample + tokenizer -> Request: the anchor token, the prompt's tokens with their segments, the reference answer.

The text is tokenised once and whole, so its tokens are those that any other harness sends. Nothing is truncated.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from anchoreval.errors import ModelError, OverlongPrompt
from anchoreval.schema import Choice, Continuation, Request, Sample, Wrap

ReferenceForm = Literal["comma", "space", "numbered", "first"]
Template = Literal["base", "chat"]
_SENTINEL = "anchoreval-user-turn"


class PromptTokenizer(Protocol):
    """What this module needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special tokens added."""
        ...

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Character span of every token of `text`, no special tokens added."""
        ...

    @property
    def bos(self) -> tuple[str, int] | None:
        """Text and id of the BOS token."""
        ...

    @property
    def eos(self) -> tuple[str, int] | None:
        """Text and id of the EOS token."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The Jinja text of the chat template."""
        ...


def anchor_token(tokenizer: PromptTokenizer) -> tuple[str, int]:
    """Text and id of the token at index 0 of every prompt: BOS, or EOS for tokenizers without one (Qwen)."""
    anchor = tokenizer.bos or tokenizer.eos
    if anchor is None:
        raise ModelError("the tokenizer has neither a BOS nor an EOS token, so there is no anchor token to put first")
    return anchor


def wrap_of(tokenizer: PromptTokenizer, template: Template) -> Wrap:
    """The text before and after the user's turn: empty for `base`, the model's own chat template for `chat`.

    A BOS token that the chat template writes is left out: `to_request` puts the anchor in front, exactly once.
    """
    if template == "base":
        return Wrap()
    if not tokenizer.chat_template:
        raise ModelError("this tokenizer has no chat template: use --template base")
    rendered = _render(tokenizer.chat_template, tokenizer)
    opening, found, closing = rendered.partition(_SENTINEL)
    if not found:
        raise ModelError("the chat template drops the user's turn: use --template base")
    if tokenizer.bos:
        opening = opening.removeprefix(tokenizer.bos[0])
    return Wrap(opening, closing)


def _render(template: str, tokenizer: PromptTokenizer) -> str:
    """One user turn and the start of the answer, rendered the way transformers renders chat templates."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise ModelError(f"the chat template refuses a plain user turn: {message}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals.update(raise_exception=refuse, strftime_now=lambda _: "01 Jan 2025")
    values: dict[str, Any] = {
        "messages": [{"role": "user", "content": _SENTINEL}],
        "add_generation_prompt": True,
        "bos_token": tokenizer.bos[0] if tokenizer.bos else "",
        "eos_token": tokenizer.eos[0] if tokenizer.eos else "",
    }
    try:
        return environment.from_string(template).render(**values)
    except TemplateError as error:
        raise ModelError(f"the chat template cannot be rendered ({error}): use --template base") from error


def reference_text(references: Sequence[str], form: ReferenceForm) -> str:
    """The reference answer as a model would write it, the text whose log-probability is taken."""
    if form == "first":
        return references[0] if references else ""
    if form == "numbered":
        return " ".join(f"{number}. {text}" for number, text in enumerate(references, 1))
    return (", " if form == "comma" else " ").join(references)


def to_request(
    sample: Sample, tokenizer: PromptTokenizer, form: ReferenceForm, window: int | None, stop: tuple[str, ...] = ()
) -> Request:
    """The sample as token ids, the anchor token first.

    `window` is the number of positions the model has: anchor, prompt and all generated tokens but the last (which
    is never fed back) must fit, else OverlongPrompt.
    """
    text = sample.prompt
    anchor_text, anchor_id = anchor_token(tokenizer)
    ids, choices = _split(text, sample.choices, tokenizer)
    if ids and ids[0] == anchor_id:
        raise ModelError(
            f"{sample.id}: the prompt starts with the anchor token {anchor_text!r}, which is added in front"
        )
    seams = list(itertools.accumulate(len(segment.text) for segment in sample.segments[:-1]))
    segment_ids = [bisect.bisect_right(seams, start) for start, _ in tokenizer.spans(text)][: len(ids)]
    said = "" if choices or sample.then else reference_text(sample.references, form)
    reference = _continuation(text, said, ids, tokenizer)
    request = Request(
        sample_id=sample.id,
        token_ids=(anchor_id, *ids),
        segment_ids=(-1, *segment_ids),
        roles=tuple(segment.role for segment in sample.segments),
        max_new_tokens=sample.max_new_tokens,
        stop=stop or sample.stop,
        reference_ids=tuple(reference[: sample.max_new_tokens]),
        end_ids=tuple(tokenizer.encode(sample.end)[-1:]),
        min_new_tokens=1 if sample.end else 0,
        choices=choices,
        gold=sample.facts.get("gold") if choices else None,
    )
    if window is not None and (needed := positions(request)) > window:
        raise OverlongPrompt(f"{sample.id}: needs {needed} positions, the model has {window}")
    return request


def positions(request: Request) -> int:
    """The positions that a prompt takes with its answer or its longest choice, the last new token left out."""
    longest = max(request.max_new_tokens, *(len(choice.token_ids) for choice in request.choices), 0)
    return len(request.token_ids) - 1 + longest


def _split(
    prompt: str, choices: Sequence[Choice], tokenizer: PromptTokenizer
) -> tuple[list[int], tuple[Continuation, ...]]:
    """The ids of the prompt, and of every choice behind them; the prompt is what all choices begin with.

    A choice is tokenised together with all that precedes it and its tokens are those beyond what precedes it alone,
    blanks at whose end belong to the choice (lm-evaluation-harness 0.4.13, `TemplateLM._encode_pair`).
    """
    if not choices:
        return tokenizer.encode(prompt), ()
    starts = {before: len(tokenizer.encode((prompt + before).rstrip())) for before in {each.before for each in choices}}
    wholes = [tokenizer.encode(prompt + choice.before + choice.text) for choice in choices]
    pairs = [(whole, starts[choice.before]) for whole, choice in zip(wholes, choices, strict=True)]
    least = min(min(start, len(whole)) for whole, start in pairs)
    same = next((i for i in range(least) if len({whole[i] for whole, _ in pairs}) > 1), least)
    ids = pairs[0][0][:same]
    return ids, tuple(Continuation(tuple(whole[same:]), max(len(whole) - start, 0)) for whole, start in pairs)


def _continuation(prompt: str, answer: str, ids: list[int], tokenizer: PromptTokenizer) -> list[int]:
    """Token ids of the answer after the prompt; tokenised together where that leaves the prompt's tokens alone.

    Only the prompt's last line is tokenised again: no pre-tokenizer joins text across it and the answer differently.
    """
    if not answer:
        return []
    glue = "" if prompt[-1:].isspace() else " "
    tail = prompt[prompt.rfind("\n") + 1 :]
    alone, together = tokenizer.encode(tail), tokenizer.encode(tail + glue + answer)
    if together[: len(alone)] == alone:
        return together[len(alone) :]
    return tokenizer.encode(glue + answer)
