"""The command line: parse, call one function, print one-line errors. Importing this module imports no torch.

Exit codes: 0 for success; 1 if something differs or failed while running; 2 for bad input, found before any work began;
130 if stopped by Ctrl-C. Only results go to stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Collection, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NoReturn

from anchoreval.cli import console
from anchoreval.errors import AnchorEvalError
from anchoreval.files import BROKEN, require_writable

MOST_IN_USAGE = 20  # options that the first line of help lists
OFFLINE = "HF_HUB_OFFLINE"  # read by huggingface_hub
STOPPED = 130  # 128 plus the number of SIGINT, as in shells

EXAMPLES = """examples:
  anchoreval run --model anchor-tiny --tasks ruler --lengths 512,1024 --arms bf16,fp32 --limit 20 --haystack generated
  anchoreval run --model /path/or/hub-id --tasks ruler/niah_single_1,ruler/vt --lengths 4k,32k --arms native,fp32
  anchoreval run --model M --tasks ruler/qa_1 --lengths 8k --arms fp32,bf16+shift:4096,anchor/fp32
  anchoreval run --model M --tasks longbench,longbench_e --max-length 31500 --data-dir DIR
  anchoreval run --model M --tasks general/hellaswag,mmlu --data-dir DIR --arms bf16,fp32
  anchoreval probe --model anchor-tiny --lengths 64..8192 --output probe/
  anchoreval show ruler/niah_single_1@4096#3 --tokenizer PATH --haystack generated
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
#: Commands that print lines of their own all the time, or wait for somebody.
TELLING = ("bench", "lm-eval", "train", "view")
#: Flags of lm-eval, in its spelling without dashes -> what to give here.
OF_LM_EVAL = {
    "model_args": "the checkpoint is --model PATH; other arguments have flags, or --backend-args K=V",
    "apply_chat_template": "--template chat",
    "batch_size": "--batch-tokens N, the tokens of a batch: batches are formed by length",
    "max_batch_size": "--batch-tokens N, the tokens of a batch: batches are formed by length",
    "output_path": "--output DIR",
    "gen_kwargs": "answers are greedy, and each task's card says how long they may be",
    "num_fewshot": "each task's card says how many examples a prompt holds",
    "log_samples": "samples are always written",
    "use_cache": "the same command goes on where it was",
    "cache_requests": "the same command goes on where it was",
    "include_path": "`anchoreval lm-eval run` takes tasks of lm-eval",
    "system_instruction": "prompts are those of the benchmark, without a system message",
}


