"""What a reader must know beside the scores of a run: what changed, what they compare with, and what was lost.

Samples that were not simply answered are counted by outcome, with what it means and what to do about it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from anchoreval.arms.patterns import masks_documents
from anchoreval.records.header import Header
from anchoreval.reports.words import plain
from anchoreval.schema import OUTCOMES, SCORED, Outcome, Record

EXTENSION = "Attention masked by documents at inference is this project's extension, not part of arXiv 2411.13476."
_AGAIN = "the same command asks them again"
_MEANS: Mapping[Outcome, str] = {
    "cut": "filled their budget of new tokens",
    "empty": "gave an answer of nothing but white space, or none: the first token ended it",
    "unclosed": "spent their budget on reasoning that never ended",
    "refused": "were refused by the server",
    "failed": "gave no answer",
    "not_finite": "gave logits or log-probabilities that are not numbers",
    "does_not_fit": "need more positions than there are",
}
_DO: Mapping[Outcome, str] = {
    "cut": "scored as they stand; where the answer stands behind a long introduction or reasoning, ask for less of it",
    "empty": "scored by the benchmark's rule; read some of them: the form of the prompts may not be the model's",
    "unclosed": f"not scored; turn reasoning off in the template, or give answers more room: {_AGAIN}",
    "refused": f"not scored; start the server with a larger window, or mend what it says: {_AGAIN}",
    "failed": f"not scored; {_AGAIN}",
    "not_finite": f"not scored; try --dtype float32, or bfloat16 in place of float16: {_AGAIN}",
    "does_not_fit": f"not scored; start the server with a larger window (then {_AGAIN}), or choose shorter --lengths",
}
_NORMAL = "scored as they stand; a base model does not end its answers, so this is normal here"


@dataclass(frozen=True, slots=True)
class OutcomeLine:
    """One outcome of a run in a sentence; `quiet` is True if the outcome is to be expected."""

    outcome: Outcome
    count: int
    text: str
    quiet: bool


def run_notes(header: Header, records: Sequence[Record], arms: Iterable[str], changed: str) -> Iterator[str]:
    """Yield a sentence for everything that a reader of a run's scores must know, except outcomes."""
    if changed:
        yield f"This run is not what it was when it finished: {changed}."
    if why := header.incomparable_words(records=records):
        yield f"Not comparable with published scores: {plain(why)}."
    if raw := header.raw_words:
        yield f"{raw[:1].upper()}{raw[1:]}."
    if several := header.environment_words:
        yield f"{plain(several)}: last bits may differ from one record to the next; records name theirs."
    if any(map(masks_documents, arms)):
        yield EXTENSION


def outcome_lines(header: Header, records: Iterable[Record]) -> list[OutcomeLine]:
    """Return a line for every outcome of a run's records except `answered`; outcomes that lost the score come last."""
    by_outcome: dict[Outcome, Counter[str]] = {}
    reasons: dict[Outcome, str] = {}
    arms: dict[str, None] = {}
    for record in records:
        arms[record.arm] = None
        outcome = record.outcome or "answered"
        by_outcome.setdefault(outcome, Counter())[record.arm] += 1
        if outcome not in SCORED and record.why:
            reasons.setdefault(outcome, record.why)
    return list(_lines(by_outcome, reasons, len(arms) > 1, header.form == "base"))


def counted_lines(counts: Mapping[Outcome, int]) -> list[OutcomeLine]:
    """Return the same lines from counts alone, for tables over many runs."""
    return list(_lines({outcome: Counter({"": count}) for outcome, count in counts.items()}, {}, False, False))


def _lines(
    by_outcome: Mapping[Outcome, Counter[str]], reasons: Mapping[Outcome, str], several: bool, base: bool
) -> Iterator[OutcomeLine]:
    for outcome in OUTCOMES:
        by_arm = by_outcome.get(outcome)
        if not by_arm or outcome == "answered":
            continue
        count, quiet = by_arm.total(), outcome == "cut" and base
        arms = ", ".join(f"{plain(arm, 40)} {arm_count:,}" for arm, arm_count in by_arm.items()) if several else ""
        why = f", the first: {plain(reasons[outcome], 160)}" if outcome in reasons else ""
        name = outcome.replace("_", " ")
        text = f"{count:,} {name}{f' ({arms})' if arms else ''}: {_MEANS[outcome]}{why}; "
        yield OutcomeLine(outcome, count, text + (_NORMAL if quiet else _DO[outcome]), quiet)
