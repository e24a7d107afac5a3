"""`anchoreval view`: write the viewer of each run, and serve the viewers to this machine only."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say, shown


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.runs(parser)
    about = "folder for index.html and data/; several runs get one folder each (default: view in each run's folder)"
    shared.add(parser, "output", default=None, about=about)
    parser.add_argument(
        "--serve",
        nargs="?",
        type=_port,
        const=0,
        metavar="PORT",
        help="serve on 127.0.0.1 until Ctrl-C (default port: any free port)",
    )
    about = "store about N MB of prompts, first those on which arms disagree (default: 200)"
    shared.add(parser, own={"prompt_megabytes": shared.Option(about, kind=shared.positive, metavar="N")})
    shared.outside_suites(parser)
    shared.add(parser, "data_dir", "text")
    about = "the run's tokenizer, if its checkpoint is not available: a folder, a file, or a hub id to fetch it from"
    shared.add(parser, "tokenizer", kind=Path, about=about)


def main(options: argparse.Namespace) -> int:
    """Print the path of every index.html on stdout, then, with --serve, the address; print what changed on stderr."""
    from anchoreval.records.run import find_runs, load_run, tell_changed
    from anchoreval.reports.viewer.prompts import PROMPT_MEGABYTES
    from anchoreval.reports.viewer.serve import serve
    from anchoreval.reports.viewer.write import FOLDER, write_view
    from anchoreval.runs.rebuild import Remake
    from anchoreval.schema import work
    from anchoreval.suites.outside import name_suites

    name_suites(options.tasks or "")
    remake = partial(Remake, data_dir=options.data_dir, tokenizer=options.tokenizer, text=options.text)
    megabytes = options.prompt_megabytes or PROMPT_MEGABYTES
    paths = find_runs(options.runs)
    names = _names(paths)
    given: Path | None = options.output
    viewers: dict[str, Path] = {}
    for number, (name, path) in enumerate(zip(names, paths, strict=True), 1):
        folder = path / FOLDER if given is None else given if len(paths) == 1 else given / name
        run = load_run(path)
        tell_changed(run, note)
        with work(partial(shown, unit="prompts"), len({record.sample_id for record in run.records})) as progress:
            progress.at(f"{path}, run {number} of {len(paths)}")
            page = write_view(run, folder, remake=remake, megabytes=megabytes, progress=progress)
        say(str(page))
        viewers[name] = folder
    if options.serve is not None:
        serve(viewers, options.serve, say)
    return 0


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each run that is safe in URLs and paths: its folder's name, numbered if it repeats."""
    names: list[str] = []
    for path in paths:
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", path.resolve().name).strip("-") or "run"
        count = sum(other == name or other.startswith(f"{name}.") for other in names)
        names.append(f"{name}.{count + 1}" if count else name)
    return names


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number up to 65535")
    return int(text)
