"""YAML from somebody else: whatever it holds is values, or one line with its place, at once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from anchoreval.cards import find_model, select_tasks
from anchoreval.errors import AnchorEvalError, CardError
from anchoreval.reports.board.declared import load_definition

GOOD = "title: T\nsuites: [ruler]\nbaseline: native\ncolumns: [mean]\n"
BOMB = "k0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
#: What stands behind a right definition, and what the line says of it.
KINDS: dict[str, tuple[str | bytes, str]] = {
    "nested": ("about: " + "[" * 5000 + "]" * 5000 + "\n", ":5: nested more than 40 deep"),
    "nested blocks": ("about:\n" + "".join(" " * i + "- \n" for i in range(1, 99)), "nested more than 40 deep"),
    "questions": ("? " * 3000 + "a\n", ":5: nested more than 40 deep"),
    "a NUL": ("\0", "cannot be read: U+0000 is no character of YAML"),
    "an escape": ("\x1b", "cannot be read: U+001B is no character of YAML"),
    "digits": (f"margin: 1{'0' * 5000}\n", ":5: '1000000000000000000000000000000000000000' is no int"),
    "hexadecimal": (f"lengths: [0x{'f' * 6000}]\n", ":5: a number that is not finite, or beyond 18 digits"),
    "infinite": ("margin: .inf\n", ":5: a number that is not finite"),
    "no number": ("margin: .nan\n", ":5: a number that is not finite"),
    "beyond floats": ("margin: 1.0e+400\n", ":5: a number that is not finite"),
    "a day that is none": ("about: 2001-99-99\n", ":5: '2001-99-99' is no timestamp"),
    "a day": ("about: 2001-01-01\n", "about: input should be a valid string"),
    "a wrong bool": ("about: !!bool x\n", ":5: 'x' is no bool"),
    "a wrong time": ("about: !!timestamp x\n", ":5: 'x' is no timestamp"),
    "a number without digits": ("margin: !!int ''\n", ":5: '' is no int"),
    "a list that says it is a mapping": ("about: !!map [1]\n", ":5: no mapping, though its tag says so"),
    "a tag that runs": ("about: !!python/object/apply:os.system ['x']\n", ":5: could not determine a constructor"),
    "a function": ("about: !function x.y\n", ":5: could not determine a constructor for the tag '!function'"),
    "bytes": (b"about: \xff\n", "cannot be read: 'utf-8' codec can't decode byte 0xff"),
    "half a character": ('about: "\\ud800"\n', ":5: half a character"),
    "a key of lists": ("? [a, b]\n: 1\n", ":5: a key that is no text"),
    "a key of aliases": (BOMB + "? *a9\n: 1\n", "aliases that stand for more than 50,000 values"),
    "aliases of aliases": (BOMB, "aliases that stand for more than 50,000 values"),
    "a chain of aliases": (
        "k0: &a0 [1]\n" + "".join(f"k{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 99)), "or 40 deep",
    ),
    "itself": ("about: &a [*a]\n", ":5: aliases that stand for more than"),
    "no such alias": ("about: *a\n", ":5: found undefined alias 'a'"),
    "a merge": ("<<: {a: 1}\n", ":5: could not determine a constructor for the tag 'tag:yaml.org,2002:merge'"),
    "a repeated key": ("title: U\n", ":5: key 'title' is repeated"),
    "control characters in a key": ('"a\\nb\\x1b": 1\n', "a\\nb\\x1b: extra inputs are not permitted"),
    "two documents": ("---\na: 1\n", ":5: but found another document"),
    "too long": (f"about: '{'x' * 300_000}'\n", "cannot be read: it has more than 256 KiB"),
    "too many values": (f"arms: [{'x,' * 60_000}]\n", ":5: more than 50000 values"),
    "a device": ("reported: [/dev/zero]\n", "reported: /dev/zero: cannot be read: it is no file"),
    "a NUL in a name": ('reported: ["a\\0b"]\n', "a\\x00b: cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_definition_of_somebody_else_is_one_line_at_once(kind: str, tmp_path: Path) -> None:
    more, says = KINDS[kind]
    file = tmp_path / "declared.yaml"
    file.write_bytes(GOOD.encode() + (more if isinstance(more, bytes) else more.encode()))
    before = time.process_time()
    with pytest.raises(CardError) as caught:
        load_definition(file)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.process_time() - before < 5  # seconds; the longest that is read takes one


def test_aliases_that_stand_for_little_are_read(tmp_path: Path) -> None:
    file = tmp_path / "declared.yaml"
    file.write_text(
        GOOD.replace("[mean]", "&some [mean, samples]") + "order: [-mean]\narms: &a [native, fp32]\n", "utf-8"
    )
    assert load_definition(file).definition.arms == ["native", "fp32"]


def test_a_pipe_is_no_card(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "declared.yaml")
    with pytest.raises(CardError, match="it is no file"):
        load_definition(tmp_path / "declared.yaml")


def test_a_range_of_tasks_without_end_is_an_unknown_name() -> None:
    with pytest.raises(AnchorEvalError, match="unknown task"):
        select_tasks("babilong/qa1..qa99999999999")
    assert len(select_tasks("babilong/qa1..qa10")[0]) == 10


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "a\0b/c", "x" * 5000, "a/" + "x" * 5000, ""])
def test_a_name_that_can_be_no_path_is_an_unknown_model(name: str) -> None:
    with pytest.raises(AnchorEvalError, match=r"unknown model|there is no such folder"):
        find_model(name)
