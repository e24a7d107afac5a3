"""How a run goes on: with more samples than it had, never with fewer than are on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from anchoreval.errors import RunError
from anchoreval.records.folder import RunFolder
from anchoreval.records.run import Run
from anchoreval.runs.loop import Makeable, Plan, make_cells
from anchoreval.schema import SCORED, Outcome
from anchoreval.tokenizer import TextTokenizer

#: What mends an outcome that is not scored.
ADVICE: Mapping[Outcome, str] = {
    "refused": "mend what the server refuses and give the same command again",
    "failed": "mend the cause and give the same command again",
    "unclosed": "give the answer more room or turn the reasoning off",
    "not_finite": "try another --dtype or --kernel",
    "does_not_fit": "shorter --lengths, or --max-length where the model has more positions than it states",
}


def gone_on(
    plan: Plan,
    made: Makeable,
    disk: RunFolder,
    tokenizer: TextTokenizer,
    window: int | None,
    tell: Callable[[str], None],
) -> tuple[Plan, Makeable]:
    """The plan and its cells with the number of samples that the run in `disk` is to have, which its header then says.

    That is the number asked for now, or what the run already holds where that is more. RunError where a task of the run
    cannot be made with so many.
    """
    old = disk.old
    if old is None or plan.until is not None:
        return plan, made
    there = 1 + max((record.index for record in disk.done.values()), default=-1)
    if plan.limit is not None and plan.limit < there:
        tell(f"run {old.run} already has {there} samples of a task and length: --limit {plan.limit} drops none")
        plan = replace(plan, limit=there)
        made = make_cells(plan, tokenizer, window)
    before, now = old.asked, {(cell.task.address, cell.length): cell.asked for cell in made.cells}
    if lost := [place for place in before if place not in now]:
        whys = [row["why"] for row in made.unmakeable if (row["task"], row["length"]) == lost[0]]
        text = f"{lost[0][0]} at {lost[0][1]}, of which the run has {before[lost[0]]} samples, cannot go on"
        raise RunError(f"{disk.path}: {text}: {', '.join(whys)}: another --output, or a smaller --limit")
    grown = [int(end) for end in old.get("grown", [])]
    if before != now:
        if old.get("finished") and old.get("limit") is not None and sum(now.values()) > sum(before.values()):
            grown.append(int(old["limit"]))
            tell(f"run {old.run} goes on with more samples than its {old['limit']} of a task and length")
        rows = [{"task": task, "length": length, "samples": samples} for (task, length), samples in now.items()]
        more = {"grown": grown} if grown else {}
        disk.update_header(limit=plan.limit, asked=rows, unmakeable=made.unmakeable, **more)
    return replace(plan, grown=tuple(grown)), made


def nothing_scored(run: Run) -> str | None:
    """Why a run in which nothing was scored has no score, and what to do; None for every other run."""
    if any(record.score is not None for record in run.records):
        return None
    lost = Counter((record.outcome, record.why) for record in run.records if record.outcome not in SCORED)
    if not lost:
        whys = Counter(record.why for record in run.records)
        return f"nothing was scored: {whys.most_common(1)[0][0] if whys else 'no sample was asked'}"
    (outcome, why), count = lost.most_common(1)[0]
    advice = ADVICE.get(outcome or "failed", ADVICE["failed"])
    said = str(why or "no reason is known").rstrip(". ")
    return f"nothing was scored: {count} of {len(run.records)} records {outcome}: {said}: {advice}"


def unanswered(run: Run) -> str | None:
    """How many samples of a finished run failed, why the first did, and what to do; None where none did."""
    failed = [record for record in run.records if record.outcome == "failed"]
    if not failed:
        return None
    said = str(failed[0].why or "no reason is known").rstrip(". ")
    return f"{len(failed)} of {len(run.records)} records failed, the first: {said}: the same command asks them again"
