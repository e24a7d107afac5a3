"""A run -> its viewer: `index.html` and `data/<hash>/NNN.js`. The same run gives the same bytes.

A page opened from a disk may load a script, but may not read a file, so data files are scripts. Each is one call,
`anchorevalData(name, text)`, in ASCII; `text` is JSON or JSON lines. They are written into a temporary folder, which is
then renamed to a hash of its content. index.html is replaced in one step and names the folder that it reads. If the
process is killed at any moment, the old or the new viewer is whole.

index.html is markup, style and script in one file. Its content policy allows the page's own script by its hash, and
scripts that this script adds. A Trusted Types policy, in browsers that have them, lets it add data files only. The page
uses no network, no frame and no form.
"""

from __future__ import annotations

import fcntl
import filecmp
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any

from anchoreval.errors import AnchorEvalError, RunError
from anchoreval.files import write_whole
from anchoreval.records.lines import RECORDS, to_line
from anchoreval.records.run import Run, load_run
from anchoreval.reports.board.view import outcome_lines, run_notes
from anchoreval.reports.page import render, require_page
from anchoreval.reports.viewer.prompts import (
    CHARACTERS_PER_TOKEN,
    PROMPT_MEGABYTES,
    Prompts,
    Remade,
    Row,
    remade_prompts,
    rows_of,
    to_json,
)
from anchoreval.reports.words import plain, sentence
from anchoreval.schema import SILENT, Json, Progress
from anchoreval.stats import Compared, per_token

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("text.js", "list.js", "sample.js", "main.js")
PAGE, DATA, FOLDER = "index.html", "data", "view"
TITLE = " · anchoreval samples</title>"
COLUMNS = ("id", "task", "length", "index", "file", "prompt", "scores", "logprobs", "outputs")
FILE_CHARACTERS = 1_000_000  # a new data file begins beyond this size
FEW_MEGABYTES = 5  # of prompts that are made again for the viewer of a run that was just computed
MOST_BYTES = 64 * 2**20  # of records that a board reads a second time for viewers
_BEGINS, _ENDS = b"anchorevalData('", b"');\n"
_NAME = re.compile(r"(index|[0-9]+)\.js(\.[0-9]+\.part)?", re.ASCII)  # .part: left by a killed process
_NAMES = re.compile(r"[0-9a-f]{12}|new\.[0-9.]+\.part", re.ASCII)
_PAGE = re.compile(
    r"<title>(.*?) · anchoreval samples</title>.*"
    r'<body data-files="(data/[0-9a-f]{12}/)" data-records="([0-9a-f]{64})" data-prompts="([0-9]{1,12})">',
    re.DOTALL,
)


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
    data = folder / DATA
    _require_no_link(data)
    rows = rows_of(run)
    prompts = remade_prompts(run, rows, remake, megabytes, progress) if remake else Prompts()

    try:
        data.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # wait until no other process writes this viewer
            name, count = _write_data(run, rows, prompts, data)
            title = plain(f"{run.model} · {run.name}", 200)
            path = write_whole(folder / PAGE, [page(title, f"{DATA}/{name}/", mark_of(run), count)])
            for other in data.iterdir():  # of earlier pages and killed processes; nothing else is removed
                if other.name != name:
                    remove_data(other)
        finally:
            os.close(lock)
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


def page(title: str, data: str, records: str, prompts: int) -> str:
    """Return the page as text; `data` is the folder of the data files, relative to the page, with `/` at its end.

    `records` marks the records that were read (`mark_of`), and `prompts` counts the prompts that are stored.
    """
    parts = render(
        TEMPLATES / "view.html", "samples", title, [TEMPLATES / "view.css"], [TEMPLATES / name for name in SCRIPTS],
        trusted="anchoreval-data", data=data, records=records, prompts=prompts,
    )  # fmt: skip
    return "".join(parts)


