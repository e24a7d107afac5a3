"""Positions and attention patterns on the backend against one pass of the stock model with a written-out mask."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from agreement import assert_agree, logit_tolerance
from checkpoints import BOS, EOS, FIRST_BYTE, SHAPE, VOCABULARY, save_model

from anchoreval.arms.arm import parse_arm
from anchoreval.arms.layout import SCHEMES, parse_positions
from anchoreval.arms.patterns import blocks_of, mask
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.errors import UnsupportedArm
from anchoreval.schema import Output, Request

WINDOW = 12
MULTI_HEAD = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}
CONFIGS: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**SHAPE),
    "mistral": transformers.MistralConfig(**SHAPE, sliding_window=None),
    "mistral, window": transformers.MistralConfig(**SHAPE, sliding_window=WINDOW),
    "qwen2": transformers.Qwen2Config(**SHAPE),
    "qwen3": transformers.Qwen3Config(**SHAPE, head_dim=16),
    "gemma3": transformers.Gemma3TextConfig(
        **SHAPE,
        head_dim=16,
        sliding_window=WINDOW,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi3": transformers.Phi3Config(**SHAPE),
    "olmo2": transformers.Olmo2Config(**SHAPE),
    "mixtral": transformers.MixtralConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1, sliding_window=None),
    "gpt-neox": transformers.GPTNeoXConfig(**MULTI_HEAD),
    "smollm3": transformers.SmolLM3Config(**SHAPE, no_rope_layers=[1, 0]),
}
ARMS = [
    "anchor/native",
    "anchor/native+anchor-reset",
    "intra-doc/native+reset",
    "native+anchor-shift:70",
    "sink-window:3:9/native",
    "star:16/native",
]
ROLES = ("preamble", "document", "document", "document", "query", "answer_prefix")


def prompt(name: str, sizes: tuple[int, ...], seed: int = 0, reference: int = 3, new: int = 3) -> Request:
    """Preamble, three documents, query and answer prefix of these sizes, in random tokens."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST_BYTE, VOCABULARY, (sum(sizes) + reference,), generator=draw).tolist()
    segments = tuple(i for i, size in enumerate(sizes) for _ in range(size))
    cut = len(segments)
    return Request(name, (BOS, *ids[:cut]), (-1, *segments), ROLES[: len(sizes)], new, (), tuple(ids[cut:]))


ASKED = [
    prompt("a", (5, 20, 33, 9, 40, 2)),
    prompt("b", (0, 17, 17, 17, 6, 0), seed=1),
    prompt("c", (3, 15, 14, 20, 3, 1), seed=2),  # a query so short that windows reach into documents
]


def open_hf(folder: Path, **options: Any) -> HfBackend:
    return HfBackend.open(str(folder), **{"chunk_tokens": 16, **options})


def dense(model: Any, ids: tuple[int, ...], asked: Request, arm: str) -> torch.Tensor:
    """Logits of one unbatched pass without a cache, the mask written out pair by pair."""
    parsed = parse_arm(arm)
    blocks = blocks_of(asked.segment_ids, asked.roles)
    positions = parsed.positions.of(blocks)
    after = range(positions[-1] + 1, positions[-1] + 1 + len(ids) - len(positions))

    def seen(window: int | None) -> torch.Tensor:
        return torch.tensor(mask(blocks, parsed.attention, len(ids), window))[None, None]

    layers = set(getattr(model.config, "layer_types", None) or ())
    given: Any = seen(getattr(model.config, "sliding_window", None))
    if len(layers) == 2 and "sliding_attention" in layers:
        given = {"full_attention": seen(None), "sliding_attention": given}
    elif layers == {"full_attention"}:
        given = seen(None)
    where = torch.tensor([[*positions, *after]])
    with torch.inference_mode():
        made = model(torch.tensor([ids]), attention_mask=given, position_ids=where, use_cache=False)
    return made.logits[0].double()


