"""Resume a run, with more samples than it had but never fewer than are on disk; recognise a run that is finished.

A finished run is not computed again, and not even its prompts are made: header, seal and records are enough. The part
of its identity that follows from prompts (`FROM_PROMPTS`) is taken from its header if everything that it depends on is
the same: the rest of the identity (computed now, with the hashes of every file), the number of samples, the number of
positions of the model, the version of this package, and the source texts that were read. If that cannot be decided, the
run does not count as finished, and its first prompts are made to see whether it can be resumed.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path

from anchoreval.backends import Described
from anchoreval.errors import RunError
from anchoreval.files import sha256_of
from anchoreval.records.folder import RunFolder
from anchoreval.records.header import HEADER, Header, fingerprint, read_header
from anchoreval.records.lines import RECORDS
from anchoreval.records.rescore import earned, same, scorers_of
from anchoreval.records.run import Run
from anchoreval.runs.identity import environment_of, read_by
from anchoreval.runs.prompts import Cells, Prompts, Spec
from anchoreval.schema import SCORED, Outcome, Record
from anchoreval.texts.sources import RULER_FILES, Sources

_SHARED = ("prompt_sha256", "prompt_tokens", "references")  # fields that are the same under every arm of a sample
FROM_PROMPTS = ("sources", "pools")  # parts of an identity that follow from prompts, if no task cuts its prompts
#: What a user can do about an outcome that is not scored.
ADVICE: Mapping[Outcome, str] = {
    "refused": "mend what the server refuses and give the same command again",
    "failed": "mend the cause and give the same command again",
    "unclosed": "give the answer more room or turn the reasoning off",
    "not_finite": "try another --dtype or --kernel",
    "does_not_fit": "shorter --lengths, or --max-length where the model has more positions than it states",
}


def gone_on(prompts: Prompts, cells: Cells, disk: RunFolder, tell: Callable[[str], None]) -> tuple[Prompts, Cells]:
    """Return prompts and cells with the number of samples that the run in `disk` is to have; update its header.

    That number is the greater of the number asked for and the number that the run already holds. Raise RunError if a
    task of the run cannot be made with so many, or if a record of the run is not its own.
    """
    require_own(disk)
    old, spec = disk.old or Header(), prompts.spec
    if spec.until is not None:
        return prompts, cells
    held = 1 + max((record.index for record in disk.done.values()), default=-1)
    if spec.limit is not None and spec.limit < held:
        tell(f"run {old.run} already has {held} samples of a task and length: --limit {spec.limit} drops none")
        prompts = prompts.asking(limit=held)
        cells = prompts.cells()
    before, now = old.asked, {cell.place: cell.asked for cell in cells}
    if lost := [place for place in before if place not in now]:
        whys = [row["why"] for row in cells.unmakeable if (row["task"], row["length"]) == lost[0]]
        text = f"{lost[0][0]} at {lost[0][1]}, of which the run has {before[lost[0]]} samples, cannot go on"
        raise RunError(f"{disk.path}: {text}: {', '.join(whys)}: another --output, or a smaller --limit")
    grown = [int(end) for end in old.get("grown", [])]
    if before != now:
        if old.get("finished") and old.get("limit") is not None and sum(now.values()) > sum(before.values()):
            grown.append(int(old["limit"]))
            tell(f"run {old.run} goes on with more samples than its {old['limit']} of a task and length")
        more = {"grown": grown} if grown else {}
        disk.update_header(limit=prompts.spec.limit, asked=cells.rows, unmakeable=cells.unmakeable, **more)
    return prompts.asking(grown=tuple(grown)), cells


def require_own(folder: RunFolder) -> None:
    """Raise RunError with the first record of an unsealed run that was edited or belongs to another run.

    A finished run is not checked here, because its seal proves the records. Only a seal can reveal an edit that no
    other part of the run contradicts, such as another answer that earns the same score.
    """
    header = folder.old
    if header is None or (header.get("finished") and header.get("seal") is not None):
        return
    foreign = list(islice(_foreign(folder, header), 2))
    if foreign:
        line, what = foreign[0]
        more = " (and more lines)" if len(foreign) > 1 else ""
        raise RunError(
            f"{folder.path / RECORDS}:{line}: {what}{more}: it was edited or belongs to another run: delete this line "
            "and give the same command again, which asks the sample anew"
        )


def _foreign(folder: RunFolder, header: Header) -> Iterator[tuple[int, str]]:
    asked, arms, scorers, environments = header.asked, header.arms, scorers_of(header), len(header.environments)
    first: dict[str, tuple[int, Record]] = {}
    seen: dict[tuple[str, str], int] = {}
    for key, record in folder.done.items():
        line = folder.line_of(key)
        what = _contradiction(record, asked, arms, environments)
        where, other = first.setdefault(record.sample_id, (line, record))
        if not what and (before := seen.setdefault((record.sample_id, record.arm), line)) != line:
            what = f"{record.sample_id} under {record.arm} stands on line {before} too, with another key"
        if not what and (
            name := next((field for field in _SHARED if getattr(record, field) != getattr(other, field)), None)
        ):
            what = f"{name} is not that of {record.sample_id} on line {where}"
        if not what and record.task in scorers and not scorers[record.task].heavy:
            value = earned(record, scorers, folder.path).value
            if not same(record.score, value):
                what = f"{record.sample_id} under {record.arm} has the score {record.score}, its answer earns {value}"
        if what:
            yield line, what


def _contradiction(
    record: Record, asked: Mapping[tuple[str, int], int], arms: list[str], environments: int
) -> str | None:
    """Return a sentence if a record cannot belong to a run with this header, else None."""
    if record.sample_id != f"{record.task}@{record.length}#{record.index}":
        return f"{record.sample_id} is not sample {record.index} of {record.task} at {record.length}"
    if asked and record.index >= asked.get((record.task, record.length), 0):
        return f"the run asks for no sample {record.sample_id}"
    if arms and record.arm not in arms:
        return f"the run has no arm {record.arm}"
    if record.environment is not None and record.environment >= environments:
        return f"the run has no environment {record.environment}"
    return None


def nothing_scored(run: Run) -> str | None:
    """Return why no sample of a run was scored, and what to do; None if at least one was scored."""
    if any(record.score is not None for record in run.records):
        return None
    lost = Counter((record.outcome, record.why) for record in run.records if record.outcome not in SCORED)
    if not lost:
        whys = Counter(record.why for record in run.records)
        return f"nothing was scored: {whys.most_common(1)[0][0] if whys else 'no sample was asked'}"
    (outcome, why), count = lost.most_common(1)[0]
    advice = ADVICE.get(outcome or "failed", ADVICE["failed"])
    reason = str(why or "no reason is known").rstrip(". ")
    return f"nothing was scored: {count} of {len(run.records)} records {outcome}: {reason}: {advice}"


def unanswered(run: Run) -> str | None:
    """Return how many samples of a finished run failed, why the first did, and what to do; None if none failed."""
    failed = [record for record in run.records if record.outcome == "failed"]
    if not failed:
        return None
    reason = str(failed[0].why or "no reason is known").rstrip(". ")
    return f"{len(failed)} of {len(run.records)} records failed, the first: {reason}: the same command asks them again"


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished run that may be the one that is asked for."""

    path: Path
    header: Header

    def is_asked_for(self, prompts: Prompts, engine: Described) -> bool:
        """Return True if this run is the one asked for and every record has an answer.

        Raise RunError if the run was changed after it finished.
        """
        spec, described = prompts.spec, engine.describe()
        if self.header.model.get("window") != prompts.model.window or not _same_texts(self.header, spec.sources):
            return False
        before = self.header["identity"]
        kept = {name: before[name] for name in FROM_PROMPTS if name in before}
        now = prompts.identity(engine.fingerprint) | kept | read_by(prompts, described)
        if not fingerprint(now) == fingerprint(before) == self.header.run:
            return False
        header = Header(self.header | {"environments": [environment_of(described)]})
        asked = sum(self.header.asked.values()) * len(spec.arms)
        with RunFolder(self.path, header) as disk:
            answered = sum(record.outcome in SCORED for record in disk.done.values())
            return answered == len(disk.done) > 0 and (spec.until is not None or answered == asked)


