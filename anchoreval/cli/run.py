"""`anchoreval run`: evaluate a model under arms, and write records and a board."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say
from anchoreval.cli.progress import shown

#: Flags that are keywords of `evaluate`.
_ASKED = (
    "lengths", "rope", "limit", "output", "dtype", "kernel", "backend", "tokenizer", "template", "anchor", "haystack",
    "data_dir", "text", "wordlists", "seed", "max_length", "document_tokens", "placebo", "until", "ray", "workers",
    "same_environment", "rehash",
)  # fmt: skip


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.model(parser)
    parser.add_argument(
        "--tasks",
        required=True,
        help="suites, sets, tasks or globs, comma or space separated; ./CARD.yaml is one of yours (CONTRIBUTING.md)",
    )
    parser.add_argument(
        "--lengths",
        type=shared.lengths,
        metavar="N,N",
        help="tokens of the whole prompt plus the answer: 4096, 4k or 1k..32k, doubling (default: the card's)",
    )
    parser.add_argument(
        "--rope",
        "--arms",
        dest="rope",
        action=shared.Arms,
        default="native",
        metavar="ARM,ARM",
        help="arms, [attention/]rope[+field:value...]: native, fp64, fp32-qk, fp32, bf16-table, bf16, bf16-angle, "
        "rope:table=bf16, bf16+shift:4096, anchor/fp32, intra-doc/fp32+reset, and fp32+x:module:factory, your own "
        "context manager around the model (docs/arms.md) (default: %(default)s)",
    )
    parser.add_argument(
        "--placebo",
        action="store_true",
        help="run the first arm again in other chunks and batches, to measure the noise floor of differences",
    )
    parser.add_argument(
        "--document-tokens",
        type=shared.positive,
        metavar="N",
        help="split documents into blocks of N tokens; lines of a haystack are joined first "
        "(default: use the task's own documents, each line of a haystack being one)",
    )
    parser.add_argument(
        "--limit",
        type=shared.positive,
        metavar="N",
        help="samples of each task and length (default: all); a larger limit continues the run",
    )
    parser.add_argument(
        "--until", metavar="RULE", help="stop each task and length once its verdict is reached: 1pt@95%% (margin@level)"
    )
    parser.add_argument("--output", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--same-environment",
        action="store_true",
        help="refuse to resume a run that began with other versions, threads, processor or GPU",
    )
    parser.add_argument("--rehash", action="store_true", help="hash all files of the checkpoint again")
    shared.template(parser, None, "base: raw text; chat: the model's chat template")
    shared.anchor(parser)
    shared.sources(parser)
    shared.settings(parser)
    engine = parser.add_argument_group("engine")
    shared.backend(engine)
    shared.engine(engine, chunk_tokens=None)
    _workers(engine)


def _workers(engine: argparse._ActionsContainer) -> None:
    engine.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="compute on workers of a Ray cluster: local (start one here), auto (RAY_ADDRESS, or the cluster that runs "
        "here) or host:port; one worker per GPU, or per CPU if there is no GPU",
    )
    engine.add_argument("--workers", type=shared.positive, metavar="N", help="number of workers, with --ray")
    engine.add_argument(
        "--batch-tokens",
        type=shared.positive,
        help="cache budget of one batch in backend hf, in tokens (default: 32768)",
    )
    engine.add_argument(
        "--realisation",
        choices=("rows", "flex"),
        help="how backend hf computes isolated documents: rows (causal rows, joined) or flex (one pass of "
        "FlexAttention, fast on CUDA only); changes rounding (default: rows)",
    )


def main(options: argparse.Namespace) -> int:
    """Print the table on stdout, and the paths of records and board on stderr; return 1 if a sample has no answer."""
    from anchoreval.records.run import tell_changed
    from anchoreval.reports.board import run_table, write_board
    from anchoreval.reports.viewer.beside import renew
    from anchoreval.runs.evaluate import evaluate
    from anchoreval.runs.resume import nothing_scored, unanswered
    from anchoreval.runs.rounds import words

    result = evaluate(
        options.model,
        options.tasks,
        **{name: getattr(options, name) for name in _ASKED},
        template_args=shared.template_args(options),
        context=not options.no_context,
        settings=shared.chosen_settings(options),
        options=shared.engine_options(options),
        watch=partial(shown, unit="records", goes_on="the same command goes on where it was"),
        tell=note,
    )
    try:
        say("\n".join([run_table(result), *words(result.header)]))
    finally:  # even if stdout is lost
        tell_changed(result, note)
        renew(result, note)
        note(f"records: {result.path}")
        csv, html = write_board([result], result.path)
        note(f"board: {html}\ncsv: {csv}")
    if why := nothing_scored(result) or unanswered(result):
        note(f"anchoreval: {why}")
        return 1
    return 0
