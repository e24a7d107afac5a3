"""`anchoreval lm-eval run|ls|validate`: lm-eval's own command line, with our models and our tasks registered.

What it reads, prints and writes is lm-eval's. Added are one-line errors, exit code 2 for bad input before anything is
loaded and 1 where results could not be written (0.4.13 warns and ends with 0), and a list of folders as
`--include_path` (its help shows one, its code takes none).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anchoreval.cli.console import StdoutLost, note
from anchoreval.errors import AnchorEvalError, RunError
from anchoreval.lm_eval_plugin import ENGINES, MODELS, names, register
from anchoreval.suites.general import harness as lm_eval_tasks

#: What lm-eval says of input, in errors of no class of its own.
_INPUT = ("Tasks not found", "No tasks specified", "Duplicate task", "Attempted to run task")


def flags(parser: argparse.ArgumentParser) -> None:
    """The action, and whatever lm-eval takes behind it."""
    parser.add_argument("action", choices=("run", "ls", "validate"), help="as of lm-eval")
    help_text = (
        "flags of lm-eval; models: " + ", ".join(MODELS) + "; tasks: anchor_SUITE_TASK_LENGTH, anchor_SUITE_LENGTH"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help=help_text)


def main(options: argparse.Namespace) -> int:
    """The exit code: lm-eval's, 2 for bad input, 1 where something failed while running."""
    lm_eval_tasks.require()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    register()
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    setup_logging()
    if options.action == "run" and not options.arguments:
        raise AnchorEvalError("lm-eval run needs --model, --model_args and --tasks (--help lists all flags)")
    cli = HarnessCLI()
    with (
        _argv(options.action, options.arguments),
        _one_line(),
        tempfile.TemporaryDirectory(prefix="anchor_tasks") as own,
    ):
        asked = cli.parse_args()
        wanted = _wanted(asked, options.action)
        folders = [own, *_folders(wanted.include_path)]
        asked.include_path = folders
        limit = getattr(wanted, "limit", None)
        chosen = _names(wanted.tasks)
        names.write_tasks(Path(own), chosen, int(limit) if limit and limit >= 1 else None)
        only = options.action != "ls" and len(folders) == 1 and bool(chosen) and all(map(names.certainly_ours, chosen))
        with _writing(getattr(wanted, "output_path", None)), _without_defaults(only):
            cli.execute(asked)
    return 0


def _wanted(asked: argparse.Namespace, action: str) -> Any:
    """What is asked, a file of `--config` read; AnchorEvalError for what lm-eval itself refuses, and for ours."""
    if action != "run":
        return argparse.Namespace(tasks=getattr(asked, "tasks", None), include_path=asked.include_path)
    from lm_eval.config.evaluate_config import EvaluatorConfig

    notes = logging.getLogger("lm_eval")
    level = notes.level
    notes.setLevel(logging.ERROR)  # all of it is said again when lm-eval reads the flags
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            wanted = EvaluatorConfig.from_cli(asked)
    except (ValueError, TypeError, OSError) as error:
        raise AnchorEvalError(f"lm-eval: {_line(error)}") from error
    finally:
        notes.setLevel(level)
    _check(wanted)
    return wanted


def _check(wanted: Any) -> None:
    """Refuses, before anything is loaded, arguments that our models and tasks refuse later."""
    ours = [name for name in _names(wanted.tasks) if names.certainly_ours(name)]
    changing = {
        "--cache_requests": wanted.cache_requests,
        "--num_fewshot": wanted.num_fewshot,
        "--system_instruction": wanted.system_instruction,
        "--apply_chat_template": wanted.apply_chat_template,
        "--gen_kwargs": wanted.gen_kwargs,
    }
    if ours and (given := [flag for flag, value in changing.items() if value]):
        text = f"{given[0]} would change the prompts or answers of {ours[0]}: leave it out, or ask its tasks apart"
        raise AnchorEvalError(text)
    if wanted.model in MODELS:
        from anchoreval.lm_eval_plugin.arguments import model_arguments

        model_arguments(wanted.model_args or {}, ENGINES[wanted.model]).as_arm("auto")


def _names(tasks: Any) -> list[str]:
    given = [tasks] if isinstance(tasks, str) else tasks or []
    return [name.strip() for each in given if isinstance(each, str) for name in each.split(",") if name.strip()]


def _folders(given: Any) -> list[str]:
    """The folders of `--include_path`, each there; a notice for each file that lm-eval would skip in silence."""
    from lm_eval.tasks._yaml_loader import load_yaml

    parts = given.split(os.pathsep) if isinstance(given, str) and not Path(given).is_dir() else given or []
    folders = [parts] if isinstance(parts, str) else [str(part) for part in parts]
    for folder in folders:
        if not Path(folder).is_dir():
            raise AnchorEvalError(f"--include_path: {folder} is no folder")
        for path in sorted(Path(folder).glob("**/*.yaml")):
            try:
                load_yaml(path, resolve_func=False, recursive=True)
            except Exception as error:  # whatever a parser makes of it
                note(f"anchoreval: lm-eval skips {path}: {_line(error)}")
    return folders


@contextlib.contextmanager
def _argv(action: str, arguments: Sequence[str]) -> Iterator[None]:
    """lm-eval reads the arguments of the process."""
    before, sys.argv = sys.argv, ["lm-eval", action, *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Errors of lm-eval as ours, one line each; those of what is asked end with 2, the others with 1."""
    try:
        yield
    except (AnchorEvalError, StdoutLost):
        raise
    except KeyboardInterrupt as stopped:
        text = "stopped; answers are kept, and the same command goes on behind them, with --use_cache PATH alone"
        raise RunError(text) from stopped
    except Exception as error:  # lm-eval has no class of its own for any of its errors
        if logging.getLogger("lm_eval").isEnabledFor(logging.DEBUG):
            raise
        line = f"lm-eval: {_line(error)}"
        if _line(error).startswith(_INPUT):
            raise AnchorEvalError(line) from error
        failed = RunError(f"{line} ({type(error).__name__}; LMEVAL_LOG_LEVEL=DEBUG shows where)")
        failed.while_running = "while running"
        raise failed from error


def _line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())[:400] or type(error).__name__


class _Unsaved(logging.Handler):
    """Hears lm-eval say that it could not save."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps what was said."""
        if record.getMessage().startswith("Could not save"):
            self.said.append(record.getMessage())


@contextlib.contextmanager
def _writing(output: str | None) -> Iterator[None]:
    """RunError where results cannot be written: at once where that is seen, else when lm-eval says so."""
    if output is None:
        yield
        return
    place = Path(output)
    folder = place.parent if place.suffix == ".json" else place
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(f"--output_path: cannot write to {folder}: {error.strerror}") from error
    talk, heard = logging.getLogger("lm_eval.loggers.evaluation_tracker"), _Unsaved()
    talk.addHandler(heard)
    try:
        yield
    finally:
        talk.removeHandler(heard)
    if heard.said:
        unsaved = RunError(f"{folder}: {heard.said[0]}")
        unsaved.while_running = "behind the last answer"
        raise unsaved


@contextlib.contextmanager
def _without_defaults(wanted: bool) -> Iterator[None]:
    """Has lm-eval read our tasks alone where no others are asked for: its own 14,683 entries take 12 s (measured)."""
    import functools

    import lm_eval.tasks

    whole = lm_eval.tasks.TaskManager
    if wanted:
        lm_eval.tasks.TaskManager = functools.partial(whole, include_defaults=False)
    try:
        yield
    finally:
        lm_eval.tasks.TaskManager = whole
