"""The command line: parse, call one function, print one-line errors. Importing it imports no torch.

Exit codes: 0 done, 1 something differs or failed while running, 2 bad input. stdout carries results only.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from anchoreval import commands, doctor, nll
from anchoreval.errors import AnchorEvalError, RunError

EXAMPLES = """examples:
  anchoreval run --model anchor-tiny --tasks ruler --lengths 512,1024 --rope bf16,fp32 --limit 20 --haystack generated
  anchoreval run --model /path/or/hub-id --tasks ruler/niah_single_1,ruler/vt --lengths 4k,32k --rope native,fp32
  anchoreval run --model M --tasks ruler/qa_1 --lengths 8k --arms fp32,bf16+shift:4096,anchor/fp32
  anchoreval probe --model anchor-tiny --lengths 64..8192 --output probe/
  anchoreval show ruler/qa_1@4096#3 --tokenizer PATH --haystack generated
"""


def length(text: str) -> int:
    """Tokens, from `4096` or `4k`."""
    match = re.fullmatch(r"(\d+)(k?)", text.strip().lower())
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no length: tokens such as 4096 or 4k")
    return int(match[1]) * (1024 if match[2] else 1)


def lengths(text: str) -> list[int]:
    """Lengths separated by commas or spaces."""
    return [length(part) for part in re.split(r"[,\s]+", text.strip())]


def doubling_lengths(text: str) -> list[int]:
    """Lengths from `64..8192`, which doubles, or as for `lengths`."""
    low, dots, high = text.partition("..")
    if not dots:
        return lengths(text)
    found, last = [length(low)], length(high)
    while 2 * found[-1] <= last:
        found.append(2 * found[-1])
    if last < found[0]:
        raise argparse.ArgumentTypeError(f"{text!r}: the second length is the smaller one")
    return found


def shift_pair(text: str) -> tuple[int, int]:
    """Two different offsets of all positions, from `0,16`."""
    parts = text.replace(" ", "").split(",")
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or int(parts[0]) == int(parts[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no pair of different offsets such as 0,16")
    return int(parts[0]), int(parts[1])


def positive(text: str) -> int:
    """A whole number from 1 upwards."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 upwards")
    return int(text)


def _sources(parser: argparse.ArgumentParser) -> None:
    """Flags that say which prompts are made."""
    group = parser.add_argument_group("prompts")
    group.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with the published source texts")
    group.add_argument(
        "--haystack",
        choices=("published", "generated"),
        help="generated: prose and documents that the package makes, not comparable with published RULER "
        "(default: the model card's, else published)",
    )
    group.add_argument(
        "--wordlists", choices=("3.0.1", "2.2.0"), default="3.0.1", help="wonderwords lists (default: %(default)s)"
    )
    group.add_argument("--seed", type=int, default=42, help="seed of the prompts (default: %(default)s, RULER's)")


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a card of models/, a local folder or a hub id")
    parser.add_argument("--tasks", required=True, help="suites, sets, tasks or globs, comma or space separated")
    parser.add_argument(
        "--lengths", type=lengths, metavar="N,N", help="tokens, prompt plus answer: 4096 or 4k (default: the card's)"
    )
    parser.add_argument(
        "--rope",
        "--arms",
        dest="rope",
        default="native",
        metavar="ARM,ARM",
        help="arms, [attention/]rope[+positions]: native, fp64, fp32-qk, fp32, bf16-table, bf16, bf16-angle, "
        "rope:table=bf16, bf16+shift:4096, anchor/fp32, intra-doc/fp32+reset (default: %(default)s)",
    )
    parser.add_argument(
        "--document-tokens", type=positive, metavar="N", help="cut longer documents into blocks of N tokens"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="samples of each task and length (default: all)")
    parser.add_argument("--output", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--template", choices=("base", "chat"), help="base: raw text; chat: the model's chat template")
    _sources(parser)
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--backend", choices=("hf", "fake"), default="hf", help="fake: answers without a model, to try a set-up"
    )
    engine.add_argument(
        "--dtype",
        choices=("auto", "bfloat16", "float16", "float32"),
        help="of weights and activations (default: the model card's, else auto: the checkpoint's)",
    )
    engine.add_argument("--kernel", default="sdpa", help="attention kernel, one for all arms (default: %(default)s)")
    engine.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    engine.add_argument(
        "--chunk-tokens", type=positive, default=512, help="prefill chunk; changes rounding (default: %(default)s)"
    )
    engine.add_argument(
        "--batch-tokens", type=positive, default=32768, help="cache budget of a batch (default: %(default)s)"
    )
    engine.add_argument(
        "--max-length", type=length, metavar="N", help="positions the model has, where its config is wrong"
    )
    engine.add_argument("--trust-remote-code", action="store_true", help="run code that the checkpoint brings")


