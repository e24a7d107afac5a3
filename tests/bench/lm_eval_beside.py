"""`bench lm-eval`: our model in lm-eval beside its own `hf` model, on the same prompts, in one process.

Time is measured for questions behind one long context, each with its own answer to score; memory for one answer behind
one long prompt. Both jobs score log-probabilities, for which `hf` computes logits of the whole vocabulary at every
token.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MIB = 1 << 20
VOCABULARY = 32_768
_ANSWER_TOKENS = 3
Pair = tuple[tuple[str, str], list[int], list[int]]


@dataclass(frozen=True, slots=True)
class Beside:
    """The two models on the same prompts: CPU seconds, or bytes of peak memory beyond the memory held before.

    `apart` is the largest difference between their log-probabilities.
    """

    hf: float
    ours: float
    apart: float

    @property
    def ratio(self) -> float:
        """How many times less our model takes."""
        return self.hf / self.ours


def measure_time(length: int, questions: int) -> Beside:
    """Measure CPU seconds of one thread for `questions` answers behind one context, on the embedded model.

    It has four layers of 256 and a vocabulary of 4,096; with a larger vocabulary, `hf` takes more.
    """
    from anchoreval.cards import find_model

    folder = find_model("anchor-tiny")[1].checkpoint
    theirs, ours = _models(folder, folder, length + 64)
    shared_ids = _ids(length, 4_096, 0)
    pairs = [_pair([*shared_ids, *_ids(16, 4_096, number + 1)], 4_096) for number in range(questions)]
    for model in (theirs, ours):
        _scored(model, [_pair(_ids(600, 4_096, 99), 4_096)])  # warm up what the libraries do once
    began = time.process_time()
    mine = _scored(ours, pairs)
    between = time.process_time()
    other = _scored(theirs, pairs)
    return Beside(time.process_time() - between, between - began, _apart(mine, other))


def measure_peak(length: int, vocabulary: int = VOCABULARY) -> Beside:
    """Measure the bytes of peak memory of a random Llama of two layers, in float32; Linux only."""
    from anchoreval.bench.memory import peak_of, save_llama
    from anchoreval.cards import find_model

    with tempfile.TemporaryDirectory() as folder:
        save_llama(Path(folder), length + 64, vocabulary)
        theirs, ours = _models(folder, find_model("anchor-tiny")[1].checkpoint, length + 64)
        peaks, answers = [], []
        for model in (ours, theirs):  # the larger one last, because the process may keep its memory
            _scored(model, [_pair(_ids(8, vocabulary, 99), vocabulary)])
            before, peak = peak_of(
                lambda model=model: answers.append(_scored(model, [_pair(_ids(length, vocabulary, 0), vocabulary)]))  # type: ignore[misc]
            )
            peaks.append(peak - before)
    return Beside(peaks[1], peaks[0], _apart(*answers))


def report_lm_eval(length: int = 13_000, questions: int = 8, memory_length: int = 32_768) -> str:
    """Return the figures as two sentences."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        peak = measure_peak(memory_length)  # first, because a peak does not show in memory that the process already has
        seconds = measure_time(length, questions)
    finally:
        torch.set_num_threads(threads)
    return (
        f"{questions} questions behind one context of {length} tokens: hf {seconds.hf:.1f} CPU s, anchoreval "
        f"{seconds.ours:.1f} CPU s, {seconds.ratio:.1f} times faster; log-probabilities within {seconds.apart:.1e}\n"
        f"one prompt of {memory_length} tokens, vocabulary {VOCABULARY}: peak beyond weights hf {peak.hf / _MIB:.0f} "
        f"MiB, anchoreval {peak.ours / _MIB:.0f} MiB, {peak.ratio:.1f} times less; within {peak.apart:.1e}"
    )


def _models(folder: str, tokenizer: str, positions: int) -> tuple[Any, Any]:
    """Return (lm-eval's `hf` model, our model) of one checkpoint under the stock arm."""
    from lm_eval.models.huggingface import HFLM

    from anchoreval.lm_eval_plugin.model import AnchorEvalLM

    given: dict[str, Any] = {"pretrained": folder, "tokenizer": tokenizer, "dtype": "float32", "device": "cpu"}
    given["max_length"] = positions
    return HFLM(**given, batch_size=1), AnchorEvalLM(**given)


def _scored(model: Any, pairs: Sequence[Pair]) -> list[float]:
    return [logprob for logprob, _ in model._loglikelihood_tokens(pairs, disable_tqdm=True)]


def _ids(tokens: int, vocabulary: int, seed: int) -> list[int]:
    import torch

    return torch.randint(3, vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def _pair(context: list[int], vocabulary: int) -> Pair:
    return ("", ""), context, _ids(_ANSWER_TOKENS, vocabulary, len(context))


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
