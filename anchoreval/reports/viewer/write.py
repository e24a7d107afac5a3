"""A run -> its viewer: `index.html` and `data/<hash>/NNN.js`. The same run gives the same bytes.

Data files are written into a temporary folder, which is then renamed to a hash of its content. index.html is replaced
in one step and names the folder that it reads. If the process is killed at any moment, the old or the new viewer
is whole.

index.html is markup, style and script in one file; the samples are in data files beside it. Its content policy allows
the page's own script by its hash, and scripts that this script adds. A Trusted Types policy, in browsers that have
them, lets it add data files only. The page uses no network, no frame and no form.
"""

from __future__ import annotations

import contextlib
import fcntl
import filecmp
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from anchoreval.errors import RunError
from anchoreval.files import write_whole
from anchoreval.records.lines import to_line
from anchoreval.records.run import Run
from anchoreval.reports.board.view import outcome_lines, run_notes
from anchoreval.reports.page import render, require_page
from anchoreval.reports.viewer.files import DataFiles, remove_data, to_json
from anchoreval.reports.viewer.prompts import PROMPT_MEGABYTES, Prompts, Remade, remade_prompts
from anchoreval.reports.viewer.rows import COLUMNS, Row, listed, rows_of
from anchoreval.reports.words import plain, sentence
from anchoreval.schema import SILENT, Json, Progress, Record
from anchoreval.stats import Compared

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("text.js", "list.js", "sample.js", "main.js")
PAGE, DATA, FOLDER = "index.html", "data", "view"
TITLE = " · anchoreval samples</title>"


def write_view(
    run: Run,
    folder: Path | None = None,
    *,
    remake: Callable[[Run], Remade] | None = None,
    megabytes: int = PROMPT_MEGABYTES,
    progress: Progress = SILENT,
) -> Path:
    """Write the viewer, whole or not at all, and return the path of index.html.

    `folder` defaults to `view` in the run's folder. `remake` rebuilds the prompts (`runs.rebuild.Remake`), and about
    `megabytes` of them are stored at most; without `remake` there are no prompts. Raise RunError if a file cannot be
    written, or would be written through a link or over somebody else's page. An earlier viewer then stays, as does any
    other file.
    """
    if folder is None:
        folder = run.path / FOLDER
        _require_no_link(folder)
    else:
        require_page(folder / PAGE, TITLE)
    _require_no_link(folder / DATA)
    rows = rows_of(run)
    made = remade_prompts(run, rows, remake, megabytes, progress) if remake else Prompts()
    try:
        (folder / DATA).mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            name, count = _write_data(run, rows, made, folder / DATA)
            title = plain(f"{run.model} · {run.name}", 200)
            path = write_whole(folder / PAGE, [page(title, f"{DATA}/{name}/", mark_of(run), count)])
            _drop_others(folder / DATA, name)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}") from error
    return path


def _require_no_link(folder: Path) -> None:
    if folder.is_symlink():
        raise RunError(f"cannot write {folder}: it is a link: remove it, or name another folder with --output")


def mark_of(run: Run) -> str:
    """Return the SHA-256 of a run's identity and records; it stays the same if a repeated command had nothing to do."""
    digest = hashlib.sha256(json.dumps(run.header.get("identity"), sort_keys=True).encode())
    for record in run.records:
        digest.update(to_line(record))
    return digest.hexdigest()


def _write_data(run: Run, rows: Sequence[Row], made: Prompts, folder: Path) -> tuple[str, int]:
    """Write the data files, and return the name of their folder in `folder` and the number of prompts in it."""
    part = _new(folder)
    try:
        files = DataFiles(part)
        holds = [files.add(f"{line.number}\t{_json(line.record)}" for line in row.lines) for row in rows]
        files.close()
        shown = {sample_id: files.add([line]) for sample_id, line in made.lines}
        files.close()
        files.write("index", to_json(_index(run, rows, holds, shown, made)))
        name = files.sha256[:12]
        _move(part, folder / name)
    finally:
        remove_data(part)
    return name, len(shown)