def answers(backend: HfBackend, arm: str, asked: list[Request]) -> dict[str, Output]:
    with backend.under(parse_arm(arm)):
        return {output.sample_id: output for output in backend.answer(asked)}


def agree(backend: HfBackend, arm: str, asked: list[Request], one: dict[str, Output], other: dict[str, Output]) -> None:
    """Raise AssertionError unless both are the same computation, answers up to a near tie of the written-out mask."""
    wide = copy.deepcopy(backend.model).double()
    assert_agree(
        asked, one, other, lambda r, tokens: dense(wide, r.token_ids + tokens, r, arm), logit_tolerance(backend.model)
    )


def bits(made: dict[str, Output]) -> dict[str, tuple[Any, ...]]:
    return {name: (o.token_ids, o.reference_logprob) for name, o in made.items()}


@pytest.fixture(params=sorted(CONFIGS), scope="module")
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HfBackend:
    """A model in float64, apart from what its own code computes in float32 (norms, angles)."""
    backend = open_hf(save_model(tmp_path_factory.mktemp("model"), CONFIGS[request.param]))
    backend.model.double()
    backend.model.config._experts_implementation = "eager"  # the grouped product has no float64
    return backend


def test_rows_equal_the_written_out_mask_and_full_attention_does_not(wide: HfBackend) -> None:
    changes, errors = [], []
    for arm in ARMS:
        for name, output in answers(wide, arm, ASKED).items():
            asked = next(r for r in ASKED if r.sample_id == name)
            forced = dense(wide.model, asked.token_ids + asked.reference_ids, asked, arm)
            said = dense(wide.model, asked.token_ids + output.token_ids, asked, arm)
            prompt_tokens = len(asked.token_ids)
            rows = forced[prompt_tokens - 1 : -1].log_softmax(-1)
            want = float(rows[torch.arange(len(rows)), torch.tensor(asked.reference_ids)].sum())
            assert output.reference_logprob == pytest.approx(want, rel=1e-6), (arm, name)
            errors.append(abs(output.reference_logprob - want))
            assert said[prompt_tokens - 1 : -1].argmax(-1).tolist() == list(output.token_ids), (arm, name)
            plain = dense(wide.model, asked.token_ids + asked.reference_ids, asked, "native")
            kept = plain[prompt_tokens - 1 : -1].log_softmax(-1)
            plainly = float(kept[torch.arange(len(kept)), torch.tensor(asked.reference_ids)].sum())
            changes.append(abs(plainly - want))
    assert max(changes) > 10 * max(errors), "the mask changes nothing that this test could tell from rounding"


def test_prompts_without_an_anchor_equal_the_written_out_mask(llama: Path) -> None:
    backend = open_hf(llama)
    backend.model.double()
    asked = [replace(one, token_ids=one.token_ids[1:], segment_ids=one.segment_ids[1:]) for one in ASKED]
    for arm in ("native", "native+shift:70", "native+reset", "intra-doc/native", "intra-doc/native+reset"):
        for name, output in answers(backend, arm, asked).items():
            one = next(each for each in asked if each.sample_id == name)
            logits = dense(backend.model, one.token_ids + one.reference_ids, one, arm)
            rows = logits[len(one.token_ids) - 1 : -1].log_softmax(-1)
            want = float(rows[torch.arange(len(rows)), torch.tensor(one.reference_ids)].sum())
            assert output.reference_logprob == pytest.approx(want, rel=1e-6), (arm, name)
    with pytest.raises(UnsupportedArm, match="first token is the anchor"):
        answers(backend, "anchor/native", asked)


def test_one_document_gives_anchor_and_full_the_same_bits(llama: Path) -> None:
    one = replace(ASKED[0], segment_ids=(-1, *[1] * 67, *[4] * 42))
    backend = open_hf(llama)
    assert bits(answers(backend, "anchor/bf16", [one])) == bits(answers(backend, "bf16", [one]))
    assert bits(answers(backend, "anchor/bf16", ASKED)) != bits(answers(backend, "bf16", ASKED))


