"""Documents as packed against written-out masks, in float64, on stock models of 18 configurations; and what is refused.

Every request for float32 in stock code (norms, softmax, RoPE) is turned into float64, so that both sides are exact to
1e-12: without it they round to float32 in different places and differ by 2e-8.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from torch import Tensor
from torch.nn import functional

from anchoreval.arms.patch_hf import applied
from anchoreval.arms.precision import _fp32_means
from anchoreval.arms.rope import parse_level
from anchoreval.errors import UnsupportedArm
from anchoreval.training import attention as documents_module
from anchoreval.training import collate, documents
from anchoreval.training.variants import NO_TARGET

CONFIGURATIONS = (
    "llama", "llama-llama3", "llama-yarn", "mistral", "mistral-window", "qwen2", "qwen3", "olmo2", "olmo3",
    "gemma3-local", "phi3", "smollm3", "granite", "starcoder2", "cohere2", "gpt-neox", "glm4", "ernie4.5",
)  # fmt: skip
ANCHOR, LENGTHS = 1, (9, 5, 12)
#: All of it in float64, q and k too.
EXACT = "rope:angle=fp64,table=fp64,rotate=fp64,product=model"
TOLERANCE = 1e-12


def texts(lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    generator = np.random.default_rng(7)
    return [generator.integers(3, 128, length).tolist() for length in lengths]


def build(name: str, dtype: torch.dtype = torch.float64) -> Any:
    model = tiny_models.build(name, dtype)
    model.config.use_cache = False
    return model


def losses(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Mean cross-entropy of the labels, each predicted from the row before it."""
    return functional.cross_entropy(logits_NV[:-1], labels_N[1:], ignore_index=NO_TARGET)


def gradients(model: Any) -> Tensor:
    found = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return torch.cat([gradient.flatten() for gradient in found])