def _samples(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--lengths", type=lengths, required=True, metavar="N,N")
    parser.add_argument("--tokenizer", required=True, metavar="PATH", help="folder or hub id, or a card of models/")
    parser.add_argument("--limit", type=positive, metavar="N")
    parser.add_argument("--template", choices=("base", "chat"), default="base")
    parser.add_argument("--output", type=Path, metavar="FILE.jsonl", required=True)
    _sources(parser)


def _show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sample", metavar="SUITE/TASK@LENGTH#INDEX")
    parser.add_argument("--tokenizer", required=True, metavar="PATH")
    parser.add_argument("--template", choices=("base", "chat"), default="base")
    _sources(parser)


def _bench(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    samples = kinds.add_parser("samples", help="CPU seconds and peak memory of making prompts")
    samples.add_argument("--tasks", default="ruler")
    samples.add_argument("--lengths", type=lengths, default=[4096], metavar="N,N")
    samples.add_argument("--tokenizer", required=True, metavar="PATH")
    samples.add_argument("--limit", type=positive, default=500, metavar="N")
    _sources(samples)
    memory = kinds.add_parser("memory", help="peak memory of one long prompt beyond weights and cache")
    memory.add_argument("--length", type=length, default=32768)
    kinds.add_parser("anchor", help="prefill under the anchor pattern against full attention, one ratio")


def _paths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders of them")


def _board(parser: argparse.ArgumentParser) -> None:
    _paths(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: the folder of the first RUN")


def _probe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a card of models/, a local folder or a hub id")
    default = doubling_lengths("64..8192")
    parser.add_argument(
        "--lengths",
        type=doubling_lengths,
        default=default,
        metavar="N..N",
        help="tokens: 64..8192 (doubling, the default) or 512,4k",
    )
    parser.add_argument(
        "--shift", type=shift_pair, default=(0, 16), metavar="A,B", help="offsets of all positions (default: 0,16)"
    )
    parser.add_argument(
        "--levels",
        default="all",
        metavar="LEVEL,LEVEL",
        help="RoPE levels (default: all; blanks between levels of explicit sites)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("probe"),
        metavar="DIR",
        help="for probe.csv and probe.html (default: %(default)s)",
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text to read (default: generated prose)")
    parser.add_argument(
        "--texts",
        type=positive,
        metavar="N",
        help="texts of each length (default: 4 up to 512 tokens, 2 at 1024, 1 above)",
    )
    parser.add_argument(
        "--queries",
        type=positive,
        default=128,
        metavar="N",
        help="query rows measured of a longer text (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of the generated prose (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("auto", "bfloat16", "float16", "float32"),
        default="auto",
        help="of the model as stored; a float32 copy follows (default: the checkpoint's)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the checkpoint brings")


def _nll(parser: argparse.ArgumentParser) -> None:
    nll.flags(parser, lengths, length, positive)


def _doctor(parser: argparse.ArgumentParser) -> None:
    doctor.flags(parser, length)


def _none(_: argparse.ArgumentParser) -> None:
    """No flags."""


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "run": ("evaluate a model under RoPE arms, write records and a board", _run, commands.run),
    "samples": ("write the prompts as JSON lines; needs no model", _samples, commands.samples),
    "tasks": ("list suites, sets and tasks", _none, commands.tasks),
    "models": ("list model cards", _none, commands.models),
    "show": ("print one prompt with its references and facts", _show, commands.show),
    "score": ("score the records of a run again and report what differs", _paths, commands.score),
    "board": ("write board.csv and board.html of runs", _board, commands.board),
    "probe": ("measure what RoPE precision and a shift of positions do to attention", _probe, commands.probe),
    "nll": ("loss by position on long texts, paired between arms", _nll, commands.nll),
    "doctor": ("say what a checkpoint's RoPE honestly is", _doctor, commands.doctor),
    "bench": ("measure speed and memory", _bench, commands.bench),
}


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="anchoreval",
        description="Long-context evaluation under controlled RoPE precision.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"anchoreval {commands.version()}")
    subs = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (about, flags, _) in COMMANDS.items():
        flags(subs.add_parser(name, help=about, description=about[0].upper() + about[1:] + "."))
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    options = parser().parse_args(arguments)
    try:
        return COMMANDS[options.command][2](options)
    except RunError as error:
        sys.stderr.write(f"anchoreval: {error}\n")
        return 1 if error.__cause__ else 2
    except AnchorEvalError as error:
        sys.stderr.write(f"anchoreval: {error}\n")
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("anchoreval: stopped; the same command goes on where it was\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
