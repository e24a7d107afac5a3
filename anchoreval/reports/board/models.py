"""Differences between models on a board, and rows over the seeds or checkpoints of a trained variant.

A row over seeds has the mean over seeds with a t interval over seeds; its differences have seeds for pairs. Rows over
the checkpoints of one training are means alone, because checkpoints of one training say nothing of another seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from anchoreval.reports.board.cells import Gap, Mean, RowCells, Taken, Value, columns_of, gaps_of
from anchoreval.reports.board.definition import Declared
from anchoreval.reports.words import interval, percent
from anchoreval.schema import Outcome
from anchoreval.stats import Cells, Place, Scores, Slots, Subject, Trained, labels, variant_names
from anchoreval.stats.intervals import t_test
from anchoreval.stats.seeds import missing_seeds, rows_over_seeds

if TYPE_CHECKING:
    from anchoreval.reports.board.build import Line

_OURS, _THEIRS = "this model", "the baseline model"


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
    return {(suite, arm.arm): gap for (suite, arm, _), gap in found.items() if gap.row.difference.pairs}


def lines_over_seeds(lines: Sequence[Line], declared: Declared, checkpoints: bool) -> Iterator[Line]:
    """Yield a line for each arm and suite of every variant that has several seeds, or checkpoints to be averaged.

    Its differences have seeds for pairs. With `checkpoints`, the steps of a training are one variant.
    """
    definition, margin = declared.definition, declared.definition.margin / 100
    members: dict[tuple[Trained, str, str, str], list[tuple[Trained, Line]]] = {}
    for line in lines:
        if card := line.row.trained:
            variant = replace(card, seed=0, step=0, steps=0) if checkpoints else replace(card, seed=0)
            members.setdefault((variant, line.beside, line.suite, line.row.arm), []).append((card, line))
    names = variant_names(dict.fromkeys(variant for variant, *_ in members))
    for (variant, *place), trained in members.items():
        if len(trained) < 2:
            continue
        every, steps = [line for _, line in trained], {card.step for card, _ in trained}
        by_seed: dict[int, list[Line]] = {}
        for card, line in trained:
            by_seed.setdefault(card.seed, []).append(line)
        row = replace(
            every[0].row,
            means=_means([line.row for line in every]),
            gap=_gap({seed: [line.row.gap for line in of_seed] for seed, of_seed in by_seed.items()}, margin),
            across=_gap({seed: [line.row.across for line in of_seed] for seed, of_seed in by_seed.items()}, margin),
            seeds=_listed(by_seed),
            steps=_listed(steps) if len(steps) > 1 else "",
        )
        values = columns_of(row, definition.columns, declared.averages)
        columns = [[[line.values[at] for line in of_seed] for of_seed in by_seed.values()] for at in range(len(values))]

        few, most = (limit(len(of_seed) for of_seed in by_seed.values()) for limit in (min, max))
        model = f"{names[variant]}, mean of {len(by_seed)} seeds"
        counts = f"{few if few == most else f'{few} to {most}'} checkpoints"
        if len(by_seed) == 1:
            model = f"{names[variant]}, seed {next(iter(by_seed))}, mean of {counts}: no seed variance"
        elif most > 1:
            model += f", each of {counts}"
        base = {names[of]: {card.seed for card, _ in others} for (of, *at), others in members.items()
                if of.name == definition.baseline_model and at == place}  # fmt: skip
        if lacking := missing_seeds({names[variant]: set(by_seed)} | base):
            model += f" ({lacking})"
        yield replace(
            every[0],
            model=model,
            setting=every[0].beside,
            comparable=all(line.comparable for line in every),
            environments=max(line.environments for line in every),
            values=tuple(map(_averaged, columns, values)),
            row=row,
        )


def _averaged(by_seed: Sequence[Sequence[Value]], value: Value) -> Value:
    """Return the value of a row over seeds as the mean over seeds, and its t interval, where every seed has one."""
    numbers = [[each.mean for each in of_seed if each.mean is not None] for of_seed in by_seed]
    if value.mean is None or any(len(of) < len(of_seed) for of, of_seed in zip(numbers, by_seed, strict=True)):
        return value
    means = [fmean(of) for of in numbers]
    low, high = (None if end is None else min(100.0, max(0.0, end)) for end in t_test(means)[:2])
    mean, many = fmean(means), len(means) > 1
    what = "mean over seeds, t interval over seeds" if many else "mean over checkpoints, which is no seed variance"
    ends = interval(low / 100, high / 100) if low is not None and high is not None else ""
    text = percent(mean / 100) + ("*" if value.text.endswith("*") else "")
    key = None if value.key is None else mean
    return replace(value, text=text, key=key, label=f"{what}: {text} {ends}", low=low, high=high, mean=mean)


def _means(rows: Sequence[RowCells]) -> dict[Place, Mean]:
    """Return the means of every cell over the rows that have it; counts are sums."""
    means = {}
    for place in dict.fromkeys(place for row in rows for place in row.means):
        parts = [row.means[place] for row in rows if place in row.means]
        scored = [part.mean for part in parts if part.mean is not None]
        logprobs = [part.logprob for part in parts if part.logprob is not None]
        means[place] = replace(
            parts[0],
            asked=sum(part.asked for part in parts),
            scored=sum(part.scored for part in parts),
            mean=fmean(scored) if scored else None,
            logprob=fmean(logprobs) if logprobs else None,
            outcomes=dict(sum((Counter(part.outcomes) for part in parts), Counter[Outcome]())),
        )
    return means


def _gap(by_seed: Mapping[int, Sequence[Gap | None]], margin: float) -> Gap | None:
    """Return the difference over the seeds of which every row has it; None without any."""
    whole = {seed: [gap for gap in gaps if gap] for seed, gaps in by_seed.items() if all(gaps)}
    if not whole:
        return None
    (row,) = rows_over_seeds([{seed: [gap.row for gap in gaps] for seed, gaps in whole.items()}], margin)
    return Gap(next(iter(whole.values()))[0].run, row)


def _listed(numbers: Iterable[int]) -> str:
    """Return `0-5` for three or more consecutive numbers, else `0, 2, 5`."""
    ordered = sorted(numbers)
    whole = len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1))
    return f"{ordered[0]}-{ordered[-1]}" if whole else ", ".join(map(str, ordered))
