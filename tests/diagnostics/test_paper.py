"""What is known of AnchorAttention (arXiv 2411.13476) and of BF16 RoPE, each fact as one test.

Fact by fact over ten families of tiny random models, and on the embedded model with prose.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tiny_models import build
from torch import Tensor

from anchoreval.arms.inspect_hf import selftest
from anchoreval.arms.patterns import Block, mask, rows
from anchoreval.arms.rope import LEVELS, RopeLevel
from anchoreval.backends.hf.load import load
from anchoreval.cards import find_model, load_tasks
from anchoreval.diagnostics.doctor.page import prose_ids, trained_length
from anchoreval.diagnostics.probe.record import compare, query_rows, record
from anchoreval.model.checkpoint import find_checkpoint
from anchoreval.prompt import anchor_token
from anchoreval.tokenizer import load_tokenizer
from tests.conftest import REPOSITORY

FAMILIES = [
    "llama", "mistral", "qwen2", "qwen3", "gemma3-global", "phi3", "olmo2", "mixtral", "gpt-neox", "smollm3",
]  # fmt: skip
EMBEDDED = "anchor-tiny"
DOCUMENTS = (7, 5, 9)


@pytest.fixture(scope="module")
def embedded() -> tuple[Any, list[int]]:
    """anchor-tiny as stored, in bf16, and prose behind its anchor token."""
    checkpoint = find_checkpoint(find_model(EMBEDDED)[1].checkpoint)
    network = load(checkpoint, "auto", "cpu", "sdpa", trust_remote_code=False)
    return network.model, prose_ids(load_tokenizer(checkpoint.folder), 257)


def model_and_ids(name: str, embedded: tuple[Any, list[int]], tokens: int) -> tuple[Any, list[int]]:
    """In float64, with the reference kernel; every document mask is then read as it is written."""
    import copy

    if name == EMBEDDED:
        model, ids = copy.deepcopy(embedded[0]), embedded[1]
    else:
        model = build(name)
        ids = torch.randint(3, 128, (tokens,), generator=torch.Generator().manual_seed(5)).tolist()
    model = model.double()
    model.config._experts_implementation = "eager"  # the grouped product takes no float64
    model.set_attn_implementation("eager")
    return model, ids[:tokens]


@torch.no_grad()
def logits(model: Any, ids: list[int], positions: list[int], seen: Tensor | None = None) -> Tensor:
    """Logits [tokens, vocabulary] under a mask of booleans [tokens, tokens], None being causal."""
    given = torch.ones(len(ids), len(ids)).tril().bool() if seen is None else seen
    added = torch.zeros(given.shape, dtype=torch.float64).masked_fill(~given, torch.finfo(torch.float64).min)
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    both: Any = dict.fromkeys(kinds, added[None, None])
    masks = both if model.config.model_type.startswith(("gemma3", "qwen", "smollm3")) else added[None, None]
    out = model(
        torch.tensor([ids]), position_ids=torch.tensor([positions]), attention_mask=masks, use_cache=False
    ).logits
    return out[0]


def packed() -> tuple[list[Block], list[int], Tensor]:
    """The anchor and three documents behind it: blocks, starts and the mask of the authors' flex path, by formula."""
    blocks, at = [Block("anchor", 0, 1)], 1
    for size in DOCUMENTS:
        blocks.append(Block("document", at, at + size))
        at += size
    doc = torch.tensor([0] + [n for n, size in enumerate(DOCUMENTS, 1) for _ in range(size)])
    seen = ((doc[:, None] == doc) | (doc == 0)) & torch.ones(at, at).tril().bool()
    return blocks, [block.start for block in blocks[1:]], seen


@pytest.mark.parametrize("name", [*FAMILIES, EMBEDDED])
def test_the_anchor_mask_equals_copies_with_matched_ids_and_not_those_of_the_authors_script(
    name: str, embedded: tuple[Any, list[int]]
) -> None:
    blocks, starts, seen = packed()
    assert mask(blocks, "anchor", len(seen)) == seen.tolist()
    model, ids = model_and_ids(name, embedded, len(seen))
    shared = logits(model, ids, list(range(len(ids))), seen)
    # transformers computes softmax, norms or tables in fp32 in places, whatever the model's dtype
    worst, apart, most = 0.0, 0.0, 1e-6 * max(1.0, float(shared.abs().max()))
    for number, (start, size) in enumerate(zip(starts, DOCUMENTS, strict=True)):
        copied = [ids[0], *ids[start : start + size]]
        want = shared[start : start + size]
        matched = logits(model, copied, [0, *range(start, start + size)])[1:]
        worst = max(worst, float((matched - want).abs().max()))
        # train.py: ids run over the copies too, then 0 is written at every copy: document k is k places farther away
        script = logits(model, copied, [0, *range(start + number, start + number + size)])[1:]
        difference = float((script - want).abs().max())
        assert difference <= most if number == 0 else difference > 0
        apart = max(apart, difference)
    assert worst <= most < apart / 10


