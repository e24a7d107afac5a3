"""The backend `openai`: any server with OpenAI's interface, with several requests under way at a time.

What a server computes is its own affair, so only `native` is offered, unless our plugin in a vLLM server says what it
computes (anchoreval.vllm_plugin). Then its RoPE level, position schemes and mask are offered.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any, get_args

from anchoreval.arms.arm import Arm
from anchoreval.arms.layout import Arrangement
from anchoreval.arms.patterns import PATTERNS
from anchoreval.arms.rope import RopeLevel, parse_level
from anchoreval.backends.answering import require_answerable
from anchoreval.backends.openai.answers import Asking, Scored, Unanswerable
from anchoreval.backends.openai.http import Link, NoAnswer, Refused
from anchoreval.backends.openai.probe import PATHS, probe
from anchoreval.backends.openai.server import Api, require_same, stated_window
from anchoreval.backends.vllm.batches import context_of
from anchoreval.errors import ModelError, UnsupportedArm
from anchoreval.schema import NO_LOGPROB, PROMPT_READ, ChoiceScore, Continuation, Json, Output, Request, lost_output
from anchoreval.tokenizer import load_tokenizer

_STOCK = Arrangement()
_MOST_THREADS = 1024


class OpenAiBackend:
    """A model behind an OpenAI-compatible server; see `Backend`."""

    def __init__(
        self,
        link: Link,
        asking: Asking,
        concurrency: int,
        level: RopeLevel,
        max_model_len: int | None = None,
        template_tokens: int | None = None,
    ) -> None:
        self._link, self._asking, self._concurrency = link, asking, concurrency
        self._plugin, self._level = asking.identity.plugin, level
        self._max_model_len, self._template_tokens = max_model_len, template_tokens
        self._arrangement, self._arm = _STOCK, ""
        self._placebo = self._closed = False

    @classmethod
    def open(
        cls,
        model: str,
        *,
        base_url: str | None = None,
        tokenizer: str | None = None,
        api: str | None = None,
        concurrency: int = 8,
        patience_s: float = 600.0,
        timeout_s: float = 600.0,
        max_model_len: int | None = None,
        seed: int = 0,
        logprobs: bool = True,
        template_args: Mapping[str, Json] | None = None,
        dtype: str = "auto",
        kernel: str = "auto",
    ) -> OpenAiBackend:
        """Return the backend for the model that a server calls `model`, once the server answers.

        `base_url` usually ends in /v1; if it does not, the right address is found by trying. `tokenizer` is the
        model's, a folder or tokenizer.json. `api` is `completions`, or `chat`, which is also used if the server has
        nothing else. `patience_s` is how long a server may be away or refuse for now; `timeout_s` is how long one
        answer may take, from the connection to its last byte. `max_model_len` is for servers that state no window, or a
        wrong one. `logprobs=False` asks for no log-probabilities, which cost a pass each. `template_args` are sent
        along with chat as `chat_template_kwargs`. `dtype` and `kernel` are the server's own and not used here; `under`
        checks those of arms.
        """
        _check(base_url, tokenizer, api, concurrency, patience_s, timeout_s, max_model_len)
        reader = load_tokenizer(str(tokenizer))
        ways: dict[str | None, Api] = {way: way for way in get_args(Api)}
        link = Link(str(base_url), patience_s, timeout_s)
        try:
            link.require_no_key(f"{base_url} {model} {tokenizer}")
            opened = probe(link, model, reader, ways.get(api), logprobs, template_args)
            identity, offers, chosen, around = opened.listed.identity, opened.offers, opened.api, opened.around
            if around:
                link.tell(f"api=chat: the server's own chat template adds {around} tokens to each prompt, by its count")
            link.confirm = partial(require_same, link, opened.listed)
            plugin = identity.plugin
            level = parse_level(plugin["rope"] if plugin else "native")
            asked = max_model_len or identity.max_model_len  # part of the identity; what stands elsewhere is not
            more = {"chat_template_kwargs": dict(template_args)} if template_args and chosen == "chat" else {}
            asking = Asking(identity, offers, chosen, reader, seed, asked or stated_window(link, model), more)
            return cls(link, asking, concurrency, level, asked, around)
        except BaseException:
            link.close()
            raise

    @property
    def window(self) -> int | None:
        """Positions that the server has for a prompt and its answer, None if neither the server nor the user says."""
        return self._asking.max_model_len

    @property
    def fingerprint(self) -> str:
        """SHA-256 over address and model as the server names them, interface, what it takes, and tokenizer.

        The engine's version and build, and its number of positions, may change while a run is away (`environment`).
        """
        server = self._server()
        server |= {"version": None, "max_model_len": None, "offers": server["offers"] | {"system_fingerprint": None}}
        identity = {"engine": "openai", "server": server, "tokenizer": self._asking.tokenizer.sha256}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def describe(self) -> dict[str, Json]:
        """Return what the run's header says of the engine and the model; None for what a server does not tell."""
        identity, offers = self._asking.identity, self._asking.offers
        return {
            "engine": "openai",
            "versions": {"vllm": identity.version} if identity.vllm else {},
            "environment": {
                "versions": {"server": identity.version, "build": offers.system_fingerprint},
                "positions": self.window,
            },
            "device": None,
            "device_name": None,
            "dtype": (self._plugin or {}).get("dtype"),
            "kernel": None,
            "kernel_why": None,
            "unused_weights": None,
            "adapter": None,
            "model_type": None,
            "parameters": None,
            "max_length": self.window,
            "eos_token_ids": None,
            "weights_sha256": None,
            "files_sha256": None,
            "prefill": None,
            "realisation": None,
            "throughput": {"concurrency": self._concurrency},
            "rope": None,
            "rope_selftest": None,
            "server": self._server(),
            "reference_logprobs": _LOGPROBS_RULE[offers.logprobs],
            "template_tokens": self._template_tokens,
            "output_tokens": "the server's" if offers.token_ids else "counted in the text with the tokenizer given",
        }

    @contextmanager
    def under(self, arm: Arm) -> Iterator[dict[str, Json]]:
        """Apply the arm inside the block and yield it as applied; raise UnsupportedArm with the field."""
        arm.require("openai")
        self._require_level(arm)
        self._require_layout(arm)
        self._require_own(arm)
        self._arrangement, self._arm, self._placebo = arm.arrangement, arm.name, arm.placebo
        try:
            yield self._as_applied(arm)
        finally:
            self._arrangement, self._arm, self._placebo = _STOCK, "", False

    def answer(self, requests: Sequence[Request]) -> Iterator[Output]:
        """Yield one output per request as they come back; prompts with the same beginning are sent in succession."""
        if self._closed:
            raise ModelError("the backend is closed")
        for request in requests:
            require_answerable(request, self._arrangement)
            if (request.choices or request.scores_text) and self._asking.offers.logprobs == "none":
                text = "needs log-probabilities of given answers, which this server does not offer"
                raise ModelError(f"{request.sample_id}: {text}: leave such tasks out")
        ordered = sorted(requests, key=lambda request: request.token_ids, reverse=self._placebo)
        work = partial(self._answer, self._arrangement, self._arm)
        yield from _pooled(work, ordered, 1 if self._placebo else self._concurrency)

    def close(self) -> None:
        """Close the connections; further calls are errors."""
        self._closed = True
        self._link.close()

    def _answer(self, arrangement: Arrangement, arm: str, request: Request) -> Output:
        """Return the output of one request. Log-probabilities go first: their pass leaves the prompt in the cache."""
        asking = self._asking
        if not arrangement.stock:
            context = context_of(request, arrangement, arm)
            plan = {"vllm_xargs": {"anchoreval_plan": list(context.plan or ())}, "cache_salt": context.salt}
            asking = replace(asking, more={**asking.more, **plan})
        try:
            logprob, each, facts = self._reference(asking, request)
            choices = tuple(self._choice(asking, request, choice) for choice in request.choices)
            if request.max_new_tokens > 0:
                output = asking.output(request, self._post(asking, asking.path, asking.generation(request)))
            else:
                output = Output(request.sample_id, "", (), request.unsaid, None, 0.0)
        except Unanswerable as error:
            return lost_output(request.sample_id, error.lost, str(error))
        except Refused as error:
            return lost_output(request.sample_id, "does_not_fit" if error.too_long else "refused", str(error))
        except NoAnswer as error:
            return lost_output(request.sample_id, "failed", str(error))
        self._notice(asking, request, output)
        said = replace(output, reference_logprob=logprob, token_logprobs=each, choices=choices)
        said = replace(said, facts={**facts, **output.facts})
        return replace(said, text=self._link.key.hide_secret(said.text))

    def _reference(
        self, asking: Asking, request: Request
    ) -> tuple[float | None, tuple[float, ...] | None, dict[str, Json]]:
        """Return the log-probability of the reference and of its tokens, and the fact that says why there is none.

        If nothing else is asked for, raise whatever keeps the server from it.
        """
        given = request.reference_ids
        if not given or asking.offers.logprobs == "none":
            return None, None, {}
        try:
            scored = self._score(asking, request.token_ids, given, len(given))
            if scored is None:
                raise Unanswerable(_OTHER_TOKENS)
        except (Unanswerable, Refused, NoAnswer) as error:
            if request.scores_text:
                raise
            return None, None, {NO_LOGPROB: str(error)}
        return scored[0].logprob, scored[1], {}

    def _notice(self, asking: Asking, request: Request, output: Output) -> None:
        """Report, for the first request of a kind, that the server read other tokens than were meant."""
        read, meant = output.facts.get(PROMPT_READ), asking.least_tokens(request)
        if read is None or (asking.api == "chat" and read >= meant):
            return
        what = "the user's turn and its chat template, the turn alone being" if asking.api == "chat" else "a prompt of"
        fewer = "it cut the prompt, left out of its count what it had cached, or has another tokenizer"
        why = fewer if read < meant else "it adds tokens, or has another tokenizer"
        text = f"{request.sample_id}: the server counts {read} tokens in {what} {meant}: {why}"
        kind = f"the server counts {'fewer' if read < meant else 'more'} tokens in a prompt than were sent"
        self._link.notice(kind, f"{text}; what it answers is scored, the number is on the record")

    def _choice(self, asking: Asking, request: Request, choice: Continuation) -> ChoiceScore:
        if not choice.counted:
            return ChoiceScore(0.0, True)
        scored = self._score(asking, request.token_ids, choice.token_ids, choice.counted)
        if scored is None:
            raise Unanswerable(_OTHER_TOKENS)
        return scored[0]

    def _score(self, asking: Asking, ids: Sequence[int], given: Sequence[int], counted: int) -> Scored | None:
        body = asking.scoring(ids, given, counted)
        if body is None:
            return None
        return asking.scored(self._post(asking, PATHS["completions"], body), len(ids), given, counted)

    def _post(self, asking: Asking, path: str, body: dict[str, Json]) -> dict[str, Any]:
        """Return the server's answer; raise ModelError if it names another build of the engine than at opening."""
        said = self._link.post(path, body)
        was, now = asking.offers.system_fingerprint, said.get("system_fingerprint")
        if was and now and was != now:
            text = f"another server is behind {self._link.address} than when the run began"
            raise ModelError(f"{text}: system_fingerprint was {was}, is {self._link.clean(now)}")
        return said

    def _server(self) -> dict[str, Json]:
        """Return everything that tells this server from another, without a key."""
        asking = self._asking
        said: dict[str, Json] = {"address": self._link.address, "api": asking.api, "seed": asking.seed}
        said |= {"chat_template_kwargs": asked} if (asked := asking.more.get("chat_template_kwargs")) else {}
        return said | asdict(asking.identity) | {"max_model_len": self._max_model_len, "offers": asdict(asking.offers)}

    def _as_applied(self, arm: Arm) -> dict[str, Json]:
        varied = {"concurrency": 1, "order": "reversed"}
        return {
            "rope": {"level": str(self._level), "said_by": "the server's plugin" if self._plugin else None},
            "positions": str(arm.positions),
            "positions_rule": arm.positions.rule,
            "attention": arm.attention,
            "attention_rule": PATTERNS[arm.attention],
            "realisation": "what the server computes",
            "dtype": (self._plugin or {}).get("dtype"),
            "kernel": None,
        } | ({"computed_in": varied} if arm.placebo else {})

    def _require_level(self, arm: Arm) -> None:
        if arm.rope == self._level:
            return
        if self._plugin is not None:
            raise _unsupported(arm, f"rope {str(arm.rope)!r}", f"the server computes {str(self._level)!r}")
        asked = json.dumps({"anchoreval": {"rope": str(arm.rope)}})
        how = f"vllm serve M --additional-config '{asked}' --middleware anchoreval.vllm_plugin.http.SaysArm"
        raise _unsupported(arm, f"rope {str(arm.rope)!r}", f"a server computes its own, 'native'; a level needs {how}")

    def _require_layout(self, arm: Arm) -> None:
        """Raise UnsupportedArm for positions and masks that the server does not take."""
        takes = self._plugin or {}
        if arm.moves_positions and not takes.get("plans"):
            raise _unsupported(arm, f"positions {str(arm.positions)!r}", "this server takes no position plans")
        if arm.attention != "full" and takes.get("documents") != arm.attention:
            masks = (
                f"the server's mask is {takes['documents']!r}" if takes.get("documents") else "it takes no documents"
            )
            raise _unsupported(arm, f"attention {arm.attention!r}", masks)

    def _require_own(self, arm: Arm) -> None:
        """Raise UnsupportedArm for a dtype or kernel that is not known to be the server's."""
        known = ["auto", *filter(None, [(self._plugin or {}).get("dtype")])]
        if arm.dtype not in known:
            raise _unsupported(arm, f"dtype {arm.dtype!r}", f"the server has its own: {' or '.join(known)}")
        if arm.kernel not in ("default", "auto", "sdpa"):  # the first is what an arm says where nothing was asked for
            raise _unsupported(arm, f"kernel {arm.kernel!r}", "the server has its own: leave out --kernel")


