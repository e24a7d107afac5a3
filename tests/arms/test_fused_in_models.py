"""The fused kernel in whole models: against float64 attention, in one pass and in chunks on a cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny_models as tiny
import torch
from tiny_models import chunked_logits
from torch import Tensor

from anchoreval.arms.patch_hf import applied
from anchoreval.arms.rope import LEVELS

pytestmark = pytest.mark.half
BF16 = torch.bfloat16


@pytest.mark.parametrize("level", ["native", "bf16", "fp32-qk"])
def test_generation_runs_on_the_fused_kernel(level: str) -> None:
    llama = tiny.build("llama", BF16)
    with applied(llama, LEVELS[level], "fused"):
        ids = tiny.token_ids(6)
        out = llama.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert out.shape == (1, 10)


def explicit(call: Any, start: int) -> tuple[Tensor, Tensor]:
    """Attention output [B, Q, H, D] of a recorded call, by explicit float64 attention, and its error budget.

    Budget, u = 2**-24. A score is a dot product of D terms, scaled: off by at most (D + 2) u sum|q k| scale;
    tanh adds 4 u softcap and does not magnify. Weights are off by twice the scores' error and (L + 8) u in
    relative terms, and so is the output relative to the largest value.
    """
    q, k, v = call["q"].double(), call["k"].double(), call["v"].double()
    group = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(group, 1) for t in (k, v))
    scale = call["scaling"]
    scores, sizes = (torch.einsum("bhqd,bhkd->bhqk", a, b) * scale for a, b in ((q, k), (q.abs(), k.abs())))
    slack = (q.shape[-1] + 2) * 2**-24 * float(sizes.max())
    if cap := call.get("softcap"):
        scores, slack = cap * torch.tanh(scores / cap), slack + 4 * 2**-24 * cap
    query = torch.arange(q.shape[2])[:, None] + start
    key = torch.arange(k.shape[2])[None, :] + start + q.shape[2] - k.shape[2]
    window = call.get("sliding_window") or 10**9
    scores = scores.masked_fill(~((key <= query) & (key > query - window)), -torch.inf)
    if call.get("s_aux") is not None:
        sink = call["s_aux"].double()[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sink], -1)
    weights = scores.softmax(-1)[..., : k.shape[2]]
    error = 2 * slack + (k.shape[2] + 8) * 2**-24
    return torch.einsum("bhqk,bhkd->bqhd", weights, v), error * v.abs().amax()


WINDOWS = ["mistral-window", "gemma2", "gemma3-local", "gpt-oss", "olmo3", "cohere2"]


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt-neox", "glm4", *WINDOWS])
def test_fp32_qk_attends_as_float64_does_in_one_pass_and_in_chunks(
    name: str, dtype: torch.dtype, kernel_calls: list[Any]
) -> None:
    model = tiny.build(name, dtype)
    model_unit = {torch.float32: 2**-24, BF16: 2**-8}[dtype]
    outputs = []
    for lengths in ([30], [7, 12, 1, 10]):
        kernel_calls.clear()
        with applied(model, LEVELS["fp32-qk"], "fused"):
            chunked_logits(model, lengths)
        first = []
        for call, start in zip(kernel_calls, _starts(lengths, layers=2), strict=True):
            assert call["q"].dtype is call["k"].dtype is torch.float32
            want, bound = explicit(call, start)
            bound = bound + model_unit * (want.abs() + bound)  # the output is handed on in the model's dtype
            assert ((call["out"].double() - want).abs() <= bound).all(), (lengths, start)
            first.append((call["out"].double(), bound))
        outputs.append(first[::2])
    (whole, whole_bound), parts = outputs[0][0], outputs[1]
    chunked = torch.cat([out for out, _ in parts], 1)
    allowed = whole_bound + torch.cat([bound for _, bound in parts], 1)
    assert ((whole - chunked).abs() <= allowed).all()  # layer 0 has the same inputs in both


def _starts(lengths: list[int], layers: int) -> Iterator[int]:
    for i in range(len(lengths)):
        yield from [sum(lengths[:i])] * layers


def test_padding_on_the_left_changes_no_logits_of_the_text() -> None:
    model, ids = tiny.build("mistral-window"), tiny.token_ids(20)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], 1)
    mask = torch.cat([torch.zeros(1, 5, dtype=torch.long), torch.ones_like(ids)], 1)
    positions = torch.arange(20)[None]
    with torch.no_grad(), applied(model, LEVELS["fp32-qk"], "fused"):
        alone = model(ids, attention_mask=torch.ones_like(ids), position_ids=positions).logits
        moved = torch.cat([torch.zeros(1, 5, dtype=torch.long), positions], 1)
        beside = model(padded, attention_mask=mask, position_ids=moved).logits
    assert beside.isfinite().all()
    # the same sums in another order, through two layers: 64 terms of 2**-24 each, hidden states of order one
    torch.testing.assert_close(beside[:, 5:], alone, rtol=0, atol=64 * 8 * 2**-24 * float(alone.abs().max()))
