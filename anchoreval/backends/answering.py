"""An answer in progress: its tokens so far, their text, and why it ended. Pure, the same on every engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from anchoreval.backends.detokenize import TextStream
from anchoreval.schema import ChoiceScore, Finish, Outcome, Output, Request

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

    def said(self, seconds: float, reference: float | None, choices: tuple[ChoiceScore, ...]) -> Output:
        """Return the output, with the log-probability of the reference and the scores of the choices."""
        text, finish = self.stream.finish(), self.finish or "length"
        if finish != "error" and is_unclosed(text, self.stream.prompt_end):
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
        )
