"""A suite from outside the package: a card with its module beside it, run where a user names it and nowhere else."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from anchoreval import evaluate
from anchoreval.cli.parser import main
from anchoreval.errors import AnchorEvalError, CardError, UnknownName
from anchoreval.records.header import HEADER
from anchoreval.records.run import Run
from anchoreval.suites import averages, outside, select_tasks

BOXES = Path(__file__).parents[2] / "examples" / "boxes"


@pytest.fixture(autouse=True)
def _nothing_is_named() -> Iterator[None]:
    """Let each test, and whatever comes after it, begin as a process that named no suite."""
    forget()
    yield
    forget()
    sys.modules.pop("crates_of_mine", None)


def forget() -> None:
    """Be as another process, in which nothing was named."""
    outside._NAMED.clear()
    for name in [name for name in sys.modules if name.startswith("anchoreval_outside_")]:
        del sys.modules[name]


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """The example's card in a folder of its own; its module notes there that it was run."""
    folder = shutil.copytree(BOXES, tmp_path / "mine", ignore=shutil.ignore_patterns("__pycache__"))
    change(
        folder / "boxes.py", '\nCOLOURS = ("red"', f'\nopen({str(tmp_path / "ran")!r}, "w").close()\nCOLOURS = ("red"'
    )
    return folder / "boxes.yaml"


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def run(tasks: object, output: Path, **changes: Any) -> Run:
    asked: dict[str, Any] = {"lengths": [256], "limit": 2, "backend": "fake", "haystack": "generated"}
    return evaluate("anchor-tiny", str(tasks), output=output, **asked | changes)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_it_runs_and_its_header_names_card_and_module_by_hash(tmp_path: Path, card: Path) -> None:
    made = run(card, tmp_path / "runs", rope="bf16,fp32")
    assert {record.score for record in made.records} == {1.0} and len(made.records) == 5 * 2 * 2
    assert made.header.outside.keys() == set(made.header.tasks) and len(made.header.tasks) == 5
    origin = made.header.outside["boxes/first"]
    assert all(len(str(origin[kind])) == 64 for kind in ("card", "module"))
    header = {name: value for name, value in made.header.items() if name != "options"}  # what was typed
    assert str(card.parent) not in json.dumps(header)
    assert set(made.header.incomparable().values()) == {"a suite from outside the package"}


def test_one_task_and_a_set_of_it_are_named_behind_the_card(tmp_path: Path, card: Path) -> None:
    assert [task.name for task in select_tasks(f"{card}/boxes-ends")[0]] == ["first", "last"]
    tasks, single = select_tasks(f"ruler/vt,{card}/count")
    assert [task.address for task in tasks] == ["ruler/vt", "boxes/count"] == sorted(single, reverse=True)
    with pytest.raises(UnknownName, match="boxes/first"):
        select_tasks(f"{card}/frist")


def test_the_same_command_goes_on_and_a_changed_module_or_card_begins_a_new_run(tmp_path: Path, card: Path) -> None:
    told: list[str] = []
    first = run(card, tmp_path / "runs", tell=told.append)
    assert run(card, tmp_path / "runs").path == first.path
    change(card.with_name("boxes.py"), "Here is a row", "There is a row")
    second = run(card, tmp_path / "runs", tell=told.append)
    assert (
        second.path != first.path and "the card or the module of a suite from outside the package changed" in told[-1]
    )
    change(card, "about: ", "about: Another text. ")
    assert run(card, tmp_path / "runs").path not in (first.path, second.path)


