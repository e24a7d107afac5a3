"""The shape of the code base: its rooms, the directions of import, sizes, what the card folders hold."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from anchoreval.backends import BACKENDS

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "anchoreval"
#: Rooms are files and folders of the package. A module imports lower ranks, or its own room.
RANKS = (
    ("errors", "schema"),
    ("files",),
    ("arms", "cards", "stats", "texts", "tokenizer"),
    ("model", "prompt", "suites", "vllm_plugin"),
    ("records",),
    ("backends", "reports", "training"),
    ("runs",),
    ("diagnostics", "lm_eval_plugin"),
    ("bench",),
    ("cli",),
)
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}
FRONT = {"__init__", "__main__"}  # they import what they show
NEVER_TORCH = {"errors", "files", "prompt", "records", "reports", "schema", "stats", "suites", "texts", "tokenizer"}
SCRIPTS = {"training/tiny/train.py"}  # with flags of their own
IN_A_CHILD = {"tokenizer/transformers_child.py"}  # a script that another process runs


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def named(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Modules and names that a file imports, in functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def upward(path: Path) -> set[str]:
    """What a module imports of its own rank or a higher one, outside its room."""
    own = room(path)
    inside = {name.removeprefix("anchoreval.") for name in imported(path) if name.startswith("anchoreval.")}
    return {name for name in inside if (other := name.split(".")[0]) != own and RANK[other] >= RANK[own]}


def test_the_rooms_are_those_of_the_design_and_no_other() -> None:
    assert {room(path) for path in modules()} - FRONT == set(RANK)
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} <= set(RANK) | {"__pycache__"}


@pytest.mark.parametrize("path", [path for path in modules() if room(path) not in FRONT], ids=named)
def test_a_module_imports_lower_ranks_or_its_own_room(path: Path) -> None:
    assert not upward(path)


@pytest.mark.parametrize("path", [path for path in modules() if room(path) in NEVER_TORCH], ids=named)
def test_what_is_judged_and_shown_without_the_model_knows_no_torch(path: Path) -> None:
    heavy = {name.split(".")[0] for name in imported(path)} & {"torch", "transformers"}
    assert not heavy or named(path) in IN_A_CHILD


@pytest.mark.parametrize("path", modules(), ids=named)
def test_files_and_functions_keep_their_budget(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, f"{node.name} is longer than 80 lines"


@pytest.mark.parametrize("path", [path for path in modules() if room(path) != "cli"], ids=named)
def test_flags_are_read_by_the_command_line_alone(path: Path) -> None:
    assert "argparse" not in {name.split(".")[0] for name in imported(path)} or named(path) in SCRIPTS


def test_a_command_line_imports_the_file_of_its_command_alone() -> None:
    code = (
        "import sys, anchoreval.cli as cli\n"
        "try: cli.main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print(*(name for name in sys.modules if name.startswith('anchoreval.cli.')))"
    )
    shared = {"console", "parser"}
    for words, files in (["--help"], shared), (["view", "--help"], shared | {"view", "options"}):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        names = {name.removeprefix("anchoreval.cli.") for name in done.stdout.splitlines()[-1].split()}
        assert names == files


@pytest.mark.parametrize("path", [path for path in modules() if room(path) != "backends"], ids=named)
def test_what_a_backend_can_is_asked_of_its_row_and_not_of_its_name(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    tested = [part for node in nodes if isinstance(node, ast.Compare | ast.MatchValue) for part in ast.walk(node)]
    assert not {part.value for part in tested if isinstance(part, ast.Constant)} & set(BACKENDS)


def test_card_folders_hold_no_python() -> None:
    assert not [path for kind in ("tasks", "models", "leaderboards") for path in (REPOSITORY / kind).rglob("*.py")]


def test_help_and_the_package_import_no_torch() -> None:
    code = (
        "import sys, anchoreval, anchoreval.cli as cli\n"
        "try: cli.main(['run', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'pandas', 'pyarrow', 'lm_eval'}\n"
        "assert not heavy & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_records_are_judged_and_shown_without_torch() -> None:
    names = sorted(named(path).removesuffix(".py").replace("/", ".") for path in modules() if room(path) in NEVER_TORCH)
    names = [name for name in names if name != "tokenizer.transformers_child"]
    code = "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    full = ["anchoreval." + name.removesuffix(".__init__") for name in names]
    done = subprocess.run([sys.executable, "-c", code, *full], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
