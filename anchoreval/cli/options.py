"""Flags that several commands share, with the parsers of their values. This module imports no torch."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from anchoreval.arms.arm import DTYPES
from anchoreval.backends import BACKENDS
from anchoreval.backends.options import help_of_options
from anchoreval.cli.console import note
from anchoreval.errors import AnchorEvalError
from anchoreval.prompt.settings import read_template_arg
from anchoreval.suites import settings as settings_of_suites
from anchoreval.tokenizer.chat_template import Scalar

if TYPE_CHECKING:
    from anchoreval.records.run import Run

_OF_ONE = ("chunk_tokens", "batch_tokens", "realisation")  # flags of one backend; not given, its own defaults apply


def length(text: str) -> int:
    """Return the number of tokens that `4096` or `4k` stands for."""
    match = re.fullmatch(r"(\d{1,8})(k?)", text.strip().lower())
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no length: tokens such as 4096 or 4k")
    return int(match[1]) * (1024 if match[2] else 1)


def lengths(text: str) -> list[int]:
    """Return lengths from a list separated by commas or spaces; `1k..32k` stands for 1k, 2k and so on up to 32k."""
    return [number for part in re.split(r"[,\s]+", text.strip()) for number in _doubled(part)]


def _doubled(text: str) -> list[int]:
    """Return one length, or the doubling lengths of a range."""
    low, dots, high = text.partition("..")
    if not dots:
        return [length(text)]
    doubled, last = [length(low)], length(high)
    while 2 * doubled[-1] <= last:
        doubled.append(2 * doubled[-1])
    if last < doubled[0]:
        raise argparse.ArgumentTypeError(f"{text!r}: the second length is the smaller one")
    return doubled


def shifts(text: str) -> tuple[int, ...]:
    """Return two or more different offsets of all positions, from `0,16` or `0,8,100,16`."""
    parts = text.replace(" ", "").split(",")
    if len(parts) < 2 or not all(part.isdigit() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different offsets such as 0,16 or 0,8,100,16")
    return tuple(map(int, parts))


def counts(text: str) -> tuple[tuple[int, int], ...]:
    """Return pairs (length from which the count applies, count), from `20` or `20,5@4096`."""
    from_lengths = []
    for part in text.replace(" ", "").split(","):
        count, at, least = part.partition("@")
        from_lengths.append((length(least) if at else 0, positive(count)))
    if len({least for least, _ in from_lengths}) < len(from_lengths):
        raise argparse.ArgumentTypeError(f"{text!r} has two numbers for one length: 20,5@4096")
    return tuple(from_lengths)


def positive(text: str) -> int:
    """Return a whole number of at least 1, with 9 digits at most."""
    if not re.fullmatch(r"\d{1,9}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 1 upwards, of 9 digits at most")
    return int(text)


def seed(text: str) -> int:
    """Return a whole number with 18 digits at most."""
    if not re.fullmatch(r"[+-]?\d{1,18}", text.strip()):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number of 18 digits at most")
    return int(text)


def points(text: str) -> float:
    """Return a number of points above 0 and below 100."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no margin: points above 0 and below 100, e.g. 1 or 0.5")
    return value


def text(parser: argparse._ActionsContainer) -> None:
    """Add --text, the texts that nll scores, to a command that is not about nll alone."""
    parser.add_argument(
        "--text", type=Path, metavar="FILE-or-DIR", help="texts that nll scores: UTF-8 text, or a folder of *.txt"
    )


def outside_suites(parser: argparse.ArgumentParser) -> None:
    """Add --tasks to a command that reads runs: the suites from outside that it may run."""
    parser.add_argument(
        "--tasks", metavar="CARD.yaml", help="suites from outside the package that runs used: their modules are run"
    )


def sources(parser: argparse.ArgumentParser) -> None:
    """Add the flags that decide which prompts are made."""
    group = parser.add_argument_group("prompts")
    group.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with the published source texts")
    text(group)
    group.add_argument(
        "--no-context",
        action="store_true",
        help="leave the context out of the prompts, to measure answers from memory (longbench, longbench_v2)",
    )
    group.add_argument(
        "--haystack",
        choices=("published", "generated"),
        help="generated: use prose and documents made by the package; not comparable with published scores "
        "(default: the model card's, else published)",
    )
    group.add_argument(
        "--wordlists",
        choices=("3.0.1", "2.2.0"),
        default="3.0.1",
        help="version of the wonderwords lists (default: %(default)s)",
    )
    group.add_argument("--seed", type=seed, default=42, help="seed of the prompts (default: %(default)s, RULER's)")


class Arms(argparse.Action):
    """Action of --rope and --arms, two names of one flag. A second list would replace the first, so it is refused."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Store the list; end with a parser error if one was given before."""
        if getattr(namespace, "arms_given", None):
            parser.error(f"{namespace.arms_given} and {option_string}: one list names all arms: --arms bf16,fp32")
        namespace.arms_given = option_string
        setattr(namespace, self.dest, values)


def settings(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the settings of suites. A flag that is not given leaves the card's value."""
    group = parser.add_argument_group("settings of suites")
    for name, setting in settings_of_suites().items():
        kind = positive if setting.kind is int else str
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, choices=setting.values, help=setting.about)


def chosen_settings(options: argparse.Namespace) -> dict[str, str | int]:
    """Return the settings that were given, keyed by the name of the generator's argument."""
    given = {name: getattr(options, name) for name in settings_of_suites()}
    return {name: value for name, value in given.items() if value is not None}


