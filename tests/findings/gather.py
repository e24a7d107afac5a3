"""What the measuring commands wrote, as it is committed: whole lines, the probe's packed, single heads left out.

`leaderboards/smollm2-135m-q4.sh gather` calls it, also while something is being measured; the folder that it fills is
one from which the same commands go on.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from anchoreval.diagnostics.probe.sheet import packed, unpacked
from anchoreval.records.kept import Kept
from anchoreval.records.lines import LOGPROBS
from anchoreval.reports.nll.tables import TASK
from findings.evidence import MODEL, RESULTS, Line, lines
from findings.page import LOSSES, PROBES

ALL = "all"
LINES = {"probe": "probe.jsonl", "nll": "losses.jsonl"}
TABLES = {"probe": ("probe.csv", "texts.csv", "probe.svg"), "nll": ("nll.csv", "texts.csv", "nll.svg", "nll.json")}


def gather(source: Path, results: Path = RESULTS, with_lines: bool = True) -> list[Path]:
    """Copy every run, probe and table of losses under `source` into `results`; return the folders."""
    made = []
    for header in sorted(source.glob("**/header.json")):
        said = json.loads(header.read_text("utf-8"))
        if said["model"]["name"] == MODEL:
            folder = header.parent
            name = (
                folder.relative_to(folder.parents[2]) if said["tasks"] == [TASK] else folder.name
            )  # beside its tables
            made.append(_into(results / name))
            _copy(header, made[-1] / header.name)
            for name in ("records.jsonl", LOGPROBS):
                if header.with_name(name).is_file():
                    _write(made[-1] / name, _whole(header.with_name(name).read_bytes()))
    for kind, names in (("probe", PROBES), ("nll", LOSSES)):
        for name in names:
            for folder in sorted({path.parent for path in source.glob(f"**/{name}/*.*")}):
                made.append(_into(results / name))
                _measurement(kind, folder, made[-1], with_lines)
    return made


def _measurement(kind: str, folder: Path, place: Path, with_lines: bool) -> None:
    for name in TABLES[kind]:
        if (folder / name).is_file():
            if name == "probe.csv":
                _write(place / name, _without_heads(lines(folder / name)).encode())
            else:
                _copy(folder / name, place / name)
    kept = folder / LINES[kind]
    if not with_lines:
        (place / kept.name).unlink(missing_ok=True)
    elif kept.is_file() and kind == "probe":
        _write(place / kept.name, b"".join(_packed(Kept(kept))))
    elif kept.is_file():
        _write(place / kept.name, _whole(kept.read_bytes()))


def _packed(kept: Kept) -> Iterator[bytes]:
    """The lines as they would be written today."""
    for name, content in kept.lines.items():
        line = {"name": name, "content": packed(unpacked(content))}
        yield json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _without_heads(table: list[Line]) -> str:
    """The table without rows of single heads but those that the page shows: of the model as stored, at the longest."""
    longest = max((int(line["length"]) for line in table), default=0)
    levels = list(dict.fromkeys(line["level"] for line in table))
    shown = ("native" if "native" in levels else levels[0], str(longest), table[0]["dtype"], "end-to-end", "shift")
    names = ("level", "length", "dtype", "mode", "against")
    chosen = [line for line in table if line["head"] == ALL or tuple(line[name] for name in names) == shown]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(chosen)
    return out.getvalue()


def _whole(content: bytes) -> bytes:
    """Without a last line that is still being written."""
    return content[: content.rfind(b"\n") + 1]


def _copy(source: Path, place: Path) -> None:
    if source.resolve() != place.resolve():
        shutil.copyfile(source, place)


def _write(place: Path, content: bytes) -> None:
    place.write_bytes(content)


def _into(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main(arguments: Iterable[str] | None = None) -> None:
    """Gather what lies under a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path)
    parser.add_argument("--into", type=Path, default=RESULTS)
    parser.add_argument("--without-lines", action="store_true", help="leave out what is only needed to go on")
    options = parser.parse_args(None if arguments is None else list(arguments))
    gather(options.source, options.into, not options.without_lines)


if __name__ == "__main__":
    main()
