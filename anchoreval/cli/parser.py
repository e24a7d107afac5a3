"""The command line: parse, call one function, print one-line errors. Importing this module imports no torch.

Exit codes: 0 for success; 1 if something differs or failed while running; 2 for bad input, found before any work began;
130 if stopped by Ctrl-C. Only results go to stdout.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from importlib import import_module, metadata
from typing import Any

from anchoreval.cli import console
from anchoreval.errors import AnchorEvalError
from anchoreval.files import BROKEN, require_writable

STOPPED = 130  # 128 plus the number of SIGINT, as in shells

EXAMPLES = """examples:
  anchoreval run --model anchor-tiny --tasks ruler --lengths 512,1024 --rope bf16,fp32 --limit 20 --haystack generated
  anchoreval run --model /path/or/hub-id --tasks ruler/niah_single_1,ruler/vt --lengths 4k,32k --rope native,fp32
  anchoreval run --model M --tasks ruler/qa_1 --lengths 8k --arms fp32,bf16+shift:4096,anchor/fp32
  anchoreval run --model M --tasks longbench,longbench_e --max-length 31500 --data-dir DIR
  anchoreval run --model M --tasks general/hellaswag,mmlu --data-dir DIR --rope bf16,fp32
  anchoreval probe --model anchor-tiny --lengths 64..8192 --output probe/
  anchoreval show ruler/qa_1@4096#3 --tokenizer PATH --haystack generated
"""
#: Commands and their purpose; each is a file of this folder with `flags(parser)` and `main(options)`.
COMMANDS = {
    "run": "evaluate a model under RoPE arms, write records and a board",
    "plan": "estimate time and memory of a run before anything is computed",
    "samples": "write the prompts as JSON lines; needs no model",
    "tasks": "list suites, sets and tasks",
    "models": "list model cards",
    "show": "print one prompt with its references and facts",
    "score": "score the records of a run again and report what differs",
    "verify": "make prompts and scores of a run again and report what differs",
    "compare": "print the differences between arms or runs, in numbers and in words",
    "board": "write board.csv and board.html of runs, or a declared board",
    "view": "write the samples of runs as pages that open from a disk",
    "export": "write runs as lm-eval's files, CSV or Parquet",
    "probe": "measure how RoPE precision and a shift of positions change attention",
    "nll": "measure loss by position on long texts, paired between arms",
    "doctor": "inspect a checkpoint: RoPE precision, trained length, which arms it supports",
    "longbench": "print the averages of LongBench and the tables of LongBench-E and v2",
    "general": "print all of lm-eval's metrics of general tasks, and whether an arm lost accuracy",
    "lm-eval": "run lm-evaluation-harness with our models and tasks",
    "data": "fetch the published texts, list which are present, or pack texts for training",
    "train": "train a model under attention variants and a RoPE level",
    "bench": "measure speed and memory",
}


def command(name: str) -> Any:
    """Import and return the module of a command."""
    return import_module(f"anchoreval.cli.{name.replace('-', '_')}")


def parser(flagged: Collection[str] = COMMANDS) -> argparse.ArgumentParser:
    """Return the parser of the command line, with the flags of the commands in `flagged`."""
    top = argparse.ArgumentParser(
        prog="anchoreval",
        description="Long-context evaluation under controlled RoPE precision.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"anchoreval {metadata.version('anchoreval')}")
    subs = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, about in COMMANDS.items():
        sub = subs.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        if name in flagged:
            command(name).flags(sub)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    with console.visible():
        try:
            code = _done(arguments)
            sys.stdout.flush()
        except SystemExit:  # raised by --help, --version and the parser's errors
            sys.stdout.flush()
            raise
        except console.StdoutLost as error:
            console.note(f"anchoreval: {error}: what a command writes to files is written")
            return 1
        except KeyboardInterrupt:
            console.note("anchoreval: stopped before it began")
            return STOPPED
        return code


def _done(arguments: Sequence[str] | None) -> int:
    """Return the exit code of a command whose stdout can be written.

    Print one line for each error that a user can cause.
    """
    words = sys.argv[1:] if arguments is None else arguments
    chosen = next((word for word in words if not word.startswith("-")), "")
    options = parser(COMMANDS.keys() & {chosen}).parse_args(words)
    try:
        if (output := getattr(options, "output", None)) is not None:
            require_writable(output.parent if options.command == "samples" else output)
        code: int = command(options.command).main(options)
        return code
    except AnchorEvalError as error:
        console.note(f"anchoreval: {_line(error)}")
        if isinstance(error.__cause__, KeyboardInterrupt):
            return STOPPED
        return 1 if error.while_running or _is_broken(error.__cause__) else 2
    except KeyboardInterrupt:
        goes_on = "; the same command goes on where it was" * (options.command in ("run", "train"))
        console.note(f"anchoreval: stopped{goes_on}")
        return STOPPED
    except OSError as error:
        console.note(f"anchoreval: {error}")
        return 1 if _is_broken(error) else 2
    except MemoryError as error:
        console.note(f"anchoreval: there is not enough memory{f': {error}' * bool(str(error))}")
        return 1


def _line(error: AnchorEvalError) -> str:
    """Return the error in one line; if work had begun, with how far it got and how to continue."""
    if not error.while_running:
        return str(error)
    goes_on = f"; {error.goes_on}" if error.goes_on and "same command" not in str(error) else ""
    return f"failed {error.while_running}: {error}{goes_on}"


def _is_broken(cause: BaseException | None) -> bool:
    """Return whether a full or failing disk is the cause, so that input is not to blame."""
    return isinstance(cause, OSError) and cause.errno in BROKEN


if __name__ == "__main__":
    sys.exit(main())
