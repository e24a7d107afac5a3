"""The shape of the code base: directions of import, sizes, what the card folders hold."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "anchoreval"
# unit -> the units of the package that it may import; units are top-level modules and folders
ALLOWED = {
    "schema": set(),
    "errors": set(),
    "console": set(),
    "progress": {"console", "errors"},
    "writable": {"errors"},
    "token_cuts": set(),
    "tokenizer": {"errors", "token_cuts", "tokenizer_check", "tokenizer_files"},
    "tokenizer_files": {"errors"},
    "tokenizer_check": {"child", "errors", "tokenizer_files"},
    "child": {"errors", "files"},
    "transformers_child": set(),
    "chat_template": {"child", "errors"},
    "card_yaml": {"errors"},
    "cards": {"card_yaml", "errors", "packaged"},
    "kept": {"errors", "plain_files", "schema", "strict_json"},
    "packaged": {"errors", "schema"},
    "arms": {"attention", "errors", "schema"},
    "prompt": {"chat_template", "errors", "schema"},
    "data": {"errors", "lm_eval_tasks", "schema"},
    "scoring": {"errors", "lm_eval_tasks", "schema"},
    "lm_eval_tasks": {"cards", "errors", "schema"},
    "general_report": {
        "board", "cards", "compare_runs", "errors", "general_losses", "lm_eval_tasks", "results", "schema", "scoring",
    },
    "general_losses": {"board", "compare_runs", "results", "stats"},
    "attention": {"errors"},
    "backends": {"attention", "errors", "files", "prompt", "schema", "strict_json", "tokenizer", "vllm_plugin"},
    "vllm_plugin": {"attention", "errors"},
    "files": set(),
    "results": {"errors", "files", "header_shape", "kept", "plain_files", "record_line", "schema", "strict_json"},
    "record_line": {"schema", "strict_json"},
    "header_shape": {"record_line", "schema", "strict_json"},
    "plain_files": {"errors"},
    "strict_json": {"schema"},
    "own_records": {"errors", "rescore", "results", "schema"},
    "groups": {"backends", "results", "run", "schema", "tokenizer"},
    "identity": {
        "backends", "cards", "data", "errors", "prompt", "results", "run", "schema", "tokenizer",
    },
    "finished": {"backends", "data", "errors", "identity", "results", "run", "schema", "tokenizer"},
    "resume": {"errors", "results", "run", "schema", "tokenizer"},
    "readable": {"board", "errors", "results"},
    "stats": {"errors", "schema"},
    "header_facts": {"schema"},
    "board": {"errors", "header_facts", "results", "schema", "scoring", "stats"},
    "rescore": {"errors", "lm_eval_tasks", "results", "schema", "scoring"},
    "run": {
        "arms", "backends", "cards", "data", "dealing", "documents", "errors", "lengths", "progress", "prompt",
        "results", "schema", "scoring", "stats", "steps", "tokenizer",
    },
    "dealing": {"errors", "schema", "stats"},
    "lengths": {"cards", "errors", "prompt", "schema", "steps"},
    "steps": {"backends", "errors", "kept", "schema"},
    "evaluation": {
        "arms", "backends", "cards", "data", "errors", "finished", "fleet", "groups", "header_facts", "identity",
        "own_records", "progress", "prompt", "results", "resume", "rounds", "run", "stats", "tokenizer", "writable",
    },
    "fleet": {
        "arms", "backends", "cards", "errors", "groups", "identity", "lengths", "results", "run", "schema", "steps",
        "tokenizer",
    },
    "bench": {"cards", "data", "errors", "lengths", "tokenizer"},
    "memory_bench": {"arms", "attention", "backends", "errors", "schema"},
    "documents": {"schema"},
    "gpu_bench": {"flags", "gpu_measures", "results"},
    "gpu_measures": {"attention", "errors"},
    "prefill_bench": {"arms", "backends", "cards", "flags", "gpu_measures", "results", "schema"},
    "anchor_bench": {"arms", "backends", "schema"},
    "probe": {
        "attention", "backends", "cards", "data", "errors", "kept", "progress", "prompt", "results", "schema",
        "strict_json", "tokenizer",
    },
    "training": {"attention", "cards", "data", "errors", "prompt", "schema", "tokenizer"},
    "commands": {
        "anchor_bench", "backends", "bench", "board", "cards", "compare_runs", "console", "data", "data_files",
        "doctor", "errors", "evaluation", "export", "flags", "general_report", "gpu_bench", "leaderboard",
        "lm_eval_plugin", "longbench_report", "memory_bench", "nll", "plan", "prefill_bench", "probe", "progress",
        "prompt", "readable", "rescore", "results", "resume", "rounds", "run", "schema", "sequential_bench",
        "tokenizer", "verify", "view",
    },
    "nll": {
        "arms", "attention", "backends", "cards", "errors", "evaluation", "flags", "kept", "nll_report",
        "plain_files", "progress", "prompt", "results", "schema", "stats", "strict_json", "token_losses",
        "tokenizer",
    },
    "nll_report": {"errors", "stats"},
    "plan": {
        "arms", "attention", "backends", "cards", "data", "errors", "evaluation", "flags", "lengths", "progress",
        "prompt", "run", "schema", "tokenizer",
    },
    "token_losses": {"backends", "errors"},
    "doctor": {"backends", "cards", "data", "doctor_checks", "errors", "flags", "prompt", "schema", "tokenizer"},
    "doctor_checks": {"arms", "attention", "backends", "errors", "prompt", "schema"},
    "flags": {"backends", "errors"},
    "cli": {
        "commands", "compare_runs", "console", "data_files", "doctor", "errors", "export", "flags", "general_report",
        "gpu_bench", "lm_eval_plugin", "longbench_report", "nll", "plan", "prefill_bench", "view", "writable",
    },
    "__main__": {"cli"},
    "lm_eval_plugin": {
        "arms", "backends", "cards", "chat_template", "console", "data", "documents", "errors", "evaluation", "flags",
        "lengths", "lm_eval_tasks", "memory_bench", "prompt", "run", "schema", "scoring", "tokenizer",
        "tokenizer_check",
    },
    "__init__": {"board", "compare_runs", "errors", "evaluation", "results", "stats"},
    "rounds": {"backends", "dealing", "results", "run", "schema", "stats", "tokenizer"},
    "compare_runs": {"compare_table", "errors", "header_facts", "results", "schema", "stats"},
    "compare_table": {"board", "schema", "stats"},
    "sequential_bench": {"stats"},
    "view": {
        "board", "errors", "flags", "header_facts", "progress", "remake", "results", "schema", "stats", "tokenizer",
    },
    "remake": {
        "arms", "backends", "card_yaml", "cards", "data", "documents", "errors", "lengths", "prompt", "results",
        "run", "schema", "tokenizer",
    },
    "leaderboard": {
        "board", "card_yaml", "cards", "errors", "header_facts", "plain_files", "results", "schema", "scoring",
        "stats",
    },
    "header_check": {"arms", "errors", "lengths", "remake", "results", "rounds_check", "run", "schema"},
    "verify": {
        "documents", "errors", "header_check", "identity", "plain_files", "progress", "remake", "rescore",
        "results", "rounds_check", "run", "schema", "steps",
    },
    "data_files": {"data", "errors", "general_data"},
    "general_data": {"cards", "data", "errors", "lm_eval_tasks", "results"},
    "longbench_report": {"longbench_v2_report", "rescore", "results", "schema", "scoring"},
    "longbench_v2_report": {"schema", "scoring", "stats"},
    "export": {"board", "errors", "header_facts", "lm_eval_files", "results", "schema", "stats"},
    "lm_eval_files": {"board", "errors", "header_facts", "results", "schema", "stats"},
    "rounds_check": {"dealing", "errors", "remake", "results", "rounds", "schema", "stats"},
}  # fmt: skip
TORCH_FREE = {
    "schema",
    "errors",
    "cards",
    "arms",
    "prompt",
    "data",
    "scoring",
    "results",
    "stats",
    "board",
    "tokenizer",
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_unit_may(path: Path) -> None:
    own = unit(path)
    used = {name.split(".")[1] for name in imported(path) if name.startswith("anchoreval.")} - {own}
    assert used <= ALLOWED[own], f"{own} must not import {sorted(used - ALLOWED[own])}"


@pytest.mark.parametrize("path", [path for path in modules() if unit(path) in TORCH_FREE - {"arms"}], ids=str)
def test_units_below_the_backends_know_no_torch(path: Path) -> None:
    assert not {name for name in imported(path) if name.split(".")[0] in {"torch", "transformers"}}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_keep_their_budget(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, f"{node.name} is longer than 80 lines"


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


def test_a_board_is_written_without_torch() -> None:
    code = (
        "import sys, anchoreval.board.page, anchoreval.stats; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
