"""The two realisations of isolated documents in the backend: rows == FlexAttention == the written-out mask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import BOS, SHAPE, save_model
from test_hf_patterns import ASKED, CONFIGS, agree, answers, bits, dense, open_hf, prompt

from anchoreval import evaluate
from anchoreval.arms.arm import parse_arm
from anchoreval.backends.hf import load as hf_load
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.errors import ModelError, UnsupportedArm

ARMS = ["anchor/native", "intra-doc/native+reset", "anchor/native+anchor-reset"]


@pytest.mark.parametrize("name", ["llama", "mistral, window", "gemma3", "gpt-neox"])
def test_rows_flex_and_the_written_out_mask_are_one_function(name: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path, CONFIGS[name])
    rows, flex = (open_hf(folder, realisation=realisation) for realisation in ("rows", "flex"))
    rows.model.double(), flex.model.double()
    for arm in ARMS:
        by_rows, by_flex = answers(rows, arm, ASKED), answers(flex, arm, ASKED)
        for asked in ASKED:
            one, other = by_rows[asked.sample_id], by_flex[asked.sample_id]
            assert one.token_ids == other.token_ids
            forced = dense(flex.model, asked.token_ids + asked.reference_ids, asked, arm)
            last = forced[len(asked.token_ids) - 1 : -1].log_softmax(-1)
            want = float(last[torch.arange(len(last)), torch.tensor(asked.reference_ids)].sum())
            assert one.reference_logprob == pytest.approx(want, rel=1e-6), (arm, asked.sample_id)
            assert other.reference_logprob == pytest.approx(want, rel=1e-6), (arm, asked.sample_id)


def test_a_prompt_that_ends_with_a_document_is_answered_from_its_last_token(llama: Path) -> None:
    ending = prompt("ending", (3, 16, 21, 32))
    rows, flex = (answers(open_hf(llama, realisation=r), "anchor/native", [ending])["ending"] for r in ("rows", "flex"))
    assert rows.token_ids == flex.token_ids
    assert rows.reference_logprob == pytest.approx(flex.reference_logprob, rel=1e-5)


def test_only_masked_prompts_go_through_flex_and_one_document_gives_the_bits_of_full(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    stock = hf_load.StockNetwork.masked_logits

    def spy(self: Any, ids_1N: torch.Tensor, *rest: Any) -> torch.Tensor:
        passes.append(ids_1N.shape[1])
        return stock(self, ids_1N, *rest)

    monkeypatch.setattr(hf_load.StockNetwork, "masked_logits", spy)
    one = replace(ASKED[0], segment_ids=(-1, *[1] * 67, *[4] * 42))
    flex, rows = open_hf(llama, realisation="flex"), open_hf(llama)
    full = bits(answers(flex, "bf16", [one]))
    assert bits(answers(flex, "anchor/bf16", [one])) == full == bits(answers(rows, "bf16", [one]))
    assert passes == [3]  # the trial of the model
    answers(flex, "anchor/bf16", ASKED)
    assert sorted(passes[1:]) == sorted(len(asked.token_ids) for asked in ASKED)
    answers(rows, "anchor/bf16", ASKED)
    assert len(passes) == 4


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.half)])
def test_answers_by_flex_do_not_depend_on_what_shares_their_batch(llama: Path, dtype: str) -> None:
    backend = open_hf(llama, dtype=dtype, realisation="flex")
    together = answers(backend, "anchor/native", ASKED)
    alone = {k: v for asked in ASKED for k, v in answers(backend, "anchor/native", [asked]).items()}
    agree(backend, "anchor/native", ASKED, together, alone)


def test_the_realisation_is_part_of_the_identity_and_rows_keep_theirs(llama: Path) -> None:
    rows, flex = open_hf(llama), open_hf(llama, realisation="flex")
    assert rows.fingerprint == open_hf(llama, realisation="rows").fingerprint != flex.fingerprint
    for backend, said in ((rows, "causal row"), (flex, "one pass of FlexAttention")):
        with backend.under(parse_arm("anchor/bf16")) as applied:
            assert said in applied["realisation"] and applied["rope"]["forwards"] == 0
        with backend.under(parse_arm("bf16")) as applied:
            assert applied["realisation"] == "one causal row"
    assert (rows.describe()["realisation"], flex.describe()["realisation"]) == ("rows", "flex")
    with pytest.raises(ModelError, match="rows, flex"):
        open_hf(llama, realisation="dense")


def test_the_identity_of_an_engine_holds_what_decides_answers_and_no_version(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs of format 2 are known by: another field here would make every run begin anew."""
    import json

    from anchoreval.backends.hf import backend as hf

    hashed: list[Any] = []
    dumps = json.dumps
    backend = open_hf(llama)
    monkeypatch.setattr(hf.json, "dumps", lambda value, **named: (hashed.append(value), dumps(value, **named))[1])
    assert backend.fingerprint
    fields = {"weights", "engine", "eos", "dtype", "prefill", "reference_tokens"}
    assert hashed[-1].keys() == fields


def test_a_model_that_flex_cannot_compute_is_refused_by_name_before_any_prompt(tmp_path: Path) -> None:
    shape = {**SHAPE, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 12}
    folder = save_model(tmp_path, transformers.GptOssConfig(**shape))
    backend = HfBackend.open(str(folder), kernel="eager", realisation="flex")
    with (
        pytest.raises(UnsupportedArm, match=r"anchor/native.*realisation 'flex'.*attention sinks: use rows") as refused,
        backend.under(parse_arm("anchor/native", kernel="eager")),
    ):
        pass
    assert "\n" not in str(refused.value)
    with backend.under(parse_arm("native", kernel="eager")):
        assert len(list(backend.answer([replace(ASKED[0], token_ids=(BOS, *ASKED[0].token_ids[1:]))]))) == 1


def test_both_realisations_give_anchor_tiny_the_same_answers(tmp_path: Path) -> None:
    made = [
        evaluate(
            "anchor-tiny",
            "ruler/niah_single_1",
            lengths=[512],
            arms="fp32,anchor/fp32,intra-doc/fp32",
            limit=2,
            document_tokens=100,
            output=tmp_path / realisation,
            backend_args={"realisation": realisation},
        )
        for realisation in ("rows", "flex")
    ]
    rows, flex = ({(r.arm, r.index): r for r in result.records} for result in made)
    assert rows.keys() == flex.keys() and len(rows) == 6
    for at, record in rows.items():
        assert record.output == flex[at].output
        assert record.reference_logprob == pytest.approx(flex[at].reference_logprob, abs=1e-4)
        assert record.key != flex[at].key