def _write_data(run: Run, rows: Sequence[Row], prompts: Prompts, folder: Path) -> tuple[str, int]:
    """Write the data files, and return the name of their folder in `folder` and the number of prompts in it."""
    number = 0  # of a new folder: nothing is written into an existing one or through a link
    while os.path.lexists(part := folder / f"new.{os.getpid()}.{number}.part"):
        number += 1
    part.mkdir()
    try:
        files = DataFiles(part)
        holds = files.fill(
            (row.sample_id, [f"{at}\t{to_line(record).decode('ascii').rstrip()}" for at, record in row.lines])
            for row in rows
        )
        shown = files.fill((sample_id, [line]) for sample_id, line in prompts.lines)
        files.write("index", to_json(_index(run, rows, holds, shown, prompts)))
        name = files.digest.hexdigest()[:12]

        place = folder / name  # whose content its name tells: what is there already stays
        _require_no_link(place)
        names = sorted(os.listdir(part))
        same = place.exists() and names == sorted(os.listdir(place))
        if not (same and filecmp.cmpfiles(part, place, names, shallow=False)[0] == names):
            if place.exists() and not remove_data(place):
                raise RunError(f"cannot write {place}: what lies there is no data of a viewer: move it away")
            part.replace(place)
    finally:
        remove_data(part)
    return name, len(shown)


@dataclass(slots=True)
class DataFiles:
    """The data files of a viewer in `folder`, numbered from 000; `digest` is over all that was written."""

    folder: Path
    digest: Any = field(default_factory=hashlib.sha256)
    count: int = 0

    def fill(self, texts: Iterable[tuple[str, Sequence[str]]]) -> dict[str, int]:
        """Write the lines of each sample, which stay together, and return sample id -> number of its file."""
        numbers: dict[str, int] = {}
        held: list[str] = []
        size = 0
        for sample_id, lines in texts:
            added = sum(map(len, lines))
            if held and size + added > FILE_CHARACTERS:
                self.write(f"{self.count:03}", "\n".join(held))
                held, size, self.count = [], 0, self.count + 1
            held += lines
            size += added
            numbers[sample_id] = self.count
        if held:
            self.write(f"{self.count:03}", "\n".join(held))
            self.count += 1
        return numbers

    def write(self, name: str, text: str) -> None:
        """Write one whole file, with `text` as a string literal.

        A browser thus runs none of the text, and `__proto__` is a mere key.
        """
        quoted = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
        content = f"anchorevalData('{name}','{quoted}');\n"
        self.digest.update(content.encode("ascii"))
        write_whole(self.folder / f"{name}.js", [content])


def is_data(folder: Path) -> bool:
    """Return whether a folder, by its name and all of its content, is a data folder that we wrote for a viewer.

    A partly written file need only hold the start of how a data file begins.
    """
    if not _NAMES.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
        return False
    for path in folder.iterdir():
        name = _NAME.fullmatch(path.name)
        if name is None or path.is_symlink() or not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(len(_BEGINS))
        if start != _BEGINS and not (name[2] is not None and _BEGINS.startswith(start)):
            return False
    return True


def remove_data(folder: Path) -> bool:
    """Delete a folder of data files; return False, and delete nothing, if the folder is not one."""
    try:
        if not is_data(folder):
            return False
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    except OSError:
        return False
    return True


def is_inert(path: Path) -> bool:
    """Return whether a data file is exactly one call with string literals, so that a browser runs nothing else."""
    try:
        if path.is_symlink() or not path.is_file():
            return False
        content = path.read_bytes()
    except OSError:
        return False
    start = _BEGINS + path.stem.encode("utf-8", "replace") + b"','"
    body = content[len(start) : -len(_ENDS)]
    left = body.replace(b"\\\\", b"").replace(b"\\'", b"")
    closed = b"'" not in left and not left.endswith(b"\\") and b"\n" not in left and b"\r" not in left
    whole = len(content) >= len(start) + len(_ENDS) and content.startswith(start) and content.endswith(_ENDS)
    return whole and closed and content.isascii()


