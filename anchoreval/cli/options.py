"""Flags that several commands share, and the values they take. Imports no torch."""

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
from anchoreval.prompt.settings import SETTINGS, read_template_arg
from anchoreval.tokenizer.chat_template import Scalar

if TYPE_CHECKING:
    from anchoreval.records.run import Run

_OF_ONE = ("chunk_tokens", "batch_tokens", "realisation")  # flags of one backend alone, whose own defaults hold


def length(text: str) -> int:
    """Tokens, from `4096` or `4k`."""
    match = re.fullmatch(r"(\d{1,8})(k?)", text.strip().lower())
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no length: tokens such as 4096 or 4k")
    return int(match[1]) * (1024 if match[2] else 1)


def lengths(text: str) -> list[int]:
    """Lengths separated by commas or spaces; `1k..32k` stands for 1k, 2k and so on up to 32k."""
    return [found for part in re.split(r"[,\s]+", text.strip()) for found in _doubled(part)]


def _doubled(text: str) -> list[int]:
    """One length, or those of a range, which double."""
    low, dots, high = text.partition("..")
    if not dots:
        return [length(text)]
    found, last = [length(low)], length(high)
    while 2 * found[-1] <= last:
        found.append(2 * found[-1])
    if last < found[0]:
        raise argparse.ArgumentTypeError(f"{text!r}: the second length is the smaller one")
    return found


def shifts(text: str) -> tuple[int, ...]:
    """Two or more different offsets of all positions, from `0,16` or `0,8,100,16`."""
    parts = text.replace(" ", "").split(",")
    if len(parts) < 2 or not all(part.isdigit() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different offsets such as 0,16 or 0,8,100,16")
    return tuple(map(int, parts))


def counts(text: str) -> tuple[tuple[int, int], ...]:
    """(from this length on, so many), from `20` or `20,5@4096`."""
    made = []
    for one in text.replace(" ", "").split(","):
        count, at, least = one.partition("@")
        made.append((length(least) if at else 0, positive(count)))
    if len({least for least, _ in made}) < len(made):
        raise argparse.ArgumentTypeError(f"{text!r} has two numbers for one length: 20,5@4096")
    return tuple(made)


def positive(text: str) -> int:
    """A whole number from 1 upwards, of 9 digits at most."""
    if not re.fullmatch(r"\d{1,9}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 1 upwards, of 9 digits at most")
    return int(text)


def seed(text: str) -> int:
    """A whole number of 18 digits at most."""
    if not re.fullmatch(r"[+-]?\d{1,18}", text.strip()):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number of 18 digits at most")
    return int(text)


def points(text: str) -> float:
    """A number of points above 0 and below 100."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no margin: points above 0 and below 100, e.g. 1 or 0.5")
    return value


def text(parser: argparse._ActionsContainer) -> None:
    """The texts that nll scores, where they are not what a command is about."""
    parser.add_argument(
        "--text", type=Path, metavar="FILE-or-DIR", help="nll: the texts that are scored, UTF-8, or a folder of *.txt"
    )


def sources(parser: argparse.ArgumentParser) -> None:
    """Flags that say which prompts are made."""
    group = parser.add_argument_group("prompts")
    group.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with the published source texts")
    text(group)
    group.add_argument(
        "--no-context",
        action="store_true",
        help="leave the context out of the prompts, to see what is answered from memory (longbench, longbench_v2)",
    )
    group.add_argument(
        "--haystack",
        choices=("published", "generated"),
        help="generated: prose and documents that the package makes, not comparable with published scores "
        "(default: the model card's, else published)",
    )
    group.add_argument(
        "--wordlists", choices=("3.0.1", "2.2.0"), default="3.0.1", help="wonderwords lists (default: %(default)s)"
    )
    group.add_argument("--seed", type=seed, default=42, help="seed of the prompts (default: %(default)s, RULER's)")


class Arms(argparse.Action):
    """Arms under either of two names; a second list would take the place of the first, so it is refused."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Keep the list; an error of the parser where one was given before."""
        if getattr(namespace, "arms_given", None):
            parser.error(f"{namespace.arms_given} and {option_string}: one list names all arms: --arms bf16,fp32")
        namespace.arms_given = option_string
        setattr(namespace, self.dest, values)


def settings(parser: argparse.ArgumentParser) -> None:
    """Flags that choose between what a suite lets be chosen; absent ones leave the card's."""
    group = parser.add_argument_group("settings of suites")
    for name, setting in SETTINGS.items():
        kind = positive if setting.kind is int else str
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, choices=setting.values, help=setting.about)


def chosen_settings(options: argparse.Namespace) -> dict[str, str | int]:
    """The settings that were given, by the name of the generator's argument."""
    given = {name: getattr(options, name) for name in SETTINGS}
    return {name: value for name, value in given.items() if value is not None}


