"""Decoding: rows of any length in one pass, rows that leave as they end, tokens that the host reads later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import assert_agree, logit_tolerance
from checkpoints import EOS, VOCABULARY, prompts, request
from test_hf_answers import NEW_TOKENS, asked, bits, outputs, plain_logits, spy, stock_tokens, with_stop
from torch import Tensor

from anchoreval.backends.hf import answer, decode
from anchoreval.backends.hf.answer import Answering
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.backends.hf.batches import Limits
from anchoreval.backends.hf.decode import Part, _Several
from anchoreval.backends.hf.probe import settle
from anchoreval.schema import Output, Request

pytestmark = pytest.mark.numeric
UNEQUAL = [request(str(i), ids, 1 + i, (9, 8)[: i % 3]) for i, ids in enumerate(prompts(NEW_TOKENS, 3, 700, seed=5))]


@pytest.fixture
def backend(llama: Path) -> HfBackend:
    return HfBackend.open(str(llama))


def passes(backend: HfBackend) -> list[tuple[int, bool]]:
    """Rows of every decoding pass from now on, and whether they may lie in several stores."""
    seen: list[tuple[int, bool]] = []

    def look(call: dict[str, Any]) -> None:
        if call["input_ids"].shape[1] == 1:
            seen.append((call["input_ids"].shape[0], isinstance(call["attention_mask"], _Several)))

    spy(backend, look)
    return seen


def answering(backend: HfBackend, joint: bool = True, late: int = 0, limits: Limits | None = None) -> Answering:
    made = Answering(
        backend._network, backend._tokenizer, backend._eos, limits or backend.limits, lambda: None, joint=joint
    )
    made.late = late
    return made


def by_id(made: Answering, requests: list[Request]) -> dict[str, Output]:
    return {output.sample_id: output for output in made.outputs(requests)}


def test_rows_of_any_length_decode_together_and_say_what_generate_says(backend: HfBackend) -> None:
    want = {r.sample_id: stock_tokens(backend.model, r.token_ids)[: r.max_new_tokens] for r in UNEQUAL}
    seen = passes(backend)
    assert {name: list(output.token_ids) for name, output in outputs(backend, UNEQUAL).items()} == want
    assert seen == [(max(4, rows), True) for rows in range(NEW_TOKENS - 1, 0, -1)]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.half)])
def test_an_answer_is_the_same_in_one_store_and_beside_others(llama: Path, dtype: str) -> None:
    backend = HfBackend.open(str(llama), dtype=dtype)
    limits = replace(backend.limits, batch_tokens=4_000)  # so that the longest are alone
    made = [by_id(answering(backend, joint, limits=limits), UNEQUAL) for joint in (True, False)]
    assert_agree(UNEQUAL, *made, plain_logits(backend.model), logit_tolerance(backend.model))


@pytest.mark.parametrize("folds", [(), ("cpu",)])
@pytest.mark.parametrize(("heads", "kv_heads", "solo"), [(4, 2, False), (4, 4, False), (4, 2, True)])
def test_a_row_attends_to_what_its_store_holds_from_its_first_column_on(
    heads: int, kv_heads: int, solo: bool, folds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "_FOLDS", folds)
    rows, columns, filled = 1 if solo else 3, 20, 17
    draw = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(rows, n, c, 8, generator=draw) for n, c in ((heads, 1), (kv_heads, columns), (kv_heads, columns))
    )
    starts = torch.tensor([[0]] if solo else [[1], [5], [12]])

    class Held:
        def held(self, layer: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
            return k[:rows, :, :columns], v[:rows, :, :columns]

    part = Part(Held(), [None] * rows, filled, torch.arange(columns)[None] >= starts, solo)
    made = part.attend(q, 0)
    for row in range(rows):
        seen = slice(int(starts[row]), filled)
        keys, values = (x[row, :, seen].double().repeat_interleave(heads // kv_heads, 0) for x in (k, v))
        want = (q[row].double() @ keys.transpose(1, 2) / 8**0.5).softmax(-1) @ values
        assert torch.allclose(made[row].double(), want, atol=2.0**-18)


@pytest.mark.parametrize("joint", [True, False])
def test_a_row_that_ended_leaves_at_once_and_four_are_left(backend: HfBackend, joint: bool) -> None:
    free = outputs(backend, asked())
    stops = {name: (output.text[1 + int(name) % 6],) for name, output in free.items() if len(output.text) > 7}
    requests = [with_stop(r, stops.get(r.sample_id, ())) for r in asked()]
    seen = passes(backend)
    cut = by_id(answering(backend, joint), requests)
    going = [sum(len(output.token_ids) > step for output in cut.values()) for step in range(1, NEW_TOKENS)]
    if joint:
        assert seen == [(max(4, rows), True) for rows in going if rows]
    assert min(rows for rows, _ in seen) == 4 and len({rows for rows, _ in seen}) > 2
    for name, output in cut.items():
        assert free[name].token_ids[: len(output.token_ids)] == output.token_ids


@pytest.mark.parametrize("late", [1, 3])
def test_tokens_that_the_host_reads_later_are_the_same_and_so_is_where_they_end(backend: HfBackend, late: int) -> None:
    free = by_id(answering(backend), asked())
    backend._eos = frozenset({EOS, free["3"].token_ids[4], free["5"].token_ids[2]})
    stops = {name: (output.text[3],) for name, output in free.items() if len(output.text) > 7 and int(name) % 2}
    requests = [replace(with_stop(r, stops.get(r.sample_id, ())), min_new_tokens=2) for r in asked()]
    want = bits(by_id(answering(backend), requests))
    assert {finish for _, _, finish, _ in want.values()} == {"stop", "length"}
    assert bits(by_id(answering(backend, late=late), requests)) == want


def test_what_is_computed_ahead_of_the_host_stays_within_its_store(backend: HfBackend) -> None:
    """128 tokens fill the 128 columns behind a prompt; the shorter answer's store has as many and ends sooner."""
    backend._eos = frozenset()
    requests = [request("long", prompts(1, 128, 128)[0], 128), request("short", prompts(1, 300, 300)[0], 5)]
    made = by_id(answering(backend, late=3), requests)
    assert {name: len(output.token_ids) for name, output in made.items()} == {"long": 128, "short": 5}