def packed(
    model: Any, variant: str, change: Callable[[dict[str, Any]], None] = lambda _: None, rows: Any = None, **named: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [N, V], the loss, and all gradients, of documents as the package trains them."""
    batch = collate([texts()] if rows is None else rows, variant, ANCHOR, **named)
    change(batch)
    with _fp32_means(torch.float64), documents(model, variant, EXACT):
        labels = batch.pop("labels")[0]
        logits = model(**batch).logits[0]
        loss = losses(logits, labels)
        loss.backward()
    return logits.detach(), loss.detach(), gradients(model)


def written_out(
    model: Any, sees: Callable[[int, int], bool], ids: list[int], positions: list[int], labels: list[tuple[int, int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by a mask [N, N] of pairs, per layer kind; `labels` are (row, target)."""
    window = getattr(model.config, "sliding_window", None)
    kinds = set(getattr(model.config, "layer_types", None) or ())
    place = dict.fromkeys(range(len(ids)), 0)
    start = 0
    for row in range(1, len(ids)):
        start = row if not sees(row, row - 1) or row == 1 else start
        place[row] = row - start + 1

    def mask(size: int | None) -> Tensor:
        seen = [[sees(q, k) and (size is None or _apart(place, q, k) < size) for k in range(len(ids))] for q in place]
        return torch.zeros(1, 1, len(ids), len(ids), dtype=torch.float64).masked_fill(
            ~torch.tensor(seen), float("-inf")
        )

    made: Any = {"full_attention": mask(None), "sliding_attention": mask(window)}
    if "sliding_attention" not in kinds:
        made = mask(window)
    with _fp32_means(torch.float64), applied(model, parse_level(EXACT), "stock"):
        logits = model(torch.tensor([ids]), position_ids=torch.tensor([positions]), attention_mask=made).logits[0]
        rows, targets = (torch.tensor(column) for column in zip(*labels, strict=True))
        loss = functional.cross_entropy(logits[rows], targets)
        loss.backward()
    return logits.detach(), loss.detach(), gradients(model)


def _apart(place: dict[int, int], query: int, key: int) -> int:
    """How far a key lies behind its query in the row [anchor; document]."""
    return place[query] - place[key]


def shared_anchor(model: Any) -> tuple[tuple[Tensor, Tensor, Tensor], list[int]]:
    """The paper's mask over one anchor, and where each row of the packed layout stands in it."""
    documents_ = texts()
    ids = [ANCHOR, *(token for document in documents_ for token in document)]
    owner = [0, *(at + 1 for at, document in enumerate(documents_) for _ in document)]
    first = {number: owner.index(number) for number in set(owner)}
    labels = [(row - 1, ids[row]) for row in range(1, len(ids)) if row != first[owner[row]]]
    rows, at = [], 1
    for document in documents_:
        rows += [0, *range(at, at + len(document))]
        at += len(document)

    def sees(query: int, key: int) -> bool:
        return key <= query and (key == 0 or owner[key] == owner[query])

    return written_out(model, sees, ids, list(range(len(ids))), labels), rows


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_copies_of_the_anchor_are_the_shared_anchor_mask_logits_and_gradients(name: str) -> None:
    model = build(name)
    (logits, loss, gradient), rows = shared_anchor(model)
    got_logits, got_loss, got_gradient = packed(model, "anchor")
    assert relative(got_logits, logits[rows]) <= TOLERANCE
    assert relative(got_loss, loss) <= TOLERANCE
    assert relative(got_gradient, gradient) <= TOLERANCE


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_full_attention_over_the_layout_is_what_the_stock_model_computes(name: str) -> None:
    model = build(name)
    logits = packed(model, "full")[0]
    ids = collate([texts()], "full", ANCHOR)["input_ids"]
    with torch.no_grad(), _fp32_means(torch.float64), applied(model, parse_level(EXACT), "stock"):
        stock = model(ids, attention_mask=torch.ones_like(ids), position_ids=torch.arange(ids.shape[1])[None]).logits[0]
    assert relative(logits, stock) <= TOLERANCE


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_intra_doc_and_its_reset_are_one_function(name: str) -> None:
    model = build(name)
    plain, reset = (packed(model, variant) for variant in ("intra-doc", "intra-doc-reset"))
    assert all(relative(one, other) <= TOLERANCE for one, other in zip(plain, reset, strict=True))


def theirs(batch: dict[str, Any]) -> None:
    """Position ids of the paper's own training script: copies take up ids."""
    positions = torch.arange(batch["input_ids"].shape[1])
    positions[batch["cu_seq_lens_q"][:-1].long()] = 0
    batch["position_ids"] = positions[None]


def shifted_copy(batch: dict[str, Any]) -> None:
    """One copy of the anchor a position off."""
    batch["position_ids"][0, batch["cu_seq_lens_q"][1]] = 1


@pytest.mark.parametrize("wrong", [theirs, shifted_copy])
def test_other_position_ids_are_seen_to_be_another_function(wrong: Callable[[dict[str, Any]], None]) -> None:
    model = build("llama")
    right, other = packed(model, "anchor")[0], packed(model, "anchor", wrong)[0]
    assert relative(other, right) > 1e-4


def test_one_document_is_the_same_bits_under_full_and_anchor() -> None:
    model = build("llama")
    one, other = (packed(model, name, rows=[texts((20,))]) for name in ("full", "anchor"))
    assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def test_chunks_that_interleave_see_their_own_document_alone() -> None:
    model, lengths = build("llama"), (70, 90)
    rows = [texts(lengths)]
    changed = [[[5] * 70, rows[0][1]]]
    one, other = (packed(model, "intra-doc-interleaved", rows=given)[0] for given in (rows, changed))
    assert torch.equal(one[71:], other[71:]) and not torch.equal(one[:71], other[:71])


def test_windows_of_a_batch_do_not_see_each_other() -> None:
    model = build("llama")
    first, second = texts((6, 7)), texts((8, 5))[::-1]
    for variant in ("full", "anchor"):
        alone = torch.cat([packed(model, variant, rows=[window])[0] for window in (first, second)])
        assert relative(packed(model, variant, rows=[first, second])[0], alone) <= TOLERANCE


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_give_the_same_bits(reentrant: bool) -> None:
    model = build("llama", torch.float32).train()
    batch = collate([texts()], "anchor", ANCHOR)
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        with documents(model, "anchor", "bf16") as state:
            model(**batch).loss.backward()
        found.append(gradients(model))
        assert state.forwards == 1 and sum(state.rotations.values()) == (4 if checkpointed else 2)
    assert torch.equal(*found)


def test_mixtures_of_experts_agree_in_float32() -> None:
    model = build("mixtral", torch.float32)
    batch = collate([texts()], "anchor", ANCHOR)
    with torch.no_grad(), documents(model, "anchor", "fp32"):
        logits = model(**batch).logits[0]
    starts = batch["cu_seq_lens_q"].tolist()
    for at, document in enumerate(texts()):  # each alone, behind its anchor, at its place in the window
        ids = torch.tensor([[ANCHOR, *document]])
        own = batch["position_ids"][:, starts[at] : starts[at + 1]]
        with torch.no_grad(), applied(model, parse_level("fp32"), "stock"):
            alone = model(ids, attention_mask=torch.ones_like(ids), position_ids=own).logits[0]
        assert relative(logits[starts[at] : starts[at + 1]], alone) < 1e-5


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    return lambda batch: [batch.pop(key) for key in keys] and None


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", without("cu_seq_lens_q"), "LlamaAttention got no cu_seq_lens_q"),
        ("gemma2", without(), "Gemma2Attention has a soft cap"),
        ("stablelm", without(), "StableLmAttention got no cu_seq_lens_q"),
        ("llama", lambda batch: batch.update(attention_mask=torch.zeros(1, 29)), "padding mask"),
        (
            "llama",
            lambda batch: batch.update(cu_seq_lens_q=batch["cu_seq_lens_q"][:-1]),
            "documents of 16 tokens for 29",
        ),
        ("llama", lambda batch: batch.update(laid_for="full"), "laid out for full under anchor"),
    ],
)
def test_what_would_lose_the_mask_is_refused(name: str, change: Callable[..., Any], message: str) -> None:
    with pytest.raises(UnsupportedArm, match=message):
        packed(build(name), "anchor", change)


