"""Answers without a model, the same on every machine: for tests and `--dry-run`."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from anchoreval.arms.arm import Arm
from anchoreval.backends.answering import Decodes, TextStream
from anchoreval.errors import ModelError, UnknownName
from anchoreval.schema import ChoiceScore, Finish, Json, Output, Request, rounded
from anchoreval.tokenizer import load_tokenizer

_MODES = ("echo-reference", "empty", "half", "wrong")
_WRONG_TOKENS = 3


class Numbers:
    """Ids as text, for a fake that was given no tokenizer."""

    def decode(self, ids: list[int]) -> str:
        """Return the ids as text, each followed by a space."""
        return "".join(f"{i} " for i in ids)


class FakeBackend:
    """A `Backend` whose answers follow from each request alone.

    Modes: `echo-reference` answers with the reference, `half` does so for about half of the prompts, `wrong` repeats
    the prompt's first tokens, `empty` answers nothing. A sample that the file `dies_on` names kills the process.
    """

    def __init__(self, mode: str, decoder: Decodes, delay_s: float = 0.0, dies_on: str | None = None) -> None:
        if mode not in _MODES:
            raise UnknownName("mode of the fake backend", mode, _MODES)
        if delay_s < 0:
            raise ModelError("delay_s must not be below 0")
        self._mode, self._decoder, self._delay_s = mode, decoder, delay_s
        self._closed, self._dies_on = False, Path(dies_on) if dies_on else None
        #: Identity of the mode; the delay changes no answer.
        self.fingerprint = hashlib.sha256(f"fake {mode}".encode()).hexdigest()

    @classmethod
    def open(
        cls, model: str, *, mode: str = "echo-reference", delay_s: float = 0.0, dies_on: str | None = None, **_: Json
    ) -> FakeBackend:
        """Return the backend; `model` may be a folder with a tokenizer.json. Other options are ignored."""
        path = Path(model).expanduser() / "tokenizer.json"
        return cls(mode, load_tokenizer(path) if path.is_file() else Numbers(), delay_s, dies_on)

    def describe(self) -> dict[str, Json]:
        """Return what the run's header says of the engine."""
        return {
            "engine": "fake",
            "versions": {},
            "environment": {"versions": {}},
            "mode": self._mode,
            "device": "none",
            "dtype": "none",
            "parameters": 0,
            "max_length": None,
            "weights_sha256": None,
            "rope": None,
        }

    @contextmanager
    def under(self, arm: Arm) -> Iterator[dict[str, Json]]:
        """Accept every arm and change nothing."""
        arm.require("fake")
        yield {
            "rope": str(arm.rope),
            "positions": str(arm.positions),
            "attention": arm.attention,
            "dtype": arm.dtype,
            "kernel": arm.kernel,
        }

    def answer(self, requests: Sequence[Request]) -> Iterator[Output]:
        """Yield one output per request, in order."""
        if self._closed:
            raise ModelError("the backend is closed")
        for request in requests:
            time.sleep(self._delay_s)
            if self._dies_on and request.sample_id in self._dies_on.read_text(encoding="utf-8").split():
                os.kill(os.getpid(), signal.SIGKILL)
            yield self._choose(request) if request.choices else self._answer(request)

    def close(self) -> None:
        """Make further calls errors."""
        self._closed = True

    def _meant(self, request: Request) -> tuple[int, ...]:
        """Return the tokens of an answer before it ends."""
        if self._right(request):
            return request.reference_ids
        return request.token_ids[:_WRONG_TOKENS] if self._mode == "wrong" else ()

    def _answer(self, request: Request) -> Output:
        meant = self._meant(request)
        ids = meant[: request.max_new_tokens]
        stream = TextStream(self._decoder, request.token_ids, request.stop)
        ends = (i + 1 for i, token in enumerate(ids) if stream.push(token) or token in request.end_ids)
        said = next(ends, None)
        finish: Finish = "length" if len(meant) > len(ids) and said is None else "stop"
        said = said or len(ids)
        given = request.reference_ids
        each = _unit(request) * -4.0 if given else 0.0
        logprob = each * len(given) if given else None
        finish = request.unsaid if request.scores_text else finish
        output = Output(request.sample_id, stream.finish(), ids[:said], finish, logprob, self._delay_s)
        return replace(output, token_logprobs=(rounded(each),) * len(given)) if given else output

    def _right(self, request: Request) -> bool:
        """Return whether the mode answers this request with the reference."""
        return self._mode == "echo-reference" or (self._mode == "half" and _unit(request) < 0.5)

    def _choose(self, request: Request) -> Output:
        """Return scores that make the right choice the likeliest if the mode says the reference, else another."""
        unit, gold = _unit(request), request.gold or 0
        best = gold if self._right(request) else (gold + 1) % len(request.choices)
        each = [-(unit + (i != best)) * max(choice.counted, 1) for i, choice in enumerate(request.choices)]
        choices = tuple(ChoiceScore(logprob, i == best) for i, logprob in enumerate(each))
        return Output(request.sample_id, "", (), "stop", None, self._delay_s, choices=choices)


def _unit(request: Request) -> float:
    """Return a number in [0, 1) that follows from the request's tokens alone."""
    digest = hashlib.sha256(json.dumps([request.token_ids, request.reference_ids]).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
