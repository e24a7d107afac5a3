"""Every option of the command line, declared once: keyword, flag, default, help. This module imports no torch.

The key in OPTIONS is the keyword in Python and in the file of `--config`; the flag is spelled from it. A command names
the options that it takes; where it needs one, or has no use for the general default, it says so there.
"""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchoreval.arms.arm import DEFAULT_KERNEL, DTYPES
from anchoreval.backends import BACKENDS
from anchoreval.backends.options import help_of_options
from anchoreval.cli.console import note
from anchoreval.errors import AnchorEvalError
from anchoreval.suites import settings
from anchoreval.tokenizer.chat_template import read_template_arg

if TYPE_CHECKING:
    from anchoreval.records.run import Run


def length(text: str) -> int:
    """Return the number of tokens that `4096` or `4k` stands for."""
    match = re.fullmatch(r"(\d{1,8})(k?)", text.strip().lower())
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no length: tokens such as 4096 or 4k")
    return int(match[1]) * (1024 if match[2] else 1)


def lengths(text: str) -> list[int]:
    """Return lengths from a list separated by commas or spaces; `1k..32k` stands for 1k, 2k and so on up to 32k."""
    numbers: list[int] = []
    for part in re.split(r"[,\s]+", text.strip()):
        low, dots, high = part.partition("..")
        first = number = length(low)
        last = length(high) if dots else first
        if last < first:
            raise argparse.ArgumentTypeError(f"{part!r}: the second length is the smaller one")
        while number <= last:
            numbers.append(number)
            number *= 2
    return numbers


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


def template_args(text: str) -> dict[str, Any]:
    """Return an argument of a chat template by its name, from `enable_thinking=false`."""
    return dict([read_template_arg(text)])


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
        by_name[name] = value.lower() == "true" if value.lower() in ("true", "false") else value
        for kind in (float, int):  # the last that reads it
            with contextlib.suppress(ValueError):
                by_name[name] = kind(value)
    return by_name


@dataclass(frozen=True, slots=True)
class Option:
    """An option: what its help says, its default, and `kind`, which reads its text.

    A default of False makes a flag without a value, and one of {} a flag whose NAME=VALUE add up. `blanks` lets blanks
    separate the words of a list. `old` are names of version 0.1, which work until 0.3. `heading` is where `run --help`
    lists the option; without one it is among the first.
    """

    about: str
    default: Any = None
    kind: Callable[[str], Any] = str
    metavar: str | None = None
    heading: str = ""
    choices: Collection[str] | None = None
    blanks: bool = False
    required: bool = False
    old: tuple[str, ...] = ()


class Given(argparse.Action):
    """Action that reads the words of an option as its `kind`.

    NAME=VALUE add up, and no name is given twice. A second list of arms is refused.
    """

    kind: Callable[[str], Any]
    now = ""  # the flag's name, if this is an old one

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        """Store the value; end with a parser error if it is none of the kind, or given before."""
        given: dict[str, str] = vars(namespace).setdefault("given", {})  # "dest" or "dest name" -> its flag
        try:
            value = self.kind(" ".join(values) if isinstance(values, list) else values)
        except (argparse.ArgumentTypeError, AnchorEvalError) as error:
            raise argparse.ArgumentError(self, str(error)) from error
        if isinstance(value, dict):
            if twice := next((name for name in value if f"{self.dest} {name}" in given), None):
                raise argparse.ArgumentError(self, f"{twice} is given twice")
            given |= {f"{self.dest} {name}": str(flag) for name in value}
            value = getattr(namespace, self.dest) | value
        elif self.dest == "arms" and self.dest in given:  # two lists may be meant as one
            parser.error(f"{given[self.dest]} and {flag}: one list names all arms: --arms bf16,fp32")
        given[self.dest] = str(flag)
        if self.now:
            note(f"{flag} is called {self.now} now; {flag} goes with version 0.3")
        setattr(namespace, self.dest, value)


