"""Turn a sample into a request: the anchor token, the prompt's tokens with their segments, the reference answer.

The text is tokenised once and as a whole, so its tokens are those that any other harness sends. Nothing is truncated.

Attention patterns and per-document positions act on the documents of a prompt, whose tokens stay as they are. Without a
size, documents are those of the task: each passage, each worked example, a haystack of running text as a whole, and
each line of a haystack that is made of lines. With a size of N tokens, every run of neighbouring lines is joined, in
order, and cut into blocks of N tokens; the last block may be shorter. Any other document longer than N is cut into such
blocks too, and is never joined to another.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

from anchoreval.arms.arm import Arm
from anchoreval.errors import ModelError, OverlongPrompt, UnsupportedArm
from anchoreval.schema import Choice, Continuation, Json, Request, Role, Sample, Segment, Wrap
from anchoreval.tokenizer import TextTokenizer
from anchoreval.tokenizer.chat_template import Around, Scalar, around

ReferenceForm = Literal["comma", "space", "numbered", "first"]
Template = Literal["base", "chat"]
#: A prompt is bare text, text in the chat template as we render it, or a user turn that a server puts in its template.
Form = Literal["base", "chat", "server"]
#: auto: the anchor token stands first in every prompt; none: prompts are sent as upstream sends them, without it.
Anchor = Literal["auto", "none"]
AnchorFrom = Literal["tokenizer", "anchoreval", "none"]
NO_ARGS: Mapping[str, Scalar] = MappingProxyType({})
#: How documents are made, for a run's identity: records made under another rule belong to another run.
DOCUMENT_RULE = (
    "each passage, example, running haystack, line of a haystack; with a size, lines are joined and all are cut"
)
_ANCHOR = -1
_LINES = -2  # stands for every `line` segment, so that neighbouring lines form one run


def anchor_token(tokenizer: TextTokenizer) -> tuple[str, int]:
    """Return text and id of the token at index 0 of every prompt: BOS, or EOS if the tokenizer has no BOS (Qwen)."""
    anchor = tokenizer.bos or tokenizer.eos
    if anchor is None:
        raise ModelError(
            "the tokenizer has neither a BOS nor an EOS token, so there is no anchor token to put first: "
            "`run` takes --anchor none, or name one in tokenizer_config.json"
        )
    return anchor


def first_token(
    tokenizer: TextTokenizer, template: Template, args: Mapping[str, Scalar], anchor: Anchor
) -> dict[str, str | int | None]:
    """Return, for a run's header, text and id of the first token of every prompt, and who puts it there."""
    if anchor == "none":
        return {"anchor_token": None, "anchor_id": None, "anchor_from": "none"}
    text, number = anchor_token(tokenizer)
    opening = rendered(tokenizer, args).opening if template == "chat" else ""
    put = tokenizer.front[:1] == [number] or opening.lstrip().startswith(text)  # by the tokenizer or its chat template
    return {"anchor_token": text, "anchor_id": number, "anchor_from": "tokenizer" if put else "anchoreval"}


def require_no_anchor(arm: Arm) -> None:
    """Raise UnsupportedArm if the arm acts on the anchor token. Called under --anchor none."""
    anchored = arm.attention == "anchor"
    if anchored or arm.positions.needs_anchor:
        what = f"attention {arm.attention!r}" if anchored else f"positions {str(arm.positions)!r}"
        raise UnsupportedArm(f"arm {arm.name!r}: {what} needs the anchor token: leave out --anchor none, or this arm")


def rendered(tokenizer: TextTokenizer, args: Mapping[str, Scalar] = NO_ARGS) -> Around:
    """Return what the model's chat template writes around a user turn; raise ModelError if there is no template."""
    if not tokenizer.chat_template:
        raise ModelError("this tokenizer has no chat template: use --template base")
    return around(tokenizer.chat_template, tokenizer.special_tokens, args)


def wrap_of(
    tokenizer: TextTokenizer, template: Template, args: Mapping[str, Scalar] = NO_ARGS, anchor: Anchor = "auto"
) -> Wrap:
    """Return the text before and after the user's turn: empty for `base`, the model's chat template for `chat`.

    If the template's opening starts with the anchor token (BOS; EOS for OLMo), that token and white space before it are
    left out: `to_request` puts the anchor in front, exactly once. Under `none` the opening stays as it is.
    """
    if template == "base":
        if args:
            raise ModelError("--template-args are arguments of a chat template: add --template chat")
        return Wrap()
    around_turn = rendered(tokenizer, args)
    if anchor == "none":
        return Wrap(around_turn.opening, around_turn.closing, around_turn.trims)
    text, number = anchor_token(tokenizer)
    opening = around_turn.opening
    if opening.lstrip().startswith(text):
        opening = opening.lstrip().removeprefix(text)
        _require_same_tokens(tokenizer, text, number, opening)
    return Wrap(opening, around_turn.closing, around_turn.trims)


