"""Arms: one spelling that parses, prints back and tells arms apart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from anchoreval.arms.arm import FIELDS, parse_arm, parse_arms
from anchoreval.arms.patterns import masks_documents
from anchoreval.errors import AnchorEvalError, UnknownName
from anchoreval.schema import original_of


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
        "sink-window:4:256/bf16+shift:16~placebo",
        "star:512/fp32",
    ],
)
def test_an_arm_prints_the_spelling_that_made_it(text: str) -> None:
    arm = parse_arm(text)
    assert arm.name == text
    assert parse_arm(arm.name) == arm


#: Spellings, the names that they are printed as, and the beginnings of fingerprints, on which keys of records hang.
FROZEN = [
    ("native", "native", "7191d3983afa8b96"),
    ("fp64", "fp64", "55b07b1a886f47f9"),
    ("fp32-qk", "fp32-qk", "d6817cd99603c3cb"),
    ("fp32", "fp32", "ec066bce011cdc13"),
    ("bf16-table", "bf16-table", "ab0a63003114bd77"),
    ("bf16", "bf16", "dc449352e6c470ec"),
    ("bf16-angle", "bf16-angle", "8b60366d149e6295"),
    ("fp16-table", "fp16-table", "7534f16c3cd6041a"),
    ("fp16", "fp16", "d13776ee7664e255"),
    ("rope:table=bf16", "rope:table=bf16", "ce3a3589c8f20ead"),
    ("rope:table=bf16,rotate=bf16", "rope:table=bf16,rotate=bf16", "4856f51a21b31bea"),
    ("rope: rotate=bf16 , table=bf16", "rope:table=bf16,rotate=bf16", "4856f51a21b31bea"),
    ("rope:", "fp32", "ec066bce011cdc13"),
    ("rope:inv_freq=bf16,angle=bf16,table=bf16,rotate=bf16,product=bf16", "bf16-angle", "8b60366d149e6295"),
    ("bf16+contiguous", "bf16", "dc449352e6c470ec"),
    ("bf16+shift:4096", "bf16+shift:4096", "27981b0260eb4934"),
    ("bf16+shift:016", "bf16+shift:16", "4b0630124dc9f80c"),
    ("bf16+anchor-shift:16", "bf16+anchor-shift:16", "658e1b7aae1132f4"),
    ("bf16+reset", "bf16+reset", "5691af8e129d5bac"),
    ("fp32+anchor-reset", "fp32+anchor-reset", "f59cd17d8db1bf28"),
    ("full/bf16", "bf16", "dc449352e6c470ec"),
    ("anchor/fp32", "anchor/fp32", "a347dfa99ba4bc45"),
    ("intra-doc/bf16+reset", "intra-doc/bf16+reset", "aed3c2f56820c9d2"),
    ("anchor/bf16+shift:16~placebo", "anchor/bf16+shift:16~placebo", "e43b3251642aec7a"),
    ("bf16~placebo", "bf16~placebo", "18c1aded8b165416"),
    ("full/native+contiguous~placebo", "native~placebo", "6b569e61509f943f"),
    (
        "anchor/rope:rotate=fp16+anchor-reset~placebo",
        "anchor/rope:rotate=fp16+anchor-reset~placebo",
        "50e949ef4c99143d",
    ),
]


@pytest.mark.parametrize(("text", "name", "fingerprint"), FROZEN, ids=[text for text, _, _ in FROZEN])
def test_every_spelling_of_before_has_its_name_and_its_fingerprint(text: str, name: str, fingerprint: str) -> None:
    arm = parse_arm(text)
    assert (arm.name, arm.fingerprint()[:16]) == (name, fingerprint)


def test_dtype_and_kernel_move_the_fingerprint_as_before() -> None:
    text = "anchor/fp32+shift:16~placebo"
    assert parse_arm(text, dtype="float32").fingerprint().startswith("e4ea7d126f4bf7c9")
    assert parse_arm(text, kernel="eager").fingerprint().startswith("317aefdee18286ba")
    assert parse_arm(text, dtype="bfloat16", kernel="fused").fingerprint().startswith("841068ac4503aa15")


def test_fields_in_any_order_are_printed_in_one() -> None:
    assert parse_arm("bf16+x:b:f+shift:4+x:a:f").name == "bf16+shift:4+x:a:f+x:b:f"
    assert parse_arm("bf16+x:b:f+shift:4+x:a:f") == parse_arm("bf16+x:a:f+shift:4+x:b:f")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bf16+shft:4", "unknown field of an arm 'shft:4': did you mean shift"),
        ("bf16~placbo", "unknown setting of an arm 'placbo': did you mean placebo"),
        ("bf16+reset+shift:4", "positions once, not 2 times"),
        ("bf16+x:a:f+x:a:f", "outside once, not 2 times"),
        ("bf16+x", "spelled +x:package.module:factory[:value], not +x"),
        ("bf16+x:a", "not +x:a"),
        ("bf16+x:../a:f", "unknown attention pattern"),
        ("anchor:2/bf16", "attention 'anchor:2': anchor takes no number"),
        ("star:0/bf16", "attention 'star:0': star:B takes whole numbers above 0 (S may be 0), such as star:512"),
    ],
)
def test_what_is_no_field_is_named_with_the_nearest(text: str, says: str) -> None:
    with pytest.raises(AnchorEvalError, match=re.escape(says)):
        parse_arm(text)


def test_an_arm_says_what_it_moves_and_masks() -> None:
    arm = parse_arm("bf16+shift:4")
    assert (arm.moves_positions, arm.masks_documents, arm.arrangement.stock) == (True, False, False)
    arm = parse_arm("anchor/bf16")
    assert (arm.moves_positions, arm.masks_documents, arm.arrangement.stock) == (False, True, False)
    assert parse_arm("bf16~placebo").arrangement.stock


def test_the_page_on_arms_has_every_field_and_the_example_as_it_is() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "arms.md").read_text("utf-8")
    for field in FIELDS:
        row = f"| {field.name} | `{field.spelling}` | {field.about} | {', '.join(field.backends) or 'all'} |"
        assert row in page, f"docs/arms.md lacks this row: {row}"
    source = (root / "examples" / "evict.py").read_text("utf-8")
    assert source[source.index("@contextmanager") :] in page


def test_the_name_of_an_arm_says_what_its_text_does() -> None:
    for text, _, _ in FROZEN:
        arm = parse_arm(text)
        assert masks_documents(arm.name) is arm.masks_documents
        assert (original_of(arm.name) is not None) is arm.placebo


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


def test_a_placebo_takes_no_value() -> None:
    for text in ("fp32~placebo:3", "fp32~placebo:"):
        with pytest.raises(AnchorEvalError, match="takes no value"):
            parse_arm(text)