def test_sinks_are_refused() -> None:
    model, batch = build("gpt-oss", torch.float32), collate([texts()], "anchor", ANCHOR)
    with pytest.raises(UnsupportedArm, match="attention sinks"), documents(model, "anchor", "fp32"):
        model(**batch)


def test_generate_and_a_cache_are_refused_inside_the_block() -> None:
    model = build("llama", torch.float32)
    with documents(model, "anchor", "fp32"):
        with pytest.raises(UnsupportedArm, match="cu_seq_lens_q"):
            model.generate(torch.tensor([[1, 5, 6]]), max_new_tokens=2, do_sample=False)
        with pytest.raises(UnsupportedArm, match="1 queries on a cache of 4 keys"):
            cache = transformers.DynamicCache(config=model.config)
            for layer in range(2):
                cache.update(torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 16), layer)
            model(torch.tensor([[5]]), past_key_values=cache, use_cache=True)


@pytest.mark.parametrize(
    ("rope", "field", "value", "message"),
    [
        ("native", "", 0, "native is fp32 under autocast and bf16 under FSDP2"),
        ("fp32-qk", "", 0, "keeps q and k wider than the model's bf16"),
        ("bf16", "attention_dropout", 0.1, "attention_dropout: 0.1"),
        ("bf16", "output_router_logits", True, "output_router_logits"),
    ],
)
def test_what_cannot_be_trained_so_is_named(rope: str, field: str, value: Any, message: str) -> None:
    model = build("llama", torch.bfloat16)
    if field:
        setattr(model.config, field, value)
    with pytest.raises(UnsupportedArm, match=message), documents(model, "anchor", rope):
        pass


