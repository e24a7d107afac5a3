"""`anchoreval lm-eval run|ls|validate`: lm-eval's own command line, with our models and our tasks registered.

Input, output and files are lm-eval's. We add three things: one-line errors; exit code 2 for bad input before anything
is loaded, and 1 if results could not be written (0.4.13 warns and exits with 0); and a list of folders as
`--include_path` (lm-eval's help documents it, but its code accepts none).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from anchoreval.cli import options as shared
from anchoreval.cli.console import StdoutLost, note
from anchoreval.errors import AnchorEvalError, RunError
from anchoreval.lm_eval_plugin import ENGINES, MODELS, register

#: How lm-eval's messages about bad input begin; lm-eval has no error class for them.
_INPUT = ("Tasks not found", "No tasks specified", "Duplicate task", "Attempted to run task")


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the suites from outside, and the action; all arguments after it go to lm-eval."""
    about = "suites from outside the package, before the action: their modules are run, and their tasks are known"
    shared.add(parser, "tasks", required=False, blanks=False, metavar="CARD.yaml,CARD.yaml", about=about)
    parser.add_argument("action", choices=("run", "ls", "validate"), help="subcommand of lm-eval")
    help_text = (
        "flags of lm-eval; models: " + ", ".join(MODELS) + "; tasks: anchor_SUITE_TASK_LENGTH, anchor_SUITE_LENGTH"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help=help_text)


def main(options: argparse.Namespace) -> int:
    """Run lm-eval's command and return 0.

    Raise AnchorEvalError for bad input (exit code 2) and RunError for a failure while running (exit code 1).
    """
    from anchoreval.lm_eval_plugin import names
    from anchoreval.suites.general import harness
    from anchoreval.suites.outside import name_suites

    harness.require()
    name_suites(options.tasks or "")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    register()
    import lm_eval.tasks
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    setup_logging()
    if options.action == "run" and not options.arguments:
        raise AnchorEvalError("lm-eval run needs --model, --model_args and --tasks (--help lists all flags)")
    cli = HarnessCLI()
    words, every_task = sys.argv, lm_eval.tasks.TaskManager
    sys.argv = ["lm-eval", options.action, *options.arguments]  # lm-eval reads the arguments of the process
    try:
        with _one_line(), tempfile.TemporaryDirectory(prefix="anchor_tasks") as task_folder:
            parsed = cli.parse_args()
            config = _wanted(parsed, options.action)
            folders = [task_folder, *_folders(config.include_path)]
            parsed.include_path = folders
            limit = getattr(config, "limit", None)
            task_names = _names(config.tasks)
            names.write_tasks(Path(task_folder), task_names, int(limit) if limit and limit >= 1 else None)
            with _writing(getattr(config, "output_path", None)):
                some = options.action != "ls" and len(folders) == 1 and bool(task_names)
                if some and all(
                    map(names.certainly_ours, task_names)
                ):  # reading lm-eval's own 14,683 entries takes 12 s (measured)
                    lm_eval.tasks.TaskManager = partial(every_task, include_defaults=False)
                cli.execute(parsed)
    finally:
        sys.argv, lm_eval.tasks.TaskManager = words, every_task
    return 0


def _wanted(asked: argparse.Namespace, action: str) -> Any:
    """Return the parsed arguments, with the file of `--config` read.

    Raise AnchorEvalError for arguments that lm-eval refuses and for arguments that our models and tasks refuse.
    """
    if action != "run":
        return argparse.Namespace(tasks=getattr(asked, "tasks", None), include_path=asked.include_path)
    from lm_eval.config.evaluate_config import EvaluatorConfig

    notes = logging.getLogger("lm_eval")
    level = notes.level
    notes.setLevel(logging.ERROR)  # lm-eval repeats these messages when it reads the flags
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
    """Raise AnchorEvalError, before anything is loaded, for arguments that our models and tasks would refuse later."""
    from anchoreval.lm_eval_plugin import names

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
    return [name.strip() for part in given if isinstance(part, str) for name in part.split(",") if name.strip()]


def _folders(given: Any) -> list[str]:
    """Return the folders of `--include_path`; raise AnchorEvalError if one does not exist.

    Print a notice for each file that lm-eval would skip without a word.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    parts = given.split(os.pathsep) if isinstance(given, str) and not Path(given).is_dir() else given or []
    folders = [parts] if isinstance(parts, str) else [str(part) for part in parts]
    for folder in folders:
        if not Path(folder).is_dir():
            raise AnchorEvalError(f"--include_path: {folder} is no folder")
        for path in sorted(Path(folder).glob("**/*.yaml")):
            try:
                load_yaml(path, resolve_func=False, recursive=True)
            except Exception as error:  # any error of a YAML parser
                note(f"anchoreval: lm-eval skips {path}: {_line(error)}")
    return folders


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turn errors of lm-eval into errors of ours, one line each.

    They are AnchorEvalError (exit code 2) for bad input, else RunError (exit code 1).
    """
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
        run_error = RunError(f"{line} ({type(error).__name__}; LMEVAL_LOG_LEVEL=DEBUG shows where)")
        run_error.while_running = "while running"
        raise run_error from error


def _line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())[:400] or type(error).__name__


class _Unsaved(logging.Handler):
    """Logging handler that keeps lm-eval's warnings that it could not save results."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message if it says that results could not be saved."""
        if record.getMessage().startswith("Could not save"):
            self.said.append(record.getMessage())


@contextlib.contextmanager
def _writing(output: str | None) -> Iterator[None]:
    """Raise RunError if results cannot be written.

    It comes before the block if the folder cannot be written to, else after it, if lm-eval reported a failure.
    """
    if output is None:
        yield
        return
    path = Path(output)
    folder = path.parent if path.suffix == ".json" else path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(f"--output_path: cannot write to {folder}: {error.strerror}") from error
    logger, handler = logging.getLogger("lm_eval.loggers.evaluation_tracker"), _Unsaved()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    if handler.said:
        unsaved = RunError(f"{folder}: {handler.said[0]}")
        unsaved.while_running = "behind the last answer"
        raise unsaved
