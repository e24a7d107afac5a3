"""Differences between models on a board, and rows over the seeds or checkpoints of a trained variant.

A row over seeds has the mean over seeds with a t interval over seeds; its differences have seeds for pairs. Rows over
the checkpoints of one training are means alone, because checkpoints of one training say nothing of another seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Literal

from anchoreval.reports.board.cells import Gap, Mean, Taken, gaps_of
from anchoreval.reports.board.columns import Row, Value
from anchoreval.reports.board.gather import Gathered
from anchoreval.reports.words import interval, percent
from anchoreval.schema import Outcome
from anchoreval.stats import Cells, Place, Scores, Slots, Subject, Trained, labels
from anchoreval.stats.intervals import t_test
from anchoreval.stats.seeds import rows_over_seeds

Members = Sequence[tuple[int, Gathered]]
_OURS, _THEIRS = "this model", "the baseline model"


def baseline_of(name: str | None, run: Gathered, others: Iterable[Members]) -> Members | None:
    """Return the runs of the model, or of the same seed of the variant, that a run is compared with; None for none.

    Of several checkpoints of the variant, it is the one of the same step, else the last one.
    """
    place, own = (run.beside, run.subject.engine), run.trained
    alike = [members for members in others if (members[0][1].beside, members[0][1].subject.engine) == place]
    if named := next((members for members in alike if members[0][1].subject.model == name), None):
        return None if named[0][1].subject == run.subject else named
    seeds = {it: members for members in alike if (it := members[0][1].trained) and own
             and (it.name, it.seed) == (name, own.seed)}  # fmt: skip
    if own is None or own.name == name or not seeds:
        return None
    return seeds[max(seeds, key=lambda trained: (trained.step == own.step, trained.step))]


def gaps_across(
    taken: Taken, theirs: Taken, suites: Mapping[str, Sequence[str]], margin: float, silent: bool
) -> dict[tuple[str, str], Gap]:
    """Return (suite, arm) -> the difference to an arm of the same name of another model, or to its only arm.

    `silent` leaves log-probabilities out, which two tokenizers do not share. Names, words and corrections are those of
    `compare`.
    """
    cells: dict[Subject, dict[Place, Scores]] = {}
    for run, of in ((_OURS, taken), (_THEIRS, theirs)):
        for place in sorted(of):
            for subject, scores in of[place].items():
                cells.setdefault(replace(subject, run=run), {})[place] = scores.silent() if silent else scores
    names = labels(cells)
    ours, base = ({subject.arm: subject for subject in cells if subject.run == run} for run in (_OURS, _THEIRS))
    pairs = [(ours[arm], base[arm]) for arm in ours if arm in base]
    if not pairs and len(ours) == len(base) == 1:
        pairs = list(zip(ours.values(), base.values(), strict=True))
    slots: dict[str, dict[Subject, Cells]] = {
        suite: {subject: {place: of[place] for place in of if place[0] in tasks} for subject, of in cells.items()}
        for suite, tasks in suites.items()
    }
    found = gaps_of(Slots(slots, names, margin), pairs)
    return {(suite, arm.arm): gap for (suite, arm, _), gap in found.items() if gap.difference.pairs}


def over_seeds(rows: Sequence[Row], margin: float) -> Row:
    """Return one row over rows of the seeds, or checkpoints, of one variant; its differences have seeds for pairs."""
    by_seed: dict[int, list[Row]] = {}
    for row in rows:
        by_seed.setdefault(_trained(row).seed, []).append(row)
    steps = dict.fromkeys(_trained(row).step for row in rows)
    return replace(
        rows[0],
        means=_means(rows),
        gap=_gap(by_seed, "gap", margin),
        across=_gap(by_seed, "across", margin),
        seeds=_listed(by_seed),
        steps=_listed(steps) if len(steps) > 1 else "",
    )


def over_words(rows: Sequence[Row]) -> str:
    """Return what a row over these rows is the mean of, in words."""
    counts = Counter(_trained(row).seed for row in rows)
    few, most = min(counts.values()), max(counts.values())
    checkpoints = f"{few if few == most else f'{few} to {most}'} checkpoints"
    if len(counts) == 1:
        return f"seed {next(iter(counts))}, mean of {checkpoints}: no seed variance"
    return f"mean of {len(counts)} seeds" + (f", each of {checkpoints}" if most > 1 else "")


def averaged(rows: Sequence[Row], each: Sequence[Sequence[Value]], values: Sequence[Value]) -> tuple[Value, ...]:
    """Return the `values` of a row over seeds with the mean over seeds, and its t interval, where every seed has one.

    `each` are the values of the rows of the seeds.
    """
    seeds = [_trained(row).seed for row in rows]
    return tuple(_averaged(list(zip(seeds, column, strict=True)), value)
                 for *column, value in zip(*each, values, strict=True))  # fmt: skip


def _averaged(of_seeds: Sequence[tuple[int, Value]], value: Value) -> Value:
    by_seed: dict[int, list[float]] = {}
    for seed, one in of_seeds:
        if one.mean is not None:
            by_seed.setdefault(seed, []).append(one.mean)
    if value.mean is None or sum(map(len, by_seed.values())) < len(of_seeds):
        return value
    means = [fmean(of) for of in by_seed.values()]
    low, high = (None if end is None else min(100.0, max(0.0, end)) for end in t_test(means)[:2])
    mean, many = fmean(means), len(means) > 1
    what = "mean over seeds, t interval over seeds" if many else "mean over checkpoints, which is no seed variance"
    ends = interval(low / 100, high / 100) if low is not None and high is not None else ""
    text = percent(mean / 100) + ("*" if value.text.endswith("*") else "")
    key = None if value.key is None else mean
    return replace(value, text=text, key=key, label=f"{what}: {text} {ends}", low=low, high=high, mean=mean)


def _means(rows: Sequence[Row]) -> dict[tuple[str, int], Mean]:
    """Return the means of every cell over the rows that have it; counts are sums."""
    places = dict.fromkeys(place for row in rows for place in row.means)
    return {place: _mean([row.means[place] for row in rows if place in row.means]) for place in places}


def _mean(parts: Sequence[Mean]) -> Mean:
    scored, logprobs = ([value for part in parts if (value := getattr(part, name)) is not None]
                        for name in ("mean", "logprob"))  # fmt: skip
    outcomes = sum((Counter(part.outcomes) for part in parts), Counter[Outcome]())
    return replace(
        parts[0],
        asked=sum(part.asked for part in parts),
        scored=sum(part.scored for part in parts),
        mean=fmean(scored) if scored else None,
        logprob=fmean(logprobs) if logprobs else None,
        outcomes=dict(outcomes),
    )


def _gap(by_seed: Mapping[int, Sequence[Row]], name: Literal["gap", "across"], margin: float) -> Gap | None:
    """Return the difference over the seeds of which every row has it; None without any."""
    gaps = {seed: [getattr(row, name) for row in rows] for seed, rows in by_seed.items()}
    gaps = {seed: of for seed, of in gaps.items() if all(of)}
    if not gaps:
        return None
    (row,) = rows_over_seeds([{seed: [gap.row for gap in of] for seed, of in gaps.items()}], margin)
    return Gap(next(iter(gaps.values()))[0].run, row)


def _trained(row: Row) -> Trained:
    assert row.trained is not None
    return row.trained


def _listed(numbers: Iterable[int]) -> str:
    """Return `0-5` for three or more consecutive numbers, else `0, 2, 5`."""
    ordered = sorted(numbers)
    whole = len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1))
    return f"{ordered[0]}-{ordered[-1]}" if whole else ", ".join(map(str, ordered))


def variant_of(trained: Trained, checkpoints: bool) -> Trained:
    """Return what the rows of one variant have in common; with `checkpoints`, the steps of a training are one."""
    return replace(trained, seed=0, step=0, steps=0) if checkpoints else replace(trained, seed=0)
