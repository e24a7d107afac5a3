"""Log-probabilities of given tokens after a prompt: the reference answer, and choices on forks of the prompt's cache.

Shapes: R rows of forks, Q new tokens, V vocabulary. A single choice continues the prompt's own row, which costs no
copy; several choices are rows that begin with copies of the prompt's keys and values, filled up on the right, where no
token sees the filling. A choice of one token costs no pass at all: its logits are those after the prompt. Logits are
requested only from the first counted token on, and reduced by a float32 log-softmax, a few rows at a time.

The log-probability of a reference is the one that a stock forward pass over prompt and reference gives; a choice's is
that of a pass over prompt and choice without its last token, as lm-eval computes it. Both continue from the prompt's
keys and values. If rotations depend on the length of the pass (growth.py) and change between the two lengths, that one
pass is made. A text that is scored is prefilled like a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from anchoreval.backends.hf.batches import Limits
from anchoreval.backends.hf.cache import KvStore
from anchoreval.backends.hf.network import Network, extend, extend_rows, on_device
from anchoreval.schema import ChoiceScore, Continuation

#: Rows of reference scored at once: bounds logits to 64 x V, and is part of the identity.
REFERENCE_TOKENS = 64
_PASS_TOKENS = 256  # tokens of choices in one pass, all rows together: bounds logits to 256 x V
_MOST_FORKS = 8


@dataclass(frozen=True, slots=True)
class Behind:
    """The end of a prompt in a store.

    `place` is (row, column) of its first token, `after` the position of the next token and `logits` (`kV`) those of
    that token, and of the ones after the k - 1 tokens `ahead`, with which the reference or the only choice begins.
    """

    store: KvStore
    place: tuple[int, int]
    ids: tuple[int, ...]
    after: int
    logits: Tensor
    ahead: Sequence[int] = ()

    def positions(self, first: int, tokens: int) -> range:
        """Return the position ids of `tokens` tokens; the first of them is number `first` after the prompt."""
        return range(self.after + first, self.after + first + tokens)


class Scoring:
    """Scores tokens that follow prompts; holds the buffers of forks, which its prompts share."""

    def __init__(self, network: Network, limits: Limits) -> None:
        self._network, self._limits = network, limits
        self._forks: KvStore | None = None
        self._alone = network.alone

    @property
    def columns(self) -> int:
        """Rows x columns of the forks."""
        return self._forks.rows * self._forks.columns if self._forks else 0

    def release(self) -> None:
        """Free the memory of the forks."""
        self._forks = None

    def one_by_one(self) -> bool:
        """Score choices on the prompt's own row from now on, which needs least memory; return whether that is new."""
        new, self._alone = not self._alone, True
        return new

    def reference(self, behind: Behind, ids: Sequence[int]) -> tuple[float, tuple[float, ...]]:
        """Return the summed natural log-probability of `ids`, and that of each."""
        growth, each = self._network.growth, list[float]()
        if growth is not None and not growth.alike(len(behind.ids), len(behind.ids) + len(ids)):
            total = _judged(growth.logits((*behind.ids, *ids), len(ids) + 1)[:-1], ids, each)[0]
            return total, tuple(each)
        ready = len(behind.logits)
        fork = behind.store.row(*behind.place, len(behind.ids) + ready - 1)
        total = _judged(behind.logits, ids[:ready], each)[0]
        for at in range(ready - 1, len(ids) - 1, REFERENCE_TOKENS):
            given = ids[at : min(at + REFERENCE_TOKENS, len(ids) - 1)]
            positions = behind.positions(at, len(given))
            logits_QV = extend(self._network, fork, given, positions, len(behind.ids) + at, keep=len(given))
            total += _judged(logits_QV, ids[at + 1 : at + 1 + len(given)], each)[0]
        return total, tuple(each)

    def text(self, cache: Cache, ids: Sequence[int], positions: Sequence[int], first: int, chunk: int) -> list[float]:
        """Return the natural log-probability of each of `ids` from `first` on, given all before it, in one prefill.

        Chunks lie on an absolute grid, and logits are never of more rows than one has: what grows with the text is the
        cache, the mask of one chunk, and for growing rotations the hidden states.
        """
        given, each = ids[:-1], list[float]()
        if self._network.growth is not None:
            for logits_RV in self._network.growth.each_logits(given, first - 1, self._limits.chunk_tokens):
                _judged(logits_RV, ids[first + len(each) :][: len(logits_RV)], each)
            return each
        for at in range(0, len(given), chunk):
            part = given[at : at + chunk]
            keep = min(len(part), max(1, at + len(part) - (first - 1)))
            logits_RV = extend(self._network, cache, part, positions[at : at + len(part)], at, keep)
            if at + len(part) >= first:
                _judged(logits_RV, ids[first + len(each) :][:keep], each)
        return each

    def choices(self, behind: Behind, choices: Sequence[Continuation]) -> tuple[ChoiceScore, ...]:
        """Return a score per choice, in order; choices of like length are computed together."""
        order = sorted(range(len(choices)), key=lambda i: len(choices[i].token_ids))
        short = [i for i in order if len(choices[i].token_ids) < 2 or choices[i].counted == 0]
        scored = {i: _first(behind.logits[:1], choices[i]) for i in short}
        for i in (i for i in order if i not in scored and tuple(choices[i].token_ids[:-1]) == tuple(behind.ahead)):
            scored[i] = _judged(behind.logits[-choices[i].counted :], choices[i].token_ids[-choices[i].counted :])
        if (growth := self._network.growth) is not None:
            for i in [i for i in order if i not in scored]:
                ids, prompt = choices[i].token_ids[:-1], len(behind.ids)
                if not growth.alike(prompt, prompt + len(ids)):  # a pass over both rotates differently: it is made
                    with growth.kept():
                        logits_kV = growth.logits((*behind.ids, *ids), choices[i].counted)
                    scored[i] = _judged(logits_kV, choices[i].token_ids[-choices[i].counted :])
        rest = [i for i in order if i not in scored]
        while rest:
            columns = len(behind.ids) + len(choices[rest[-1]].token_ids)
            most = min(len(rest), _MOST_FORKS, self._limits.rows, self._limits.batch_tokens // columns)
            group = rest[-1:] if self._alone else rest[-max(1, most) :]
            del rest[-len(group) :]
            scored |= zip(group, self._scores(behind, [choices[i] for i in group]), strict=True)
        return tuple(scored[i] for i in range(len(choices)))

    def _scores(self, behind: Behind, group: Sequence[Continuation]) -> list[ChoiceScore]:
        """Return the scores of choices of two or more tokens; all rows share the passes after the first token."""
        longest = max(len(choice.token_ids) for choice in group) - 1  # no logits behind the last token are used
        # all ids but the last, with that one repeated
        padded = [[*c.token_ids[:-1], *c.token_ids[-1:] * (longest + 1 - len(c.token_ids))] for c in group]
        ids_RQ = on_device(padded, self._network.device)
        cache = self._forked(behind, len(group), longest)
        first = min(len(choice.token_ids) - choice.counted for choice in group)
        made = [_first(behind.logits[:1], choice) for choice in group]
        step = max(1, _PASS_TOKENS // len(group))
        for at in range(0, longest, step):
            stop = min(at + step, longest)
            keep = max(1, stop - max(at, first - 1))
            positions = behind.positions(at, stop - at)
            ids_Rq = ids_RQ[:, at:stop]
            logits_RkV = extend_rows(self._network, cache, ids_Rq, positions, len(behind.ids) + at, keep)
            for i, choice in enumerate(group):
                part = _part(logits_RkV[i], choice, stop - keep)
                made[i] = ChoiceScore(made[i].logprob + part.logprob, made[i].greedy and part.greedy)
        return made

    def _forked(self, behind: Behind, rows: int, more: int) -> Cache:
        """Return a cache of `rows` rows that each hold the prompt, with room for `more` tokens."""
        if rows == 1:
            return behind.store.row(*behind.place, len(behind.ids))
        forks, columns = self._forks, len(behind.ids) + more
        if forks is None or forks.rows < rows or forks.columns < columns:
            self._forks = forks = None  # before the new ones are allocated
            forks = self._forks = KvStore(self._network.layers, rows, columns)
        for row in range(rows):
            forks.take((row, 0), behind.store, behind.place, len(behind.ids))
        return forks.row(0, 0, len(behind.ids), rows=rows)


def _first(last_1V: Tensor, choice: Continuation) -> ChoiceScore:
    """Return what the first token alone scores, if it is counted."""
    ids = choice.token_ids
    return _judged(last_1V, ids[:1]) if ids and choice.counted == len(ids) else ChoiceScore(0.0, True)


def _part(logits_kV: Tensor, choice: Continuation, column: int) -> ChoiceScore:
    """Return the score of those counted tokens that the logits of columns from `column` on are for."""
    begin = max(column, len(choice.token_ids) - choice.counted - 1)
    end = min(column + len(logits_kV), len(choice.token_ids) - 1)
    if begin >= end:
        return ChoiceScore(0.0, True)
    return _judged(logits_kV[begin - column : end - column], choice.token_ids[begin + 1 : end + 1])


def _judged(logits_QV: Tensor, ids: Sequence[int], each: list[float] | None = None) -> ChoiceScore:
    """Return the ids' summed log-probability, one id per row, and whether each is the likeliest.

    The log-softmax is fp32, the sum fp64. The log-probability of each id is added to `each`.
    """
    total, greedy = 0.0, True
    for at in range(0, len(ids), REFERENCE_TOKENS):
        wide_QV = logits_QV[at : at + REFERENCE_TOKENS].float()
        index_Q1 = on_device(ids[at : at + REFERENCE_TOKENS], wide_QV.device)[:, None]
        each_Q = (wide_QV.gather(1, index_Q1)[:, 0] - wide_QV.logsumexp(-1)).double()
        likeliest = (wide_QV.argmax(-1) == index_Q1[:, 0]).all()
        summed, alike, *values = torch.cat([each_Q.sum()[None], likeliest[None], each_Q]).tolist()  # one wait for all
        total += summed
        if each is not None:
            each += values
        greedy = greedy and bool(alike)
    return ChoiceScore(total, greedy)
