"""One running vLLM engine: started, asked, closed. vLLM is imported only when an engine starts.

On a CPU the engine lives in this process. On CUDA it is vLLM's own process; the authors have not run any of that.
"""

from __future__ import annotations

import gc
import os
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from anchoreval.backends.vllm.asks import Ask, Reply, judged
from anchoreval.backends.vllm.batches import Batching, Cache
from anchoreval.errors import AnchorEvalError, ModelError
from anchoreval.schema import Json

_TIES = 4  # likeliest ids beside a prompt token: enough to tell which of equally likely ids is the lowest
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
#: V1 runner: the one that takes position plans, so that all arms run on one. Lengths are checked by this backend.
_SAME = {"VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
_ON_CPU = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def prepare(on_cpu: bool, batch_invariant: bool) -> None:
    """Set the environment variables that vLLM reads, unless they are set already. Call it before vLLM is imported."""
    wanted = _QUIET | _SAME | (_ON_CPU if on_cpu else {}) | ({"VLLM_BATCH_INVARIANT": "1"} if batch_invariant else {})
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


class Engine:
    """A model loaded by vLLM; `settings` are keyword arguments of its `EngineArgs`."""

    #: The engine that lives in this process, if any. Ending an engine ends the process groups of all engines, so a new
    #: engine replaces the old one, whose backend starts it again when it is asked.
    _here: ClassVar[weakref.ref[Engine] | None] = None

    def __init__(self, settings: Mapping[str, Any]) -> None:
        from vllm import envs
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        from anchoreval.vllm_plugin.rope import forget

        self._inside = not envs.VLLM_ENABLE_V1_MULTIPROCESSING
        other = Engine._here() if Engine._here is not None else None
        if self._inside and other is not None:
            other.close()
        forget()
        with _quiet(), _one_line(str(settings["model"])):
            self._engine: Any = LLMEngine.from_engine_args(EngineArgs(**settings))
        Engine._here = weakref.ref(self) if self._inside else Engine._here
        with _quiet():
            self._said = dict(self._engine.collective_rpc("anchoreval_says")[0])
        config = self._engine.vllm_config
        scheduler, kept = config.scheduler_config, config.cache_config
        self.batching = Batching(int(scheduler.max_num_batched_tokens), int(scheduler.max_num_seqs))
        size = int(kept.block_size)
        self.cache = Cache(int(kept.kv_cache_size_tokens) // size - 1, size)  # vLLM keeps one block unused
        self._live: dict[str, int] = {}  # id of a prompt that is with the engine -> its place in the lot
        self._asked = 0
        self.computed_tokens = self.cached_tokens = 0  # of prompts

    @property
    def says(self) -> dict[str, Json]:
        """What the running model computes, by its worker's own account (vllm_plugin.says)."""
        return dict(self._said)

    def forget(self) -> None:
        """Empty vLLM's prefix cache, so that the next results depend only on what is asked next."""
        if not self._engine.reset_prefix_cache():
            raise ModelError("vLLM could not empty its prefix cache: prompts are still being computed")

    def replies(self, asks: Sequence[Ask]) -> list[Reply]:
        """Return a reply to each ask, in order, all of them computed together."""
        slots: list[Reply | None] = [None] * len(asks)
        for i, output in self._outputs(asks, final_only=True):
            slots[i] = _reply(asks[i], output)
        replies = [reply for reply in slots if reply is not None]
        if len(replies) < len(asks):
            raise ModelError(f"vLLM left {len(asks) - len(replies)} of {len(asks)} prompts without an answer")
        return replies

    def tokens(self, asks: Sequence[Ask]) -> Iterator[tuple[int, int, float]]:
        """Yield (place of the ask, new token, its log-probability) as they are generated; `stop` ends one of them."""
        for i, output in self._outputs(asks, final_only=False):
            completion = output.outputs[0]
            for at, token in enumerate(completion.token_ids):
                yield i, token, completion.logprobs[at][token].logprob

    def stop(self, place: int) -> None:
        """End an ask of the lot that is being generated; do nothing if it has ended."""
        for name in [name for name, i in self._live.items() if i == place]:
            del self._live[name]
            self._engine.abort_request([name])

    @property
    def alive(self) -> bool:
        """Whether the engine has not been closed, by its backend or by another engine of this process."""
        return self._engine is not None

    def close(self) -> None:
        """End the engine and free its memory."""
        if not self.alive:
            return
        with _quiet():
            self._engine.engine_core.shutdown()
            self._engine = None
            gc.collect()
        Engine._here = None if self._inside else Engine._here

    def _outputs(self, asks: Sequence[Ask], final_only: bool) -> Iterator[tuple[int, Any]]:
        """Yield (place of the ask, vLLM's output), step by step, until all have ended."""
        if not self.alive:
            raise ModelError("another vLLM backend was opened in this process while this one was answering")
        try:
            for i, ask in enumerate(asks):
                name = str(self._asked)
                self._asked += 1
                self._live[name] = i
                prompt = {"prompt_token_ids": list(ask.token_ids), "cache_salt": ask.context.salt}
                self._engine.add_request(name, prompt, _sampling(ask, final_only))
            counted: set[int] = set()
            while self._live:
                for output in self._engine.step():
                    place = self._live.get(output.request_id)
                    if output.finished:
                        self._live.pop(output.request_id, None)
                    if place is None:  # stopped a step ago
                        continue
                    if place not in counted:
                        counted.add(place)
                        self._count(output)
                    yield place, output
        finally:
            left, self._live = list(self._live), {}
            if left and self.alive:
                self._engine.abort_request(left)

    def _count(self, output: Any) -> None:
        cached = int(output.num_cached_tokens or 0)
        self.cached_tokens += cached
        self.computed_tokens += len(output.prompt_token_ids) - cached


def _sampling(ask: Ask, final_only: bool) -> Any:
    """Return the sampling parameters of an ask: greedy, without detokenizing, ended by the ask's own tokens alone."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    scored = {} if ask.rows_from is None else {"prompt_logprobs": _TIES, "flat_logprobs": True}
    return SamplingParams(
        temperature=0.0,
        max_tokens=ask.new_tokens,
        min_tokens=ask.fewest,
        stop_token_ids=list(ask.ends),
        ignore_eos=True,
        detokenize=False,
        logprob_token_ids=list(ask.next_ids) or None,
        logprobs=None if ask.next_ids or final_only else 0,
        skip_reading_prefix_cache=ask.afresh,
        extra_args=None if ask.context.plan is None else {"anchoreval_plan": list(ask.context.plan)},
        output_kind=RequestOutputKind.FINAL_ONLY if final_only else RequestOutputKind.DELTA,
        **scored,
    )


def _reply(ask: Ask, output: Any) -> Reply:
    """Return what is used of vLLM's output; rows that it never wrote are left out."""
    completion, cached = output.outputs[0], int(output.num_cached_tokens or 0)
    behind = {token: completion.logprobs[0][token].logprob for token in ask.next_ids}
    rows = ()
    if ask.rows_from is not None and ask.rows_from > cached:
        flat = output.prompt_logprobs
        rows = tuple(_judged(flat, i) for i in range(ask.rows_from, len(ask.token_ids)))
    return Reply(cached, completion.token_ids[0], behind, rows)


def _judged(flat: Any, i: int) -> Any:
    """Return the score of prompt token i, whose entry holds that token first and then the likeliest ones."""
    part = slice(flat.start_indices[i], flat.end_indices[i])
    ids, logprobs = flat.token_ids[part], flat.logprobs[part]
    return judged(ids[0], logprobs[0], dict(zip(ids[1:], logprobs[1:], strict=True)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of the libraries inside the block: they are about the libraries' own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _one_line(model: str) -> Iterator[None]:
    """Raise a one-line ModelError if an engine fails to start, after taking down what it had begun."""
    try:
        yield
    except AnchorEvalError:
        _take_down()
        raise
    except (ValueError, RuntimeError, OSError, TypeError, KeyError, ImportError, NotImplementedError) as error:
        _take_down()
        line = " ".join(str(error).split())[:400]
        raise ModelError(f"vLLM cannot start {model}: {line}") from error


def _take_down() -> None:
    """End the process groups of an engine that did not start, so that another one can."""
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()
