"""A header or a record of which one value is of a wrong kind: a right answer or one line, through every command."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import cli
from mutations import GONE, WRONG, Place, mutated, places

from anchoreval import evaluate
from anchoreval.errors import RunError
from anchoreval.records.header import HEADER, read_header
from anchoreval.records.lines import RECORDS, from_line

BOARD = "title: T\nsuites: [ruler]\nbaseline: bf16\ncolumns: [mean]\nlengths: [512]\n"
KINDS = [*WRONG, GONE]
#: What no file of JSON may hold, wherever it stands.
NOWHERE = ("1e999", "NaN", "huge", "deep")


class Case:
    """A run of two samples under two arms, its header without a seal and its first record."""

    def __init__(self, folder: Path, arguments: dict[str, Any]) -> None:
        self.output, self.folder = folder / "runs", folder
        self.path = evaluate("anchor-tiny", backend="fake", output=self.output, limit=2, **arguments).path
        self.header = json.loads((self.path / HEADER).read_text())
        del self.header["seal"]
        self.lines = (self.path / RECORDS).read_text().splitlines(keepends=True)
        self.record = json.loads(self.lines[0])
        again = ["run", "--model", "anchor-tiny", "--backend", "fake", "--limit", "2", "--output", str(self.output)]
        for name, value in arguments.items():
            given = [] if value is True else [",".join(map(str, value)) if isinstance(value, list) else value]
            again += [f"--{name}", *given]
        place, board = str(self.output), folder / "board.yaml"
        board.write_text(BOARD)
        declared = ["--definition", str(board)]
        out = ["--output", str(folder / "out")]
        self.commands = {
            "score": ["score", place],
            "compare": ["compare", place],
            "general": ["general", place],
            "longbench": ["longbench", place],
            "lm-eval": ["export", place, "--format", "lm-eval", *out],
            "csv": ["export", place, "--format", "csv", *out],
            "verify": ["verify", place],
            "view": ["view", place, *out],
            "board": ["board", place, *out],
            "definition": ["board", place, *declared, *out],
            "run": again,
        }

    def written(self, header: str | None = None, record: str | None = None) -> None:
        """The run with another header, or another first record."""
        (self.path / HEADER).write_text(json.dumps(self.header) if header is None else header)
        first = self.lines[0] if record is None else record + "\n"
        (self.path / RECORDS).write_text(first + "".join(self.lines[1:]))

    def read(self, mutation: tuple[str, Place, str]) -> bool:
        """Whether a mutation is read, once it is written; where it is refused, the line names the file and the key."""
        what, place, kind = mutation
        text = mutated(self.header if what == "header" else self.record, place, kind)
        key = str(place[0]) if kind != GONE else str(place[-1])
        try:
            if what == "header":
                self.written(header=text)
                read_header(self.path / HEADER)
            else:
                self.written(record=text)
                from_line(text.encode() + b"\n")
        except RunError as error:
            assert str(error).startswith(f"{self.path / HEADER}: ") and "\n" not in str(error)
            assert kind in NOWHERE or key in str(error), error
            return False
        except ValueError as error:
            assert kind in NOWHERE or key in str(error), error
            return False
        assert kind not in NOWHERE, mutation
        return True

    def answers(self, command: str) -> subprocess.CompletedProcess[str]:
        """The command in this process, which ends without a traceback and, where it fails, with a line."""
        done = cli(*self.commands[command])
        assert done.returncode in (0, 1, 2) and "Traceback" not in done.stderr
        assert done.returncode != 2 or done.stderr.strip() or done.stdout.strip()
        return done


@pytest.fixture(params=["ruler", "until", "placebo"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """A run of two arms, one that stopped by a rule, one of another task with a placebo."""
    return Case(tmp_path, RUNS[request.param])


RUNS: dict[str, dict[str, Any]] = {
    "ruler": {"tasks": "ruler/niah_single_1", "lengths": [512], "rope": "bf16,fp32", "haystack": "generated"},
    "until": {"tasks": "ruler/vt", "lengths": [512], "rope": "bf16,fp32", "until": "40pt@90%"},
    "placebo": {"tasks": "ruler/qa_1", "lengths": [1024], "haystack": "generated", "placebo": True},
}


def mutations(case: Case) -> Iterator[tuple[str, Place, str]]:
    for what, value in (("header", case.header), ("record", case.record)):
        yield from ((what, place, kind) for place in places(value) for kind in KINDS)


EVERY = 16  # of the values that are read, the share that goes through a command in the short test


def test_a_value_of_a_wrong_kind_is_named_or_does_no_harm(case: Case) -> None:
    commands = itertools.cycle(case.commands)
    whole = shutil.copytree(case.path, case.folder / "whole")
    for number, _ in enumerate(filter(case.read, mutations(case))):
        if number % EVERY == 0:
            case.answers(next(commands))
            shutil.rmtree(case.path)
            shutil.copytree(whole, case.path)


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_every_value_of_a_wrong_kind_through_every_command(case: Case) -> None:
    turns = itertools.cycle(case.commands)
    whole = shutil.copytree(case.path, case.folder / "whole")
    for mutation in mutations(case):
        for command in case.commands if case.read(mutation) else [next(turns)]:
            case.read(mutation)
            case.answers(command)
            shutil.rmtree(case.path)
            shutil.copytree(whole, case.path)


def test_a_refused_value_is_one_line_of_every_command(case: Case) -> None:
    for mutation in (("header", ("asked",), "text"), ("record", ("score",), "text"), ("record", ("seconds",), "1e999")):
        for command in case.commands:
            assert not case.read(mutation)
            done = case.answers(command)
            assert done.returncode in (1, 2) or command == "definition", done
            name = HEADER if mutation[0] == "header" else f"{RECORDS}:1"
            assert f"{case.path / name}: " in done.stderr + done.stdout, (command, done)
