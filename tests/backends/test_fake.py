from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import FIRST_BYTE, request
from tokenizers import Tokenizer

from anchoreval.arms.arm import parse_arm
from anchoreval.backends import open_backend
from anchoreval.errors import UnknownName
from anchoreval.schema import Continuation, Output, Request
from anchoreval.suites import likeliest


def ids_of(folder: Path, text: str) -> tuple[int, ...]:
    return tuple(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids)


def answer(folder: Path, asked: Request, **options: object) -> Output:
    return next(iter(open_backend("fake", str(folder), **options).answer([asked])))


def test_echo_says_the_reference_through_the_tokenizer(llama: Path) -> None:
    asked = request("a", ids_of(llama, "What?"), max_new_tokens=20, reference=ids_of(llama, "größe 7"))
    said = answer(llama, asked)
    assert (said.text, said.finish, said.token_ids) == ("größe 7", "stop", asked.reference_ids)


def test_echo_is_cut_by_the_budget_and_by_a_stop(llama: Path) -> None:
    reference = ids_of(llama, "one two three")
    cut = answer(llama, request("a", (1, 9), max_new_tokens=7, reference=reference))
    assert (cut.text, cut.finish) == ("one two", "length")
    stopped = answer(llama, request("a", (1, 9), max_new_tokens=20, reference=reference, stop=(" tw",)))
    assert (stopped.text, stopped.finish) == ("one", "stop")


def test_empty_says_nothing_and_wrong_says_something_else(llama: Path) -> None:
    asked = request("a", (FIRST_BYTE,) * 5, max_new_tokens=20, reference=ids_of(llama, "7"))
    assert answer(llama, asked, mode="empty").text == ""
    wrong = answer(llama, asked, mode="wrong").text
    assert wrong and "7" not in wrong


def test_half_says_the_reference_for_about_half_of_the_prompts(llama: Path) -> None:
    asked = [request(str(i), (1, 5 + i % 200, i // 200), reference=(9, 9)) for i in range(400)]
    said = sum(bool(o.text) for o in open_backend("fake", str(llama), mode="half").answer(asked))
    assert 160 <= said <= 240  # 4 standard deviations of a fair coin


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UnknownName, match="echo-reference"):
        open_backend("fake", "anywhere", mode="echo")


@pytest.mark.parametrize("name", ["bf16", "anchor/fp32+shift:4096"])
def test_every_arm_passes(name: str) -> None:
    with open_backend("fake", "anywhere").under(parse_arm(name)) as applied:
        assert applied["positions"] == str(parse_arm(name).positions)


@pytest.mark.parametrize(("mode", "right"), [("echo-reference", True), ("wrong", False), ("empty", False)])
def test_choices_are_scored_and_the_right_one_is_the_likeliest_where_the_mode_says_so(mode: str, right: bool) -> None:
    choices = (Continuation((5,), 1), Continuation((6, 7), 2), Continuation((8, 9), 1))
    asked = replace(request("a", (1, 4), max_new_tokens=0), choices=choices, gold=1)
    said = next(iter(open_backend("fake", "none", mode=mode).answer([asked])))
    assert (likeliest(said.choices) == 1) is right and len(said.choices) == 3
    assert (said.text, said.token_ids, said.finish) == ("", (), "stop")