class Formatter(argparse.RawDescriptionHelpFormatter):
    """A help formatter that names the value of a flag once."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        many = action.nargs == argparse.ONE_OR_MORE and action.option_strings
        return str(action.metavar or default_metavar) if many else super()._format_args(action, default_metavar)


class Parser(argparse.ArgumentParser):
    """An argument parser whose error is one line."""

    def error(self, message: str) -> NoReturn:
        """Print the error with the command that lists what there is; exit with code 2."""
        console.note(f"{self.prog}: {message} (see {self.prog} --help)")
        sys.exit(2)


class Config(argparse.Action):
    """Action of --config FILE: what stood before it comes from the file, so flags may say otherwise."""

    def __call__(self, _: Any, namespace: argparse.Namespace, values: Any, __: str | None = None) -> None:
        """Forget which options are given so far."""
        vars(namespace).update(given={}, config=values)


def parser(flagged: Collection[str] = COMMANDS) -> Parser:
    """Return the parser of the command line, with the flags of the commands in `flagged`."""
    top = Parser(
        prog="anchoreval",
        description="Long-context evaluation under controlled RoPE precision.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    top.add_argument("--version", action="version", version=f"anchoreval {metadata.version('anchoreval')}")
    subs = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, about in COMMANDS.items():
        described = about[0].upper() + about[1:] + "."
        sub = subs.add_parser(name, help=about, description=described, formatter_class=Formatter)
        if name not in flagged:
            continue
        module = import_module(f"anchoreval.cli.{name.replace('-', '_')}")
        module.flags(sub)
        sub.set_defaults(main=module.main)
        hands_on = any(action.nargs == argparse.REMAINDER for action in sub._actions)
        for last in list(kinds_of(sub).values()) or [sub] * (not hands_on):  # those that read the flags of the command
            about = "options by name, such as max_length: 8k; flags win over the file"
            last.add_argument("--config", action=Config, metavar="FILE.yaml", help=about)
            last.add_argument("-q", "--quiet", action="store_true", help="show no progress")
            if len(last._actions) > MOST_IN_USAGE:
                required = [action for action in last._actions if action.required and action.option_strings]
                needed = "".join(f"{action.option_strings[-1]} {action.dest.upper()} " for action in required)
                last.usage = f"%(prog)s {needed}[options]"
    return top


def kinds_of(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return the parsers of the commands below a parser, by name."""
    below = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return next((dict(action.choices) for action in below), {})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; print one line for each error that a user can cause.

    What --quiet and --offline ask for ends with the command.
    """
    goes_on, quiet, offline = "", console.QUIET.set(False), os.environ.get(OFFLINE)
    with console.visible():
        try:
            options = parsed(sys.argv[1:] if arguments is None else arguments)
            goes_on = "; the same command goes on where it was" * (options.command in ("run", "train"))
            console.QUIET.set(getattr(options, "quiet", False))
            if getattr(options, "offline", False):
                os.environ[OFFLINE] = "1"
            if (output := getattr(options, "output", None)) is not None and options.command != "plan":
                require_writable(output.parent if options.command == "samples" else output)
            telling = options.command in TELLING
            with contextlib.nullcontext() if telling else console.shown(0, what=options.command):
                code: int = options.main(options)
            sys.stdout.flush()
            return code
        except SystemExit:  # raised by --help, --version and the parser's errors
            sys.stdout.flush()
            raise
        except console.StdoutLost as error:
            console.note(f"anchoreval: {error}: what a command writes to files is written")
            return 1
        except AnchorEvalError as error:
            line, cause = str(error), error.__cause__
            if error.while_running:  # how far it got, and how to continue
                line = f"failed {error.while_running}: {error}"
                line += f"; {error.goes_on}" if error.goes_on and "same command" not in str(error) else ""
            console.note(f"anchoreval: {line}")
            if isinstance(cause, KeyboardInterrupt):
                return STOPPED
            broken = isinstance(cause, OSError) and cause.errno in BROKEN  # the disk is to blame, and not the input
            return 1 if error.while_running or broken else 2
        except KeyboardInterrupt:
            console.note(f"anchoreval: stopped{goes_on}")
            return STOPPED
        except OSError as error:
            console.note(f"anchoreval: {error}")
            return 1 if error.errno in BROKEN else 2
        except MemoryError as error:
            console.note(f"anchoreval: there is not enough memory{f': {error}' * bool(str(error))}")
            return 1
        finally:
            console.QUIET.reset(quiet)
            os.environ.pop(OFFLINE, None)
            if offline is not None:
                os.environ[OFFLINE] = offline


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line, with what its --config says."""
    chosen = next((word for word in words if not word.startswith("-")), "")
    top, given = parser(COMMANDS.keys() & {chosen}), list(words)
    place = next((at for at, word in enumerate(given) if word.partition("=")[0] == "--config"), None)
    options, unknown = top.parse_known_args(given if place is None else _with_config(given, place, top))
    if unknown:  # say what was probably meant
        import difflib

        sub: Any = top
        for name in (options.command, getattr(options, "kind", "")):
            sub = kinds_of(sub).get(name, sub)
        word = unknown[0].partition("=")[0]
        hint, text = "", f"unrecognized arguments: {' '.join(unknown)}"
        if known := OF_LM_EVAL.get(word.strip("-").replace("-", "_")):
            hint = f": {word} is lm-eval's; here {known}"
        elif word.startswith("-"):
            flags = [flag for flag in sub._option_string_actions if flag.startswith("--")]
            near = difflib.get_close_matches(word.replace("_", "-"), flags, n=1, cutoff=0.6)
            hint = f": did you mean {near[0]}?" if near else ""
        sub.error(text + hint)
    return options


def _with_config(words: list[str], place: int, top: Parser) -> list[str]:
    """Return the words with what the file of --config, at `place`, says in front of the flags, which win over it."""
    start, sub = 0, top
    while start < len(words) and words[start] in kinds_of(sub):
        sub, start = kinds_of(sub)[words[start]], start + 1
    if all(action.dest != "config" for action in sub._actions):
        return words
    name, equals, path = words[place].partition("=")
    given = [name, path] if equals else words[place : place + 2]
    if len(given) == 1:
        return words
    from anchoreval.cli.config import words_in

    rest = words[start:place] + words[place + 1 + (not equals) :]
    return [*words[:start], *words_in(Path(given[1]), sub), *given, *rest]


if __name__ == "__main__":
    sys.exit(main())