def test_logits_that_are_not_finite_end_their_row_alone(backend: HfBackend) -> None:
    want = bits(by_id(answering(backend), UNEQUAL))
    bad = request("bad", (1, VOCABULARY - 1, 9), NEW_TOKENS)
    with torch.no_grad():
        backend.model.get_input_embeddings().weight[VOCABULARY - 1] = torch.nan
    clean = [r for r in UNEQUAL if VOCABULARY - 1 not in (*r.token_ids, *want[r.sample_id][0])]
    made = by_id(answering(backend, late=2), [*clean, bad])
    assert (made["bad"].finish, made["bad"].lost) == ("error", "not_finite")
    assert {r.sample_id: bits(made)[r.sample_id] for r in clean} == {r.sample_id: want[r.sample_id] for r in clean}


def test_a_model_whose_code_reads_the_mask_is_answered_store_by_store(backend: HfBackend) -> None:
    assert backend._network.joint
    want = bits(outputs(backend, asked()))
    spy(backend, lambda call: call["attention_mask"].sum())
    settle(backend._network, backend._tokenizer)
    assert backend._network.apart and not backend._network.joint
    assert bits(outputs(backend, asked())) == want


def test_a_gpu_is_a_token_ahead_and_a_cpu_in_step(backend: HfBackend) -> None:
    assert (
        answer.LATE == 1
        and Answering(backend._network, backend._tokenizer, frozenset(), Limits(), lambda: None).late == 0
    )