_PLACE = "prompts"
_ENGINE = "engine"
_WORKERS = "workers"
_OUTPUT = "records"
OPTIONS: Mapping[str, Option] = {
    "model": Option("a card of models/, a local folder or a hub id", required=True),
    "tasks": Option(
        "suites, sets, tasks or globs, comma or space separated; ./CARD.yaml is one of yours (CONTRIBUTING.md)",
        required=True, blanks=True,
    ),
    "lengths": Option(
        "tokens of the whole prompt plus the answer: 4096, 4k or 1k..32k, doubling (default: the card's)",
        kind=lengths, metavar="N,N", blanks=True,
    ),
    "arms": Option(
        "arms, [attention/]rope[+field:value...]: native, fp64, fp32-qk, fp32, bf16-table, bf16, bf16-angle, "
        "rope:table=bf16, bf16+shift:4096, anchor/fp32, intra-doc/fp32+reset, and fp32+x:module:factory, your own "
        "context manager around the model (docs/arms.md); the first is the baseline",
        "native", metavar="ARM,ARM", blanks=True, old=("rope",),
    ),
    "placebo": Option(
        "run the first arm again in other chunks and batches, to measure the noise floor of differences", False
    ),
    "limit": Option(
        "samples of each task and length (default: all); a larger limit continues the run", kind=positive, metavar="N"
    ),
    "template": Option(
        "base: raw text; chat: the model's chat template (default: the model card's, else base)",
        choices=("base", "chat"),
    ),
    "haystack": Option(
        "generated: use prose and documents made by the package; not comparable with published scores "
        "(default: the model card's, else published)",
        choices=("published", "generated"),
    ),
    "data_dir": Option("folder with the published source texts (default: the user's cache)", kind=Path, metavar="DIR"),
    "backend": Option(
        "; ".join(f"{name}: {known.about}" for name, known in BACKENDS.items()), "hf", choices=sorted(BACKENDS)
    ),
    "output": Option("folder of the records, one below it for each model and run", Path("runs"), Path, "DIR"),
    "template_args": Option(
        "argument of the chat template, such as enable_thinking=false; may be repeated",
        {}, template_args, "KEY=VALUE", _PLACE,
    ),
    "anchor": Option(
        "auto: begin every prompt with one BOS token (EOS if there is no BOS); none: add no token",
        "auto", choices=("auto", "none"), heading=_PLACE,
    ),
    "text": Option("texts that nll scores: UTF-8 text, or a folder of *.txt", kind=Path, metavar="FILE-or-DIR",
                   heading=_PLACE),
    "no_context": Option(
        "leave the context out of the prompts, to measure answers from memory (longbench, longbench_v2)",
        False, heading=_PLACE,
    ),
    "wordlists": Option("version of the wonderwords lists", "3.0.1", choices=("3.0.1", "2.2.0"), heading=_PLACE),
    "seed": Option("seed of generated text (default: %(default)s, RULER's)", 42, seed, heading=_PLACE),
    "document_tokens": Option(
        "split documents into blocks of N tokens; lines of a haystack are joined first "
        "(default: use the task's own documents, each line of a haystack being one)",
        kind=positive, metavar="N", heading=_PLACE,
    ),
    "until": Option(
        "stop each task and length once its verdict is reached: 1pt@95%% (margin@level)",
        metavar="RULE", heading=_PLACE,
    ),
    **{
        name: Option(setting.about, kind=positive if setting.kind is int else str, choices=setting.values,
                     heading="settings of suites")
        for name, setting in settings().items()
    },
    "backend_args": Option(
        f"options of the backend, tensor_parallel_size=4,enforce_eager=true; {help_of_options()}",
        {}, backend_args, "K=V,K=V", _ENGINE,
    ),
    "base_url": Option("URL of an OpenAI-compatible server: http://127.0.0.1:8000/v1", metavar="URL", heading=_ENGINE),
    "tokenizer": Option("tokenizer of the model at --base-url: a folder, hub id or card of models/", metavar="PATH",
                        heading=_ENGINE),
    "dtype": Option(
        "dtype of weights and activations (default: the model card's, else auto: the checkpoint's)",
        choices=DTYPES, heading=_ENGINE,
    ),
    "device": Option("auto, cpu, cuda, cuda:1 ...", "auto", heading=_ENGINE),
    "trust_remote_code": Option("run Python code that comes with the checkpoint", False, heading=_ENGINE),
    "kernel": Option(
        "attention kernel, one for all arms: sdpa, eager, ..., fused (keeps q and k wide), auto (fused where an "
        "arm needs it), default (sdpa; eager if sdpa is missing or drops soft caps or sinks)",
        DEFAULT_KERNEL, metavar="KERNEL", heading=_ENGINE,
    ),
    "chunk_tokens": Option(
        "prefill of backend hf in chunks, on a grid, so that bits do not depend on what is shared; changes rounding "
        "(default: as few passes as memory allows; 512 in nll, for models with windows, for kernels other than sdpa)",
        kind=positive, metavar="N", heading=_ENGINE,
    ),
    "batch_tokens": Option("cache budget of one batch of backend hf, in tokens (default: 32768)", kind=positive,
                           metavar="N", heading=_ENGINE),
    "realisation": Option(
        "how backend hf computes isolated documents: rows (causal rows, joined) or flex (one pass of "
        "FlexAttention, fast on CUDA only); changes rounding (default: rows)",
        choices=("rows", "flex"), heading=_ENGINE,
    ),
    "max_length": Option(
        "number of positions of the model, if its config is wrong; 3500, 7500, 15500 and 31500 are LongBench's "
        "max_length: its prompts are cut there, and answers come on top",
        kind=length, metavar="N", heading=_ENGINE,
    ),
    "offline": Option("ask no hub: what is not on this machine is an error at once", False, heading=_ENGINE),
    "ray": Option(
        "compute on workers of a Ray cluster: local (start one here), auto (RAY_ADDRESS, or the cluster that runs "
        "here) or host:port; one worker per GPU, or per CPU if there is no GPU",
        metavar="ADDRESS", heading=_WORKERS,
    ),
    "workers": Option("number of workers, with --ray", kind=positive, metavar="N", heading=_WORKERS),
    "same_environment": Option(
        "refuse to resume a run that began with other versions, threads, processor or GPU", False, heading=_OUTPUT
    ),
    "rehash": Option("hash all files of the checkpoint again", False, heading=_OUTPUT),
    "margin": Option("largest difference that counts as equivalent, in points of 100", 1.0, points, "POINTS"),
}  # fmt: skip

