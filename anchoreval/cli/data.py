"""`anchoreval data`: fetch the published texts of a benchmark, list which are present, or pack texts for training."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say
from anchoreval.cli.options import Option
from anchoreval.cli.progress import shown
from anchoreval.errors import SourceError

if TYPE_CHECKING:
    from anchoreval.texts.sources import Published, Sources

SUITES = ("babilong", "general", "longbench", "longbench_v2", "ruler")


@dataclass(frozen=True, slots=True)
class Row:
    """The state of one file that a suite reads."""

    suite: str
    file: str
    state: Literal["published", "differs", "unpinned", "missing"]
    what: str

    def __str__(self) -> str:
        return f"{self.suite:12} {self.file:34} {self.state:10} {self.what}".rstrip()


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands `fetch`, `check` and `pack` with their flags."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    fetch = kinds.add_parser("fetch", help="download the published files; resume an interrupted download")
    fetch.add_argument("suite", choices=SUITES)
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
    shared.add_own(pack, _OF_PACK)


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
    from anchoreval.training.base import config_of, folder_of_model
    from anchoreval.training.reading import documents_in
    from anchoreval.training.recipes import anchor_text
    from anchoreval.training.statistics import lines, shape_of
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
    from anchoreval.texts.sources import Sources

    if options.kind == "pack":
        return pack(options)
    if options.kind == "fetch":
        return fetch(options.suite, options.data_dir)
    rows = list(check(Sources(options.data_dir, offline=True)))
    for row in rows:
        say(str(row))
    return int(any(row.state == "differs" for row in rows))


def fetch(suite: str, folder: Path | None) -> int:
    """Download the files of a suite into `folder` or the cache; leave files that are already there and correct.

    Return 1 if a file could not be fetched. For a suite of one file, raise SourceError instead, with the addresses and
    why each failed.
    """
    from anchoreval.texts.sources import BABI, LONGBENCH, LONGBENCH_V2, RULER_FILES, default_cache

    if suite == "general":
        from anchoreval.suites.general import fetch as general_data

        general_data.fetch(folder or default_cache(), say)
        return 0
    published = {
        "babilong": (BABI,),
        "longbench": (LONGBENCH,),
        "longbench_v2": (LONGBENCH_V2,),
        "ruler": RULER_FILES,
    }[suite]
    failed = 0
    for source in published:
        try:
            say(str(_fetched(source, (folder or default_cache()) / source.file)))
        except SourceError as error:
            if len(published) == 1:
                raise
            failed += 1
            note(str(error))
    return int(bool(failed))


def _fetched(source: Published, target: Path) -> Path:
    """Return `target`, downloaded from the first address that serves the published file."""
    from anchoreval.texts.download import address_of, digest_of, download

    if target.is_file():
        if digest_of(target, source.sha256) == source.sha256:
            return target
        raise SourceError(f"{target} is not the published file: move it away, then fetch again")
    reasons = []
    for address in map(address_of, source.addresses):
        note(f"fetching {address}")
        try:
            with shown(None, "MB") as progress:

                def receive(have: int, size: int | None) -> None:
                    progress.reach(have // 10**6, (size or 0) // 10**6)

                progress.at(f"fetching {source.file}")
                return download(address, target, source.sha256, receive)
        except (OSError, SourceError) as error:
            reasons.append(f"{address}: {error}")
    raise SourceError(f"{source.file} could not be fetched: {'; '.join(reasons) or source.recipe}")


def check(sources: Sources) -> Iterator[Row]:
    """Yield a row for each file of each suite. Files are read whole for their SHA-256."""
    from anchoreval.texts.sources import RULER_FILES

    for source in RULER_FILES:
        paths = [place / source.file for place in sources.places() if (place / source.file).is_file()]
        yield _row("ruler", source, paths[0] if paths else None)
    yield from _longbench(sources)
    yield from _longbench_v2(sources)
    yield from _babilong(sources)
    yield from _general(sources)


def _row(suite: str, source: Published, path: Path | None) -> Row:
    from anchoreval.files import sha256_of
    from anchoreval.texts.download import digest_of

    if path is None:
        return Row(suite, source.file, "missing", source.recipe or f"published at {source.addresses[0]}")
    revision = f"revision {source.revision[:7]} " if source.revision else ""
    if digest_of(path, source.sha256) == source.sha256:
        return Row(suite, source.file, "published", f"{revision}{path}")
    return Row(suite, source.file, "differs", f"{path} sha256 {sha256_of(path)}")


def _longbench(sources: Sources) -> Iterator[Row]:
    """Yield rows for data.zip if present, then for its files that lie outside it, and for missing files."""
    from anchoreval.suites.longbench.records import file_names, find, folders
    from anchoreval.texts.sources import LONGBENCH

    archives = [path for folder in folders(sources) if (path := folder / "data.zip").is_file()]
    for path in archives:
        yield _row("longbench", LONGBENCH, path)
    try:
        places = {file: find(sources, file) for file in file_names()}
    except SourceError as error:  # an unreadable archive hides the files inside it
        yield Row("longbench", LONGBENCH.file, "differs", str(error))
        return
    for file, place in places.items():
        if place is None:
            if archives or any(places.values()):
                yield Row("longbench", f"{file}.jsonl", "missing", "")
        elif not place.member:
            yield _apart(file, place.path)
    if not archives and not any(places.values()):
        yield _row("longbench", LONGBENCH, None)


def _longbench_v2(sources: Sources) -> Iterator[Row]:
    """Yield the row of data.json, found where a run would read it."""
    from anchoreval.suites.longbench_v2.records import find
    from anchoreval.texts.sources import LONGBENCH_V2

    yield _row("longbench_v2", LONGBENCH_V2, find(sources))


def _general(sources: Sources) -> Iterator[Row]:
    """Yield a row for each split of lm-eval's data sets that lies in a folder, and for each data set that does not."""
    from anchoreval.suites.general.fetch import states

    for file, state, what in states(sources):
        yield Row("general", file, state, what)


