"""Arms: one spelling that parses, prints back and tells arms apart."""

from __future__ import annotations

import pytest

from anchoreval.arms.arm import parse_arm, parse_arms
from anchoreval.errors import AnchorEvalError, UnknownName


@pytest.mark.parametrize(
    "text",
    [
        "native",
        "fp32",
        "bf16-angle",
        "rope:table=bf16,rotate=bf16",
        "bf16+shift:4096",
        "anchor/fp32",
        "intra-doc/bf16+reset",
        "anchor/bf16+shift:16~placebo",
    ],
)
def test_an_arm_prints_the_spelling_that_made_it(text: str) -> None:
    arm = parse_arm(text)
    assert arm.name == text
    assert parse_arm(arm.name) == arm


def test_commas_inside_explicit_sites_do_not_separate_arms() -> None:
    assert [arm.name for arm in parse_arms("native,rope:table=bf16,rotate=bf16,fp32")] == [
        "native",
        "rope:table=bf16,rotate=bf16",
        "fp32",
    ]


def test_an_arm_named_twice_is_one_arm() -> None:
    assert len(parse_arms("fp32, bf16 fp32")) == 2


def test_every_axis_changes_the_fingerprint() -> None:
    arms = [
        parse_arm("fp32"),
        parse_arm("bf16"),
        parse_arm("fp32+shift:16"),
        parse_arm("anchor/fp32"),
        parse_arm("fp32", dtype="float32"),
        parse_arm("fp32", kernel="eager"),
    ]
    assert len({arm.fingerprint() for arm in arms}) == len(arms)


@pytest.mark.parametrize(
    ("text", "error"), [("bf-16", UnknownName), ("", AnchorEvalError), ("rope:tabel=bf16", AnchorEvalError)]
)
def test_what_is_not_in_the_grammar_is_one_line_that_says_so(text: str, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        parse_arms(text)
    assert "\n" not in str(caught.value)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(AnchorEvalError, match="bfloat16"):
        parse_arm("fp32", dtype="bf16")


@pytest.mark.parametrize("text", ["bf16+", "anchor/bf16+", "bf16~", "bf16~placebo~placebo", "~placebo"])
def test_half_an_arm_is_refused(text: str) -> None:
    with pytest.raises(AnchorEvalError):
        parse_arm(text)


def test_a_placebo_is_another_arm_and_leaves_the_fingerprint_of_the_first_as_it_was() -> None:
    assert "placebo" not in parse_arm("bf16").asked()
    assert parse_arm("bf16~placebo").fingerprint() != parse_arm("bf16").fingerprint()