def finished_beside(folder: Path, spec: Spec) -> Iterator[Finished]:
    """Yield the finished runs in `folder` that may be the one asked for; skip runs that cannot be read.

    This version finished and sealed them, and tasks, arms and limit are the same.
    """
    if any(task.length_of == "prompt" for task in spec.tasks):
        return
    for path in sorted(folder.glob(f"*/{HEADER}")):
        with contextlib.suppress(RunError, AttributeError, KeyError, TypeError):
            header = read_header(path)
            version = header["version"] == metadata.version("anchoreval")
            complete = bool(header.get("finished") and header.get("seal") and version)
            tasks, arms = [task.address for task in spec.tasks], [arm.name for arm in spec.arms]
            same = (header["limit"], header.tasks, header.arms) == (spec.limit, tasks, arms)
            errors = spec.single & {task for task, _ in header.unmakeable}  # for such a task, a run fails
            if complete and same and not errors:
                yield Finished(path.parent, header)


def _same_texts(header: Header, sources: Sources) -> bool:
    """Return True if the same source texts were chosen, and every file that was read is there and unchanged."""
    recorded, files = header.part("identity", "sources"), header.part("source_files")
    chosen = sources.describe()
    if {name: recorded.get(name) for name in ("context", *chosen)} != {"context": None} | chosen:
        return False
    if not files.keys() <= {source.file for source in RULER_FILES}:
        return False
    for name, row in files.items():
        path = next((place / name for place in sources.places() if (place / name).is_file()), None)
        if path is None or sha256_of(path) != row["sha256"]:
            return False
    return True
