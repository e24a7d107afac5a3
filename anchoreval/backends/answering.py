"""An answer on its way: the tokens so far, the text they make, and why it ended. Pure, the same on every engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from anchoreval.backends.detokenize import TextStream
from anchoreval.schema import ChoiceScore, Finish, Outcome, Output, Request

NOT_FINITE = "the logits are not finite"


@dataclass(slots=True)
class Growing:
    """What was generated for a request so far; `finish` is None while it is still going."""

    request: Request
    stream: TextStream
    tokens: list[int] = field(default_factory=list, kw_only=True)
    finish: Finish | None = field(default=None, kw_only=True)
    why: str | None = field(default=None, kw_only=True)
    lost: Outcome | None = field(default=None, kw_only=True)

    def add(self, token: int, finite: bool, eos: frozenset[int]) -> None:
        """One more token; `finish` is set where it is the last. EOS is a token of the answer and no text."""
        if not finite:
            self.fail(NOT_FINITE, "not_finite")
            return
        self.tokens.append(token)
        if token in eos or self.stream.push(token) or token in self.request.end_ids:
            self.finish = "stop"
        elif len(self.tokens) >= self.request.max_new_tokens:
            self.finish = "length"

    def fail(self, why: str, lost: Outcome = "failed") -> None:
        """Ends the answer without one."""
        self.finish, self.why, self.lost = "error", why, lost

    def said(self, seconds: float, reference: float | None, choices: tuple[ChoiceScore, ...]) -> Output:
        """The output, with the log-probability of the reference and the scores of the choices."""
        text, finish = self.stream.finish(), self.finish or "length"
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