def template(parser: argparse._ActionsContainer, default: str | None, about: str | None = None) -> None:
    """The form of prompts, and the arguments of a chat template."""
    parser.add_argument("--template", choices=("base", "chat"), default=default, help=about)
    parser.add_argument(
        "--template-args",
        type=template_arg,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an argument of the chat template, such as enable_thinking=false; may be given many times",
    )


def anchor(parser: argparse._ActionsContainer) -> None:
    """Whether the anchor token stands in front of prompts."""
    parser.add_argument(
        "--anchor",
        choices=("auto", "none"),
        default="auto",
        help="auto: BOS (EOS without one) stands first in every prompt, once; none: no token is put in front",
    )


def template_arg(text: str) -> tuple[str, Scalar]:
    """Name and value of an argument of a chat template."""
    try:
        return read_template_arg(text)
    except AnchorEvalError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def template_args(options: argparse.Namespace) -> dict[str, Scalar]:
    """The arguments of the chat template by name; AnchorEvalError for one that is given twice."""
    names = [name for name, _ in options.template_args]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise AnchorEvalError(f"--template-args {twice} is given twice")
    return dict(options.template_args)


def runs(parser: argparse.ArgumentParser) -> None:
    """The runs that a command reads."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders of them")


def runs_of(options: argparse.Namespace) -> Iterator[Run]:
    """Each of those runs as it lies on disk; on stderr where it is not what it was when it finished."""
    from anchoreval.records.run import find_runs, load_run, tell_changed

    for path in find_runs(options.runs):
        run = load_run(path)
        tell_changed(run, note)
        yield run


def model(parser: argparse.ArgumentParser) -> None:
    """The checkpoint that a command loads."""
    parser.add_argument("--model", required=True, help="a card of models/, a local folder or a hub id")


def loading(group: argparse._ActionsContainer) -> None:
    """Flags that say how a checkpoint is loaded."""
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of weights and activations (default: the model card's, else auto: the checkpoint's)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    group.add_argument("--trust-remote-code", action="store_true", help="run code that the checkpoint brings")


def kernel(group: argparse._ActionsContainer) -> None:
    """The attention kernel of the commands that compute arms."""
    group.add_argument(
        "--kernel",
        default="default",
        metavar="KERNEL",
        help="attention kernel, one for all arms: sdpa, eager, ..., fused (keeps q and k wide), auto (fused where an "
        "arm needs it), default (sdpa; eager where there is no sdpa or it drops soft caps or sinks)",
    )


def engine(group: argparse._ActionsContainer, chunk_tokens: int | None = 512) -> None:
    """Flags of the commands that answer prompts or score texts; `chunk_tokens` where that flag is not given."""
    loading(group)
    kernel(group)
    group.add_argument(
        "--chunk-tokens", type=positive, default=chunk_tokens, help="prefill chunk; changes rounding (default: 512)"
    )
    group.add_argument(
        "--max-length",
        type=length,
        metavar="N",
        help="positions the model has, where its config is wrong; 3500, 7500, 15500 and 31500 are LongBench's "
        "max_length: its prompts are cut there, answers come on top",
    )


def backend(group: argparse._ActionsContainer) -> None:
    """Flags that say where answers are computed."""
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
    group.add_argument("--base-url", metavar="URL", help="of an OpenAI-compatible server: http://127.0.0.1:8000/v1")
    group.add_argument("--tokenizer", metavar="PATH", help="of the model behind --base-url: a folder, hub id or card")


def backend_args(text: str) -> dict[str, str | int | float | bool]:
    """Options by name, from `rows=8,enforce_eager=true`: whole numbers, numbers, true and false, else text."""
    found: dict[str, str | int | float | bool] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = part.partition("=")
        if not (equals and name.isidentifier() and value) or name in found:
            raise argparse.ArgumentTypeError(
                f"{part!r} is no new option=value: tensor_parallel_size=4,enforce_eager=true"
            )
        found[name] = _value(value)
    return found


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
    """What the backend is opened with beside the run's own; AnchorEvalError for flags that are another backend's."""
    name, backend, given = options.backend, BACKENDS[options.backend], dict(options.backend_args)
    if (options.base_url is None) == backend.one_server:
        raise AnchorEvalError("--backend openai and --base-url go together: --base-url http://127.0.0.1:8000/v1")
    own = {flag: value for flag in _OF_ONE if (value := getattr(options, flag)) is not None}
    if not backend.lenient and (refused := next((flag for flag in own if flag not in backend.takes), None)):
        owner = next(other for other, known in BACKENDS.items() if refused in known.takes)
        raise AnchorEvalError(f"--{refused.replace('_', '-')} is of backend {owner}; {name} has --backend-args")
    above = {flag: getattr(options, flag) for flag in ("base_url", "device", "trust_remote_code")}
    taken = [{flag: value for flag, value in flags.items() if flag in backend.takes} for flags in (own, above)]
    return taken[0] | given | taken[1]