def template(parser: argparse._ActionsContainer, default: str | None, about: str | None = None) -> None:
    """Add the flags for the form of prompts and the arguments of a chat template."""
    parser.add_argument("--template", choices=("base", "chat"), default=default, help=about)
    parser.add_argument(
        "--template-args",
        type=template_arg,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="argument of the chat template, such as enable_thinking=false; may be repeated",
    )


def anchor(parser: argparse._ActionsContainer) -> None:
    """Add --anchor, which decides whether the anchor token begins a prompt."""
    parser.add_argument(
        "--anchor",
        choices=("auto", "none"),
        default="auto",
        help="auto: begin every prompt with one BOS token (EOS if there is no BOS); none: add no token",
    )


def template_arg(text: str) -> tuple[str, Scalar]:
    """Return name and value of an argument of a chat template."""
    try:
        return read_template_arg(text)
    except AnchorEvalError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def template_args(options: argparse.Namespace) -> dict[str, Scalar]:
    """Return the arguments of the chat template by name; raise AnchorEvalError if one is given twice."""
    names = [name for name, _ in options.template_args]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise AnchorEvalError(f"--template-args {twice} is given twice")
    return dict(options.template_args)


def runs(parser: argparse.ArgumentParser) -> None:
    """Add the argument for the runs that a command reads."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders of run folders")


def runs_of(options: argparse.Namespace) -> Iterator[Run]:
    """Yield each of those runs as it is on disk; print a notice on stderr if it changed after it finished."""
    from anchoreval.records.run import find_runs, load_run, tell_changed

    for path in find_runs(options.runs):
        run = load_run(path)
        tell_changed(run, note)
        yield run


def model(parser: argparse.ArgumentParser) -> None:
    """Add --model, the checkpoint that a command loads."""
    parser.add_argument("--model", required=True, help="a card of models/, a local folder or a hub id")


def loading(group: argparse._ActionsContainer) -> None:
    """Add the flags that decide how a checkpoint is loaded."""
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="dtype of weights and activations (default: the model card's, else auto: the checkpoint's)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    group.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that comes with the checkpoint"
    )


def kernel(group: argparse._ActionsContainer) -> None:
    """Add --kernel, the attention kernel for all arms."""
    group.add_argument(
        "--kernel",
        default="default",
        metavar="KERNEL",
        help="attention kernel, one for all arms: sdpa, eager, ..., fused (keeps q and k wide), auto (fused where an "
        "arm needs it), default (sdpa; eager if sdpa is missing or drops soft caps or sinks)",
    )


def engine(group: argparse._ActionsContainer, chunk_tokens: int | None = 512) -> None:
    """Add the flags of commands that answer prompts or score texts; `chunk_tokens` is the default of --chunk-tokens."""
    loading(group)
    kernel(group)
    group.add_argument(
        "--chunk-tokens", type=positive, default=chunk_tokens, help="prefill chunk; changes rounding (default: 512)"
    )
    group.add_argument(
        "--max-length",
        type=length,
        metavar="N",
        help="number of positions of the model, if its config is wrong; 3500, 7500, 15500 and 31500 are LongBench's "
        "max_length: its prompts are cut there, and answers come on top",
    )


def backend(group: argparse._ActionsContainer) -> None:
    """Add the flags that decide where answers are computed."""
    group.add_argument(
        "--backend",
        choices=sorted(BACKENDS),
        default="hf",
        help="; ".join(f"{name}: {known.about}" for name, known in BACKENDS.items()) + " (default: %(default)s)",
    )
    group.add_argument(
        "--backend-args",
        type=backend_args,
        default={},
        metavar="K=V,K=V",
        help=f"options of the backend, tensor_parallel_size=4,enforce_eager=true; {help_of_options()}",
    )
    group.add_argument("--base-url", metavar="URL", help="URL of an OpenAI-compatible server: http://127.0.0.1:8000/v1")
    group.add_argument(
        "--tokenizer", metavar="PATH", help="tokenizer of the model at --base-url: a folder, hub id or card"
    )


def backend_args(text: str) -> dict[str, str | int | float | bool]:
    """Return options by name, from `rows=8,enforce_eager=true`.

    A value is an int, a float or a bool if it parses as one, else a str.
    """
    by_name: dict[str, str | int | float | bool] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = part.partition("=")
        if not (equals and name.isidentifier() and value) or name in by_name:
            raise argparse.ArgumentTypeError(
                f"{part!r} is no new option=value: tensor_parallel_size=4,enforce_eager=true"
            )
        by_name[name] = _value(value)
    return by_name


def _value(text: str) -> str | int | float | bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def engine_options(options: argparse.Namespace) -> dict[str, str | int | float | bool]:
    """Return the options to open the backend with, besides those of the run itself.

    Raise AnchorEvalError for flags that belong to another backend.
    """
    name, backend, given = options.backend, BACKENDS[options.backend], dict(options.backend_args)
    if (options.base_url is None) == backend.one_server:
        raise AnchorEvalError("--backend openai and --base-url go together: --base-url http://127.0.0.1:8000/v1")
    tuning = {flag: value for flag in _OF_ONE if (value := getattr(options, flag)) is not None}
    if not backend.lenient and (refused := next((flag for flag in tuning if flag not in backend.takes), None)):
        owner = next(other for other, known in BACKENDS.items() if refused in known.takes)
        raise AnchorEvalError(f"--{refused.replace('_', '-')} is of backend {owner}; {name} has --backend-args")
    above = {flag: getattr(options, flag) for flag in ("base_url", "device", "trust_remote_code")}
    taken = [{flag: value for flag, value in flags.items() if flag in backend.takes} for flags in (tuning, above)]
    return taken[0] | given | taken[1]
