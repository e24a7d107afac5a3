"""What a viewer shows of each sample: its records and its prompt, rebuilt from the header and kept if its hash fits."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from anchoreval.errors import AnchorEvalError
from anchoreval.records.run import Run
from anchoreval.schema import Json, Progress, Record, Request, Sample

if TYPE_CHECKING:
    from anchoreval.tokenizer import TextTokenizer

PROMPT_MEGABYTES = 200
CHARACTERS_PER_TOKEN = 5  # an upper guess for English prose, used before a prompt is made
NOT_ASKED = "This page was written without prompts: anchoreval view RUN adds them."
#: Returns compact JSON in ASCII: lone surrogates, NUL and line separators are escaped; NaN is an error.
to_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Row:
    """One sample with its records, beside their line numbers in records.jsonl; `answers` holds the last of each arm."""

    sample_id: str
    lines: Sequence[tuple[int, Record]]
    answers: Mapping[str, Record]
    first: Record


def rows_of(run: Run) -> list[Row]:
    """Return one row per sample id: tasks in the header's order, then by length and index."""
    lines: dict[str, list[tuple[int, Record]]] = {}
    for number, record in enumerate(run.records, 1):
        lines.setdefault(record.sample_id, []).append((number, record))
    place = {task: at for at, task in enumerate(run.tasks)}
    rows = [Row(name, held, {record.arm: record for _, record in held}, held[0][1]) for name, held in lines.items()]
    return sorted(rows, key=lambda row: (place[row.first.task], row.first.length, row.first.index, row.sample_id))


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
    agree, disagree = list[Row](), list[Row]()
    for row in rows:
        same = len({(record.score, record.output) for record in row.answers.values()}) == 1
        (agree if same else disagree).append(row)
    wanted: dict[str, Row] = {}
    why: dict[str, str] = {}
    characters = 0
    for row in [*disagree, *agree]:
        characters += CHARACTERS_PER_TOKEN * row.first.prompt_tokens
        if characters <= megabytes * 1_000_000:
            wanted[row.sample_id] = row
        else:
            why[row.sample_id] = (
                f"Left out: this page holds about {megabytes} MB of prompts (--prompt-megabytes N for more)."
            )
    return Prompts(_lines(remade, run.arms, wanted, why, progress), why, "The run's header makes no such sample.")


def _lines(
    remade: Remade, arms: Sequence[str], wanted: Mapping[str, Row], why: dict[str, str], progress: Progress
) -> Iterator[tuple[str, str]]:
    """Yield sample id and JSON of every wanted prompt whose hash is the recorded one; the others go to `why`.

    `segments` are [role, text], where documents that the run cut into blocks are cut as they were sent; `needles` are
    the characters at which needles begin; `tokens` says where the arms' answers part.
    """
    cells: dict[tuple[str, int], set[str]] = {}
    for row in wanted.values():
        cells.setdefault((row.first.task, row.first.length), set()).add(row.sample_id)
    for (task, length), ids in cells.items():
        left = set(ids)
        try:
            for sample in remade.samples(task, length):
                if sample.id not in left:
                    continue
                left.discard(sample.id)
                progress(1)
                row, prompt, rebuilt = wanted[sample.id], sample.prompt, sample.prompt_sha256
                if others := sorted({record.prompt_sha256 for record in row.answers.values()} - {rebuilt}):
                    why[sample.id] = (
                        f"Not shown: the prompt made again from the header has SHA-256 {rebuilt[:16]}, "
                        f"the records say {', '.join(other[:16] for other in others)}."
                    )
                else:
                    segments = [[segment.role, segment.text] for segment in sample.segments]
                    if remade.document_tokens is not None:
                        request = remade.request(sample)
                        blocks = [(each, len(list(of))) for each, of in itertools.groupby(request.segment_ids[1:])]
                        firsts = itertools.accumulate(size for _, size in blocks[:-1])
                        cuts = itertools.pairwise([0, *remade.tokenizer.starts(prompt, [*firsts]), len(prompt)])
                        segments = [
                            [request.roles[each], prompt[low:high]]
                            for (each, _), (low, high) in zip(blocks, cuts, strict=True)
                        ]
                    needles = sorted(remade.tokenizer.starts(prompt, sample.facts.get("token_positions") or []))
                    tokens = _partings(row, arms, remade.tokenizer)
                    shown = {"id": sample.id, "segments": segments, "needles": needles, "tokens": tokens}
                    yield sample.id, to_json(shown)
                if not left:  # no sample beyond the last of them is made
                    break
        except AnchorEvalError as error:
            why |= dict.fromkeys(ids, f"This prompt cannot be made again: {error}")


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
