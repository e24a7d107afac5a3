"""What holds for every backend."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import prompts, request

from anchoreval.arms.arm import parse_arm
from anchoreval.backends import BACKENDS, Backend, open_backend, opener_of, waves
from anchoreval.errors import MissingExtra, ModelError, UnknownName

Open = Callable[..., Backend]
REQUESTS = [
    request(f"t/x@64#{i}", ids, max_new_tokens=i % 6, reference=tuple(range(10, 10 + i % 4)))
    for i, ids in enumerate(prompts(9, 2, 40))
]


@pytest.fixture(params=["fake", "hf"])
def opened(request: pytest.FixtureRequest, llama: Path) -> Open:
    return lambda **options: open_backend(request.param, str(llama), **options)


def test_every_request_is_answered_exactly_once(opened: Open) -> None:
    names = [output.sample_id for output in opened().answer(REQUESTS)]
    assert sorted(names) == sorted(r.sample_id for r in REQUESTS)


def test_no_request_gives_no_output(opened: Open) -> None:
    assert list(opened().answer([])) == []


def test_the_same_settings_give_the_same_outputs(opened: Open) -> None:
    def run() -> list[tuple[object, ...]]:
        return [(o.sample_id, o.text, o.token_ids, o.reference_logprob) for o in opened().answer(REQUESTS)]

    assert run() == run()


def test_answers_keep_to_their_budget(opened: Open) -> None:
    budget = {r.sample_id: r.max_new_tokens for r in REQUESTS}
    assert all(len(o.token_ids) <= budget[o.sample_id] for o in opened().answer(REQUESTS))


def test_only_requests_with_a_reference_get_a_logprob_and_it_is_negative(opened: Open) -> None:
    has = {r.sample_id: bool(r.reference_ids) for r in REQUESTS}
    for output in opened().answer(REQUESTS):
        assert (output.reference_logprob is not None) == has[output.sample_id]
        assert output.reference_logprob is None or output.reference_logprob < 0


def test_outputs_come_before_the_last_request_is_computed(opened: Open) -> None:
    stream = iter(opened(rows=1).answer(REQUESTS))
    first = next(stream)
    assert first.finish in ("stop", "length")
    assert len(list(stream)) == len(REQUESTS) - 1


def test_the_description_and_the_arm_as_applied_are_json(opened: Open) -> None:
    backend = opened()
    with backend.under(parse_arm("native")) as applied:
        assert json.loads(json.dumps(applied))["positions"] == "contiguous"
    described = json.loads(json.dumps(backend.describe()))
    assert {"engine", "versions", "dtype", "parameters", "max_length", "weights_sha256", "rope"} <= set(described)


def test_the_fingerprint_ignores_throughput_settings(opened: Open) -> None:
    assert opened(rows=4, batch_tokens=9_999).fingerprint == opened().fingerprint


def test_a_closed_backend_answers_nothing(opened: Open) -> None:
    backend = opened()
    backend.close()
    with pytest.raises(ModelError, match="closed"):
        next(iter(backend.answer(REQUESTS)))


def test_an_unknown_backend_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match="fake"):
        open_backend("fak", "anywhere")


def test_an_unknown_option_is_answered_with_the_nearest_one(llama: Path) -> None:
    with pytest.raises(UnknownName, match=r"option of backend hf 'row': did you mean rows"):
        open_backend("hf", str(llama), row=1)


@pytest.mark.parametrize(("name", "module"), [("vllm", "vllm"), ("openai", "httpx2")])
def test_an_engine_that_is_not_installed_is_named_with_what_installs_it(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # an import of it fails as if it were not there
    for loaded in [known for known in sys.modules if known.startswith(f"anchoreval.backends.{name}")]:
        monkeypatch.delitem(sys.modules, loaded)
    with pytest.raises(MissingExtra, match=rf"pip install 'anchoreval\[{name}\]'"):
        open_backend(name, "anywhere")


def test_arms_come_engine_by_engine_where_an_engine_serves_one_level() -> None:
    asked = [parse_arm(text) for text in ("bf16", "fp32", "bf16+shift:16", "fp32~placebo", "bf16", "bf16+reset")]
    names = [[arm.name for arm in group] for group in waves("vllm", asked)]
    assert names == [["bf16", "bf16"], ["fp32"], ["bf16+shift:16", "bf16+reset"], ["fp32~placebo"]]
    assert waves("hf", asked) == [tuple(asked)]


@pytest.mark.parametrize(
    ("name", "option", "value", "says"),
    [
        ("hf", "rows", "x", "rows=x: expected a whole number"),
        ("hf", "rows", True, "rows=True: expected a whole number"),
        ("hf", "rows", 2**70, "expected a whole number"),
        ("hf", "use_kernels", 1, "use_kernels=1: expected true or false"),
        ("hf", "realisation", 7, "realisation=7: expected text"),
        ("fake", "delay_s", float("nan"), "delay_s=nan: expected a number"),
        ("fake", "delay_s", float("inf"), "delay_s=inf: expected a number"),
        ("fake", "delay_s", -1.0, "delay_s must not be below 0"),
    ],
)
def test_an_option_of_another_kind_is_named_before_anything_is_opened(
    name: str, option: str, value: object, says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        open_backend(name, "anywhere", **{option: value})


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_what_a_run_hands_to_a_backend_is_an_option_of_it(name: str) -> None:
    try:
        taken = inspect.signature(opener_of(name)).parameters
    except MissingExtra as error:
        pytest.skip(str(error))
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    assert takes_any or BACKENDS[name].takes | {"dtype", "kernel"} <= taken.keys()
