"""Documents kept from one group of samples to the next: same bits, only new tokens computed, arms apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import BOS, FIRST_BYTE, VOCABULARY

from anchoreval.arms.arm import parse_arm
from anchoreval.arms.layout import Arrangement
from anchoreval.arms.patch_hf import applied
from anchoreval.arms.rope import LEVELS
from anchoreval.backends.hf.backend import HfBackend, _bits_of
from anchoreval.backends.hf.batches import Limits
from anchoreval.backends.hf.cache import KeptDocuments, KeysValues
from anchoreval.schema import Output, Request

SIZES = (20, 33, 9)


def prompt(name: str, query: int, seed: int, documents: int = len(SIZES)) -> Request:
    """The anchor, the same documents whatever the seed, and a query of its own."""

    def draw(size: int, of: int) -> list[int]:
        return torch.randint(FIRST_BYTE, VOCABULARY, (size,), generator=torch.Generator().manual_seed(of)).tolist()

    sizes = SIZES[:documents]
    ids = [token for i, size in enumerate(sizes) for token in draw(size, i)] + draw(query, 100 + seed)
    segments = [i for i, size in enumerate((*sizes, query)) for _ in range(size)]
    roles: Any = (*["document"] * documents, "query")
    return Request(name, (BOS, *ids), (-1, *segments), roles, 3, (), tuple(draw(3, 7)))


FIRST, SECOND = prompt("first", 11, 1), prompt("second", 17, 2)


def open_hf(folder: Path, **options: Any) -> HfBackend:
    return HfBackend.open(str(folder), **{"chunk_tokens": 16, **options})


def group(backend: HfBackend, arm: str, *asked: Request) -> tuple[dict[str, Any], tuple[int, int]]:
    """Bits of the answers of one `under` block, and document tokens (computed, reused) in it."""
    with backend.under(parse_arm(arm, kernel="auto")):
        made: list[Output] = list(backend.answer(asked))
        counts = backend.documents.prefilled_tokens, backend.documents.reused_tokens
    return {o.sample_id: (o.token_ids, o.reference_logprob) for o in made}, counts


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.half)])
@pytest.mark.parametrize("arm", ["anchor/native", "anchor/fp32-qk", "intra-doc/fp32+reset"])
def test_a_second_group_over_the_same_documents_computes_no_document_and_gets_the_same_bits(
    llama: Path, arm: str, dtype: str
) -> None:
    backend = open_hf(llama, dtype=dtype)
    documents = sum(SIZES) + 1  # the anchor is a row of its own
    assert group(backend, arm, FIRST)[1] == (documents, 0)
    group(backend, "bf16", FIRST)  # another arm in between, as in a run
    second, counts = group(backend, arm, SECOND)
    assert counts == (0, documents)
    fresh, counts = group(open_hf(llama, dtype=dtype), arm, SECOND)
    assert counts == (documents, 0)
    assert second == fresh


@pytest.mark.parametrize(
    "other", ["anchor/bf16-angle", "anchor/native+anchor-reset", "intra-doc/fp32", "anchor/native", "anchor/fp32-qk"]
)
def test_arms_never_share_a_document(llama: Path, other: str) -> None:
    backend = open_hf(llama)
    group(backend, "anchor/fp32", FIRST)
    found, (computed, reused) = group(backend, other, FIRST)
    assert (computed, reused) == (sum(SIZES) + 1, 0)
    assert found == group(open_hf(llama), other, FIRST)[0]


def test_what_a_document_was_computed_by_is_all_of_the_arm(llama: Path) -> None:
    model = open_hf(llama).model
    said = set()
    for level in ("native", "bf16", "fp32"):
        for kernel in ("stock", "fused"):
            with applied(model, LEVELS[level], kernel) as state:  # type: ignore[arg-type]
                said.add(_bits_of(state, Arrangement(pattern="anchor"), Limits()))
    assert len(said) == 6
    with applied(model, LEVELS["native"]) as state:
        plain = Arrangement(pattern="anchor")
        others = [
            _bits_of(state, plain, Limits(chunk_tokens=256)),
            _bits_of(state, plain, Limits(rows=8)),
            _bits_of(state, Arrangement(pattern="intra-doc"), Limits()),
            _bits_of(state, replace(plain, place=lambda _: ()), Limits()),
            _bits_of(state, replace(plain, realisation="flex"), Limits()),
        ]
        assert len({_bits_of(state, plain, Limits()), *others}) == 6
        before = _bits_of(state, plain, Limits())
        model(torch.tensor([[BOS]]))
        assert _bits_of(state, plain, Limits()) == before
    assert json.loads(before)


def test_one_memory_holds_the_documents_of_all_arms(llama: Path) -> None:
    backend = open_hf(llama, batch_tokens=64)
    for arm in ("anchor/native", "anchor/fp32", "intra-doc/native"):
        group(backend, arm, FIRST)
        assert 0 < backend.documents.tokens <= 64
    kept = KeptDocuments(10)
    one, other = kept.of("one"), kept.of("other")
    for arm, name in ((one, b"a"), (other, b"a"), (one, b"b")):
        arm.keep((name, b""), KeysValues((), (), 4))
    assert one.find((b"a", b"")) is None and other.find((b"a", b"")) and one.find((b"b", b""))
    assert kept.tokens == one.tokens == 8


def test_closing_and_running_out_of_memory_give_the_memory_back(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = open_hf(llama)
    group(backend, "anchor/native", FIRST)
    group(backend, "anchor/fp32", FIRST)
    assert backend.documents.tokens == 2 * (sum(SIZES) + 1)
    stock, calls = type(backend._network).logits, []

    def short(*given: Any, **named: Any) -> Any:
        calls.append(backend.documents.tokens)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("too large")
        return stock(*given, **named)

    monkeypatch.setattr(type(backend._network), "logits", short)
    plain = replace(FIRST, sample_id="plain", token_ids=(*FIRST.token_ids[:-1], 3))
    found, _ = group(backend, "native", FIRST, plain)  # an arm without documents runs out: all documents go
    assert calls[0] > 0 and calls[1] == 0 and len(found) == 2
    group(backend, "anchor/native", FIRST)
    assert backend.documents.tokens > 0
    backend.close()
    assert backend.documents.tokens == 0