def _index(
    run: Run, rows: Sequence[Row], holds: Mapping[str, int], shown: Mapping[str, int], prompts: Prompts
) -> dict[str, Json]:
    """Return what the page reads first: a row per sample as COLUMNS has it, and notes on the run.

    `holds` and `shown` say by sample id which file holds its records and its prompt. In a row, `scores` hold a number,
    None (no score) or -1 (no record). `logprobs` are per reference token. Equal numbers in `outputs` mean equal
    outputs; None means no record. `prompt` is -1 - i if no file holds the prompt, for reason i.
    """
    reasons: dict[str, int] = {}
    listing: list[Json] = []
    for row in rows:
        prompt = shown.get(row.sample_id)
        if prompt is None:
            why = prompts.why.get(row.sample_id, prompts.otherwise)
            prompt = -1 - reasons.setdefault(why, len(reasons))
        answers = [row.answers.get(arm) for arm in run.arms]
        scores = [-1 if record is None else record.score for record in answers]
        logprobs = [None if record is None else per_token(record) for record in answers]
        rounded = [None if value is None else round(value, 6) for value in logprobs]
        kinds: dict[str, int] = {}
        outputs = [None if record is None else kinds.setdefault(record.output, len(kinds)) for record in answers]
        place = [row.sample_id, row.first.task, row.first.length, row.first.index, holds[row.sample_id], prompt]
        listing.append([*place, scores, rounded, outputs])

    notes = list(run_notes(run.header, run.records, run.arms, run.changed))
    if "finished" not in run.header:
        notes.append("This run is not finished: the records that it had when the page was written are shown.")
    notes += [f"{line.text}." for line in outcome_lines(run.header, run.records) if not line.quiet]
    if repeated := sum(len(row.lines) - len(row.answers) for row in rows):
        notes.append(
            f"{repeated} lines of records.jsonl repeat a sample under an arm; the list shows the last one of each."
        )
    for (task, length), reason in run.header.unmakeable.items():
        notes.append(f"{task} at {length:,} tokens is not in the run: {reason}")

    try:  # the difference of every arm to the first over all pairs, worded as by `anchoreval compare`
        against = Compared(run.subjects()).against()
    except RunError:  # repeated samples, or other prompts: the list shows them
        against = []
    return {
        "run": {"name": run.name, "model": run.model, "records": len(run.records)},
        "columns": COLUMNS,
        "arms": run.arms,
        "tasks": run.tasks,
        "rows": listing,
        "reasons": list(reasons),
        "notes": notes,
        "verdicts": [
            f"{plain(contrast.arm, 60)} minus {plain(contrast.baseline, 60)}: {sentence(contrast.pooled)}"
            for contrast in against
        ],
        "header": run.header,
    }


def renew(run: Run, remake: Callable[[Run], Remade] | None, tell: Callable[[str], None]) -> None:
    """Write a viewer beside the records of a run, so that boards can link to it; a failure is only a notice.

    A viewer of the same records that has prompts stays. Prompts that `remake` rebuilds are in the new one if those of
    the whole run have at most about FEW_MEGABYTES; without prompts neither tokenizer nor source texts are needed.
    """
    match = is_own(run.path)
    if match is not None and int(match[4]) > 0 and match[3] == mark_of(run):
        return
    tokens = {record.sample_id: record.prompt_tokens for record in run.records}
    few = CHARACTERS_PER_TOKEN * sum(tokens.values()) <= FEW_MEGABYTES * 1_000_000
    try:
        write_view(run, remake=remake if few else None)
    except (AnchorEvalError, KeyError, TypeError, ValueError, AttributeError) as error:  # headers of any shape
        tell(f"no viewer: {error}; boards link to records.jsonl instead")


def supply(paths: Iterable[Path], tell: Callable[[str], None]) -> None:
    """Write a viewer without prompts for every run folder that has none of ours and can be written to.

    Write none if that would mean reading more than MOST_BYTES of records.
    """
    bare: list[Path] = []
    for path in paths:
        if (path / FOLDER / PAGE).is_file():
            if is_own(path):
                continue
            tell(f"{path / FOLDER / PAGE} is no page of this version, do not open it: a new one takes its place")
        if os.access(path, os.W_OK | os.X_OK):
            bare.append(path)
    size = sum((path / RECORDS).stat().st_size for path in bare if (path / RECORDS).is_file())
    if size > MOST_BYTES:
        tell(f"no viewers: {len(bare)} runs hold {size >> 20} MiB of records: write them with `anchoreval view RUN...`")
        return
    for path in bare:
        try:
            run = load_run(path)
        except AnchorEvalError as error:
            tell(f"no viewer: {error}")
            continue
        renew(run, None, tell)


def is_own(path: Path) -> re.Match[str] | None:
    """Return title, data folder, mark and prompts of a run's viewer, or None if any byte differs from what we write.

    A page and its data files are code that a browser runs, and a run folder may be somebody else's.
    """
    folder = path / FOLDER
    try:
        if any(part.is_symlink() for part in (folder, folder / PAGE, folder / DATA)):
            return None
        text = (folder / PAGE).read_text("utf-8")
        match = _PAGE.search(text)
        if match is None or text != page(unescape(match[1]), match[2], match[3], int(match[4])):
            return None
        data = folder / match[2]
        return match if is_data(data) and all(map(is_inert, data.iterdir())) else None
    except (OSError, ValueError):
        return None
