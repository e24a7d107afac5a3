"""Log-probabilities beside the records: what a kill leaves, what is refused, and that the seal covers them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anchoreval import evaluate
from anchoreval.cli.parser import main
from anchoreval.errors import RunError
from anchoreval.records import folder as records_folder
from anchoreval.records.header import HEADER
from anchoreval.records.lines import LOGPROBS, RECORDS, TokenLogprobs
from anchoreval.records.run import Run, load_run

ASKED: dict[str, Any] = {"lengths": [512], "haystack": "generated", "backend": "fake", "limit": 2, "rope": "bf16,fp32"}


def run_in(output: Path, **more: Any) -> Run:
    return evaluate("anchor-tiny", "ruler/niah_single_1", output=output, **ASKED | more)


def unsealed(path: Path) -> None:
    header = json.loads((path / HEADER).read_text())
    del header["seal"], header["finished"]
    (path / HEADER).write_text(json.dumps(header))


def test_every_record_with_a_reference_has_its_tokens_in_its_own_order(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    logprobs = run.token_logprobs()
    assert list(logprobs) == [record.key for record in run.records] and len(logprobs) == 4
    for record in run.records:
        each = logprobs[record.key]
        assert len(each) == record.reference_tokens
        # a float32 is within 2^-24 of what it rounds, and so is their sum
        assert math.fsum(each) == pytest.approx(record.reference_logprob, rel=2.0**-24)
    assert "log_probabilities_sha256" in run.header["seal"] and main(["verify", str(run.path)]) == 0


def test_values_come_back_as_they_were(tmp_path: Path) -> None:
    written, values = TokenLogprobs(tmp_path), (-0.5, -(2.0**-149), -3.25e8)
    written.append("a", values)
    written.append("b", (-1.0,))
    written.append("a", values[:2])
    for logprobs in (written, TokenLogprobs(tmp_path)):
        assert {key: tuple(each) for key, each in logprobs.items()} == {"b": (-1.0,), "a": values[:2]}
    written.settle(["a", "c"])
    assert (
        {key: tuple(each) for key, each in TokenLogprobs(tmp_path).items()}
        == {"a": values[:2]}
        == {key: tuple(each) for key, each in written.items()}
    )
    assert len((tmp_path / LOGPROBS).read_bytes().splitlines()) == 1


def test_a_run_killed_between_the_two_files_goes_on_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_in(tmp_path / "whole")
    stock: Callable[[int, bytes], None] = records_folder.write_line
    left = [2]

    def cut(file: int, line: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt  # its log-probabilities are there, its record is not
        stock(file, line)

    with monkeypatch.context() as killed:
        killed.setattr(records_folder, "write_line", cut)
        with pytest.raises(KeyboardInterrupt):
            run_in(tmp_path / "cut")
    (header,) = (tmp_path / "cut").glob(f"*/*/{HEADER}")
    assert len(TokenLogprobs(header.parent)) == 3 and len(load_run(header.parent).records) == 2
    with (header.parent / LOGPROBS).open("ab") as torn:
        torn.write(b'{"key":"to')
    again = run_in(tmp_path / "cut")
    assert again.path == header.parent
    assert (again.path / LOGPROBS).read_bytes() == (whole.path / LOGPROBS).read_bytes()
    assert main(["verify", str(again.path)]) == 0


@pytest.mark.parametrize("gone", [True, False])
def test_a_seal_tells_of_log_probabilities_that_changed(
    tmp_path: Path, gone: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_in(tmp_path)
    path = run.path / LOGPROBS
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.unlink() if gone else path.write_bytes(b"".join([*rest, first]))
    assert load_run(run.path).changed == "the log probabilities changed since it finished (seal)"
    assert main(["verify", str(run.path)]) == 1 and "seal: the log probabilities changed" in capsys.readouterr().out
    with pytest.raises(RunError, match="the log probabilities changed since it finished"):
        run_in(tmp_path)


def test_a_run_of_before_has_no_such_file_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_in(tmp_path)
    (run.path / LOGPROBS).unlink()
    header = json.loads((run.path / HEADER).read_text())
    del header["seal"]["log_probabilities_sha256"]
    (run.path / HEADER).write_text(json.dumps(header, indent=1, sort_keys=True) + "\n")
    assert load_run(run.path).changed == "" and main(["verify", str(run.path)]) == 0
    grown = run_in(tmp_path, limit=3)
    assert grown.path == run.path and len(grown.records) == 6 and len(grown.token_logprobs()) == 2
    assert main(["verify", str(run.path)]) == 0
    assert "4 records have no line in logprobs.jsonl" in capsys.readouterr().err


def test_lines_that_are_not_those_of_their_records_are_differences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_in(tmp_path)
    lines = [json.loads(line) for line in (run.path / LOGPROBS).read_text().splitlines()]
    lines[0]["logprobs"], lines[1]["logprobs"] = lines[1]["logprobs"], lines[0]["logprobs"][:16]
    lines.append({"key": "f" * 64, "logprobs": lines[2]["logprobs"]})
    (run.path / LOGPROBS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["verify", str(run.path)]) == 1
    said, told = capsys.readouterr()
    assert "add up to" in said and "log-probabilities in logprobs.jsonl, reference_tokens is" in said
    assert "logprobs.jsonl: 1 lines are of no record" in told


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{}\n", "not the log-probabilities of a record"),
        (b"[" * 10**5 + b"\n", "nested too deeply"),
        (b"\xff\n", "utf-8"),
        (b'{"key": 7, "logprobs": ""}\n', "not the log-probabilities of a record"),
        (b'{"key": "a", "logprobs": "AAAA\xc3\xa9"}\n', "ASCII"),
        (b'{"key": "a", "logprobs": "AAA="}\n', "no list of float32"),
        (b'{"key": "a", "logprobs": "AACAfw=="}\n', "not finite"),
        (b"x" * 2**26 + b"\n", "longer than 64 MiB"),
    ],
)
def test_a_foreign_file_is_one_line_that_names_it(
    tmp_path: Path, content: bytes, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_in(tmp_path)
    (run.path / LOGPROBS).write_bytes(content)
    unsealed(run.path)
    with pytest.raises(RunError, match=says) as caught:
        run_in(tmp_path)
    assert f"{run.path / LOGPROBS}:1: " in str(caught.value) and "\n" not in str(caught.value)
    assert main(["verify", str(run.path)]) == 2 and LOGPROBS in capsys.readouterr().err


def test_a_link_or_a_pipe_is_refused(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    path = run.path / LOGPROBS
    for make in (lambda: path.symlink_to(tmp_path / "elsewhere"), lambda: os.mkfifo(path)):
        path.unlink()
        make()
        (tmp_path / "elsewhere").write_text("")
        with pytest.raises(RunError, match=LOGPROBS):
            TokenLogprobs(run.path)
        with pytest.raises(RunError, match=LOGPROBS):
            load_run(run.path)


def test_a_full_disk_is_one_line_and_leaves_no_record_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("anchoreval.records.lines.write_line", full)
        with pytest.raises(RunError, match=r"cannot write .*logprobs\.jsonl: No space left"):
            run_in(tmp_path)
    (records,) = tmp_path.glob(f"*/*/{RECORDS}")
    assert records.read_bytes() == b""