_LOGPROBS_RULE = {
    "prompt_logprobs": "vLLM's prompt_logprobs, and a forced token for the last one",
    "echo": "echo of the prompt with its log-probabilities",
    "echo+1": "echo of the prompt with its log-probabilities, and a new token",
    "none": None,
}


_OTHER_TOKENS = "the server takes text only, and no text has the tokens of this prompt and its answers"


def _unsupported(arm: Arm, what: str, why: str) -> UnsupportedArm:
    return UnsupportedArm(f"arm {arm.name!r}: openai cannot compute {what}: {why}")


def _check(
    base_url: str | None,
    tokenizer: str | None,
    api: str | None,
    concurrency: int,
    patience_s: float,
    timeout_s: float,
    max_model_len: int | None,
) -> None:
    """Raise ModelError for options that are missing or mean nothing."""
    if not base_url:
        raise ModelError("backend openai needs --base-url, the address of a server: http://127.0.0.1:8000/v1")
    if not tokenizer:
        raise ModelError("backend openai needs --tokenizer, the folder or tokenizer.json of the served model")
    if api not in (None, *get_args(Api)):
        raise ModelError(f"unknown api {api!r} of backend openai: one of {', '.join(get_args(Api))}")
    if concurrency < 1 or timeout_s <= 0 or patience_s < 0:
        raise ModelError("concurrency must be at least 1, timeout_s above 0 and patience_s not below 0")
    if concurrency > _MOST_THREADS:
        raise ModelError(f"concurrency must be at most {_MOST_THREADS}")
    if max_model_len is not None and max_model_len < 1:
        raise ModelError("max_model_len must be at least 1")


def _pooled(work: Callable[[Request], Output], requests: Sequence[Request], threads: int) -> Iterator[Output]:
    """Yield outputs as they come, with `threads` requests under way at a time; the first error ends it all.

    An output's seconds are those since the output before it, so that they add up to the time taken. The threads are
    daemons: a thread that waits for a hanging server keeps no program from ending.
    """
    todo: queue.SimpleQueue[Request] = queue.SimpleQueue()
    done: queue.SimpleQueue[Output | BaseException] = queue.SimpleQueue()
    over = threading.Event()
    for request in requests:
        todo.put(request)

    def run() -> None:
        try:
            while not over.is_set():
                done.put(work(todo.get_nowait()))
        except queue.Empty:
            return
        except BaseException as error:
            done.put(error)

    for _ in range(min(threads, len(requests))):
        threading.Thread(target=run, daemon=True).start()
    try:
        before = time.perf_counter()
        for _ in requests:
            given = done.get()
            if isinstance(given, BaseException):
                raise given
            now = time.perf_counter()
            yield replace(given, seconds=now - before)
            before = now
    finally:
        over.set()
