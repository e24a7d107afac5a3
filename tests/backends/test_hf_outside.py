"""Arms from outside on the Hugging Face backend: on the model for the length of a block, and proved to go."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import prompts, request
from test_hf_answers import logprob_tolerance

from anchoreval.arms.arm import Arm, parse_arm
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.errors import UnsupportedArm

REQUESTS = [request(str(i), ids, 4, reference=(9, 8, 7)) for i, ids in enumerate(prompts(3, 100, 200))]


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")


@contextmanager
def scaled(model: Any, value: str = "1.5") -> Iterator[None]:
    weight = model.lm_head.weight.data
    stock = weight.clone()
    weight.mul_(float(value))
    yield
    weight.copy_(stock)


@contextmanager
def forgetful(model: Any) -> Iterator[None]:
    model.lm_head.weight.data.mul_(1.5)
    yield


@contextmanager
def replaced(model: Any) -> Iterator[None]:
    layer = model.model.layers[0].self_attn
    before = layer.__dict__.get("forward")
    layer.forward = type(layer).forward.__get__(layer)
    yield
    del layer.forward
    if before is not None:
        layer.forward = before


def broken(model: Any) -> Any:
    def refuse(*_: Any) -> None:
        raise ValueError("no such layer\nhere")

    return _hooked(model, refuse)


@contextmanager
def _hooked(model: Any, hook: Any) -> Iterator[None]:
    handle = model.register_forward_pre_hook(hook)
    yield
    handle.remove()


def arm(factory: str) -> Arm:
    return parse_arm(f"native+x:{__name__}:{factory}")


def scores(backend: HfBackend) -> dict[str, tuple[Any, ...]]:
    return {o.sample_id: (o.token_ids, o.reference_logprob) for o in backend.answer(REQUESTS)}


def test_an_arm_from_outside_acts_inside_its_block_alone(llama: Path) -> None:
    backend = HfBackend.open(str(llama), chunk_tokens=64)
    stock = scores(backend)
    with backend.under(arm("scaled")) as applied:
        inside = scores(backend)
    assert inside != stock and scores(backend) == stock
    assert applied["outside"][0]["factory"] == f"{__name__}:scaled" and len(applied["outside"][0]["sha256"]) == 64


def test_all_keys_kept_is_the_stock_answer_and_few_is_another(llama: Path) -> None:
    backend = HfBackend.open(str(llama), chunk_tokens=64)
    with backend.under(parse_arm("bf16")):
        stock = scores(backend)
    with backend.under(parse_arm("bf16+x:evict:window:300")) as applied:
        whole = scores(backend)
    with backend.under(parse_arm("bf16+x:evict:window:4")):
        few = scores(backend)
    assert applied["rope"]["level"] == "bf16"
    tolerance = logprob_tolerance(backend.model, 3)
    for name, (tokens, logprob) in stock.items():
        assert whole[name][0] == tokens
        assert whole[name][1] == pytest.approx(logprob, abs=tolerance)
        assert abs(few[name][1] - logprob) > 10 * tolerance  # 8 keys of 100 and more


def test_a_window_in_chunks_and_batches_is_the_window_of_whole_prompts(llama: Path) -> None:
    found = []
    for chunk in (64, 512):
        backend = HfBackend.open(str(llama), chunk_tokens=chunk)
        with backend.under(parse_arm("fp32+x:evict:window:16")):
            found.append(scores(backend))
    tolerance = logprob_tolerance(backend.model, 3)
    for name, (tokens, logprob) in found[0].items():
        assert found[1][name][0] == tokens and found[1][name][1] == pytest.approx(logprob, abs=tolerance)


def test_an_arm_that_leaves_something_behind_is_refused(llama: Path) -> None:
    backend = HfBackend.open(str(llama))
    with pytest.raises(UnsupportedArm, match="stock logits do not come back"), backend.under(arm("forgetful")):
        raise AssertionError("it was let in")


def test_a_forward_that_takes_the_place_of_a_level_is_refused_and_of_the_stock_one_is_not(llama: Path) -> None:
    backend = HfBackend.open(str(llama))
    with backend.under(arm("replaced")):
        assert len(scores(backend)) == len(REQUESTS)
    level = parse_arm(f"fp32+x:{__name__}:replaced")
    with pytest.raises(UnsupportedArm, match="self_attn was replaced under fp32"), backend.under(level):
        raise AssertionError("it was let in")


def test_an_arm_under_which_the_model_breaks_is_one_line(llama: Path) -> None:
    backend = HfBackend.open(str(llama))
    stock = scores(backend)
    says = re.escape("a short prompt under it: ValueError: no such layer here")
    with pytest.raises(UnsupportedArm, match=says), backend.under(arm("broken")):
        raise AssertionError("it was let in")
    torch.testing.assert_close(scores(backend), stock)
