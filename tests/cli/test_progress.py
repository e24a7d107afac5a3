"""How far a piece of work is, as a log and a terminal show it."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import cli

from anchoreval.cli import console
from anchoreval.cli.console import Way, duration, rate_words, shown, told
from anchoreval.errors import AnchorEvalError, ModelError
from anchoreval.schema import work

FAKE = ["--model", "anchor-tiny", "--backend", "fake", "--lengths", "512", "--limit", "4"]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_says_done_asked_rate_time_left_and_what_is_computed() -> None:
    clock = Clock()
    way = Way(60, clock=clock)
    way.at("ruler/vt at 4,096, fp32")
    clock.now += 20
    assert way.line() == "0 of 60 records, none new in 20 s; ruler/vt at 4,096, fp32"
    for _ in range(10):
        way(1)
    assert way.line() == "10 of 60 records, 30.0 a minute, 1 min 40 s left; ruler/vt at 4,096, fp32"


def test_records_that_were_there_count_as_done_and_not_in_the_rate() -> None:
    clock = Clock()
    way = Way(100, clock=clock)
    way.had(80)
    clock.now += 10
    way(10)
    assert way.line() == "90 of 100 records, 1.0 a second, 10 s left"


def test_a_stage_says_its_name_and_its_time() -> None:
    clock = Clock()
    way = Way(0, clock=clock)
    way.at("opening anchor-tiny")
    clock.now += 95
    assert way.line() == "opening anchor-tiny, for 1 min 35 s so far"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (12e3, "3 h 20 min"), (187200, "2 d 4 h")],
)
def test_durations_are_told_in_two_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_rates_are_told_in_the_unit_in_which_they_can_be_read() -> None:
    assert [rate_words(rate) for rate in (12.34, 0.5, 0.001)] == ["12.3 a second", "30.0 a minute", "3.6 an hour"]


def test_a_line_comes_from_a_timer_while_one_long_thing_is_computed() -> None:
    way, lines, two = Way(1), list[str](), threading.Event()

    def tell(text: str) -> None:
        lines.append(text)
        if len(lines) == 2:
            two.set()

    with told(way, tell, every_s=0.01):
        assert two.wait(30)
    assert all(line.startswith("0 of 1 records") for line in lines)


def test_nothing_is_told_once_the_work_is_over() -> None:
    lines: list[str] = []
    with told(Way(1), lines.append, every_s=3600):
        pass
    assert not lines and "progress" not in {thread.name for thread in threading.enumerate() if thread.is_alive()}


def test_a_line_comes_at_least_every_half_minute() -> None:
    assert console.EVERY_S <= 30


def test_an_error_inside_the_work_is_one_of_running_and_says_how_far_it_was() -> None:
    with pytest.raises(ModelError) as failed, shown(4, "records", "the same command goes on") as way:
        way(2)
        raise ModelError("the server gave up")
    assert (failed.value.while_running, failed.value.goes_on) == ("after 2 of 4 records", "the same command goes on")
    with pytest.raises(AnchorEvalError) as full, shown(4):
        raise OSError(28, "No space left on device")
    assert full.value.while_running == "after 0 of 4 records"


def test_a_function_of_the_callers_own_is_told_how_many_are_done() -> None:
    told: list[int] = []

    @contextlib.contextmanager
    def watch(total: int) -> Iterator[Callable[[int], None]]:
        told.append(total)
        yield told.append

    with work(watch, 5, "opening") as way:
        way.at("ruler/vt")
        way.had(2)
        way(3)
    assert told == [5, 2, 3]


def test_an_error_of_a_stage_before_the_work_is_bad_input() -> None:
    with pytest.raises(ModelError) as failed, shown(0):
        raise ModelError("no such model")
    assert not failed.value.while_running


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "EVERY_S", 0.02)


@pytest.mark.usefixtures("often")
def test_every_long_command_tells_its_progress_in_a_log(tmp_path: Path) -> None:
    slow = ["--backend-args", "delay_s=0.05"]
    done = cli("run", *FAKE, *slow, "--tasks", "ruler/vt", "--rope", "bf16,fp32", "--output", str(tmp_path / "r"))
    told = [line for line in done.stderr.splitlines() if " of 8 records" in line]
    assert any("ruler/vt at 512, bf16" in line for line in told) and any("512, fp32" in line for line in told)
    assert {line.split()[0] for line in told} > {"1", "2"}, "records are counted as they come"
    assert not [line for line in done.stdout.splitlines() if " of 8 records" in line]
    done = cli("run", *FAKE, *slow, "--tasks", "ruler/vt", "--arms", "bf16,fp32", "--output", str(tmp_path / "q"), "-q")
    assert done.returncode == 0 and "records:" in done.stderr and " of 8 records" not in done.stderr
    for command, says in (("verify", " of 12 prompts and records"), ("view", " of 4 prompts")):
        done = cli(command, str(tmp_path / "r"))
        assert done.returncode == 0 and says in done.stderr, done.stderr


@pytest.mark.usefixtures("often")
def test_a_command_without_a_count_says_what_it_is_at_and_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(_: object) -> int:
        time.sleep(0.1)
        with shown(2, "prompts") as way:
            time.sleep(0.1)
            way(2)
        return 0

    monkeypatch.setattr("anchoreval.cli.models.main", slow)
    lines = cli("models").stderr.splitlines()
    assert lines[0] == "models, for 0 s so far" and {line.split(",")[0] for line in lines} == {
        "models", "0 of 2 prompts"
    }  # fmt: skip
    assert not cli("models", "-q").stderr


def test_a_download_tells_how_much_there_is_as_soon_as_it_is_known() -> None:
    clock = Clock()
    way = Way(None, "MB", clock)
    way.at("fetching data.zip")
    assert way.line() == "fetching data.zip, for 0 s so far"
    way.reach(40, 100)  # of an earlier try
    clock.now += 10
    way.reach(60, 100)
    assert way.line() == "60 of 100 MB, 2.0 a second, 20 s left; fetching data.zip"


def test_a_terminal_gets_a_live_line_that_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", screen)
    with shown(4) as way:
        way.at("ruler/\u202evt at 4,096")
        way(1)
        sys.stderr.write("a warning with \x07 in it\n")
    text = screen.getvalue()
    assert "1 of 4 records" in text and "\\u202evt at 4,096" in text and "\u202e" not in text
    assert "a warning with \\x07 in it" in text
