"""The columns that a definition may name: a row's cells -> shown text, sort key and link.

An average over fewer tasks than it names is shown with a star and never ranked; an average that lacks a length is not
shown. If samples without a score are left out, the average has a star too, the mean with those samples counted as wrong
is shown below it, and the row is ranked by that mean. Intervals are those of stats/averages.py; for a single cell, the
cell's own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from anchoreval.reports.board.cells import Gap, Mean
from anchoreval.reports.board.definition import BY_LENGTH
from anchoreval.reports.words import NONE, interval, lost_counts, p_number, p_value, percent, plain, sentence, tokens
from anchoreval.schema import Outcome
from anchoreval.stats import Trained, average_ends
from anchoreval.suites import Average, averages
from anchoreval.suites.ruler.averages import AVERAGES, LENGTHS, TASKS, THRESHOLD, effective_length

Cells = Mapping[tuple[str, int], Mean]


@dataclass(frozen=True, slots=True)
class Value:
    """One field of a row: text, sort key, sentence, low and high in points, and the location of its samples.

    `run` is None if no samples are behind the value; `query` holds the viewer's filter. `bound` is shown below the
    text: the value if samples without a score count as wrong, by which the row is ranked. `mean` is the unrounded value
    of the text, in points. `why` is the reason for a dash that is shown below it.
    """

    text: str
    key: float | str | None
    label: str
    low: float | None = None
    high: float | None = None
    run: int | None = None
    query: tuple[tuple[str, str], ...] = ()
    bound: str = ""
    mean: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """The input of the columns: one arm of a group on one suite.

    `across` is its difference to `baseline_model`. `seeds` and `steps` list those of a row over several.
    """

    arm: str
    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    means: Cells
    gap: Gap | None
    baseline: str
    across: Gap | None = None
    trained: Trained | None = None
    seeds: str = ""
    steps: str = ""

    @property
    def run(self) -> int | None:
        """Return the run that most samples of the row are from."""
        sizes: dict[int, int] = {}
        for mean in self.means.values():
            sizes[mean.run] = sizes.get(mean.run, 0) + mean.asked
        return max(sizes, key=lambda run: (sizes[run], -run), default=None)


@dataclass(frozen=True, slots=True)
class Mixed:
    """A weighted mean of cells, 0..1, with its interval; `whole` is True if no cell that it names is missing.

    `lost` counts samples without a score. `as_wrong` is the mean if they count as wrong, including cells that lost all.
    """

    mean: float
    low: float
    high: float
    whole: bool
    lost: int
    as_wrong: float


def columns_of(row: Row, names: Sequence[str], published: Mapping[str, Average] | None = None) -> tuple[Value, ...]:
    """Return the values of a row, in the order of `heads`."""
    values: list[Value] = []
    for name in names:
        if name == BY_LENGTH:
            values += [_by_length(row, length) for length in row.lengths]
        else:
            values.append(_column(name, averages() if published is None else published)[1](row))
    return tuple(values)


def heads(
    names: Sequence[str],
    lengths: Sequence[int],
    baseline: str,
    published: Mapping[str, Average] | None = None,
    baseline_model: str | None = None,
) -> tuple[str, ...]:
    """Return the heads over the values of a row; without `published`, the names that a definition uses."""
    texts: list[str] = []
    for name in names:
        if name == BY_LENGTH:
            texts += [BY_LENGTH if published is None else tokens(length) for length in lengths]
        else:
            spelled = {"baseline": plain(baseline, 60), "model": plain(baseline_model or "the first model", 60)}
            texts.append(name if published is None else _column(name, published)[0].format(**spelled))
    return tuple(texts)


def average(means: Cells, tasks: Mapping[str, float] | Collection[str], weights: Mapping[int, float]) -> Mixed | None:
    """Return the weighted mean over the tasks of every length, weighted over lengths, or None without a cell.

    A collection of `tasks` weighs them equally.

    Cells are first rounded to two decimals of points, as RULER does. Missing cells are left out, and the average is
    then not `whole`.
    """
    shares = tasks if isinstance(tasks, Mapping) else dict.fromkeys(tasks, 1.0)
    parts: list[tuple[float, Mean]] = []
    wrong: list[tuple[float, Mean]] = []
    for length, weight in weights.items():
        with_cells = [(share, mean) for task, share in shares.items() if (mean := means.get((task, length)))]
        with_means = [(share, mean) for share, mean in with_cells if mean.mean is not None]
        parts += [(weight * share / sum(one for one, _ in with_means), mean) for share, mean in with_means]
        wrong += [(weight * share / sum(one for one, _ in with_cells), mean) for share, mean in with_cells]
    total = math.fsum(weight for weight, _ in parts)
    if not parts:
        return None
    value = math.fsum(weight * round(mean.mean or 0.0, 4) for weight, mean in parts) / total
    low, high = average_ends(parts)
    whole = len(parts) == len(tasks) * len(weights)
    as_wrong = math.fsum(weight * mean.as_wrong for weight, mean in wrong) / math.fsum(weight for weight, _ in wrong)
    return Mixed(value, low, high, whole, sum(mean.lost for _, mean in wrong), as_wrong)


def _averaged(
    row: Row, tasks: Mapping[str, float], weights: Mapping[int, float], what: str, *also: tuple[str, str]
) -> Value:
    if not set(tasks) <= set(row.tasks):
        return Value(NONE, None, f"{what}: this row's suite lacks some of the tasks")
    present = [task for task in tasks if any((task, length) in row.means for length in weights)]
    result = average(row.means, tasks, weights)
    if result is None:
        cells = [mean for (task, length), mean in row.means.items() if task in tasks and length in weights]
        lost = sum((Counter(mean.outcomes) for mean in cells), Counter[Outcome]())
        why = lost_counts(lost, sum(mean.lost for mean in cells))
        return Value(NONE, None, f"{what}: no score: {why}" if why else f"{what}: no samples", why=why)
    runs = [mean.run for (task, length), mean in row.means.items() if task in tasks and length in weights]
    run = max(sorted(set(runs)), key=runs.count)
    spans = sum(any((task, length) in row.means for task in tasks) for length in weights)
    count = f"{len(present)} of {len(tasks)} tasks" + (
        f", {spans} of {len(weights)} lengths" if len(weights) > 1 else ""
    )
    label = f"{what}: {percent(result.mean)} {interval(result.low, result.high)}, {count}"
    query = (*also, ("arm", row.arm))
    if not result.whole and len(weights) > 1:
        return Value(NONE, None, f"{what}: cells are missing or lost whole, {count}", why="cells missing")
    text, bound, key = percent(result.mean), "", 100 * result.mean
    if result.lost:
        bound, key = f"{percent(result.as_wrong)} as wrong", 100 * result.as_wrong
        label += (
            f"; {result.lost:,} samples without a score left out, {percent(result.as_wrong)} where they count as wrong"
        )
    if not result.whole:
        label += "; not ranked: cells are missing or lost whole"
    star = "*" if result.lost or not result.whole else ""
    ends = 100 * result.low, 100 * result.high
    return Value(text + star, key if result.whole else None, label, *ends, run, query, bound, 100 * result.mean)


def _by_length(row: Row, length: int) -> Value:
    of = dict.fromkeys(row.tasks, 1)
    return _averaged(row, of, {length: 1.0}, f"mean at {tokens(length)}", ("length", str(length)))


def _mean(row: Row) -> Value:
    return _averaged(row, dict.fromkeys(row.tasks, 1), dict.fromkeys(row.lengths, 1.0), "mean over lengths")


def _column(name: str, published: Mapping[str, Average]) -> tuple[str, Callable[[Row], Value]]:
    """Return head and function of a column: one of `_COLUMNS`, or a published average of a suite."""
    if name in _COLUMNS:
        return _COLUMNS[name]
    average = published[name]
    return plain(average.title, 60).replace("{", "{{").replace("}", "}}"), partial(_published, average)


def _published(published: Average, row: Row) -> Value:
    weights = published.lengths or dict.fromkeys(row.lengths, 1.0)
    value = _averaged(row, published.tasks, weights, published.about)
    if published.lengths is None or value.key is not None:
        return value
    span = f"{tokens(min(weights))} to {tokens(max(weights))}"
    return Value(NONE, None, f"{published.about}: needs {len(published.tasks)} tasks at {span}")


def _effective(row: Row) -> Value:
    title, tasks = "effective length", AVERAGES["ruler_13"].tasks
    by_length, lost = {}, 0
    for length in LENGTHS:
        result = average(row.means, tasks, {length: 1.0})
        if result is not None and result.whole:
            by_length[length] = 100 * result.mean
            lost += result.lost
    text = effective_length(by_length)
    if text is None:
        return Value(NONE, None, f"{title}: hangs on a length, 4K to 128K, at which not all {TASKS} tasks were run")
    longest = 0 if text.startswith("<") else 1024 * int(text.strip("<>K"))
    label = f"{title} {text}: the last length up to which {TASKS} tasks average at least {THRESHOLD}"
    if lost:
        text, label = f"{text}*", f"{label}; {lost:,} samples without a score are left out"
    return Value(text, float(longest + text.startswith(">")), label, None, None, row.run, (("arm", row.arm),))


def _compared(shown: Callable[[Gap], Value | None]) -> Callable[[Row], Value]:
    """Make a column of the difference to the baseline that links to the samples behind it."""

    def value(row: Row) -> Value:
        if row.gap is None or (found := shown(row.gap)) is None:
            return Value(
                NONE, None, "this is the baseline" if row.arm == row.baseline else "no pairs with the baseline"
            )
        return replace(found, run=row.gap.run, query=(("arm", row.arm), ("differ", "1")))

    return value


@_compared
def _difference(gap: Gap) -> Value | None:
    paired = gap.difference
    if paired.difference is None:
        return None
    low, high = (None if end is None else 100 * end for end in (paired.low, paired.high))
    label = f"minus {plain(paired.baseline, 60)}: {sentence(gap.row)}"
    text = percent(paired.difference, True) + ("*" if paired.left_out else "")
    return Value(text, 100 * paired.difference, label, low, high)


@_compared
def _verdict(gap: Gap) -> Value:
    return Value(gap.row.word, gap.row.word, gap.row.says)


@_compared
def _p_holm(gap: Gap) -> Value | None:
    if (p := gap.row.p_holm) is None:
        return None
    label = f"{p_value(p)}: all pairs of a suite are one question, corrected by Holm over the arm's suites"
    return Value(p_number(p), p, label)


def _across(row: Row) -> Value:
    return _to_model(row, _difference)


def _across_verdict(row: Row) -> Value:
    return _to_model(row, _verdict)


def _to_model(row: Row, column: Callable[[Row], Value]) -> Value:
    """Return a column of the difference to the baseline model, with the samples of this one behind it."""
    if row.across is None or row.across.difference.difference is None:
        return Value(NONE, None, "this is the baseline model, or no pairs with it")
    return replace(column(replace(row, gap=row.across)), query=(("arm", row.arm),))


def _of_training(fact: Callable[[Trained, Row], str | int]) -> Callable[[Row], Value]:
    """Make a column of how the model was trained."""

    def value(row: Row) -> Value:
        if row.trained is None:
            return Value(NONE, None, "no training card beside the weights")
        shown = fact(row.trained, row)
        return Value(str(shown), shown if isinstance(shown, str) else float(shown), f"{shown}: from the training card")

    return value


def _logprob(row: Row) -> Value:
    logprobs = [mean.logprob for mean in row.means.values() if mean.logprob is not None]
    if not logprobs:
        return Value(NONE, None, "no log-probability")
    value = math.fsum(logprobs) / len(logprobs)
    label = f"log-probability {value:.4f} per token of the reference, mean over {len(logprobs)} cells"
    return Value(f"{value:.3f}", value, label, None, None, row.run, (("arm", row.arm),))


def _samples(row: Row) -> Value:
    scored, asked = (sum(getattr(mean, name) for mean in row.means.values()) for name in ("scored", "asked"))
    text = f"{scored:,}" if scored == asked else f"{scored:,}/{asked:,}"
    label = f"{scored:,} of {asked:,} samples scored"
    counts: Counter[Outcome] = Counter()
    for mean in row.means.values():
        counts.update(mean.outcomes)
    if scored < asked:
        label += f": {lost_counts(counts, asked - scored)}"
    label += "".join(f"; {counts[outcome]:,} {outcome}" for outcome in ("cut", "empty") if counts[outcome])
    return Value(text, float(scored), label, None, None, row.run, (("arm", row.arm),))


_COLUMNS: dict[str, tuple[str, Callable[[Row], Value]]] = {
    "mean": ("mean", _mean),
    "ruler_effective_length": ("effective length", _effective),
    "difference": ("minus {baseline}", _difference),
    "verdict": ("verdict", _verdict),
    "p_holm": ("p (Holm)", _p_holm),
    "logprob": ("log-prob", _logprob),
    "samples": ("samples", _samples),
    "model_difference": ("minus {model}", _across),
    "model_verdict": ("verdict over models", _across_verdict),
    "trained_as": ("trained as", _of_training(lambda trained, _: trained.variant)),
    "trained_rope": ("trained RoPE", _of_training(lambda trained, _: trained.rope)),
    "seed": ("seed", _of_training(lambda trained, row: row.seeds or trained.seed)),
    "steps": ("steps", _of_training(lambda trained, row: row.steps or trained.step_words)),
}
