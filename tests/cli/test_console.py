"""What is printed: nothing that a terminal obeys or hides, and no traceback where it cannot be printed."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from command_line import cli

from anchoreval.cli.console import StdoutLost, Visible, note, say, spelled, visible
from anchoreval.reports.table import inert

TOOL = [sys.executable, "-m", "anchoreval"]
HOSTILE = "x\x1b]0;OWNED\x07\x1b[31m\u202e\ud800\r\x9b1m\u2066\u200b\U000e0041"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", "\\x1b[31m"),
        ("\x07\x00\x08\x7f\x9b\r", "\\x07\\x00\\x08\\x7f\\x9b\\x0d"),
        ("\u202e\u2066\u200e\u061c", "\\u202e\\u2066\\u200e\\u061c"),
        ("\ud800\udfff", "\\ud800\\udfff"),
        ("\u200b\ufeff\u2028", "\\u200b\\ufeff\\u2028"),
        ("\U000e0041", "\\U000e0041"),
        ("tab\tline\n é – 漢字 ⟨🙂⟩ C:\\x", "tab\tline\n é – 漢字 ⟨🙂⟩ C:\\x"),
    ],
)
def test_what_a_terminal_obeys_or_hides_is_spelled_and_nothing_else(text: str, shown: str) -> None:
    assert spelled(text) == shown


def test_commands_warnings_logs_and_prints_of_libraries_are_all_spelled(capsys: pytest.CaptureFixture[str]) -> None:
    with visible():
        say(HOSTILE)
        note(HOSTILE)
        print(HOSTILE)  # noqa: T201 - libraries do
        print(HOSTILE, file=sys.stderr)  # noqa: T201
        handler, theirs = logging.StreamHandler(), logging.getLogger("theirs")
        theirs.propagate = False  # pytest would report the half character, which its workers cannot send
        theirs.addHandler(handler)
        theirs.warning("said %s", HOSTILE)
        theirs.removeHandler(handler)
        sys.stderr.write(warnings.formatwarning(UserWarning(HOSTILE), UserWarning, "f", 1))
    shown = capsys.readouterr()
    assert shown.out.count("\\x1b]0;OWNED\\x07") == 2 and shown.err.count("\\x1b]0;OWNED\\x07") == 4
    assert not set(shown.out + shown.err) & set(HOSTILE.replace("x", "")) - set("]0;OWNED[31m")


def test_errors_of_the_parser_are_spelled_too() -> None:
    done = cli("run", "--model", "m", "--tasks", "t", "--lengths", "\x1b[31m\u202e")
    assert done.returncode == 2 and "\x1b" not in done.stderr and "\u202e" not in done.stderr


def test_progress_bars_of_libraries_keep_their_carriage_returns() -> None:
    stream = io.StringIO()
    err = Visible(stream, results=False)
    for text in ("\r 50%|##|", "\r100%|####|\r", "\n", "a\rb", "\x1b[A", "\r\n"):
        err.write(text)
    assert stream.getvalue() == "\r 50%|##|\r100%|####|\r\na\\x0db\r\n"


def test_an_output_without_unicode_gets_escapes_in_place_of_an_error() -> None:
    raw = io.BytesIO()
    out = Visible(io.TextIOWrapper(raw, encoding="ascii"), results=True)
    out.write("–é\n")
    out.flush()
    assert raw.getvalue() == b"\\u2013\\xe9\n"


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_stderr_that_is_full_or_closed_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (Full(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        with visible():
            note("lost")
            sys.stderr.write("lost too")
            assert not sys.stderr.isatty()


def test_a_stdout_that_is_full_or_closed_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for stream, why in ((Full(), "No space left on device"), (None, "it is closed")):
        monkeypatch.setattr(sys, "stdout", stream)
        with visible(), pytest.raises(StdoutLost, match=why):
            say("lost")


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="there is no /dev/full here")
def test_tables_that_cannot_be_printed_end_with_one_line_and_exit_code_1() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*TOOL, "tasks"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "No space left on device" in done.stderr and len(done.stderr.splitlines()) == 1
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*TOOL, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1


def test_a_reader_that_goes_away_is_one_line() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*TOOL, "tasks"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 1 and "its reader has gone" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_run_whose_table_is_lost_has_its_records_and_its_board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from anchoreval.cli.parser import main

    monkeypatch.setattr(sys, "stdout", Full())
    asked = ["--model", "anchor-tiny", "--backend", "fake", "--tasks", "ruler/vt", "--lengths", "512", "--limit", "1"]
    assert main(["run", *asked, "--output", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert list(tmp_path.glob("*/*/board.html")) and "records: " in said and "Traceback" not in said
    assert "stdout cannot be written" in said.splitlines()[-1]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_text_that_a_spreadsheet_would_run_is_inert_in_every_csv(text: str) -> None:
    assert inert(text).startswith("'")
