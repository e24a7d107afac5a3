"""How long the way of one prompt is: own frames on the stack, functions and files that run. Later work that raises a
budget says why in the CHANGELOG.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import anchoreval
from anchoreval import cli, evaluate
from anchoreval.records.run import find_runs, load_run
from anchoreval.runs.verify.records import findings

PACKAGE = str(Path(anchoreval.__file__).parent)
ONE: dict[str, Any] = {"lengths": [512], "limit": 1, "haystack": "generated"}


class Walk:
    """What of the package ran inside a block, and the stacks of own frames at calls of one function."""

    def __init__(self, ends_at: tuple[str, str]) -> None:
        self._ends_at = ends_at
        self.functions: set[tuple[str, int, str]] = set()
        self.stacks: list[list[str]] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call":
            return
        if code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<"):
            self.functions.add((code.co_filename, code.co_firstlineno, code.co_qualname))
        if code.co_filename.endswith(self._ends_at[0]) and code.co_qualname == self._ends_at[1]:
            self.stacks.append(list(_own(frame)))

    @property
    def files(self) -> set[str]:
        return {file for file, _, _ in self.functions}

    @property
    def frames(self) -> int:
        """Own frames of the shallowest stack at the end of the way, where a request was being answered."""
        return min(len(stack) for stack in self.stacks if any(frame.endswith(".answer") for frame in stack))


def _own(frame: FrameType | None) -> Iterator[str]:
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            yield f"{Path(frame.f_code.co_filename).relative_to(PACKAGE)}:{frame.f_code.co_qualname}"
        frame = frame.f_back


@contextmanager
def walked(ends_at: tuple[str, str]) -> Iterator[Walk]:
    walk = Walk(ends_at)
    sys.setprofile(walk)
    try:
        yield walk
    finally:
        sys.setprofile(None)


@pytest.fixture(scope="module", autouse=True)
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is made once a process (libraries, tables of modules, tokenizers, word lists) is there before it counts."""
    for backend in CALLS:
        output = tmp_path_factory.mktemp("first")
        assert cli.main([*COMMAND, "--backend", backend, "--output", str(output)]) == 0
        (run,) = find_runs([output])
        load_run(run)  # the readers of records are made once too


COMMAND = ["run", "--model", "anchor-tiny", "--tasks", "ruler/niah_single_1", "--lengths", "512", "--limit", "1"]
COMMAND += ["--arms", "bf16,fp32", "--haystack", "generated"]
#: By backend: where the model is called, and what a way may take: frames to there, functions and files in evaluate(),
#: and those of the whole command, with its table, board and viewer.
CALLS = {"fake": ("fake.py", "FakeBackend.answer"), "hf": ("modeling_llama.py", "LlamaForCausalLM.forward")}
BUDGETS = {"fake": (7, 196, 30, 406, 60), "hf": (11, 360, 44, 570, 73)}


@pytest.mark.parametrize("backend", CALLS)
def test_one_prompt_is_answered_within_its_budget(backend: str, tmp_path: Path) -> None:
    with walked(CALLS[backend]) as command:
        assert cli.main([*COMMAND, "--backend", backend, "--output", str(tmp_path / "command")]) == 0
    with walked(CALLS[backend]) as inside:
        evaluate("anchor-tiny", "ruler/niah_single_1", arms="bf16,fp32", backend=backend, output=tmp_path, **ONE)
    frames, functions, files, *whole = BUDGETS[backend]
    print(f"{backend}: {len(command.functions)} functions in {len(command.files)} files for the whole command")  # noqa: T201
    print(f"{len(inside.functions)} in {len(inside.files)} inside evaluate()")  # noqa: T201
    assert command.frames <= frames
    assert len(inside.functions) <= functions and len(inside.files) <= files
    assert len(command.functions) <= whole[0] and len(command.files) <= whole[1]


def test_an_arm_reaches_the_tensors_within_its_budget(tmp_path: Path) -> None:
    with walked(("precision.py", "Rotation.__call__")) as walk:
        evaluate("anchor-tiny", "ruler/niah_single_1", arms="bf16", output=tmp_path, **ONE)
    assert walk.frames <= 10


def test_a_sample_is_verified_within_its_budget(tmp_path: Path) -> None:
    run = evaluate("anchor-tiny", "ruler/niah_single_1", arms="bf16", backend="fake", output=tmp_path, **ONE)
    with walked(("", "")) as walk:
        assert not [finding for finding in findings(run.path) if finding.differs]
    print(f"{len(walk.functions)} functions to verify a sample")  # noqa: T201
    assert len(walk.functions) <= 146