#: The settings of suites, and the options that decide which prompts are made.
OF_SUITES = tuple(settings())
OF_PROMPTS = ("data_dir", "haystack", "text", "no_context", "wordlists", "seed", *OF_SUITES)
OF_LOADING = ("dtype", "device", "trust_remote_code", "kernel", "offline")
#: The options of `run`, which are keywords of `evaluate`.
OF_RUNS = tuple(name for name in OPTIONS if name != "margin")


def add(
    parser: argparse.ArgumentParser,
    *names: str,
    own: Mapping[str, Option] | None = None,
    headings: bool = False,
    **changes: Any,
) -> None:
    """Add options to a command, under their `headings` if there are many; `changes` say what is special to it.

    `own` are options that this command alone has. Old names of options have no line of help.
    """
    groups: dict[str, argparse._ActionsContainer] = {"": parser}
    options = {name: replace(OPTIONS[name], **changes) for name in names} | dict(own or {})
    for name, option in options.items():
        heading = option.heading if headings else ""
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        stated = option.default not in (None, False, {}) and "default" not in option.about
        about = f"{option.about} (default: %(default)s)" if stated else option.about
        given: dict[str, Any] = {"dest": name, "default": option.default, "help": about.lstrip()}
        if option.default is False:
            given["action"] = "store_true"
        else:
            given |= {"action": Given, "metavar": option.metavar, "choices": option.choices}
            given |= {"nargs": "+"} if option.blanks else {}
        flag, *old = (f"--{each.replace('_', '-')}" for each in (name, *option.old))
        actions = [groups[heading].add_argument(flag, required=option.required, **given)]
        actions += [groups[heading].add_argument(each, **given | {"help": argparse.SUPPRESS}) for each in old]
        for action in actions:
            if isinstance(action, Given):
                action.kind, action.now = option.kind, "" if action is actions[0] else flag


def outside_suites(parser: argparse.ArgumentParser) -> None:
    """Add --tasks to a command that reads runs: the suites from outside that it may run."""
    about = "suites from outside the package that runs used: their modules are run"
    add(parser, "tasks", required=False, metavar="CARD.yaml", about=about)


def runs(parser: argparse.ArgumentParser, about: str = "run folders, or folders of run folders") -> None:
    """Add the argument for the runs that a command reads."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=about)


def runs_of(options: argparse.Namespace) -> Iterator[Run]:
    """Yield each of those runs as it is on disk; print a notice on stderr if it changed after it finished."""
    from anchoreval.records.run import find_runs, load_run, tell_changed

    for path in find_runs(options.runs):
        run = load_run(path)
        tell_changed(run, note)
        yield run
