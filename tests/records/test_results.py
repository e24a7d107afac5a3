"""Run folders: header first, whole lines only, one writer, nothing half written."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from anchoreval.errors import RunError
from anchoreval.records.folder import RunFolder
from anchoreval.records.header import fingerprint
from anchoreval.records.lines import RECORDS, from_line, read_records, to_line
from anchoreval.records.run import find_runs, load_run
from anchoreval.schema import ChoiceScore, Record

HEADER = {"identity": {"model": "m"}, "created": "2026-01-01T00:00:00+00:00", "run": "abc"}


def record(index: int, **changes: object) -> Record:
    base = Record(
        key=f"k{index}", sample_id=f"s/t@512#{index}", task="s/t", length=512, index=index, arm="fp32",
        prompt_sha256="0" * 64, prompt_tokens=500, references=("a", "b"), facts={"depths": [0.5]}, output="text",
        output_tokens=3, finish="stop", score=0.5, why=None, reference_logprob=-1.25, reference_tokens=2, seconds=0.1,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["plain", "line\nbreak\u2028", "\ud800 lone", "</script>\x00", "\u202eright to left", "é漢😀"]
)
def test_any_text_survives_the_line(text: str) -> None:
    line = to_line(record(1, output=text))
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert from_line(line) == record(1, output=text)


def test_choices_survive_the_line_and_stand_on_it_only_where_there_are_any() -> None:
    with_choices = record(1, choices=(ChoiceScore(-1.5, True), ChoiceScore(-2.0, False)))
    assert from_line(to_line(with_choices)) == with_choices
    assert b'"choices": [[-1.5, true], [-2.0, false]]' in to_line(with_choices)
    assert b"choices" not in to_line(record(1))


@pytest.mark.parametrize("choices", ["x", [[1.0]], [[1.0, 2]], [["a", True]], {"a": 1}, [[True, True]]])
def test_choices_that_are_no_pairs_are_no_record(choices: object) -> None:
    values = json.loads(to_line(record(1))) | {"choices": choices}
    with pytest.raises(ValueError, match="choices"):
        from_line(json.dumps(values).encode())


def test_a_score_that_is_no_number_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_line(record(1, score=float("nan")))


def test_the_header_is_there_before_the_first_record(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", HEADER):
        assert load_run(tmp_path / "run").header["run"] == "abc"


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    with RunFolder(tmp_path, HEADER) as folder:
        for index in range(3):
            folder.append(record(index))
            assert len(read_records(tmp_path / RECORDS)) == index + 1
    assert load_run(tmp_path).records == (record(0), record(1), record(2))


@pytest.mark.parametrize("torn", [b'{"key": "k9", "sam', b"{", b"x" * 200_000])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    with RunFolder(tmp_path, HEADER) as folder:
        folder.append(record(0))
    with (tmp_path / RECORDS).open("ab") as file:
        file.write(torn)
    with RunFolder(tmp_path, HEADER) as folder:
        assert set(folder.done) == {"k0"}
        folder.append(record(1))
    assert [item.key for item in load_run(tmp_path).records] == ["k0", "k1"]


def test_a_broken_line_inside_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    with RunFolder(tmp_path, HEADER) as folder:
        folder.append(record(0))
    before = (tmp_path / RECORDS).read_bytes() + b"not json\n" + to_line(record(1))
    (tmp_path / RECORDS).write_bytes(before)
    with pytest.raises(RunError, match=r"records\.jsonl:2"), RunFolder(tmp_path, HEADER):
        pass
    assert (tmp_path / RECORDS).read_bytes() == before


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from anchoreval.records.folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1]), {'identity': {'model': 'm'}, 'created': 'now'}): pass"
    )

    def second() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)

    with RunFolder(tmp_path, HEADER):
        assert "another process is writing this run" in second().stderr
    assert second().returncode == 0


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path, HEADER):
        pass
    with pytest.raises(RunError, match="other settings"), RunFolder(tmp_path, HEADER | {"identity": {"model": "n"}}):
        pass


def test_a_resumed_run_keeps_its_date_and_says_that_it_was_resumed(tmp_path: Path) -> None:
    with RunFolder(tmp_path, HEADER):
        pass
    with RunFolder(tmp_path, HEADER | {"created": "later"}):
        pass
    header = load_run(tmp_path).header
    assert header["created"] == HEADER["created"] and header["resumed"] == 1


def test_a_full_disk_fails_at_once(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("NO /dev/full: a full disk cannot be provoked here")
    with RunFolder(tmp_path, HEADER) as folder:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, folder._file)
        os.close(full)
        with pytest.raises(RunError, match="No space left"):
            folder.append(record(0))
        assert not folder.done


def test_a_path_that_cannot_be_written_fails_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"), RunFolder(tmp_path / "file" / "run", HEADER):
        pass


def test_runs_are_found_at_and_under_a_path(tmp_path: Path) -> None:
    for name in ("b/one", "a/two"):
        with RunFolder(tmp_path / name, HEADER):
            pass
    assert find_runs([tmp_path]) == [tmp_path / "a/two", tmp_path / "b/one"]
    assert find_runs([tmp_path / "b/one"]) == [tmp_path / "b/one"]
    with pytest.raises(RunError, match="no run here"):
        find_runs([tmp_path / "c"])


def test_the_fingerprint_follows_the_content_and_not_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})


@pytest.mark.parametrize(("name", "value"), [("length", True), ("score", "1"), ("seconds", None), ("references", [1])])
def test_a_field_of_another_kind_is_named(name: str, value: object) -> None:
    line = json.dumps(json.loads(to_line(record(1))) | {name: value}).encode()
    with pytest.raises(ValueError, match=f"not a record: {name} (is|are) "):
        from_line(line)


@pytest.mark.parametrize("which", ["run", "model"])
def test_nothing_is_written_through_a_link_in_the_place_of_a_run(tmp_path: Path, which: str) -> None:
    (tmp_path / "mine").mkdir()
    link = tmp_path / ("m/run" if which == "run" else "m")
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "mine")
    with pytest.raises(RunError, match=rf"{link} is a link: name the folder"), RunFolder(tmp_path / "m/run", HEADER):
        pass
    assert not list((tmp_path / "mine").iterdir())


def test_a_lock_that_is_a_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to("nowhere")
    with pytest.raises(RunError, match=r"lock: it is a link: delete it"), RunFolder(tmp_path, HEADER):
        pass


def test_a_header_that_could_not_be_read_again_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"seed: expected a whole number"), RunFolder(tmp_path / "r", {"seed": 2**70}):
        pass
    assert not (tmp_path / "r").exists()
