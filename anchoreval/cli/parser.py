"""The command line: parse, call one function, print one-line errors. Importing it imports no torch.

Exit codes: 0 done, 1 something differs or failed while running, 2 bad input, found before any work began, 130 stopped
by Ctrl-C. stdout carries results only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from anchoreval.bench import engines as bench_engines
from anchoreval.bench import gpu as gpu_bench
from anchoreval.bench import lm_eval as lm_eval_bench
from anchoreval.bench import prefill as prefill_bench
from anchoreval.cli import commands, console, lm_eval, plan, view
from anchoreval.cli import data as data_files
from anchoreval.cli import options as flags
from anchoreval.diagnostics.doctor import page as doctor
from anchoreval.diagnostics.nll import measure as nll
from anchoreval.errors import AnchorEvalError
from anchoreval.records.writable import BROKEN, require_writable
from anchoreval.reports.averages import general as general_report
from anchoreval.reports.averages import longbench as longbench_report
from anchoreval.reports.compare import contrasts as compare_runs
from anchoreval.reports.export import tables as export

STOPPED = 130  # 128 and the number of SIGINT, as shells count

EXAMPLES = """examples:
  anchoreval run --model anchor-tiny --tasks ruler --lengths 512,1024 --rope bf16,fp32 --limit 20 --haystack generated
  anchoreval run --model /path/or/hub-id --tasks ruler/niah_single_1,ruler/vt --lengths 4k,32k --rope native,fp32
  anchoreval run --model M --tasks ruler/qa_1 --lengths 8k --arms fp32,bf16+shift:4096,anchor/fp32
  anchoreval run --model M --tasks longbench,longbench_e --max-length 31500 --data-dir DIR
  anchoreval run --model M --tasks general/hellaswag,mmlu --data-dir DIR --rope bf16,fp32
  anchoreval probe --model anchor-tiny --lengths 64..8192 --output probe/
  anchoreval show ruler/qa_1@4096#3 --tokenizer PATH --haystack generated
