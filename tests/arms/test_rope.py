from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from anchoreval.arms.rope import ALLOWED, LEVELS, RopeLevel, parse_level
from anchoreval.errors import UnknownName, UnsupportedArm


def test_every_named_level_prints_its_name_and_parses_back() -> None:
    assert {str(level): parse_level(str(level)) for level in LEVELS.values()} == LEVELS


def test_every_combination_of_sites_prints_text_that_parses_to_itself() -> None:
    levels = {RopeLevel(*dtypes) for dtypes in itertools.product(*ALLOWED.values())}
    assert len({str(level) for level in levels}) == len(levels) == 3 * 3 * 4 * 4 * 5
    assert all(parse_level(str(level)) == level for level in levels)


def test_unnamed_sites_are_those_of_fp32() -> None:
    assert parse_level("rope:table=bf16, rotate=fp32").sites == {**LEVELS["fp32"].sites, "table": "bf16"}
    assert str(parse_level("rope:rotate=bf16,table=bf16,product=bf16")) == "bf16"
    assert str(parse_level("rope:table=bf16,rotate=fp32")) == "rope:table=bf16"


def test_the_ladder_is_that_of_the_design() -> None:
    assert LEVELS["native"].native and not LEVELS["native"].sites
    assert list(LEVELS["fp64"].sites.values()) == ["fp32", "fp64", "fp64", "fp64", "fp32"]
    assert list(LEVELS["fp32-qk"].sites.values()) == ["fp32"] * 5
    assert list(LEVELS["fp32"].sites.values()) == ["fp32"] * 4 + ["model"]
    assert list(LEVELS["bf16-table"].sites.values()) == ["fp32", "fp32", "bf16", "fp32", "bf16"]
    assert list(LEVELS["bf16"].sites.values()) == ["fp32", "fp32", "bf16", "bf16", "bf16"]
    assert list(LEVELS["bf16-angle"].sites.values()) == ["bf16"] * 5


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("fp31", UnknownName, "fp32"),
        ("rope:tabel=bf16", UnknownName, "table"),
        ("rope:table=bf15", UnknownName, "bf16"),
        ("rope:table", UnknownName, "dtype"),
        ("rope:angle=fp16", UnsupportedArm, "angle"),
        ("rope:table=model", UnsupportedArm, "table"),
        ("rope:table=bf16,table=fp32", UnsupportedArm, "twice"),
    ],
)
def test_bad_text_is_refused_in_one_line_that_names_it(text: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as error:
        parse_level(text)
    assert "\n" not in str(error.value)


def test_levels_are_hashable_and_frozen() -> None:
    assert len(set(LEVELS.values())) == len(LEVELS)
    with pytest.raises(AttributeError):
        LEVELS["fp32"].table = "bf16"  # type: ignore[misc]


def test_naming_levels_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, anchoreval.arms.rope; sys.exit(bool({'torch', 'transformers'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