@pytest.mark.parametrize("name", [*FAMILIES, EMBEDDED])
def test_one_document_under_the_anchor_mask_is_causal_bit_for_bit(name: str, embedded: tuple[Any, list[int]]) -> None:
    blocks = [Block("anchor", 0, 1), Block("document", 1, 22)]
    assert rows(blocks, "anchor") == ()  # so the prompt runs as under `full`
    model, ids = model_and_ids(name, embedded, 22)
    seen = torch.tensor(mask(blocks, "anchor", 22))
    assert torch.equal(logits(model, ids, list(range(22)), seen), logits(model, ids, list(range(22))))


def drift(model: Any, level: RopeLevel, ids: list[int]) -> float:
    """D_logit of all layers under a shift by 16."""
    one, other = (record(model, level, ids, shift=at, rows=query_rows(len(ids), 64)) for at in (0, 16))
    return float(sum(compare(one.layers[at], other.layers[at]).D_logit.sum() for at in one.layers))


@pytest.mark.parametrize("name", [*FAMILIES, EMBEDDED])
def test_a_shift_of_all_positions_changes_nothing_in_fp64(name: str, embedded: tuple[Any, list[int]]) -> None:
    model, ids = model_and_ids(name, embedded, 64)
    one, other = (record(model, LEVELS["fp64"], ids, shift=at, rows=torch.arange(64)) for at in (0, 4096))
    for at in one.layers:
        largest = float(one.layers[at].q.abs().max() * one.layers[at].k.abs().max())
        assert float(compare(one.layers[at], other.layers[at]).key_logit.max()) < 2e-5 * max(1.0, largest)


@pytest.mark.half
def test_end_to_end_drift_goes_down_the_ladder_and_only_a_float32_copy_isolates_it(
    embedded: tuple[Any, list[int]],
) -> None:
    import copy

    model, ids = embedded
    stored = drift(model, LEVELS["fp32-qk"], ids)
    wide = copy.deepcopy(model).float()
    levels = [RopeLevel(**{**vars_of(LEVELS[n]), "product": p}) for n, p in (
        ("fp32-qk", "fp32"), ("fp32", "bf16"), ("bf16", "bf16"), ("bf16-angle", "bf16"))]  # fmt: skip
    found = [drift(wide, level, ids) for level in levels]
    assert 20 * found[0] < found[1] <= found[2] and 3 * found[2] < found[3]
    assert 20 * found[0] < stored


def vars_of(level: RopeLevel) -> dict[str, Any]:
    import dataclasses

    return {field.name: getattr(level, field.name) for field in dataclasses.fields(level)}


@pytest.mark.half
@pytest.mark.parametrize("name", [*FAMILIES, EMBEDDED])
def test_native_reproduces_the_stock_model_before_any_arm_runs(name: str, embedded: tuple[Any, list[int]]) -> None:
    check = selftest(embedded[0] if name == EMBEDDED else build(name))
    assert check["native_equals_stock"] and check["restored"]


def test_the_context_limit_is_never_positions_times_factor() -> None:
    """Sailor2-L: 131,072 positions and a factor of 4 that its default RoPE ignores; some engines multiply."""
    stated: dict[str, Any] = {"max_position_embeddings": 131072, "rope_scaling": {"type": "default", "factor": 4.0}}
    card = find_model(EMBEDDED)[1]
    assert trained_length(stated, card.model_copy(update={"max_length": None}), None)["trained"] == 131072
    assert trained_length(stated, card, None)["trained"] == card.max_length == 8192
    assert trained_length(stated, card, 99)["trained"] == 99


def test_the_anchor_is_bos_and_eos_where_there_is_none() -> None:
    tokenizer = load_tokenizer(REPOSITORY / "models" / EMBEDDED)
    assert anchor_token(tokenizer) == tokenizer.bos
    without = SimpleNamespace(bos=None, eos=tokenizer.eos)
    assert anchor_token(cast("Any", without)) == tokenizer.eos


def test_the_paper_s_eleven_tasks_are_the_thirteen_without_two() -> None:
    known, sets = load_tasks()
    eleven, thirteen = set(sets["ruler-11-wang"]), {name for name in known if name.startswith("ruler/")}
    assert {name.split("/")[1] for name in thirteen - eleven} == {"cwe", "niah_multikey_3"}
    assert len(eleven) == 11 and len(thirteen) == 13 and eleven < thirteen
