"""Answers of the vLLM backend against those of the hf backend, on a random Llama in float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="VLLM ABSENT: nothing was computed by vLLM (make test-vllm)")

from checkpoints import VOCABULARY, prompts, request
from vllm_models import Both, assert_equal, by_name, drawn, mixed, opened, save_llama

from anchoreval.arms.arm import parse_arm
from anchoreval.backends import open_backend
from anchoreval.errors import ModelError
from anchoreval.schema import Continuation, Request

pytestmark = pytest.mark.filterwarnings("ignore")
BLOCK = 32


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = save_llama(tmp_path_factory.mktemp("vllm"))
    with opened(folder) as backend:
        yield backend, open_backend("hf", str(folder))


def assert_as_hf(both: Both, requests: list[Request]) -> None:
    assert_equal(by_name(both[0], requests), by_name(both[1], requests), requests)


def test_greedy_answers_and_reference_logprobs_are_those_of_hf(both: Both) -> None:
    assert_as_hf(both, mixed())


def test_choices_are_scored_as_by_hf(both: Both) -> None:
    asked = []
    for i, ids in enumerate(prompts(6, 5, 120, seed=5)):
        sizes = [(1, 1), (2, 2), (5, 5), (6, 2), (3, 1), (4, 0), (1 + i, 1 + i)]
        choices = tuple(Continuation(drawn(size, seed=90 + size + i), counted) for size, counted in sizes)
        asked.append(replace(request(f"c{i}", ids, max_new_tokens=3 * (i % 2)), choices=choices))
    assert_as_hf(both, asked)


def test_choices_that_the_model_itself_would_say_are_greedy(both: Both) -> None:
    plain = request("g", prompts(1, 90, 90, seed=8)[0], max_new_tokens=6)
    said = by_name(both[1], [plain])["g"].token_ids
    other = (*said[:3], (said[3] + 1) % VOCABULARY, *said[4:])
    asked = replace(plain, choices=(Continuation(said, 6), Continuation(other, 6), Continuation(other, 2)))
    assert_as_hf(both, [asked])
    assert [score.greedy for score in by_name(both[0], [asked])["g"].choices[:2]] == [True, False]


def test_more_first_tokens_than_vllm_takes_at_once(both: Both) -> None:
    ids = prompts(1, 40, 40, seed=3)[0]
    choices = tuple(Continuation((token,), 1) for token in range(3, 203))
    assert_as_hf(both, [replace(request("w", ids, max_new_tokens=0), choices=choices)])


def test_answers_end_at_stop_strings_and_end_ids_as_with_hf(both: Both) -> None:
    ids = prompts(4, 50, 90, seed=11)
    plain = [request(f"s{i}", one, max_new_tokens=24) for i, one in enumerate(ids)]
    said = by_name(both[1], plain)
    asked = []
    for one in plain:
        output = said[one.sample_id]
        asked += [
            replace(one, sample_id=f"{one.sample_id}-text", stop=(output.text[5:8], "never said")),
            replace(one, sample_id=f"{one.sample_id}-id", end_ids=(output.token_ids[6],)),
            replace(one, sample_id=f"{one.sample_id}-few", end_ids=(output.token_ids[0],), min_new_tokens=1),
            replace(one, sample_id=f"{one.sample_id}-both", stop=(output.text[:2],), min_new_tokens=9),
        ]
    assert_as_hf(both, asked)
    found = by_name(both[0], asked)
    assert {output.finish for output in found.values()} == {"stop", "length"}
    assert any(len(output.token_ids) < 24 for name, output in found.items() if name.endswith("-text"))


def test_a_request_asked_twice_is_scored_from_rows_that_were_computed(both: Both) -> None:
    """The second one's reference is cached whole, and vLLM hands out memory it never wrote for cached rows."""
    one = request("d", prompts(1, 70, 70, seed=2)[0], reference=drawn(100, seed=4))
    asked = [replace(one, sample_id=f"d{i}") for i in range(3)]
    assert_as_hf(both, asked)


def test_choices_that_share_whole_blocks_are_scored_from_rows_that_were_computed(both: Both) -> None:
    shared = drawn(3 * BLOCK, seed=6)
    choices = tuple(Continuation(shared + drawn(5, seed=i), 3 * BLOCK + 5) for i in range(3))
    assert_as_hf(both, [replace(request("b", prompts(1, 40, 40)[0], max_new_tokens=0), choices=choices)])


def test_a_shared_context_is_computed_once(both: Both) -> None:
    backend = both[0]
    context, count, tail, new = prompts(1, 20 * BLOCK, 20 * BLOCK, seed=7)[0], 8, 20, 3
    asked = [
        request(f"x{i}", context + drawn(tail, seed=i), new, reference=drawn(4, seed=40 + i)) for i in range(count)
    ]
    engine = backend.engine
    before = engine.computed_tokens, engine.cached_tokens
    assert_as_hf(both, asked)
    computed, cached = engine.computed_tokens - before[0], engine.cached_tokens - before[1]
    # per request: its prompt, its prompt with all but the last token of the reference, its prompt once more
    assert computed == len(context) + count * (tail + (tail + 3) + tail)
    assert cached == (3 * count - 1) * len(context)


def test_the_same_requests_give_the_same_bits_again_and_in_a_new_engine(both: Both) -> None:
    asked, engine = mixed(), both[0].engine
    first, computed = by_name(both[0], asked), engine.computed_tokens
    again = by_name(both[0], asked)
    assert _bits(first) == _bits(again)
    with both[0].under(parse_arm("fp32")):
        pass
    assert _bits(first) == _bits(by_name(both[0], asked))
    assert engine.computed_tokens - computed == both[0].engine.computed_tokens > 0  # no less, for what was asked before


def test_a_prompt_that_fills_the_window_is_answered_to_its_last_token(both: Both) -> None:
    ids = prompts(1, 2045, 2045, seed=1)[0]
    assert_as_hf(both, [request("full", ids, max_new_tokens=4, reference=drawn(4, seed=1))])
    over, short = request("over", ids, max_new_tokens=5), request("short", ids[:9], max_new_tokens=2)
    found = by_name(both[0], [over, short])
    assert found["over"].outcome == "does_not_fit" and "2049 positions" in str(found["over"].why)
    assert_as_hf(both, [short])
    assert found["short"].finish != "error"


def test_what_the_model_cannot_read_is_refused_with_the_sample(both: Both) -> None:
    with pytest.raises(ModelError, match="e: an empty prompt"):
        by_name(both[0], [request("e", ())])
    with pytest.raises(ModelError, match=f"v: token {VOCABULARY} is not among"):
        by_name(both[0], [request("v", (1, VOCABULARY))])


def _bits(outputs: dict[str, Any]) -> list[tuple[object, ...]]:
    kept = (replace(output, seconds=0.0) for output in outputs.values())
    return [(o.sample_id, o.text, o.token_ids, o.finish, o.reference_logprob, o.choices) for o in kept]
