"""The prompts of a run for its viewer: rebuilt from the header, and kept only if their hash is the recorded one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from anchoreval.errors import AnchorEvalError
from anchoreval.records.run import Run
from anchoreval.reports.viewer.files import to_json
from anchoreval.reports.viewer.rows import Row
from anchoreval.schema import Json, Progress, Request, Sample

if TYPE_CHECKING:
    from anchoreval.tokenizer import TextTokenizer

PROMPT_MEGABYTES = 200
CHARACTERS_PER_TOKEN = 5  # an upper guess for English prose, used before a prompt is made
NOT_ASKED = "This page was written without prompts: anchoreval view RUN adds them."


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts as JSON by sample id, to be read once; then `why`, or else `otherwise`, says why a sample has none."""

    lines: Iterable[tuple[str, str]] = ()
    why: dict[str, str] = field(default_factory=dict)
    otherwise: str = NOT_ASKED


class Remade(Protocol):
    """Rebuilds the prompts of a run."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """Return the run's tokenizer."""
        ...

    @property
    def document_tokens(self) -> int | None:
        """Return the number of tokens of the blocks that documents were cut into, or None if they were not cut."""
        ...

    def samples(self, task: str, length: int) -> Iterator[Sample]:
        """Yield the samples of a cell, in order."""
        ...

    def request(self, sample: Sample) -> Request:
        """Return the sample as token ids with its documents, as it was sent."""
        ...


def remade_prompts(
    run: Run, rows: Sequence[Row], remake: Callable[[Run], Remade], megabytes: int, progress: Progress
) -> Prompts:
    """Return the prompts that can be rebuilt, up to about `megabytes`; prompts on which arms disagree come first."""
    try:
        remade = remake(run)
    except AnchorEvalError as error:
        return Prompts(otherwise=f"The prompts cannot be made again: {error}")
    wanted = _within(rows, megabytes)
    why = {
        row.sample_id: f"Left out: this page holds about {megabytes} MB of prompts (--prompt-megabytes N for more)."
        for row in rows
        if row.sample_id not in wanted
    }
    return Prompts(_lines(remade, run, wanted, why, progress), why, "The run's header makes no such sample.")


def _within(rows: Sequence[Row], megabytes: int) -> dict[str, Row]:
    """Return the rows whose prompts fit, by sample id."""
    order = sorted(rows, key=lambda row: not row.disagree)
    sizes = itertools.accumulate(CHARACTERS_PER_TOKEN * row.first.prompt_tokens for row in order)
    return {row.sample_id: row for row, size in zip(order, sizes, strict=True) if size <= megabytes * 1_000_000}


def _lines(
    remade: Remade, run: Run, wanted: Mapping[str, Row], why: dict[str, str], progress: Progress
) -> Iterator[tuple[str, str]]:
    """Yield sample id and JSON of every wanted prompt whose hash is the recorded one; the others go to `why`."""
    cells: dict[tuple[str, int], set[str]] = {}
    for row in wanted.values():
        cells.setdefault((row.first.task, row.first.length), set()).add(row.sample_id)
    for (task, length), ids in cells.items():
        try:
            for sample in _until(remade.samples(task, length), ids):
                progress(1)
                row = wanted[sample.id]
                if problem := _problem(sample, row):
                    why[sample.id] = problem
                else:
                    yield sample.id, to_json(_shown(remade, sample, row, run.arms))
        except AnchorEvalError as error:
            why |= dict.fromkeys(ids, f"This prompt cannot be made again: {error}")


def _until(samples: Iterator[Sample], ids: Collection[str]) -> Iterator[Sample]:
    """Yield the samples of `ids`; make none beyond the last of them."""
    left = set(ids)
    for sample in samples:
        if sample.id in left:
            yield sample
            left.discard(sample.id)
        if not left:
            return


def _problem(sample: Sample, row: Row) -> str:
    rebuilt = sample.prompt_sha256
    recorded = sorted({record.prompt_sha256 for record in row.answers.values()} - {rebuilt})
    if not recorded:
        return ""
    return (
        f"Not shown: the prompt made again from the header has SHA-256 {rebuilt[:16]}, "
        f"the records say {', '.join(other[:16] for other in recorded)}."
    )


def _shown(remade: Remade, sample: Sample, row: Row, arms: Sequence[str]) -> Json:
    """Return `segments` as [role, text], the characters at which `needles` begin, and where the arms' answers part."""
    return {
        "id": sample.id,
        "segments": _segments(remade, sample),
        "needles": sorted(remade.tokenizer.starts(sample.prompt, sample.facts.get("token_positions") or [])),
        "tokens": _partings(row, arms, remade.tokenizer),
    }


def _segments(remade: Remade, sample: Sample) -> list[list[str]]:
    """Return [role, text] pairs; documents that the run cut into blocks are cut as they were sent."""
    if remade.document_tokens is None:
        return [[segment.role, segment.text] for segment in sample.segments]
    request = remade.request(sample)
    parts = [(segment, sum(1 for _ in run)) for segment, run in itertools.groupby(request.segment_ids[1:])]
    firsts = [*itertools.accumulate((size for _, size in parts[:-1]), initial=0)]
    starts = [0, *remade.tokenizer.starts(sample.prompt, firsts[1:])]
    ends = [*starts[1:], len(sample.prompt)]
    roles = [request.roles[segment] for segment, _ in parts]
    return [[role, sample.prompt[low:high]] for role, low, high in zip(roles, starts, ends, strict=True)]


def _partings(row: Row, arms: Sequence[str], tokenizer: TextTokenizer) -> dict[str, Json]:
    """Return arm -> [position, its token, the first arm's token] where the answers part; None past an answer's end.

    Records hold no token ids: these are the tokens of the texts, tokenised again, counted from 0.
    """
    first, *others = [(arm, row.answers[arm].output) for arm in arms if arm in row.answers]
    partings: dict[str, Json] = {}
    for arm, text in others:
        if text != first[1]:
            pairs = itertools.zip_longest(_tokens(text, tokenizer), _tokens(first[1], tokenizer))
            parting = next(((at, new, base) for at, (new, base) in enumerate(pairs) if new != base), None)
            if parting:
                partings[arm] = list(parting)
    return partings


def _tokens(text: str, tokenizer: TextTokenizer) -> list[str]:
    """Return the text of each token; a lone surrogate, which no tokenizer takes, becomes a replacement character."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return [whole[low:high] for low, high in tokenizer.spans(whole)]
