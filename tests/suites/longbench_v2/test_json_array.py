"""An array read object by object, against json.loads of the whole: cut at every place, truncated, hostile, huge."""

from __future__ import annotations

import itertools
import json
import re
import tracemalloc
from pathlib import Path

import pytest

from anchoreval.errors import SourceError
from anchoreval.suites.longbench_v2.json_array import objects

ROWS = [
    {"_id": "é", "text": 'a "quoted" \\ line\n\ttab / \u2028 𝄞', "n": [-1.5e-7, 12, 0, True, False, None]},
    {},
    {"deep": {"a": [{"b": []}, "]}"]}, "text": "{[,]}"},
    {"big": 12345678901234567890, "infinite": [1e308], "pair": "\U0001f600"},
]


def place(folder: Path, content: str | bytes) -> Path:
    path = folder / "data.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def problem(path: Path, chunk: int = 1 << 20) -> str:
    with pytest.raises(SourceError, match="^" + re.escape(str(path))) as caught:
        list(objects(path, chunk))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_cut_at_every_place_is_what_json_makes_of_the_whole(
    escaped: bool, indent: int | None, tmp_path: Path
) -> None:
    text = f" \r\n{json.dumps(ROWS, ensure_ascii=escaped, indent=indent)}\n \t"
    path = place(tmp_path, text)
    for chunk in range(1, len(text) + 1):
        assert list(objects(path, chunk)) == ROWS, chunk


def test_an_array_truncated_anywhere_gives_what_was_whole_and_then_an_error(tmp_path: Path) -> None:
    text = json.dumps(ROWS)
    ends = [at for at, _ in enumerate(text) if _is_json_list(text[:at] + "]")]
    for end, chunk in itertools.product(range(1, len(text)), (1, 7, 4096)):
        found = []
        with pytest.raises(SourceError, match=r"data\.json"):
            for row in objects(place(tmp_path, text[:end]), chunk):
                found.append(row)
        assert found == ROWS[: len(found)]
        assert len(found) == len(json.loads(text[: max([1, *(e for e in ends if e <= end)])] + "]")), end


def _is_json_list(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "expected a JSON array, found ''"),
        ('{"a": 1}', "expected a JSON array"),
        ("version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer must be replaced"),
        ('[{"a": 1}, 3]', "behind element 1: expected an object, found '3'"),
        ("[[]]", "expected an object, found '['"),
        ('[{"a": 1},]', "behind element 1: expected an object, found ']'"),
        ('[{"a": 1} {"b": 2}]', "behind element 1: expected a comma or the end of the array, found '{'"),
        ('[{"a": 1}]]', "behind element 1: the text goes on behind the array with ']'"),
        ('[{"a": 1}', "found 'the end of the file'"),
        ('[{"a": "never ends}]', "the file ends inside it"),
        ('[{"a": tru', "the file ends inside it"),
        (f'[{{"a": 1, b: 2, "c": "{"x" * 99}"}}]', "at character"),
        (f'[{{"a": "\t", "c": "{"x" * 99}"}}]', "Invalid control character at"),
        ("[" + '{"a":' * 100_000, "nested too deeply"),
        (f'[{{"a": {"9" * 5000}}}]', "4300 digits"),
        (b'[{"a": "\xff\xfe"}]', "not UTF-8"),
        (b'[{"a": "\xed\xa0\x80"}]', "not UTF-8"),
        (b'[{"a": 1}, {"b": "\xc3', "not UTF-8"),
        (b"\xef\xbb\xbf[]", "expected a JSON array"),
    ],
)
def test_what_is_no_array_of_objects_is_said_in_one_line(content: str | bytes, says: str, tmp_path: Path) -> None:
    for chunk in (1 << 20, 11):
        assert says in problem(place(tmp_path, content), chunk)


def test_an_empty_array_has_no_objects(tmp_path: Path) -> None:
    assert list(objects(place(tmp_path, " [ ] "))) == []


def test_a_broken_object_is_refused_before_the_rest_is_read(tmp_path: Path) -> None:
    path = place(tmp_path, '[{"a": 1, b: 2}, ' + '{"c": "x"}, ' * 400_000 + "{}]")
    tracemalloc.start()
    assert "at character 10" in problem(path, 4096)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_text_of_five_megabytes_is_read_and_a_long_file_is_never_whole_in_memory(tmp_path: Path) -> None:
    rows = [{"text": "p" * 5_000_000, "n": 0}, *({"text": "q" * 100_000, "n": n} for n in range(1, 200))]
    path = place(tmp_path, json.dumps(rows))
    del rows
    tracemalloc.start()
    lengths = [(len(row["text"]), row["n"]) for row in objects(path)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lengths == [(5_000_000, 0), *((100_000, n) for n in range(1, 200))]
    assert peak < 32_000_000 < path.stat().st_size * 1.3, peak
