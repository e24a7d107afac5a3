"""Build requests to an OpenAI-compatible server for one `Request`, and read its answer as an `Output`.

Pure: bodies of requests and answers to them, no connection. If the server returns token ids, text is made of them as on
every other backend (backends/answering.py), so that the same tokens are the same text whoever computed them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from anchoreval.backends.answering import UNCLOSED, TextStream, is_unclosed
from anchoreval.backends.openai.message import Message, Unread, Usage, message_of, one_line, usage_of
from anchoreval.backends.openai.server import Api, Identity, Offers, text_of
from anchoreval.schema import PROMPT_READ, ChoiceScore, Finish, Json, Outcome, Output, Request, lost_output, rounded
from anchoreval.tokenizer import TextTokenizer

_MOST_STOPS = 4  # that OpenAI's interface takes, vLLM's server too; the others end the text here
_IMPOSSIBLE = -9999.0  # what vLLM writes for a log-probability of minus infinity
_NOT_FINITE = "the server's log-probabilities are not finite"
_MOST_CHARACTERS, _PER_TOKEN = 2**16, 256  # of an answer, and with each token that was asked for
_END_TOKENS = 8  # of a prompt: enough to hold what opens a block of reasoning


class Unanswerable(Exception):
    """Says why one request gets no answer while others do; `lost` is its outcome."""

    def __init__(self, why: str, lost: Outcome = "failed") -> None:
        super().__init__(why)
        self.lost = lost


#: The score of tokens, and the log-probability of each.
Scored = tuple[ChoiceScore, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Asking:
    """How requests are put to one server; `more` holds what an arm adds to each request."""

    identity: Identity
    offers: Offers
    api: Api
    tokenizer: TextTokenizer
    seed: int
    max_model_len: int | None
    more: Mapping[str, Json] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The path below the server's address that answers are requested from."""
        return "/chat/completions" if self.api == "chat" else "/completions"

    def generation(self, request: Request) -> dict[str, Json]:
        """Return the body that asks for the greedy answer to a prompt."""
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
        """Return the body that asks for the log-probabilities of the last `counted` of `given` after `ids`.

        Return None if the server cannot give them.
        """
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

    def scored(self, said: Mapping[str, Any], prompt: int, given: Sequence[int], counted: int) -> Scored | None:
        """Return the score in an answer to `scoring` with `prompt` tokens before `given`; None if the tokens differ."""
        try:
            return self._scored(said["choices"][0], prompt, given, counted)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
            text = f"the server's log-probabilities are not of OpenAI's form: {type(error).__name__}"
            raise Unanswerable(text) from error

    def _scored(self, choice: Mapping[str, Any], prompt: int, given: Sequence[int], counted: int) -> Scored | None:
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
        if any(value is None or not math.isfinite(value) or value <= _IMPOSSIBLE for value in values):
            raise Unanswerable(_NOT_FINITE, "not_finite")
        tops = (max(top.values()) for top in logprobs["top_logprobs"][last])
        greedy += [value >= top for value, top in zip(logprobs["token_logprobs"][last], tops, strict=True)]
        return ChoiceScore(math.fsum(values), all(greedy)), tuple(map(rounded, values))

    def output(self, request: Request, said: Mapping[str, Any]) -> Output:
        """Return the output for any answer to `generation`; its seconds are not known here."""
        usage = usage_of(said)
        read = self.read_of(request, usage)
        meant = self.api == "completions" and read == len(request.token_ids)
        facts = {} if read is None or meant else {PROMPT_READ: read}
        try:
            answer = self._answer(request, message_of(said, self.api == "chat"), usage)
        except Unread as error:
            answer = lost_output(request.sample_id, "failed", f"the server's answer is not of OpenAI's form: {error}")
        except Unanswerable as error:
            answer = lost_output(request.sample_id, error.lost, str(error))
        return replace(answer, facts=facts)

    def least_tokens(self, request: Request) -> int:
        """Return the fewest tokens that a server reads: the whole prompt, or the user's turn, which has no anchor."""
        return len(request.token_ids) - (self.api == "chat" and request.segment_ids[:1] == (-1,))

    def read_of(self, request: Request, usage: Usage) -> int | None:
        """Return the tokens that the server read of a prompt; None if it does not say.

        Some servers include the tokens that they had cached, some leave them out.
        """
        if usage.prompt is None:
            return None
        with_cached = usage.prompt + usage.cached
        if self.api == "chat":
            return usage.prompt if usage.prompt >= self.least_tokens(request) else with_cached
        return with_cached if with_cached == len(request.token_ids) else usage.prompt

    def _answer(self, request: Request, message: Message, usage: Usage) -> Output:
        """Return a message as an output; raise Unanswerable if it holds no answer."""
        if message.refusal or message.ended == "refused":
            raise Unanswerable(one_line(f"the server refused: {message.refusal or message.reason}"), "refused")
        ended: Finish = "length" if message.ended == "length" else "stop"
        if message.token_ids is None or message.reasons:  # whose tokens hold the reasoning too
            text, tokens, finish = self._as_text(request, message.text or "", ended)
        else:
            before = message.prompt_token_ids or request.token_ids
            text, tokens, finish = self._as_tokens(request, message.token_ids, before, ended)
        if not text.strip():
            self._require_said(request, message, usage)
        if message.ended == "broken":
            raise Unanswerable(one_line(f"the server ended the answer with {message.reason!r}"))
        made = max(usage.completion or 0, len(tokens)) or request.max_new_tokens
        if message.ended == "unknown" and made >= request.max_new_tokens:
            finish = "length"
        end = ""  # of the prompt, unless the server applies the chat template
        if self.api != "chat":
            end = self.tokenizer.decode(list(request.token_ids[-_END_TOKENS:]), skip_special_tokens=False)
        if is_unclosed(text, end):
            unclosed = lost_output(request.sample_id, "unclosed", f"{UNCLOSED}, {made} tokens")
            return replace(unclosed, text=text, token_ids=tuple(tokens))
        if finish == "length" and usage.completion is not None and made < request.max_new_tokens:
            text = f"the server stopped after {made} of {request.max_new_tokens} tokens"
            raise Unanswerable(f"{text}: its window is full, or its own limit of answers lower", "does_not_fit")
        return Output(request.sample_id, text, tuple(tokens), finish, None, 0.0)

    def _require_said(self, request: Request, message: Message, usage: Usage) -> None:
        """Raise Unanswerable for a message without text, unless the model ended its answer and said nothing."""
        reasons = message.reasons or usage.reasoning > 0
        made = usage.completion or request.max_new_tokens
        if message.ended == "length" and reasons:
            raise Unanswerable(f"{UNCLOSED}, {made} tokens, which the server left out", "unclosed")
        if message.ended == "length" and self.api == "chat" and message.token_ids is None:
            text = f"the server shows nothing of {made} new tokens"
            raise Unanswerable(f"{text}: reasoning that never ended, as a rule", "unclosed")
        if message.ended == "tool":
            raise Unanswerable("the model called a tool and said nothing")
        if message.ended == "unknown":
            raise Unanswerable("the server's answer holds no text and does not say how it ended")
        if message.text is None and self.api == "completions" and message.token_ids is None and not reasons:
            raise Unanswerable("the server's answer is not of OpenAI's form: it holds no text")

    def _as_tokens(
        self, request: Request, tokens: list[int], before: Sequence[int], finish: Finish
    ) -> tuple[str, list[int], Finish]:
        """Return text and tokens up to the end of the answer; EOS ends it if the server says that something did."""
        stream = TextStream(self.tokenizer, before, request.stop)
        ends = (i + 1 for i, token in enumerate(tokens) if stream.push(token) or token in request.end_ids)
        end = next(ends, None)
        text = stream.finish()
        return text, tokens[:end], "stop" if end is not None or stream.stopped else finish

    def _as_text(self, request: Request, text: str, finish: Finish) -> tuple[str, list[int], Finish]:
        """Return the server's text, cut at the first stop, and its tokens by our tokenizer."""
        if len(text) > (most := _MOST_CHARACTERS + _PER_TOKEN * request.max_new_tokens):
            raise Unanswerable(f"the server's answer has {len(text):,} characters, {most:,} are the most")
        found = [at for at in (text.find(stop) for stop in request.stop if stop) if at >= 0]
        if found:
            text, finish = text[: min(found)], "stop"
        return text, self.tokenizer.encode(text), finish

    def _common(self) -> dict[str, Json]:
        return {"model": self.identity.model, "temperature": 0, "seed": self.seed} | dict(self.more)

    def _prompt(self, request: Request) -> dict[str, Json]:
        """Return the prompt, or the user's turn without the anchor: the server's template brings its own.

        Text of special tokens in a turn stays, as upstream sends it. evaluation.py checks, before anything is sent,
        that no chat template of ours is in it.
        """
        if self.api == "chat":
            ids = request.token_ids[1 if request.segment_ids[:1] == (-1,) else 0 :]
            turn = self.tokenizer.decode(list(ids), skip_special_tokens=False)
            return {"messages": [{"role": "user", "content": turn}]}
        prompt = self._put(request.token_ids)
        if prompt is None:
            raise Unanswerable("the server takes text only, and no text has the tokens of this prompt")
        return {"prompt": prompt}

    def _put(self, ids: Sequence[int]) -> list[int] | str | None:
        """Return the prompt as the server takes it: ids, or text with the same ids; None if there is no such text."""
        if self.offers.token_prompts:
            return list(ids)
        return text_of(self.tokenizer, ids)

    def _require_room(self, tokens: int) -> None:
        """Raise Unanswerable if prompt and answer exceed the server's positions: some servers would cut silently."""
        if self.max_model_len is not None and tokens > self.max_model_len:
            why = f"needs {tokens} positions, the server has {self.max_model_len}"
            raise Unanswerable(f"{why} (another number: max_model_len=N in --backend-args)", "does_not_fit")