def test_a_prompt_that_ends_with_a_document_is_answered_from_its_last_token(llama: Path) -> None:
    ending = prompt("ending", (3, 16, 21, 32))
    backend = open_hf(llama)
    for arm in ("anchor/native", "intra-doc/native+reset"):
        output = answers(backend, arm, [ending])["ending"]
        last = dense(backend.model, ending.token_ids + output.token_ids, ending, arm)
        assert last[len(ending.token_ids) - 1 : -1].argmax(-1).tolist() == list(output.token_ids)


def test_documents_are_prefilled_once_for_all_prompts_that_share_them(llama: Path) -> None:
    backend = open_hf(llama)
    first = ASKED[0]
    moved = move(first)
    for arm, reused in (("anchor/native+anchor-reset", 68), ("anchor/native", 1)):
        with backend.under(parse_arm(arm)):
            before = {o.sample_id: o for o in backend.answer([first])}
            assert (backend.documents.prefilled_tokens, backend.documents.reused_tokens) == (68, 0)
            again = {o.sample_id: o for o in backend.answer([first])}
            assert (backend.documents.prefilled_tokens, backend.documents.reused_tokens) == (68, 68)
            assert bits(again) == bits(before)
            late = {o.sample_id: o for o in backend.answer([moved])}
            assert backend.documents.reused_tokens == 68 + reused
        assert bits(late) == bits(answers(open_hf(llama), arm, [moved]))


def move(asked: Request) -> Request:
    """The same documents in another order."""
    at = [[t for t, s in zip(asked.token_ids, asked.segment_ids, strict=True) if s == i] for i in range(6)]
    order = [3, 0, 2, 1, 4, 5]
    ids = tuple(token for i in order for token in at[i])
    segments = tuple(segment for segment, i in enumerate(order) for _ in at[i])
    roles = tuple(ROLES[i] for i in order)
    return replace(asked, sample_id="moved", token_ids=(BOS, *ids), segment_ids=(-1, *segments), roles=roles)


def test_a_shared_prefix_at_other_positions_is_not_reused(llama: Path) -> None:
    backend = open_hf(llama)
    first = ASKED[0]
    cut = tuple(min(segment, 1) if segment < 4 else segment for segment in first.segment_ids)
    other = replace(first, sample_id="other", segment_ids=cut)  # same tokens, documents end elsewhere
    together = bits(answers(backend, "native+reset", [first, other]))
    alone = {**bits(answers(backend, "native+reset", [first])), **bits(answers(backend, "native+reset", [other]))}
    assert together == alone
    assert together["a"] != together["other"]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.half)])
def test_rows_are_the_same_whatever_is_computed_with_them(llama: Path, dtype: str) -> None:
    backend = open_hf(llama, dtype=dtype)
    asked = [*ASKED, *(prompt(str(i), (4, 30, 18, 18 + i, 12, 1), seed=i) for i in range(3))]
    together = answers(backend, "anchor/native", asked)
    alone = {k: v for r in asked for k, v in answers(backend, "anchor/native", [r]).items()}
    agree(backend, "anchor/native", asked, together, alone)