def _new(folder: Path) -> Path:
    """Make and return a new folder in `folder`, so that nothing is written into an existing one or through a link."""
    for number in itertools.count():
        part = folder / f"new.{os.getpid()}.{number}.part"
        with contextlib.suppress(FileExistsError):
            part.mkdir()
            return part
    raise AssertionError


def _json(record: Record) -> str:
    """Return the record's line of records.jsonl."""
    return to_line(record).decode("ascii").rstrip("\n")


def _index(run: Run, rows: Sequence[Row], holds: Sequence[int], shown: Mapping[str, int], made: Prompts) -> Json:
    """Return what the page reads first: the list, and notes on the run."""
    arms = run.arms
    reasons: dict[str, int] = {}

    def prompt(row: Row) -> int:
        if row.sample_id in shown:
            return shown[row.sample_id]
        return -1 - reasons.setdefault(made.why.get(row.sample_id, made.otherwise), len(reasons))

    listing = [listed(row, arms, file, prompt(row)) for row, file in zip(rows, holds, strict=True)]
    return {
        "run": {"name": run.name, "model": run.model, "records": len(run.records)},
        "columns": COLUMNS,
        "arms": arms,
        "tasks": run.tasks,
        "rows": listing,
        "reasons": list(reasons),
        "notes": list(_notes(run, rows, made)),
        "verdicts": list(_verdicts(run)),
        "header": run.header,
    }


def _notes(run: Run, rows: Sequence[Row], made: Prompts) -> Iterator[str]:
    """Yield the sentences above the list."""
    yield from run_notes(run.header, run.records, run.arms, run.changed)
    if "finished" not in run.header:
        yield "This run is not finished: the records that it had when the page was written are shown."
    yield from (f"{line.text}." for line in outcome_lines(run.header, run.records) if not line.quiet)
    if repeated := sum(row.repeated for row in rows):
        yield f"{repeated} lines of records.jsonl repeat a sample under an arm; the list shows the last one of each."
    for (task, length), reason in run.header.unmakeable.items():
        yield f"{task} at {length:,} tokens is not in the run: {reason}"


def _verdicts(run: Run) -> Iterator[str]:
    """Yield the difference of every arm to the first over all pairs, worded as by `anchoreval compare`."""
    try:
        against = Compared(run.subjects()).against()
    except RunError:  # repeated samples, or other prompts: the list shows them
        return
    for contrast in against:
        yield f"{plain(contrast.arm, 60)} minus {plain(contrast.baseline, 60)}: {sentence(contrast.pooled)}"


def _move(part: Path, place: Path) -> None:
    """Rename `part` to `place`; if `place` exists and holds the same, as its name says, it stays."""
    _require_no_link(place)
    if place.exists():
        names = sorted(os.listdir(part))
        if names == sorted(os.listdir(place)) and filecmp.cmpfiles(part, place, names, shallow=False)[0] == names:
            return
        if not remove_data(place):
            raise RunError(f"cannot write {place}: what lies there is no data of a viewer: move it away")
    part.replace(place)


def _drop_others(folder: Path, name: str) -> None:
    """Remove data folders of earlier pages and leftovers of killed processes, and nothing else."""
    for other in folder.iterdir():
        if other.name != name:
            remove_data(other)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the viewer's lock: wait until no other process writes this viewer."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def page(title: str, data: str, records: str, prompts: int) -> str:
    """Return the page as text; `data` is the folder of the data files, relative to the page, with `/` at its end.

    `records` marks the records that were read (`mark_of`), and `prompts` counts the prompts that are stored.
    """
    parts = render(
        TEMPLATES / "view.html", "samples", title, [TEMPLATES / "view.css"], [TEMPLATES / name for name in SCRIPTS],
        trusted="anchoreval-data", data=data, records=records, prompts=prompts,
    )  # fmt: skip
    return "".join(parts)
