"""Subjects: what of them a label says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from anchoreval.records.header import Header
from anchoreval.stats import Subject, labels

ONE = Subject("bf16", "tiny", "a" * 64, "base template", "hf", "float32", "sdpa", (), "0123456789abcdef")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arm": "fp32"}, ["bf16", "fp32"]),
        ({"model": "large", "weights": "b" * 64, "run": "fedcba9876543210"}, ["bf16 (tiny)", "bf16 (large)"]),
        ({"weights": "b" * 64}, ["bf16 (aaaaaaaa)", "bf16 (bbbbbbbb)"]),
        ({"engine": "vllm"}, ["bf16 (hf)", "bf16 (vllm)"]),
        ({"form": "chat template", "dtype": "bfloat16"},
         ["bf16 (base template, float32)", "bf16 (chat template, bfloat16)"]),
        ({"outside": ("c" * 64,)}, ["bf16", "bf16 (source cccccccc)"]),
        ({"arm": "bf16+x:a:b", "outside": ("c" * 64,)}, ["bf16", "bf16+x:a:b"]),
        ({"run": "fedcba9876543210"}, ["bf16 (01234567)", "bf16 (fedcba98)"]),
        ({"arm": "fp32", "run": "fedcba9876543210"}, ["bf16", "fp32"]),
        ({"run": "runs/m/0123456789abcdef"}, ["bf16 (01234567)", "bf16 (runs/m/0123456789abcdef)"]),
    ],
)  # fmt: skip
def test_a_label_says_what_tells_a_subject_from_the_others(changes: dict[str, str], said: list[str]) -> None:
    other = replace(ONE, **changes)  # type: ignore[arg-type]
    assert [*labels([ONE, other, ONE]).values()] == said
    assert labels([other]) == {other: other.arm}


def test_a_label_says_of_each_what_it_needs() -> None:
    again = replace(ONE, run="fedcba9876543210")
    outside = [replace(ONE, arm="x", outside=("c" * 64,)), replace(again, arm="x", outside=("d" * 64,))]
    said = ["bf16 (01234567)", "bf16 (fedcba98)", "x (source cccccccc)", "x (source dddddddd)"]
    assert [*labels([ONE, again, *outside]).values()] == said


def test_a_placebo_is_that_of_its_own_model() -> None:
    placebo = replace(ONE, arm="bf16~placebo")
    assert placebo.original == ONE and ONE.original is None
    assert replace(placebo, model="large").original != ONE


def test_a_subject_is_made_of_a_header_and_an_arm() -> None:
    outside = [{"name": "x:a:b", "sha256": "c" * 64}]
    header = Header({
        "model": {"name": "tiny", "sha256": "a" * 64, "dtype": "bfloat16"}, "template": "chat",
        "identity": {"template_args": {"enable_thinking": False}},
        "backend": {"engine": "hf", "dtype": "float32", "kernel": "sdpa"},
        "arms": ["bf16", {"name": "bf16+x:a:b", "asked": {"outside": outside}}],
    })  # fmt: skip
    form = "chat template, enable_thinking=False"
    plain = replace(ONE, form=form, run="r")
    assert header.subject("bf16", "r") == plain
    assert header.subject("bf16+x:a:b", "r") == replace(plain, arm="bf16+x:a:b", outside=("c" * 64,))
    assert Header({"arms": [{"name": "a", "asked": {"outside": "x"}}]}).subject("a") == Subject("a")
