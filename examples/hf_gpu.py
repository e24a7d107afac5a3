"""What of the hf backend only a GPU can show, as one command: python examples/hf_gpu.py --output DIR

    kernels  torch's attention kernels in prefill: a prompt, one that shares its beginning, documents under `anchor`
    chunks   rows that are the last of many keys against float64, beside the whole square in the same bf16
    late     answers whose tokens the host reads behind the next one are those that it waits for
    prefill  seconds of a prompt that shares nothing and of eight questions on one: ours, transformers, lm-eval's hf
    decode   seconds of answers behind unequal prompts: ours, transformers, its continuous batching, lm-eval's hf

A JSON line each, and exit code 1 where one is wrong. Models of lm-eval and vLLM are measured where these are installed;
the first line says which are not. Without a GPU (`--device cpu`) all of it runs in small, so that the script itself can
be tried anywhere; what it prints then says nothing about CUDA.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import profile

from anchoreval.arms.arm import parse_arm
from anchoreval.backends.hf import answer
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.backends.hf.network import LowerRight
from anchoreval.bench.engines import OURS, Setting, absent, device_name, jobs, line, measure, saved
from anchoreval.bench.prefill import request
from anchoreval.schema import Request

FLASH = ("_scaled_dot_product_flash_attention", "_flash_attention_forward", "scaled_dot_product_attention")


def ids(tokens: int, seed: int) -> tuple[int, ...]:
    """Random tokens of anchor-tiny's vocabulary."""
    return tuple(torch.randint(3, 4096, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist())


def kernels(backend: HfBackend, tokens: int, cuda: bool) -> dict[str, Any]:
    """Right where nothing but flash attention ran."""
    context = ids(tokens, 0)
    scored = {"max_new_tokens": 0, "reference_ids": (5, 6, 7)}
    asked = [Request(str(i), (*context, *ids(9, i)), (), (), **scored) for i in (1, 2)]
    ran: dict[str, list[str]] = {}
    for name, arm, requests in (
        ("prompts", "native", asked),
        ("documents", "anchor/native", [request(tokens, 2, 4096, 3)]),
    ):
        with backend.under(parse_arm(arm)), profile() as seen:
            list(backend.answer(requests))
        ran[name] = sorted(
            {event.key.removeprefix("aten::") for event in seen.key_averages() if "attention" in event.key}
        )
    return {"right": not cuda or not {op for ops in ran.values() for op in ops} - set(FLASH), **ran}


def chunks(device: str, tokens: int) -> dict[str, Any]:
    """Compute the last quarter of the rows; right where at most twice as far off as the square."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 8, tokens, 64, generator=generator).bfloat16() for _ in range(3))
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)
    last = tokens // 4
    near = [each.to(device) for each in (q, k, v)]
    mask = LowerRight.of(last, tokens, near[0].device, 512)
    made = {
        "square": scaled_dot_product_attention(*near, is_causal=True)[:, :, -last:],
        "chunk": scaled_dot_product_attention(near[0][:, :, -last:], *near[1:], attn_mask=mask),
    }
    errors = {name: float((out.double().cpu() - exact[:, :, -last:]).abs().max()) for name, out in made.items()}
    return {"right": errors["chunk"] <= 2 * errors["square"], "errors": errors}


def late(backend: HfBackend, tokens: int) -> dict[str, Any]:
    """Answer the same requests, of quite unequal lengths, with the host in step and behind."""
    asked = [Request(str(i), ids(tokens // (1 + i % 5), i), (), (), 8 + 3 * (i % 7)) for i in range(12)]
    said = []
    for answer.LATE in (0, 1):
        said.append({each.sample_id: (each.token_ids, each.finish) for each in backend.answer(asked)})
    return {"right": said[0] == said[1], "answers": len(asked)}


def speed(
    setting: Setting, names: list[str], sizes: list[int], pairs: int, together: int, most: float
) -> dict[str, Any]:
    """Seconds of every engine; right where ours takes at most so many times what transformers takes."""
    found: dict[str, Any] = {"right": True}
    for tokens in sizes:
        by_name = jobs(tokens, pairs, together)
        for job, taken in measure([by_name[name] for name in names], tokens, setting).items():
            found[f"{job}, {tokens:,} tokens"] = [line(name, of, taken[OURS]) for name, of in taken.items()]
            over = [ours / theirs for ours, theirs in zip(taken[OURS], taken["transformers"], strict=True)]
            found["right"] = found["right"] and (setting.device == "cpu" or median(over) <= most)
    return found


def parts(setting: Setting, cuda: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Every part by name."""
    tokens = 8192 if cuda else 1200
    backend = HfBackend.open(setting.folder, dtype=setting.dtype, device=setting.device)
    yield "kernels", lambda: kernels(backend, tokens, cuda)
    yield "chunks", lambda: chunks(setting.device, 4096 if cuda else 256)
    yield "late", lambda: late(backend, tokens // 2)
    backend.close()
    yield (
        "prefill",
        lambda: speed(
            setting, ["score", "questions"], [4096, 16384, 32768] if cuda else [256], 5 if cuda else 1, 8, 1.1
        ),
    )
    yield (
        "decode",
        lambda: speed(setting, ["generate"], [2048] if cuda else [256], 3 if cuda else 1, 32 if cuda else 8, 1.0),
    )


def main() -> int:
    """Every part, a line each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--shape", default="1b", choices=("1b", "8b"), help="of random weights on a GPU")
    options = parser.parse_args()
    cuda = options.device == "cuda"
    positions = 34_000 if cuda else 2_048
    setting = Setting(
        saved(options.shape if cuda else None, positions, options.output / "model"),
        positions,
        options.device,
        128 if cuda else 4,
    )
    facts = {"torch": torch.__version__, "device": device_name(options.device) if cuda else "cpu"}
    print(json.dumps(facts | {"shape": options.shape if cuda else "anchor-tiny", "absent": absent()}), flush=True)
    wrong = 0
    for name, part in parts(setting, cuda):
        try:
            found = part()
        except Exception as error:  # of other engines too: what failed is said, and the next part goes on
            found = {"right": False, "failed": f"{type(error).__name__}: {error}"[:500]}
        wrong += not found["right"]
        print(json.dumps({name: found}), flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