def _require_same_tokens(tokenizer: TextTokenizer, anchor: str, number: int, opening: str) -> None:
    """Raise ModelError if the tokens of `opening` change when the anchor stands in front of it."""
    if opening.startswith(anchor):
        raise ModelError(f"the chat template begins with {anchor!r} twice: use --template base")
    if tokenizer.encode(f"{anchor}{opening}x") != [number, *tokenizer.encode(f"{opening}x")]:
        raise ModelError(
            f"the text behind {anchor!r} has other tokens behind it than alone, so the chat template's tokens cannot "
            "be kept with the anchor token put first: --anchor none sends them as they are"
        )


def template_text(wrap: Wrap) -> str:
    """Return, for a run's identity, the SHA-256 of what a chat template writes around a turn."""
    return hashlib.sha256(json.dumps([wrap.opening, wrap.closing, wrap.trims]).encode()).hexdigest()


def trimmed(sample: Sample, wrap: Wrap, tokenizer: TextTokenizer) -> Sample:
    """Return the sample without white space at the edges of its user turn, if its chat template removes that.

    The fact `tokens`, if present, is corrected. Prompts without the template stay as they are.
    """
    text = sample.prompt
    start, stop = len(wrap.opening), _end_of_turn(sample, wrap)
    if not (wrap.trims and (wrap.opening or wrap.closing.strip())) or not text.startswith(wrap.opening) or stop < start:
        return sample
    turn = text[start:stop]
    first, last = start + len(turn) - len(turn.lstrip()), start + len(turn.rstrip())
    if (first, last) == (start, stop) or first >= last:
        return sample
    segments, at = [], 0
    for segment in sample.segments:
        kept = "".join(c for i, c in enumerate(segment.text, at) if i < start or first <= i < last or i >= stop)
        at += len(segment.text)
        segments += [Segment(segment.role, kept)] if kept else []
    short = replace(sample, segments=tuple(segments))
    if isinstance(tokens := sample.facts.get("tokens"), int):
        fewer = len(tokenizer.encode(text)) - len(tokenizer.encode(short.prompt))
        short = replace(short, facts={**sample.facts, "tokens": tokens - fewer})
    return short


def _end_of_turn(sample: Sample, wrap: Wrap) -> int:
    """Return the character index at which the user's turn ends in a prompt, -1 if it cannot be told.

    A closing of white space alone counts only at the end of the text before the answer prefix, or of the prompt.
    """
    if wrap.closing.strip():
        return sample.prompt.rfind(wrap.closing)
    last = sample.segments[-1]
    behind = last.text if last.role == "answer_prefix" and last.text != wrap.closing else ""
    turn = sample.prompt.removesuffix(behind)
    return len(turn) - len(wrap.closing) if turn.endswith(wrap.closing) else -1


def reference_text(references: Sequence[str], form: ReferenceForm) -> str:
    """Return the reference answer as a model would write it. Its log-probability is what is measured."""
    if form == "first":
        return references[0] if references else ""
    if form == "numbered":
        return " ".join(f"{number}. {text}" for number, text in enumerate(references, 1))
    return (", " if form == "comma" else " ").join(references)