def test_transformers_never_looks_for_packed_sequences(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import masking_utils

    def guess(*_: Any) -> None:
        raise AssertionError("transformers looked for packed sequences")

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", guess)
    backend = open_hf(llama)
    for scheme in SCHEMES:
        for pattern in ("full", "intra-doc", "anchor"):
            assert len(answers(backend, f"{pattern}/native+{scheme.replace('M', '9')}", ASKED)) == len(ASKED)


def test_explicit_positions_are_computed_as_given(llama: Path) -> None:
    backend = open_hf(llama)
    scheme = parse_positions("anchor-reset")

    def place(asked: Request) -> Iterator[int]:
        return iter(scheme.of(blocks_of(asked.segment_ids, asked.roles)))

    with backend.under(parse_arm("native"), lambda asked: list(place(asked))) as applied:
        explicit = {o.sample_id: o for o in backend.answer(ASKED)}
    assert applied["positions"] == "explicit"
    assert bits(explicit) == bits(answers(backend, "native+anchor-reset", ASKED))
    with backend.under(parse_arm("native"), lambda _: [0, 1]), pytest.raises(UnsupportedArm, match="explicit"):
        list(backend.answer(ASKED))


def test_what_is_applied_is_said(llama: Path) -> None:
    with open_hf(llama).under(parse_arm("anchor/bf16+anchor-reset")) as applied:
        assert (applied["positions"], applied["attention"]) == ("anchor-reset", "anchor")
        assert "restart at 1" in applied["positions_rule"]
        assert "itself and the anchor" in applied["attention_rule"]
        assert "[anchor; document]" in applied["realisation"]
        assert "window_rule" not in applied


def test_documents_need_an_anchor_and_segments(llama: Path) -> None:
    backend = open_hf(llama)
    with backend.under(parse_arm("anchor/native")):
        with pytest.raises(UnsupportedArm, match="attention 'anchor'"):
            list(backend.answer([replace(ASKED[0], segment_ids=(0, *ASKED[0].segment_ids[1:]))]))
        with pytest.raises(UnsupportedArm, match="segment id per token"):
            list(backend.answer([replace(ASKED[0], segment_ids=(-1,))]))


def test_sinks_and_window_hold_in_the_fused_kernel_and_leave_no_trace(llama: Path) -> None:
    backend = open_hf(llama)
    arm, before = "sink-window:3:9/fp32", bits(answers(backend, "native", ASKED))
    with backend.under(parse_arm(arm, kernel="fused")) as applied:
        fused = {output.sample_id: output for output in backend.answer(ASKED)}
    assert applied["kernel"] == "fused" and "StreamingLLM" in applied["attention_rule"]
    agree(backend, arm, ASKED, answers(backend, arm, ASKED), fused)
    assert bits(answers(backend, "native", ASKED)) == before
    assert bits(fused) != before


def test_two_blocks_of_star_give_the_bits_of_full(llama: Path) -> None:
    backend = open_hf(llama)  # prompt a has 68 tokens before its query, c has 53
    asked = [ASKED[0], ASKED[2]]
    assert bits(answers(backend, "star:34/bf16", asked)) == bits(answers(backend, "bf16", asked))
    assert bits(answers(backend, "star:33/bf16", asked))["a"] != bits(answers(backend, "bf16", asked))["a"]


def test_what_numbered_patterns_cannot_do_is_one_line(llama: Path) -> None:
    backend = open_hf(llama)
    roles = ("query", *ROLES[1:4], "query", "answer_prefix")
    with backend.under(parse_arm("star:16/native")), pytest.raises(UnsupportedArm, match="query behind all documents"):
        list(backend.answer([replace(ASKED[0], roles=roles)]))
    flex, eager = open_hf(llama, realisation="flex"), open_hf(llama, kernel="eager")
    for refusing, arm, why in (
        (flex, "star:16/native", "realisation 'flex'"),
        (flex, "sink-window:3:9/native", "realisation 'flex'"),
        (eager, "sink-window:3:9/native", "--kernel sdpa or fused"),
    ):
        with pytest.raises(UnsupportedArm, match=why), refusing.under(parse_arm(arm)):
            pass


def test_models_that_would_make_something_else_of_positions_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    growing = open_hf(save_model(tmp_path, transformers.LlamaConfig(**SHAPE, rope_parameters=rope)))
    for arm, field in (("native+shift:16", "positions 'shift:16'"), ("anchor/native", "attention 'anchor'")):
        with pytest.raises(UnsupportedArm, match=field), growing.under(parse_arm(arm)):
            pass
    shape = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512}
    (tmp_path / "gpt2").mkdir()
    gpt2 = save_model(tmp_path / "gpt2", transformers.GPT2Config(**shape, bos_token_id=BOS, eos_token_id=EOS))
    with pytest.raises(UnsupportedArm, match="attention 'anchor'"), open_hf(gpt2).under(parse_arm("anchor/native")):
        pass