def _apart(file: str, path: Path) -> Row:
    """Return the row of a jsonl file in a folder, judged by its number of records: no SHA-256 of it was published."""
    from anchoreval.suites.longbench.records import published_records

    with path.open("rb") as lines:
        present = sum(1 for line in lines if line.strip())
    count, expected = f"{present} records {path}", published_records(file)
    if present != expected:
        return Row("longbench", f"{file}.jsonl", "differs", f"{count}, published: {expected} records")
    return Row("longbench", f"{file}.jsonl", "unpinned", f"{count}, as many as published; only data.zip has a SHA-256")


def _babilong(sources: Sources) -> Iterator[Row]:
    """Yield rows for the zip of bAbI or its unpacked files, then for the published samples that are present.

    No hash of those samples is known.
    """
    from anchoreval.suites.babilong import published
    from anchoreval.suites.babilong.stories import NAMES, ZIP, file_name, find
    from anchoreval.texts.sources import BABI

    stories = {data: find(sources, data) for data in NAMES}
    unpacked = {data: path for data, path in stories.items() if path and path.name != ZIP}
    if not unpacked or any(path and path.name == ZIP for path in stories.values()):
        yield _row("babilong", BABI, next((path for path in stories.values() if path and path.name == ZIP), None))
    for data, story_file in unpacked.items():
        yield Row("babilong", file_name(data), "unpinned", f"{story_file}, only {ZIP} has a hash")
    known = [(data, name) for data in NAMES for name in published.names(data)]
    there = {(data, name): path for data, name in known if (path := published.find(sources, data, name))}
    for (data, name), path in there.items():
        yield Row(
            "babilong", f"{data}/{name}.json", "unpinned", f"{path}, revision {published.REVISION[:7]} has no hash"
        )
    if not there:
        recipe = f"published at {published.ADDRESS}: a run takes them from the hub"
        yield Row("babilong", "qa*/*k.json", "missing", recipe)
