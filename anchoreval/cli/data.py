"""`anchoreval data`: fetch the published texts of a benchmark, list which are present, or pack texts for training."""

from __future__ import annotations

import argparse

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say, shown
from anchoreval.cli.options import Option


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands `fetch`, `check` and `pack` with their flags."""
    from anchoreval.suites import suites

    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    fetch = kinds.add_parser("fetch", help="download the published files; resume an interrupted download")
    fetch.add_argument("suite", choices=sorted(name for name, suite in suites().items() if suite.files or suite.fetch))
    check = kinds.add_parser(
        "check", help="list files, their revisions, and what is missing; exit code 1 if a file differs"
    )
    for sub in (fetch, check):
        shared.add(sub, "data_dir")
    pack = kinds.add_parser("pack", help="tokenise texts once, as a store that `train` reads, and say what it holds")
    about = ".jsonl, .parquet, .txt (.gz), a folder of them, or a data set: NAME, NAME:SPLIT, NAME:CONFIG:SPLIT"
    pack.add_argument("--data", required=True, nargs="+", metavar="PLACE", help=about)
    shared.add(pack, "tokenizer", required=True, about="a card of models/, a folder or a hub id")
    shared.add(pack, "output", required=True, default=None, about="a new folder", metavar="STORE")
    shared.add(pack, own=_OF_PACK)


def thinning(text: str) -> tuple[int, float]:
    """Return a length and a probability, from `4096:0.1`."""
    length, _, keep = text.partition(":")
    try:
        value = int(length), float(keep)
    except ValueError:
        value = 0, 0.0
    if not (value[0] > 0 and 0 < value[1] <= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no LENGTH:KEEP such as 4096:0.1")
    return value


_OF_PACK = {
    "upsample": Option(
        "keep documents under so many tokens with this probability, shares of sources unchanged: 4096:0.1",
        kind=thinning, metavar="LENGTH:KEEP",
    ),
    "anchor_token": Option(
        "text of the anchor token (default: BOS, EOS without one)", metavar="TOKEN", old=("anchor",)
    ),
    "text_key": Option("key of a row's text", "text", metavar="KEY"),
}  # fmt: skip


def pack(options: argparse.Namespace) -> int:
    """Write a store; print its statistics on stdout."""
    from anchoreval.tokenizer import load_tokenizer
    from anchoreval.training.checkpoints import config_of, folder_of_model
    from anchoreval.training.reading import documents_in
    from anchoreval.training.recipes import anchor_text
    from anchoreval.training.store import lines, shape_of
    from anchoreval.training.store import pack as written

    def tell(documents: int, tokens: int) -> None:
        note(f"{documents:,} documents, {tokens:,} tokens")

    folder = folder_of_model(options.tokenizer, weights=False)
    tokenizer = load_tokenizer(folder)
    anchor = options.anchor_token or anchor_text(config_of(folder).get("model_type"))
    store = written(
        documents_in(options.data, options.text_key), tokenizer, options.output, options.upsample, anchor, tell
    )
    for line in lines(store, shape_of(config_of(folder))):
        say(line)
    return 0


def main(options: argparse.Namespace) -> int:
    """Print the paths of fetched files, or a row for each checked file, on stdout.

    Return 1 if a file could not be fetched or differs from the published one.
    """
    from anchoreval.files import cache_folder
    from anchoreval.suites import suites
    from anchoreval.suites.files import fetch, states
    from anchoreval.texts.sources import Sources

    if options.kind == "pack":
        return pack(options)
    if options.kind == "fetch":
        with shown(None, "MB") as progress:

            def received(have: int, size: int | None) -> None:
                progress.reach(have // 10**6, (size or 0) // 10**6)

            progress.at(f"fetching {options.suite}")
            suite, folder = suites()[options.suite], options.data_dir or cache_folder()
            return int(not fetch(suite, folder, say, note, received))
    differs, sources = False, Sources(options.data_dir, offline=True)
    for name, suite in suites().items():
        for file in states(suite, sources):
            differs = differs or file.state == "differs"
            say(f"{name:12} {file.file:34} {file.state:10} {file.what}".rstrip())
    return int(differs)
