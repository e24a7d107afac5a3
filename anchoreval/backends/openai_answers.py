"""What is asked of an OpenAI-compatible server for one request, and its answer read as an Output.

Pure: bodies of requests and answers to them, no connection. Where the server returns token ids, text is made of them as
on every other backend (detokenize.py), so that the same tokens are the same text whoever computed them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anchoreval.backends.detokenize import TextStream
from anchoreval.backends.openai_server import Api, Identity, Offers
from anchoreval.errors import ModelError
from anchoreval.schema import ChoiceScore, Finish, Json, Output, Request
from anchoreval.tokenizer import TextTokenizer

_MOST_STOPS = 4  # that OpenAI's interface takes, vLLM's server too; the others end the text here
_IMPOSSIBLE = -9999.0  # what vLLM writes for a log-probability of minus infinity


class Unanswerable(Exception):
    """Why one request gets no answer while others do."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How requests are put to one server; `more` holds what an arm adds to each."""

    identity: Identity
    offers: Offers
    api: Api
    tokenizer: TextTokenizer
    seed: int
    max_model_len: int | None
    more: Mapping[str, Json] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Where answers are asked for."""
        return "/chat/completions" if self.api == "chat" else "/completions"

    def generation(self, request: Request) -> dict[str, Json]:
        """The greedy answer to a prompt."""
        vllm = self.identity.vllm
        self._require_room(len(request.token_ids) + request.max_new_tokens)
        if not vllm and (request.end_ids or request.min_new_tokens):
            raise Unanswerable("answers that a token ends, or that have a least length, need a vLLM server")
        body = self._common() | self._prompt(request) | {"max_tokens": request.max_new_tokens}
        body |= {"stop": list(request.stop[:_MOST_STOPS])} if request.stop else {}
        if vllm:
            body |= {"return_token_ids": True, "repetition_penalty": 1.0}  # a model's own default may be another
            body |= {"stop_token_ids": list(request.end_ids)} if request.end_ids else {}
            body |= {"min_tokens": request.min_new_tokens} if request.min_new_tokens else {}
        return body

    def scoring(self, ids: Sequence[int], given: Sequence[int], counted: int) -> dict[str, Json] | None:
        """What brings the log-probabilities of the last `counted` of `given` behind `ids`; None: they cannot be had."""
        if self.offers.logprobs == "prompt_logprobs":
            self._require_room(len(ids) + len(given))
            forced = {"allowed_token_ids": [given[-1]], "logprobs": 1, "max_tokens": 1}  # needs no position more
            inside = {"prompt_logprobs": 0} if counted > 1 else {}
            return self._common() | {"prompt": [*ids, *given[:-1]]} | forced | inside
        prompt = self._put([*ids, *given])
        if prompt is None:
            return None
        new = 1 if self.offers.logprobs == "echo+1" else 0
        self._require_room(len(ids) + len(given))
        if self.max_model_len == len(ids) + len(given) and new:
            return None  # the answer fits, the token that such a server must add behind it does not
        return self._common() | {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": new}

    def scored(self, said: Mapping[str, Any], prompt: int, given: Sequence[int], counted: int) -> ChoiceScore | None:
        """The score that an answer to `scoring` holds, `prompt` tokens before `given`; None where tokens differ."""
        choice = said["choices"][0]
        logprobs = choice["logprobs"]
        if self.offers.logprobs == "prompt_logprobs":
            rows = choice["prompt_logprobs"][prompt + len(given) - counted :] if counted > 1 else []
            entries = [row[str(token)] for row, token in zip(rows, given[-counted:-1], strict=True)]
            values = [entry["logprob"] for entry in entries]
            greedy = [entry["rank"] == 1 for entry in entries]
            last = slice(0, 1)
        else:
            stop = len(logprobs["token_logprobs"]) - (self.offers.logprobs == "echo+1")
            if stop not in (prompt + len(given), prompt + len(given) - 1):  # the anchor may be left out
                return None
            values, greedy, last = [], [], slice(stop - counted, stop)
        values += logprobs["token_logprobs"][last]
        tops = (max(top.values()) for top in logprobs["top_logprobs"][last])
        greedy += [value >= top for value, top in zip(logprobs["token_logprobs"][last], tops, strict=True)]
        if not all(math.isfinite(value) and value > _IMPOSSIBLE for value in values):
            raise Unanswerable("the server's log-probabilities are not finite")
        return ChoiceScore(math.fsum(values), all(greedy))

    def output(self, request: Request, said: Mapping[str, Any]) -> Output:
        """The answer to `generation`; its seconds are not known here."""
        choice, usage = said["choices"][0], said.get("usage") or {}
        self._require_prompt(request, usage)
        finish = choice.get("finish_reason")
        if finish not in ("stop", "length"):
            raise Unanswerable(f"the server ended the answer with {finish!r}")
        tokens = choice.get("token_ids")
        if tokens is None:
            text, tokens, ended = self._as_text(request, choice, finish)
        else:
            before = choice.get("prompt_token_ids") or said.get("prompt_token_ids") or request.token_ids
            text, tokens, ended = self._as_tokens(request, list(tokens), before, finish)
        made = usage.get("completion_tokens", request.max_new_tokens)
        if ended == "length" and made < request.max_new_tokens:
            raise Unanswerable(f"the server stopped after {made} of {request.max_new_tokens} tokens")
        return Output(request.sample_id, text, tuple(tokens), ended, None, 0.0)

    def _as_tokens(
        self, request: Request, tokens: list[int], before: Sequence[int], finish: Finish
    ) -> tuple[str, list[int], Finish]:
        """Text and tokens up to where the answer ends; EOS ends it where the server says that something did."""
        stream = TextStream(self.tokenizer, before, request.stop)
        ends = (i + 1 for i, token in enumerate(tokens) if stream.push(token) or token in request.end_ids)
        end = next(ends, None)
        text = stream.finish()
        return text, tokens[:end], "stop" if end is not None or stream.stopped else finish

    def _as_text(self, request: Request, choice: Mapping[str, Any], finish: Finish) -> tuple[str, list[int], Finish]:
        """The server's text, cut at the first stop; tokens are those of our tokenizer."""
        text = choice.get("text") if self.api == "completions" else choice["message"].get("content")
        text = text or ""
        found = [at for at in (text.find(stop) for stop in request.stop if stop) if at >= 0]
        if found:
            text, finish = text[: min(found)], "stop"
        return text, self.tokenizer.encode(text), finish

    def _common(self) -> dict[str, Json]:
        return {"model": self.identity.model, "temperature": 0, "seed": self.seed} | dict(self.more)

    def _prompt(self, request: Request) -> dict[str, Json]:
        if self.api == "chat":
            return {"messages": [{"role": "user", "content": self._turn(request)}]}
        prompt = self._put(request.token_ids)
        if prompt is None:
            raise Unanswerable("the server takes text only, and no text has the tokens of this prompt")
        return {"prompt": prompt}

    def _put(self, ids: Sequence[int]) -> list[int] | str | None:
        """The prompt as the server takes it: ids, or text that the tokenizer turns into the same ids; else None.

        The anchor stands in the text where the tokenizer does not put it in front itself.
        """
        if self.offers.token_prompts:
            return list(ids)
        for first in (1, 0):
            text = self.tokenizer.decode(list(ids[first:]), skip_special_tokens=False)
            if self.tokenizer.encode(text, special_tokens=True) == list(ids):
                return text
        return None

    def _turn(self, request: Request) -> str:
        """The prompt as the text of the user's turn, without the anchor: the server's template brings its own."""
        ids = list(request.token_ids[1:])
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        if text != self.tokenizer.decode(ids):
            raise ModelError("api=chat: the server applies the chat template itself: use --template base")
        return text

    def _require_room(self, tokens: int) -> None:
        """`Unanswerable` for more tokens, prompt and answer, than the server has positions: vLLM would cut silently."""
        if self.max_model_len is not None and tokens > self.max_model_len:
            raise Unanswerable(f"needs {tokens} positions, the server has {self.max_model_len}")

    def _require_prompt(self, request: Request, usage: Mapping[str, Any]) -> None:
        """`ModelError` where the server read other tokens than were meant."""
        counted, meant = usage.get("prompt_tokens"), len(request.token_ids)
        if self.api == "completions" and counted is not None and counted != meant:
            text = f"the server counts {counted} tokens in a prompt of {meant}"
            raise ModelError(f"{request.sample_id}: {text}: it has another tokenizer than --tokenizer, or adds tokens")