def to_request(
    sample: Sample,
    tokenizer: TextTokenizer,
    form: ReferenceForm,
    window: int | None,
    stop: tuple[str, ...] = (),
    anchor: Anchor = "auto",
) -> Request:
    """Return the sample as token ids, with the anchor token first; a text that begins with it gets no second one.

    Under `none` no token is put in front, and no token is the anchor. Where a sample is a text to be scored, its first
    token is then the prompt.

    `window` is the number of positions that the model has. Raise OverlongPrompt unless anchor, prompt and all generated
    tokens but the last (which is never fed back) fit into it.
    """
    if sample.ids:
        return _of_text(sample, tokenizer, anchor)
    text = sample.prompt
    ids, sizes = tokenizer.encode_parts([segment.text for segment in sample.segments])
    segment_ids = list(itertools.chain.from_iterable(map(itertools.repeat, itertools.count(), sizes)))
    ids, choices = _split(text, sample.choices, tokenizer) if sample.choices else (ids, ())
    token_ids, segment_ids = ids, segment_ids[: len(ids)]
    if anchor == "auto":
        number = anchor_token(tokenizer)[1]
        skipped = 1 if ids[:1] == [number] else 0
        token_ids, segment_ids = [number, *ids[skipped:]], [-1, *segment_ids[skipped:]]
    answer, reference = "" if choices or sample.then else reference_text(sample.references, form), list[int]()
    if answer:
        # The answer is tokenised together with the prompt if that keeps the prompt's tokens. Only the prompt's last
        # line is tokenised again: no pre-tokenizer joins text across it and the answer differently.
        glue = "" if text[-1:].isspace() else " "
        tail = text[text.rfind("\n") + 1 :]
        alone, together = tokenizer.encode(tail), tokenizer.encode(tail + glue + answer)
        kept = together[: len(alone)] == alone
        reference = together[len(alone) :] if kept else tokenizer.encode(glue + answer)
    request = Request(
        sample_id=sample.id,
        token_ids=tuple(token_ids),
        segment_ids=tuple(segment_ids),
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


def _of_text(sample: Sample, tokenizer: TextTokenizer, anchor: Anchor) -> Request:
    """Return the request that scores the tokens of a text after the anchor, or after its own first token."""
    first, role, ids = (-1, (), sample.ids) if anchor == "auto" else (0, _DOCUMENT, sample.ids[1:])
    front = anchor_token(tokenizer)[1] if anchor == "auto" else sample.ids[0]
    return Request(sample.id, (front,), (first,), role, sample.max_new_tokens, reference_ids=ids)


_DOCUMENT: tuple[Role, ...] = ("document",)


def positions(request: Request) -> int:
    """Return how many positions a prompt takes with its answer, longest choice or text; the last token needs none."""
    behind = (len(request.reference_ids), *(len(choice.token_ids) for choice in request.choices))
    longest = max(request.max_new_tokens, *behind)
    return len(request.token_ids) - 1 + longest


def _split(
    prompt: str, choices: Sequence[Choice], tokenizer: TextTokenizer
) -> tuple[list[int], tuple[Continuation, ...]]:
    """Return the ids of the prompt and a continuation for each choice. The prompt is what all tokenised choices share.

    A choice is tokenised together with the text before it. Its own tokens are those beyond the tokens of that text
    alone; trailing blanks of that text count as the choice's (lm-evaluation-harness 0.4.13, `TemplateLM._encode_pair`).
    """
    starts = {before: len(tokenizer.encode((prompt + before).rstrip())) for before in {each.before for each in choices}}
    wholes = [tokenizer.encode(prompt + choice.before + choice.text) for choice in choices]
    pairs = [(whole, starts[choice.before]) for whole, choice in zip(wholes, choices, strict=True)]
    least = min(min(start, len(whole)) for whole, start in pairs)
    same = next((i for i in range(least) if len({whole[i] for whole, _ in pairs}) > 1), least)
    ids = pairs[0][0][:same]
    return ids, tuple(Continuation(tuple(whole[same:]), max(len(whole) - start, 0)) for whole, start in pairs)


def cut_documents(request: Request, tokens: int) -> Request:
    """Return the request with its documents cut into blocks of `tokens` tokens (see above), all of role `document`.

    Other segments keep their roles. Segments without tokens are dropped. Raise ValueError for less than one token.
    """
    if tokens < 1:
        raise ValueError(f"a document of {tokens} tokens")
    joined = {_ANCHOR: _ANCHOR}
    joined |= {segment: _LINES if role == "line" else segment for segment, role in enumerate(request.roles)}
    segment_ids: list[int] = []
    roles: list[Role] = []
    for segment, run in itertools.groupby(map(joined.__getitem__, request.segment_ids)):
        size = sum(1 for _ in run)
        if segment == _ANCHOR:
            segment_ids += [segment] * size
            continue
        role = "document" if segment == _LINES else request.roles[segment]
        step = tokens if role == "document" else size
        for start in range(0, size, step):
            segment_ids += [len(roles)] * min(step, size - start)
            roles.append(role)
    return replace(request, segment_ids=tuple(segment_ids), roles=tuple(roles))


def document_tokens(request: Request) -> dict[str, Json]:
    """Return the number of documents and the token counts of the smallest, the (lower) median and the largest.

    A prompt may have thousands of documents, so a record does not list them. Without documents only `count` is there.
    """
    runs = ((segment, sum(1 for _ in run)) for segment, run in itertools.groupby(request.segment_ids))
    sizes = sorted(size for segment, size in runs if segment >= 0 and request.roles[segment] in {"document", "line"})
    if not sizes:
        return {"count": 0}
    return {"count": len(sizes), "min": sizes[0], "median": sizes[(len(sizes) - 1) // 2], "max": sizes[-1]}
