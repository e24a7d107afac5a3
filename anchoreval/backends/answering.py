"""An answer in progress: its tokens so far, their text, and why it ended. Pure, the same on every engine.

Token ids become text one token at a time, with stop strings; exact for characters that span tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from anchoreval.arms.layout import Arrangement
from anchoreval.errors import ModelError
from anchoreval.schema import NO_LOGPROB, ChoiceScore, Finish, Outcome, Output, Request

NOT_FINITE = "the logits are not finite"
REFERENCE_NOT_FINITE = "it is not finite"  # why a reference has no log-probability although the request has an answer
UNCLOSED = "reasoning that never ended is all of the answer"
_REASONING = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
}
_CONTEXT_TOKENS = 6  # enough for the longest UTF-8 character in byte tokens, and for a leading-space rule
_INCOMPLETE = "\ufffd"  # what a decoder prints for bytes that do not make a character yet


class Decodes(Protocol):
    """Turns token ids into text, without special tokens."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of `ids`."""
        ...


class TextStream:
    """The text that follows a prompt. It grows by `push` and is cut at the first stop string.

    The last tokens of the prompt are decoded along, so that a decoder that drops the space before the first word of a
    text does not drop it here. Text is released once the decoder prints no incomplete character; the two offsets are
    the scheme of vLLM's `detokenizer_utils.detokenize_incrementally`. `prompt_end` is the text of those last tokens of
    the prompt.
    """

    def __init__(self, decoder: Decodes, prompt_ids: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._ids = list(prompt_ids[-_CONTEXT_TOKENS:])
        self._settled = 0  # tokens before this one are no longer needed to decode
        self._read = len(self._ids)  # tokens before this one are in `text`
        self._stop = tuple(text for text in stop if text)
        self._longest = max(map(len, self._stop), default=0)
        self.prompt_end = decoder.decode(list(self._ids))
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> bool:
        """Add a token. Return True as soon as a stop string is complete; `text` is final then."""
        self._ids.append(token)
        self._release(final=False)
        return self.stopped

    def finish(self) -> str:
        """Return the whole text; an incomplete last character is printed as the decoder prints it."""
        if not self.stopped:
            self._release(final=True)
        return self.text

    def _release(self, final: bool) -> None:
        before = self._decoder.decode(self._ids[self._settled : self._read])
        now = self._decoder.decode(self._ids[self._settled :])
        if len(now) <= len(before) or (now.endswith(_INCOMPLETE) and not final):
            return
        start = max(0, len(self.text) - self._longest + 1)
        self.text += now[len(before) :]
        self._settled, self._read = self._read, len(self._ids)
        if stops := [at for at in (self.text.find(stop, start) for stop in self._stop) if at >= 0]:
            self.text, self.stopped = self.text[: min(stops)], True


def is_unclosed(text: str, prompt_end: str = "") -> bool:
    """Return whether an answer is all reasoning: its block never ends. The answer or the end of the prompt opens it.

    Blocks that end stand in the text as the model wrote them; the text after them is the answer.
    """
    rest = text.lstrip()
    for opening, closing in _REASONING.items():
        if prompt_end.rstrip().endswith(opening):
            _, closed, rest = text.partition(closing)
            if not closed:
                return True
    while opening := next((each for each in _REASONING if rest.lstrip().startswith(each)), ""):
        _, closed, rest = rest.partition(_REASONING[opening])
        if not closed:
            return True
    return False


def require_answerable(request: Request, arrangement: Arrangement, vocabulary: int | None = None) -> None:
    """Raise ModelError or UnsupportedArm for a request that an engine would misread or break on."""
    if not request.token_ids:
        raise ModelError(f"{request.sample_id}: an empty prompt cannot be continued")
    arrangement.check(request)
    chosen = (max(choice.token_ids, default=0) for choice in request.choices)
    highest = max(*request.token_ids, *request.reference_ids, *chosen)
    if vocabulary is not None and highest >= vocabulary:
        text = f"token {highest} is not among the model's {vocabulary}: another tokenizer?"
        raise ModelError(f"{request.sample_id}: {text}")


@dataclass(slots=True)
class Growing:
    """What was generated for a request so far. `finish` is None as long as it goes on."""

    request: Request
    stream: TextStream
    tokens: list[int] = field(default_factory=list, kw_only=True)
    finish: Finish | None = field(default=None, kw_only=True)
    why: str | None = field(default=None, kw_only=True)
    lost: Outcome | None = field(default=None, kw_only=True)

    def add(self, token: int, finite: bool, eos: frozenset[int]) -> None:
        """Add one token; set `finish` if it is the last. EOS is a token of the answer but not part of its text."""
        if not finite:
            self.fail(NOT_FINITE, "not_finite")
            return
        self.tokens.append(token)
        if token in eos or self.stream.push(token) or token in self.request.end_ids:
            self.finish = "stop"
        elif len(self.tokens) >= self.request.max_new_tokens:
            self.finish = "length"

    def fail(self, why: str, lost: Outcome = "failed") -> None:
        """End the request without an answer."""
        self.finish, self.why, self.lost = "error", why, lost

    def said(
        self,
        seconds: float,
        reference: float | None,
        choices: tuple[ChoiceScore, ...],
        each: tuple[float, ...] | None = None,
    ) -> Output:
        """Return the output, with the log-probability of the reference, that of each of its tokens, and the choices'.

        A request that ended in an error has no scores. A reference whose log-probability is not finite has none, and
        the answer stays valid.
        """
        text, finish = self.stream.finish(), self.finish or "length"
        unscored = finish != "error" and reference is not None and not math.isfinite(reference)
        if finish == "error" or unscored:
            reference, each = None, None
        if finish == "error":
            choices = ()
        elif is_unclosed(text, self.stream.prompt_end):
            self.fail(f"{UNCLOSED}, {len(self.tokens)} tokens", "unclosed")
            finish = "error"
        return Output(
            sample_id=self.request.sample_id,
            text=text,
            token_ids=tuple(self.tokens),
            finish="stop" if self.stream.stopped and finish == "length" else finish,
            reference_logprob=reference,
            seconds=seconds,
            why=self.why,
            choices=choices,
            lost=self.lost,
            facts={NO_LOGPROB: REFERENCE_NOT_FINITE} if unscored else {},
            token_logprobs=each,
        )
