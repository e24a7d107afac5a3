"""The evidence behind the numbers of one (task, length): counts per arm, and a few samples with every output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from anchoreval.reports.board.view import RunView
from anchoreval.reports.words import cell_words, plain
from anchoreval.schema import Record
from anchoreval.stats import per_token

SAMPLES = 4
OUTPUT_CHARACTERS = 400
REFERENCE_CHARACTERS = 160
REFERENCES = 12


@dataclass(frozen=True, slots=True)
class Answer:
    """One arm's answer to a sample, safe to print."""

    arm: str
    output: str
    score: str
    right: bool | None
    note: str


@dataclass(frozen=True, slots=True)
class Shown:
    """One sample with the answers of all arms."""

    id: str
    prompt_sha256: str
    prompt_tokens: int
    references: tuple[str, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that the page shows behind one (task, length)."""

    id: str
    task: str
    length: int
    arms: tuple[tuple[str, str], ...]
    samples: tuple[Shown, ...]
    total: int
    unmakeable: str


def place_id(number: int, row: int, length: int) -> str:
    """Return the HTML id of the evidence for a row and length of the map of run `number`; the script makes the same."""
    return f"e{number}-{row}-{length}"


def evidence(view: RunView, number: int) -> Iterator[Evidence]:
    """Yield one Evidence per (task, length), in the board's order."""
    samples: dict[tuple[str, int], dict[str, dict[str, Record]]] = {}
    for record in view.records:
        by_sample = samples.setdefault((record.task, record.length), {})
        by_sample.setdefault(record.sample_id, {})[record.arm] = record
    for row, task in enumerate(view.tasks):
        for length in view.lengths:
            by_id = samples.get((task, length), {})
            arms = ((arm, view.cells.get((task, length, arm))) for arm in view.arms)
            yield Evidence(
                place_id(number, row, length),
                plain(task, 80),
                length,
                tuple((plain(arm, 60), cell_words(cell) if cell else "no records") for arm, cell in arms),
                tuple(_shown(answers, view.arms) for answers in _picked(list(by_id.values()))),
                len(by_id),
                plain(view.unmakeable.get((task, length), ""), 300),
            )


def _picked(samples: Sequence[Mapping[str, Record]]) -> list[Mapping[str, Record]]:
    """Return a few samples: first those on which arms disagree, then by index."""

    def order(answers: Mapping[str, Record]) -> tuple[bool, int]:
        scores = {record.score for record in answers.values()}
        return len(scores) < 2, min(record.index for record in answers.values())

    return sorted(samples, key=order)[:SAMPLES]


def _shown(answers: Mapping[str, Record], arms: Sequence[str]) -> Shown:
    first = next(iter(answers.values()))
    references = [plain(reference, REFERENCE_CHARACTERS) for reference in first.references[:REFERENCES]]
    if len(first.references) > REFERENCES:
        references.append(f"and {len(first.references) - REFERENCES} more")
    return Shown(
        plain(first.sample_id, 120),
        plain(first.prompt_sha256, 64),
        first.prompt_tokens,
        tuple(references),
        tuple(_answer(answers[arm]) for arm in arms if arm in answers),
    )


def _answer(record: Record) -> Answer:
    logprob = per_token(record)
    notes = [f"{record.output_tokens} tokens", f"ended by {plain(record.finish, 20)}"]
    if logprob is not None:
        notes.append(f"reference {logprob:.3f} per token")
    if record.why:
        notes.append(plain(record.why, 200))
    score = "no score" if record.score is None else f"{100 * record.score:.0f}"
    right = None if record.score is None else record.score >= 1
    return Answer(plain(record.arm, 60), plain(record.output, OUTPUT_CHARACTERS), score, right, ", ".join(notes))
