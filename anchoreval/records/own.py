"""Check that the records of a run to be resumed are its own: they must not contradict the header or each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from anchoreval.errors import RunError
from anchoreval.records.folder import RunFolder
from anchoreval.records.header import Header
from anchoreval.records.lines import RECORDS
from anchoreval.records.rescore import earned, same, scorers_of
from anchoreval.schema import Record

_SHARED = ("prompt_sha256", "prompt_tokens", "references")  # fields that are the same under every arm of a sample


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
