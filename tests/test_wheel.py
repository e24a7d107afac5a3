"""The wheel, installed where there is no checkout: what it holds, what it needs, and the first lines of the README."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling")
REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
#: Names of packages where they are not those of their modules.
MODULES = {"pyyaml": "yaml", "scikit-learn": "sklearn"}
#: Extra -> the modules of the package that need it; all others run on the dependencies alone.
WHERE: dict[str, tuple[str, ...]] = {
    "babilong": ("suites/babilong/published.py",),
    "export": ("records/run.py", "reports/export/tables.py"),
    "gguf": ("cards/packaged.py",),
    "lm-eval": (
        "lm_eval_plugin/",
        "bench/engines.py",
        "cli/lm_eval.py",
        "suites/general/harness.py",
        "suites/general/rows.py",
    ),
    "openai": ("backends/openai",),
    "ray": ("runs/workers/",),
    "train": ("training/",),
    "vllm": ("backends/vllm", "vllm_plugin/"),
    "zh": ("suites/longbench/scoring.py",),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hatchling.builders.wheel import WheelBuilder

    (made,) = WheelBuilder(str(REPOSITORY)).build(directory=str(tmp_path_factory.mktemp("dist")))
    return Path(made)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of an environment that holds the wheel, and sees this one's packages but no checkout."""
    place = tmp_path_factory.mktemp("clean") / "env"
    venv.create(place)
    python = place / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    (packages,) = place.glob("lib/python*/site-packages")
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "others.pth").write_text("".join(f"{path}\n" for path in others))
    return place / "bin"


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [installed / words[0], *words[1:]], cwd=folder, env=clean, capture_output=True, text=True, check=False
    )


def test_cards_boards_and_reported_rows_ship(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("anchoreval/_cards/")}
    shipped = {path for kind in ("tasks", "models", "leaderboards") for path in (REPOSITORY / kind).glob("*.yaml")}
    shipped |= {*(REPOSITORY / "leaderboards" / "reported").glob("*.csv"), *(REPOSITORY / "models").glob("*/*.json")}
    shipped |= set((REPOSITORY / "models" / "recipes").glob("*.yaml"))
    assert len(shipped) > 10
    assert {f"anchoreval/_cards/{path.relative_to(REPOSITORY).as_posix()}" for path in shipped} <= names
    assert not [name for name in names if "/results/" in name or "/boards/" in name]


def test_the_first_lines_of_the_readme_run_from_another_folder(installed: Path, tmp_path: Path) -> None:
    where = run(installed, tmp_path, "python", "-c", "import anchoreval; print(anchoreval.__file__)")
    assert where.stdout.startswith(str(installed.parent)), "the wheel's code runs, not the checkout's"
    lines = (REPOSITORY / "README.md").read_text("utf-8").splitlines()
    line = next(line for line in lines if line.startswith("anchoreval run --model anchor-tiny"))
    small = re.sub(r"--limit \d+", "--limit 1 --backend fake", line.partition("#")[0])
    done = run(installed, tmp_path, *shlex.split(small))
    assert done.returncode == 0, done.stderr
    board = run(installed, tmp_path, "anchoreval", "board", "runs", "--definition", "anchor-tiny", "--output", "b")
    assert board.returncode == 0, board.stderr
    assert "reported" in (tmp_path / "b" / "anchor-tiny.csv").read_text("utf-8")
    unknown = run(installed, tmp_path, "anchoreval", "board", "runs", "--definition", "anchor-tin")
    assert unknown.returncode == 2 and "did you mean anchor-tiny" in unknown.stderr


def declared(*extras: str) -> set[str]:
    """The modules that the dependencies, and those of some extras, bring."""
    listed = [*PROJECT["dependencies"], *(one for extra in extras for one in PROJECT["optional-dependencies"][extra])]
    names = [re.match(r"[A-Za-z0-9._-]+", one)[0].lower() for one in listed]  # type: ignore[index]
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"anchoreval"}


def test_every_import_is_of_a_declared_dependency() -> None:
    package = REPOSITORY / "anchoreval"
    undeclared = {}
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        extras = [extra for extra, places in WHERE.items() if name.startswith(places)]
        if missing := imports(path) - declared(*extras):
            undeclared[name] = missing
    assert not undeclared
