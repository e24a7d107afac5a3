"""Arms of the vLLM backend against the same arms of the hf backend, on a random Llama in float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="VLLM ABSENT: nothing was computed by vLLM (make test-vllm)")

from checkpoints import prompts
from vllm_models import TOKEN, Both, assert_equal, by_name, drawn, opened, save_llama

from anchoreval.arms.arm import parse_arm
from anchoreval.arms.rope import LEVELS
from anchoreval.backends import open_backend
from anchoreval.backends.vllm import answer as vllm_answer
from anchoreval.backends.vllm.asks import Context
from anchoreval.errors import ModelError, UnknownName, UnsupportedArm
from anchoreval.schema import Output, Request
from anchoreval.vllm_plugin import settings

pytestmark = pytest.mark.filterwarnings("ignore")
LENGTHS = (6, 70, 95, 60, 20, 5)  # preamble, three documents, query, answer prefix
ROLES = ("preamble", "document", "document", "document", "query", "answer_prefix")
REFERENCE = 40  # tokens, more than a block
SCHEMES = ("shift:1000", "anchor-shift:700", "reset", "anchor-reset")


def laid_out(count: int = 4) -> list[Request]:
    """Prompts of three documents, two of which share these and differ in the query."""
    segments = (-1, *(i for i, length in enumerate(LENGTHS) for _ in range(length)))
    made = []
    for i, ids in enumerate(prompts(count, len(segments), len(segments), seed=1)):
        made.append(Request(f"p{i}", ids, segments, ROLES, 5, reference_ids=drawn(REFERENCE, seed=i)))
    query = sum(LENGTHS[-2:])
    return [*made, replace(made[0], sample_id="p0-again", token_ids=made[0].token_ids[:-query] + drawn(query, seed=77))]


def answered(backend: Any, arm: str, requests: list[Request]) -> dict[str, Output]:
    with backend.under(parse_arm(arm)):
        return by_name(backend, requests)


def apart(first: dict[str, Output], second: dict[str, Output]) -> float:
    """The largest difference between two log-probabilities of one reference, per token."""
    pairs = [(first[name].reference_logprob or 0.0, second[name].reference_logprob or 0.0) for name in first]
    return max(abs(one - other) for one, other in pairs) / REFERENCE


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = save_llama(tmp_path_factory.mktemp("vllm"))
    with opened(folder) as backend:
        yield backend, open_backend("hf", str(folder))


def test_placed_arms_share_an_engine_and_are_computed_as_by_hf(both: Both) -> None:
    asked = laid_out()
    plain = answered(both[1], "native", asked)
    engines = set()
    for scheme in SCHEMES:
        found, wanted = (answered(backend, f"native+{scheme}", asked) for backend in both)
        assert_equal(found, wanted, asked)
        if scheme != "shift:1000":  # which RoPE cannot see
            assert apart(found, plain) > 20 * TOKEN
        engines.add(id(both[0]._live[1]))
    assert len(engines) == 1


def test_without_the_salt_another_plans_keys_and_values_are_reused(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = laid_out()
    wanted = {scheme: answered(both[1], f"native+{scheme}", asked) for scheme in ("shift:1000", "anchor-reset")}
    monkeypatch.setattr("anchoreval.backends.vllm.engine.Engine.forget", lambda self: None)
    first, second = (apart(answered(both[0], f"native+{name}", asked), those) for name, those in wanted.items())
    assert max(first, second) < TOKEN

    def unsalted(*given: Any) -> Context:
        return replace(stock(*given), salt="one")

    stock = vllm_answer.context_of
    monkeypatch.setattr(vllm_answer, "context_of", unsalted)
    first, second = (apart(answered(both[0], f"native+{name}", asked), those) for name, those in wanted.items())
    assert first < TOKEN  # the first plan to come is right
    assert second > 20 * TOKEN


@pytest.mark.parametrize("arm", ["anchor/fp32+anchor-reset", "intra-doc/fp32", "bf16-table", "bf16"])
def test_levels_and_patterns_are_computed_as_by_hf(both: Both, arm: str) -> None:
    """Levels in bf16 round where fp32 sums of another order land elsewhere: a unit of 2^-8 of q or k now and then."""
    asked = laid_out()
    found, wanted = (answered(backend, arm, asked) for backend in both)
    plain = answered(both[1], "fp32", asked)
    assert apart(found, wanted) < (TOKEN if "fp32" in arm else 20 * TOKEN)
    assert apart(found, plain) > 4 * apart(found, wanted)


def test_an_arm_as_applied_says_what_was_detected_and_is_json(both: Both) -> None:
    with both[0].under(parse_arm("bf16+shift:100")) as applied:
        said = json.loads(json.dumps(applied))
    assert (said["rope"]["level"], said["rope"]["detected"]) == ("bf16", "bf16")
    assert said["positions"] == "shift:100"
    assert said["kernel"].startswith("CPU_ATTN")
    assert "computed_in" not in said


def test_an_engine_that_computes_another_level_than_asked_is_refused(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(folder: Path, level: Any, *rest: Any) -> dict[str, Any]:
        return stock(folder, LEVELS["native"], *rest)

    stock = settings.engine_settings
    monkeypatch.setattr(settings, "engine_settings", mistaken)
    with pytest.raises(UnsupportedArm, match="asked for fp16 and computes fp32"), both[0].under(parse_arm("fp16")):
        pass


def test_a_placebo_is_computed_in_other_batches_and_gives_the_same_answers(both: Both) -> None:
    asked = laid_out()
    with both[0].under(parse_arm("native~placebo")) as applied:
        assert applied["computed_in"] == {"max_num_batched_tokens": 768, "max_num_seqs": 24}
        assert both[0].engine.batching.max_num_batched_tokens == 768
        assert_equal(by_name(both[0], asked), answered(both[1], "native", asked), asked)


@pytest.mark.parametrize(
    ("changed", "field"),
    [({"dtype": "bfloat16"}, "dtype"), ({"kernel": "eager"}, "kernel"), ({"attention": "star:16"}, "attention")],
)
def test_what_vllm_cannot_compute_is_refused_by_field(both: Both, changed: dict[str, str], field: str) -> None:
    with (
        pytest.raises(UnsupportedArm, match=f"vllm cannot compute {field}"),
        both[0].under(replace(parse_arm("native"), **changed)),
    ):
        pass


def test_levels_wider_than_the_model_and_prompts_without_segments_are_refused(both: Both) -> None:
    with (
        pytest.raises(UnsupportedArm, match="arm 'rope:product=fp64': rope: "),
        both[0].under(parse_arm("rope:product=fp64")),
    ):
        pass
    bare = replace(laid_out(1)[0], segment_ids=())
    with pytest.raises(UnsupportedArm, match="a segment id per token"):
        answered(both[0], "native+reset", [bare])


def test_a_query_between_documents_sees_what_is_before_it_as_with_hf(both: Both) -> None:
    roles = ("preamble", "query", "document", "document", "query", "answer_prefix")
    asked = [replace(one, roles=roles) for one in laid_out(2)]
    assert_equal(*(answered(backend, "anchor/fp32+reset", asked) for backend in both), asked)


def test_the_fingerprint_and_the_description(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that only cost memory leave the fingerprint as it is; those that change batches do not."""
    folder, described = both[0].folder, both[0].describe()
    wanted = both[0].fingerprint
    keys = {"engine", "versions", "dtype", "parameters", "max_length", "weights_sha256", "rope", "kernel", "device"}
    assert keys <= json.loads(json.dumps(described)).keys()
    reference = both[1].describe()
    same = ("dtype", "parameters", "max_length", "weights_sha256", "files_sha256", "eos_token_ids", "model_type")
    assert {key: described[key] for key in same} == {key: reference[key] for key in same}
    both[0].close()
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    for options, equal in (({"kv_cache_gb": 0.1, "gpu_memory_utilization": 0.5}, True), ({"max_num_seqs": 7}, False)):
        with opened(folder, **options) as other:
            assert (other.fingerprint == wanted) == equal


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_batched_tokens": 8, "max_num_seqs": 9}, "is less than max_num_seqs=9"),
        ({"batch_invariant": True}, "needs CUDA"),
        ({"kernel": "eager"}, "vLLM picks its attention itself"),
        ({"device": "mps"}, "auto, cpu or cuda"),
        ({"dtype": "int8"}, "unknown dtype"),
        ({"kv_cache_gb": 1}, "are both set"),
        ({"block_size": 0}, "1 or more"),
    ],
)
def test_bad_options_are_errors_of_one_line(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught, opened(save_llama(tmp_path), **options):
        pass
    assert "\n" not in str(caught.value)


def test_an_unknown_option_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean max_num_seqs"), opened(tmp_path, max_num_seq=1):
        pass


def test_what_vllm_itself_refuses_is_an_error_of_one_line_and_leaves_room_for_another(tmp_path: Path) -> None:
    folder = save_llama(tmp_path)
    with pytest.raises(ModelError, match="vLLM cannot start") as caught, opened(folder, max_model_len=3_000_000):
        pass
    assert "\n" not in str(caught.value)
    with opened(folder) as backend:
        assert list(backend.answer(laid_out(1)))


def test_two_backends_of_one_process_answer_in_turn(tmp_path: Path) -> None:
    asked = laid_out(2)
    with opened(save_llama(tmp_path)) as first, opened(tmp_path) as second:
        assert not first._live[1].alive
        assert by_name(second, asked).keys() == by_name(first, asked).keys()
        assert first._live[1].alive and not second._live[1].alive
