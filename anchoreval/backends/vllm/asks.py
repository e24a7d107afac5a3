"""What one request asks of vLLM, phase by phase, and what the replies become. Pure: no torch, no vLLM.

A request with a reference or choices is three kinds of prompt for the engine, one after the other:

  behind     its own prompt and one new token: the log-probabilities of the first tokens of all continuations
  forced     the prompt and all but the last token of a continuation: the log-probabilities of its other tokens
  generated  its own prompt again, greedily, up to its answer budget

The prompt is computed once: the second and third kind find it in vLLM's prefix cache. A text that is scored is forced
alone, all of its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from anchoreval.backends.answering import NOT_FINITE, Growing
from anchoreval.schema import ChoiceScore, Continuation, Output

MOST_IDS = 128  # vLLM takes no more ids per prompt in `logprob_token_ids` (sampling_params.py, MAX_LOGPROB_TOKEN_IDS)


@dataclass(frozen=True, slots=True)
class Context:
    """What all asks of one request share.

    `salt` keeps its cached keys and values apart; `plan` places its tokens (None: contiguous).
    """

    salt: str
    plan: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt for the engine, continued by up to `new_tokens`.

    `next_ids` are the ids whose log-probability as the first new token is wanted; from index `rows_from` on, the
    prompt's own tokens are to be scored; `afresh` computes the whole prompt, whatever is cached.
    """

    token_ids: tuple[int, ...]
    context: Context
    next_ids: tuple[int, ...] = ()
    rows_from: int | None = None
    afresh: bool = False
    new_tokens: int = 1
    fewest: int = 0
    ends: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """The engine's result for an ask: the prompt tokens that it had cached, the new token, the log-probabilities of
    `next_ids` in its place, and the scores of the prompt's tokens from `rows_from` on.
    """

    cached: int
    token: int
    behind: Mapping[int, float]
    rows: tuple[ChoiceScore, ...] = ()

    def usable(self, ask: Ask) -> bool:
        """Return whether all rows were computed: rows of cached tokens are memory that vLLM never wrote."""
        return ask.rows_from is None or ask.rows_from > self.cached


@dataclass(slots=True)
class Row(Growing):
    """A request in progress, with the scores of its continuations."""

    context: Context
    scores: dict[Continuation, ChoiceScore] = field(default_factory=dict)
    tokens_of: dict[Continuation, tuple[float, ...]] = field(default_factory=dict)  # their log-probabilities

    def continuations(self) -> list[Continuation]:
        """Return reference and choices, without those that have no counted token."""
        ids = self.request.reference_ids
        continuations = [Continuation(ids, len(ids)), *self.request.choices]
        return [each for each in continuations if each.token_ids and each.counted]

    def behind(self) -> list[Ask]:
        """Return asks for the prompt alone, if anything is scored after it."""
        wanted = [] if self.request.scores_text else self.continuations()
        first = sorted({each.token_ids[0] for each in wanted if each.counted == len(each.token_ids)})
        parts = [tuple(first[at : at + MOST_IDS]) for at in range(0, len(first), MOST_IDS)] or [()]
        return [Ask(self.request.token_ids, self.context, part) for part in parts] if wanted else []

    def forced(self) -> dict[Continuation, Ask]:
        """Return continuations of two or more tokens, or a text, each with the ask that scores all but its first token.

        A text is scored with all its tokens.
        """
        whole = self.request.scores_text
        return {each: self._forced(each) for each in self.continuations() if whole or len(each.token_ids) > 1}

    def _forced(self, each: Continuation) -> Ask:
        start, tokens = len(self.request.token_ids), len(each.token_ids)
        first = 0 if self.request.scores_text else max(1, tokens - each.counted)
        return Ask(
            token_ids=self.request.token_ids + each.token_ids[:-1],
            context=self.context,
            next_ids=each.token_ids[-1:],
            rows_from=start + first if first < tokens - 1 else None,
        )

    def score(self, behind: Sequence[Reply], forced: Mapping[Continuation, Reply]) -> None:
        """Combine the replies into one score per continuation, in fp64 over fp32 log-probabilities."""
        first = {token: logprob for reply in behind for token, logprob in reply.behind.items()}
        for each in self.continuations():
            parts = [ChoiceScore(0.0, True)]
            if behind and each.counted == len(each.token_ids):
                token = each.token_ids[0]
                parts.append(ChoiceScore(first[token], token == behind[0].token))
            if each in forced:
                reply, last = forced[each], each.token_ids[-1]
                parts += [*reply.rows, ChoiceScore(reply.behind[last], last == reply.token)]
            self.scores[each] = ChoiceScore(sum(p.logprob for p in parts), all(p.greedy for p in parts))
            self.tokens_of[each] = tuple(p.logprob for p in parts[1:])
        needed = self.continuations() if self.request.scores_text else self.request.choices
        if not all(math.isfinite(self.scores[each].logprob) for each in needed if each in self.scores):
            self.fail(NOT_FINITE, "not_finite")

    def generated(self, eos: frozenset[int]) -> Ask | None:
        """Return the ask that continues the prompt greedily, None if nothing is to be generated."""
        request = self.request
        if self.finish is None and request.max_new_tokens == 0:
            self.finish = request.unsaid
        if self.finish is not None:
            return None
        ends = tuple(sorted({*eos, *request.end_ids}))
        fewest = min(request.min_new_tokens, request.max_new_tokens)
        return Ask(request.token_ids, self.context, new_tokens=request.max_new_tokens, fewest=fewest, ends=ends)

    def output(self, seconds: float) -> Output:
        """Return the finished output."""
        ids = self.request.reference_ids
        reference = Continuation(ids, len(ids))
        choices = tuple(self.scores.get(each, ChoiceScore(0.0, True)) for each in self.request.choices)
        logprob = self.scores[reference].logprob if reference in self.scores else None
        return self.said(seconds, logprob, choices, self.tokens_of.get(reference))


def judged(target: int, logprob: float, likeliest: Mapping[int, float]) -> ChoiceScore:
    """Return the score of a prompt token, given the log-probabilities of the likeliest. Ties go to the lowest id."""
    best = max(likeliest.values(), default=logprob)
    equals = [token for token, other in likeliest.items() if other == best]
    return ChoiceScore(logprob, logprob >= best and target <= min(equals, default=target))