@pytest.mark.parametrize("name", ["llama-dynamic", "phi3-longrope"])
def test_rope_types_that_follow_the_length_are_refused(name: str) -> None:
    model = build(name, torch.float32)
    with pytest.raises(UnsupportedArm, match="tables follow the longest position"), documents(model, "anchor", "fp32"):
        pass


def test_nothing_is_left_behind() -> None:
    model = build("llama", torch.float32)
    before = tiny_models.state(model)
    with documents(model, "anchor", "bf16"):
        model(**collate([texts()], "anchor", ANCHOR))
    assert tiny_models.state(model) == before


def _of_211(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Any:
    """Compute one document after the other in float32, with the arguments of torch 2.11.0.

    They were read in torch/nn/attention/varlen.py of its wheel, and not run on CUDA. There causality is
    `window_size == (-1, 0)`, which no list is, and key heads are as many as query heads.
    """
    assert (query.ndim, query.shape[1]) == (3, key.shape[1]) and query.dtype is torch.bfloat16
    assert isinstance(window_size, tuple) and window_size[1] == 0 and return_aux is None
    assert cu_seq_q.dtype is torch.int32 and cu_seq_q is cu_seq_k and type(max_q) is int
    out, bounds = [], cu_seq_q.tolist()
    for first, stop in itertools.pairwise(bounds):
        q, k, v = (t[first:stop].transpose(0, 1)[None].float() for t in (query, key, value))
        out.append(documents_module._causal(q, k, v, scale, None if window_size[0] < 0 else window_size[0] + 1))
    assert max(stop - first for first, stop in itertools.pairwise(bounds)) == max_q == max_k
    return torch.cat(out, 2)[0].transpose(0, 1).to(query.dtype)


def _of_213(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa=False):  # type: ignore[no-untyped-def]
    """Those of torch 2.13: key heads are not repeated."""
    assert enable_gqa and query.shape[1] == 2 * key.shape[1]
    key, value = (tensor.repeat_interleave(2, 1) for tensor in (key, value))
    return _of_211(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


@pytest.mark.parametrize("kernel", [_of_211, _of_213])
@pytest.mark.parametrize("window", [None, 4])
def test_the_kernel_of_cuda_is_called_as_each_release_takes_it(
    monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Any], window: int | None
) -> None:
    monkeypatch.setattr(documents_module, "varlen", lambda: (kernel, documents_module.takes_groups(kernel)))
    generator = torch.Generator().manual_seed(0)
    q_NHD, k_NKD, v_NKD = (torch.randn(12, heads, 16, generator=generator).bfloat16() for heads in (4, 2, 2))
    bounds = torch.tensor([0, 5, 12], dtype=torch.int32)
    got = documents_module._on_cuda(q_NHD, k_NKD, v_NKD, bounds, 7, 0.3, window)
    wide = (tensor.float().transpose(0, 1)[None] for tensor in (q_NHD, k_NKD, v_NKD))
    want, _ = documents_module.document_attention(
        torch.nn.Identity(), *wide, None, 0.3, cu_seq_lens_q=bounds, max_length_q=7, sliding_window=window
    )
    assert (got - want[0]).abs().max() <= 2**-8 * want.abs().max()  # one rounding to bf16
    with pytest.raises(UnsupportedArm, match="takes 16 bits, q and k are bf16 and fp32"):
        documents_module._on_cuda(q_NHD, k_NKD.float(), v_NKD, bounds, 7, 0.3, window)


def test_a_torch_whose_kernel_takes_other_arguments_is_refused_by_name() -> None:
    def of_210(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):  # type: ignore[no-untyped-def]
        raise AssertionError

    with pytest.raises(UnsupportedArm, match=r"torch 2\.11 or newer"):
        documents_module.takes_groups(of_210)
    assert callable(documents_module.varlen()[0])  # of the torch that is installed