"""


def _run(parser: argparse.ArgumentParser) -> None:
    flags.model(parser)
    parser.add_argument("--tasks", required=True, help="suites, sets, tasks or globs, comma or space separated")
    parser.add_argument(
        "--lengths",
        type=flags.lengths,
        metavar="N,N",
        help="tokens, all that a model is fed and its answer: 4096, 4k or 1k..32k, doubling (default: the card's)",
    )
    parser.add_argument(
        "--rope",
        "--arms",
        dest="rope",
        action=flags.Arms,
        default="native",
        metavar="ARM,ARM",
        help="arms, [attention/]rope[+field:value...]: native, fp64, fp32-qk, fp32, bf16-table, bf16, bf16-angle, "
        "rope:table=bf16, bf16+shift:4096, anchor/fp32, intra-doc/fp32+reset, and fp32+x:module:factory, a context "
        "manager of yours on the model (docs/arms.md) (default: %(default)s)",
    )
    parser.add_argument(
        "--placebo",
        action="store_true",
        help="run the first arm once more, in other chunks and batches: the noise floor of every difference",
    )
    parser.add_argument(
        "--document-tokens",
        type=flags.positive,
        metavar="N",
        help="documents in blocks of N tokens: longer ones are cut, and the lines of a haystack are joined and cut "
        "(default: the task's documents, each line of a haystack of lines one of them)",
    )
    parser.add_argument(
        "--limit",
        type=flags.positive,
        metavar="N",
        help="samples of each task and length (default: all); the same command with more of them goes on",
    )
    parser.add_argument(
        "--until", metavar="RULE", help="stop each task and length when its verdict is in: 1pt@95%% (margin@level)"
    )
    parser.add_argument("--output", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--same-environment",
        action="store_true",
        help="refuse to go on with a run that was begun with other versions, threads or on another processor or GPU",
    )
    parser.add_argument("--rehash", action="store_true", help="read all files of the checkpoint again for their hashes")
    flags.template(parser, None, "base: raw text; chat: the model's chat template")
    flags.anchor(parser)
    flags.sources(parser)
    flags.settings(parser)
    engine = parser.add_argument_group("engine")
    flags.backend(engine)
    flags.engine(engine, chunk_tokens=None)
    _workers(engine)


def _workers(engine: argparse._ActionsContainer) -> None:
    engine.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="compute on workers of a Ray cluster: local (starts one here), auto (RAY_ADDRESS, or the one that runs "
        "here) or host:port; one worker for every GPU, else for every CPU",
    )
    engine.add_argument("--workers", type=flags.positive, metavar="N", help="how many workers, with --ray")
    engine.add_argument("--batch-tokens", type=flags.positive, help="cache budget of a batch of hf (default: 32768)")
    engine.add_argument(
        "--realisation",
        choices=("rows", "flex"),
        help="how hf computes isolated documents: causal rows joined, or one pass of FlexAttention, which is fast "
        "on CUDA only; changes rounding (default: rows)",
    )


def _samples(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--lengths", type=flags.lengths, required=True, metavar="N,N")
    parser.add_argument("--tokenizer", required=True, metavar="PATH", help="folder or hub id, or a card of models/")
    parser.add_argument("--limit", type=flags.positive, metavar="N")
    flags.template(parser, "base")
    parser.add_argument("--output", type=Path, metavar="FILE.jsonl", required=True)
    flags.sources(parser)
    flags.settings(parser)


def _show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sample", metavar="SUITE/TASK@LENGTH#INDEX")
    parser.add_argument("--tokenizer", required=True, metavar="PATH")
    flags.template(parser, "base")
    flags.sources(parser)
    flags.settings(parser)


def _bench(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    samples = kinds.add_parser("samples", help="CPU seconds and peak memory of making prompts")
    samples.add_argument("--tasks", default="ruler")
    samples.add_argument("--lengths", type=flags.lengths, default=[4096], metavar="N,N")
    samples.add_argument("--tokenizer", required=True, metavar="PATH")
    samples.add_argument("--limit", type=flags.positive, default=500, metavar="N")
    flags.sources(samples)
    memory = kinds.add_parser("memory", help="peak memory of one long prompt beyond weights and cache")
    memory.add_argument("--length", type=flags.length, default=32768)
    board = kinds.add_parser("board", help="seconds and peak memory of a declared board over generated runs")
    board.add_argument("--runs", type=flags.positive, default=1000, metavar="N", help="default: %(default)s")
    board.add_argument("--records", type=flags.positive, default=1000, metavar="N", help="of each run")
    kinds.add_parser("sequential", help="false verdicts and samples used of run --until, simulated")
    kinds.add_parser("anchor", help="prefill under the anchor pattern against full attention, one ratio")
    lm_eval_bench.flags(kinds.add_parser("lm-eval", help="our model in lm-eval beside its hf model: time and memory"))
    engines = "our models in lm-eval beside its hf and vllm models: CPU seconds of the same prompts"
    bench_engines.flags(kinds.add_parser("engines", help=engines))
    prefill = "tokens a second and peak memory of backend hf on a model that fills the GPU, full against anchor"
    prefill_bench.flags(kinds.add_parser("prefill", help=prefill))
    gpu = "at Llama-3-8B shapes: anchor prefill (rows, FlexAttention) against full, RoPE, the probe's measures"
    gpu_bench.flags(kinds.add_parser("gpu", help=gpu))


def _paths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders of them")


def _board(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run folders, or folders of them, in which a run that cannot be read is named and left out",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: the folder of the first RUN")
    parser.add_argument(
        "--definition",
        type=Path,
        metavar="NAME-or-FILE.yaml",
        help="a declared board: NAME.csv and NAME.html of what a file names, or a definition of the package: "
        "anchor-tiny, long-context",
    )


def _probe(parser: argparse.ArgumentParser) -> None:
    flags.model(parser)
    default = flags.lengths("64..8192")
    parser.add_argument(
        "--lengths",
        type=flags.lengths,
        default=default,
        metavar="N..N",
        help="tokens: 64..8192 (doubling, the default) or 512,4k",
    )
    parser.add_argument(
        "--shift",
        type=flags.shifts,
        default=(0, 16),
        metavar="A,..,B",
        help="offsets of all positions: the last against the first at every length, and against those between at one "
        "length, for the curve (default: 0,16, with the curve at 8, 15, 17, 20, 100 and 1000)",
    )
    parser.add_argument(
        "--curve-length",
        type=flags.length,
        metavar="N",
        help="the length of the curve over offsets (default: the one nearest to 256)",
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
        help="for probe.csv, probe.html and probe.jsonl, from which the same command goes on (default: %(default)s)",
    )
    parser.add_argument(
        "--text", type=Path, metavar="FILE-or-DIR", help="UTF-8 text, or a folder of *.txt (default: generated prose)"
    )
    parser.add_argument(
        "--texts",
        type=flags.counts,
        metavar="N[,N@LENGTH]",
        help="texts of each length; 20,5@4096: five from 4,096 tokens on (default: 2 up to 512 tokens, 1 above)",
    )
    parser.add_argument(
        "--queries",
        type=flags.positive,
        default=128,
        metavar="N",
        help="query rows measured of a longer text (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of the generated prose (default: %(default)s)")
    parser.add_argument(
        "--random-init", action="store_true", help="add random weights also for a model over 100 million parameters"
    )
    parser.add_argument(
        "--no-copy",
        dest="copy",
        action="store_false",
        help="leave out the float32 copy of a model of 16 bits, and shared hidden states with it",
    )
    parser.add_argument(
        "--max-length", type=flags.length, metavar="N", help="the length that it was trained at, where known"
    )
    flags.anchor(parser)
    flags.loading(parser)
    parser.add_argument(
        "--kernel",
        default="default",
        metavar="KERNEL",
        help="that the model is opened with; the probe itself computes in fused (default: sdpa, else eager)",
    )


def _none(_: argparse.ArgumentParser) -> None:
    """No flags."""


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "run": ("evaluate a model under RoPE arms, write records and a board", _run, commands.run),
    "plan": ("say what a run takes before anything is computed", plan.flags, commands.plan),
    "samples": ("write the prompts as JSON lines; needs no model", _samples, commands.samples),
    "tasks": ("list suites, sets and tasks", _none, commands.tasks),
    "models": ("list model cards", _none, commands.models),
    "show": ("print one prompt with its references and facts", _show, commands.show),
    "score": ("score the records of a run again and report what differs", _paths, commands.score),
    "verify": ("make prompts and scores of a run again and report what differs", flags.verify, commands.verify),
    "compare": ("say what arms or runs differ by, in numbers and in words", compare_runs.flags, commands.compare),
    "board": ("write board.csv and board.html of runs, or a declared board", _board, commands.board),
    "view": ("write the samples of runs as pages that open from a disk", view.flags, commands.view),
    "export": ("write runs as lm-eval's files, CSV or Parquet", export.flags, commands.export),
    "probe": ("measure what RoPE precision and a shift of positions do to attention", _probe, commands.probe),
    "nll": ("loss by position on long texts, paired between arms", nll.flags, commands.nll),
    "doctor": ("say what a checkpoint's RoPE honestly is", doctor.flags, commands.doctor),
    "longbench": (
        "print the averages of LongBench, the tables of LongBench-E and v2",
        longbench_report.flags,
        commands.longbench,
    ),
    "general": (
        "print all of lm-eval's metrics of general tasks, and what was lost",
        general_report.flags,
        commands.general,
    ),
    "lm-eval": ("run lm-evaluation-harness with our models and tasks in it", lm_eval.flags, lm_eval.main),
    "data": ("fetch the published texts, or say which are there", data_files.flags, commands.data),
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
    for name, (about, add_flags, _) in COMMANDS.items():
        add_flags(subs.add_parser(name, help=about, description=about[0].upper() + about[1:] + "."))
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    with console.visible():
        try:
            code = _done(arguments)
            sys.stdout.flush()
        except SystemExit:  # of --help, --version and the parser's errors
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
    """The exit code of a command whose stdout can be written; one line for each error that a user can cause."""
    options = parser().parse_args(arguments)
    try:
        if (output := getattr(options, "output", None)) is not None:
            require_writable(output.parent if options.command == "samples" else output)
        return COMMANDS[options.command][2](options)
    except AnchorEvalError as error:
        console.note(f"anchoreval: {_line(error)}")
        if isinstance(error.__cause__, KeyboardInterrupt):
            return STOPPED
        return 1 if error.while_running or _is_broken(error.__cause__) else 2
    except KeyboardInterrupt:
        console.note(f"anchoreval: stopped{'; the same command goes on where it was' * (options.command == 'run')}")
        return STOPPED
    except OSError as error:
        console.note(f"anchoreval: {error}")
        return 1 if _is_broken(error) else 2


def _line(error: AnchorEvalError) -> str:
    """What went wrong; where work had begun, how far it was and what to do about the rest."""
    if not error.while_running:
        return str(error)
    goes_on = f"; {error.goes_on}" if error.goes_on and "same command" not in str(error) else ""
    return f"failed {error.while_running}: {error}{goes_on}"


def _is_broken(cause: BaseException | None) -> bool:
    """Whether a disk that is full or fails is the reason: no input is to blame for that."""
    return isinstance(cause, OSError) and cause.errno in BROKEN


if __name__ == "__main__":
    sys.exit(main())