@pytest.mark.parametrize("command", ["verify", "score"])
def test_a_run_is_judged_again_only_where_its_suite_is_named_again(
    tmp_path: Path, card: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(run(card, tmp_path / "runs").path)
    forget()
    (tmp_path / "ran").unlink()
    assert main([command, path]) == 2
    assert last_line(capsys).endswith("which is run only where you name it: --tasks PATH/boxes.yaml")
    assert not (tmp_path / "ran").exists()
    assert main([command, path, "--tasks", str(card)]) == 0
    assert (tmp_path / "ran").exists()
    forget()
    change(card.with_name("boxes.py"), "COLOURS = (", "# changed\nCOLOURS = (")
    assert main([command, path, "--tasks", str(card)]) == 2
    assert "name the card and module that the run was made with" in last_line(capsys)


def test_boards_the_viewer_and_comparisons_run_nothing_of_it(
    tmp_path: Path, card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(run(card, tmp_path / "runs", rope="bf16,fp32").path)
    forget()
    (tmp_path / "ran").unlink()
    export = ["export", path, "--format", "csv", "--output", f"{path}/out"]
    for command in (["board", path], ["view", path], ["compare", path], export):
        assert main(command) == 0, capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_the_viewer_shows_its_prompts_where_it_is_named(tmp_path: Path, card: Path) -> None:
    path = run(card, tmp_path / "runs").path

    def viewed(*more: str) -> str:
        forget()
        assert main(["view", str(path), *more]) == 0
        return "".join(part.read_text("utf-8") for part in sorted((path / "view").rglob("*")) if part.is_file())

    assert "a row of boxes" not in viewed() and "a row of boxes" in viewed("--tasks", str(card))


@pytest.mark.parametrize("where", ["card", "module", "generator", "scorer"])
def test_a_header_that_names_a_file_runs_nothing(
    tmp_path: Path, card: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(card, tmp_path / "runs").path
    header = json.loads((path / HEADER).read_text("utf-8"))
    for task in header["identity"]["tasks"]:
        (task["outside"] if where in task["outside"] else task)[where] = str(card.with_suffix(".py"))
    (path / HEADER).write_text(json.dumps(header), "utf-8")
    forget()
    (tmp_path / "ran").unlink()
    for command in ("verify", "score", "board", "view"):
        main([command, str(path)])
    assert not (tmp_path / "ran").exists()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "old", "new", "names"),
    [
        (
            "boxes.py",
            "COLOURS = (",
            "raise SystemExit('no\\nw')\nCOLOURS = (",
            ["boxes.py failed: SystemExit: no w"],
        ),
        ("boxes.py", "COLOURS = (", "COLOURS = = (", ["boxes.py failed: SyntaxError"]),
        ("boxes.py", "SUITE = ", "SWEET = ", ["boxes.py: SUITE is NoneType"]),
        ("boxes.py", "Scorer(first_word)", "first_word", ["boxes.py: SUITE: 'first_word' is function, no Scorer"]),
        ("boxes.py", "index in range(recipe.count)", "index in [1 / 0]", ["boxes.py: boxes failed", "ZeroDivision"]),
        ("boxes.py", "return Score(", "return float(", ["boxes.py: first_word returned float, no Score"]),
        ("boxes.py", "words = answer", "words = 1 / 0 or answer", ["first_word failed at the answer", "ZeroDivision"]),
        ("boxes.yaml", "module: boxes.py", "module: ../boxes.py", ["boxes.yaml: module: '../boxes.py' is no name"]),
        ("boxes.yaml", "module: boxes.py", "module: none.py", ["none.py cannot be read"]),
        ("boxes.yaml", "scorer: first_word", "scorer: frist_word", ["boxes.yaml: tasks > first > ", "first_word"]),
        ("boxes.yaml", "{generator: boxes,", "{generator: boxen,", ["boxes.yaml: tasks > first > ", "boxes"]),
        ("boxes.yaml", "boxes-ends:", "ruler:", ["boxes.yaml: a suite or set of the package is called ruler"]),
        ("boxes.yaml", "  first: {", "  a/b: {", ["boxes.yaml: "]),
    ],
)
def test_what_is_wrong_with_it_is_one_line_that_names_the_file(
    tmp_path: Path, card: Path, file: str, old: str, new: str, names: list[str]
) -> None:
    change(card.with_name(file), old, new)
    with pytest.raises(CardError) as caught:
        run(card, tmp_path / "runs")
    message = str(caught.value)
    assert all(name in message for name in names) and "\n" not in message, message


def test_a_card_without_a_module_uses_what_the_package_has(tmp_path: Path) -> None:
    card = tmp_path / "short.yaml"
    card.write_text(
        "about: a\nsource: b\nlicense: c\nversion: 1\ndefaults: {samples: 2, lengths: [512], scorer: match_all}\n"
        "tasks:\n  noise: {generator: ruler_niah, args: {haystack: noise}, max_new_tokens: 32}\n"
    )
    made = run(card, tmp_path / "runs", lengths=None)
    assert [record.sample_id for record in made.records] == ["short/noise@512#0", "short/noise@512#1"]
    assert "module" not in made.header.outside["short/noise"]
    assert main(["verify", str(made.path), "--tasks", str(card)]) == 0


def test_an_average_of_it_is_a_column_of_a_declared_board_where_it_is_named(
    tmp_path: Path, card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(card, tmp_path / "runs", rope="bf16,fp32")
    definition = tmp_path / "board.yaml"
    definition.write_text(
        "title: Boxes\nsuites: [boxes]\nbaseline: bf16\ncolumns: [boxes_mean, by_length]\norder: [-boxes_mean]\n"
    )
    forget()
    command = ["board", str(tmp_path / "runs"), "--definition", str(definition), "--output", str(tmp_path / "out")]
    assert main(command) == 2 and "boxes" in last_line(capsys)
    assert main([*command, "--tasks", str(card)]) == 0
    rows = (tmp_path / "out" / "board.csv").read_text("utf-8")
    assert "boxes,,,,Boxes,100.0000" in rows
    page = (tmp_path / "out" / "board.html").read_text("utf-8")
    assert "Boxes" in page and averages()["boxes_mean"].about in page


def test_an_installed_package_offers_one_by_name(tmp_path: Path, card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card.rename(card.with_name("crates.yaml"))
    card.with_name("boxes.py").rename(card.with_name("crates_of_mine.py"))
    monkeypatch.syspath_prepend(str(card.parent))
    point = EntryPoint("crates", "crates_of_mine", outside.GROUP)
    monkeypatch.setattr(outside.metadata, "entry_points", lambda **by: EntryPoints([point]).select(**by))
    made = run("crates/first", tmp_path / "runs")
    assert made.header.tasks == ["crates/first"] and {record.score for record in made.records} == {1.0}
    forget()
    with pytest.raises(AnchorEvalError, match="which is run only where you name it"):
        outside.named(made.header.outside["crates/first"], "crates/first")
    assert main(["verify", str(made.path), "--tasks", "crates"]) == 0
