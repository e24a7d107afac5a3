"""What a committed run shows, in the words of `compare`."""

from __future__ import annotations

from statistics import fmean

from anchoreval import compare
from anchoreval.records.run import Run
from anchoreval.reports.words import interval, logprob_interval, nats, percent, size
from anchoreval.schema import PLACEBO
from anchoreval.stats import Contrast, Row, cluster_of, mean_interval
from findings.evidence import HOSTS, MODEL
from findings.words import Finding, Sentence, grid

RANKS = {"bf16": (3, 7, 6), "bf16-angle": (5, 12, 8)}  # of scores, texts, log-probabilities


def finding(title: str, run: Run) -> Finding:
    """Sentences and tables of every arm against the first."""
    contrasts = compare([run])
    first = contrasts[0].baseline
    return Finding(
        title, tuple(_sentences(run, contrasts)), (_pooled(contrasts, first), _tasks(run), _zeros(run, first))
    )


def _where(run: Run) -> str:
    header = run.header
    lengths = " and ".join(f"{length:,}" for length in header["lengths"])
    suites = dict.fromkeys(str(task).split("/")[0] for task in header["tasks"])
    names = ", ".join(name.upper() if name == "ruler" else name for name in suites)
    form = "chat template" if header["template"] == "chat" else "raw text"
    count = len(header["tasks"])
    return f"{names} at {lengths} tokens, {count} task{'s' * (count > 1)}, {form}, {HOSTS[header['backend']['dtype']]}"


def _sentences(run: Run, contrasts: list[Contrast]) -> list[Sentence]:
    where, said = _where(run), []
    for one in contrasts:
        row, name = one.pooled, one.arm
        if name.endswith(PLACEBO):
            said.append(Sentence(60, _placebo(where, one)))
            continue
        ranks = RANKS.get(name, (50, 51, 52))
        said.append(Sentence(ranks[0], _score(where, one)))
        if row.difference.same_outputs is not None:
            said.append(Sentence(ranks[1], _outputs(where, one, same_texts(run, one.arm, one.baseline))))
        if row.difference.logprob is not None:
            said.append(Sentence(ranks[2], _logprob(where, one)))
    return said


def _floor_of_scores(row: Row) -> str:
    if row.floor is None:
        return "no placebo was run"
    return f"floor: the placebo changes {100 * row.floor.discordant:.1f}% of scores, their mean by " + (
        f"{100 * row.floor.difference:.2f}"
    )


def _score(where: str, one: Contrast) -> str:
    row, difference = one.pooled, one.pooled.difference
    seen = ""
    if not row.told and difference.detectable is not None:
        least = percent(difference.detectable)
        seen = f"; the smallest effect that so many pairs show four times in five is {least} points"
    return (
        f"`{MODEL}`, {where}: `{one.arm}` minus `{one.baseline}` is {size(row)} points over "
        f"{difference.pairs:,} pairs: {row.says}{seen}; {_floor_of_scores(row)}."
    )


def _outputs(where: str, one: Contrast, ends: tuple[float, float]) -> str:
    row, difference = one.pooled, one.pooled.difference
    same, pairs = difference.same_outputs or 0, difference.pairs
    floor = "no placebo was run"
    if row.floor is not None and row.floor.outputs is not None:
        floor = f"floor: the placebo changes {100 * row.floor.outputs:.1f}% of texts"
    return (
        f"`{MODEL}`, {where}: `{one.arm}` writes the text that `{one.baseline}` writes, to the letter, in {same:,} of "
        f"{pairs:,} samples ({percent(same / pairs)}% {interval(*ends)}), and another score in "
        f"{difference.discordant:,}; {floor}."
    )


def _logprob(where: str, one: Contrast) -> str:
    row, difference = one.pooled, one.pooled.difference
    assert difference.logprob is not None
    floor = "no placebo was run"
    if row.floor is not None and row.floor.logprob_spread is not None:
        floor = f"floor: {row.floor.logprob_spread:.1e} nats root mean square under the placebo"
    return (
        f"`{MODEL}`, {where}: the reference answer's log-probability under `{one.arm}` minus `{one.baseline}` is "
        f"{nats(difference.logprob)} {logprob_interval(difference)} nats per token over {difference.logprob_pairs:,} "
        f"pairs: {row.logprob_says}; {floor}."
    )


def _placebo(where: str, one: Contrast) -> str:
    row, difference = one.pooled, one.pooled.difference
    nat = "" if difference.logprob is None else (
        f" and {nats(difference.logprob)} {logprob_interval(difference)} nats per token"
    )  # fmt: skip
    return (
        f"`{MODEL}`, {where}: the placebo, `{one.baseline}` once more in other chunks and batches, changes "
        f"scores by {size(row)} points over {difference.pairs:,} pairs{nat}: {row.says}."
    )


def same_texts(run: Run, arm: str, baseline: str) -> tuple[float, float]:
    """The 95% interval of the share of samples on which two arms write the same; those of one source count as one."""
    texts = {
        name: {r.sample_id: r for r in run.records if r.arm == name and r.output is not None}
        for name in (arm, baseline)
    }
    shared = [key for key in texts[arm] if key in texts[baseline]]
    same = [float(texts[arm][key].output == texts[baseline][key].output) for key in shared]
    return mean_interval(same, [cluster_of(texts[arm][key]) for key in shared])[:2]


def _pooled(contrasts: list[Contrast], first: str) -> str:
    head = [f"minus `{first}`, all pairs", "score x 100", "same text", "nats per token", "score: verdict"]
    rows = []
    for one in contrasts:
        row, difference = one.pooled, one.pooled.difference
        nat = "–" if difference.logprob is None else f"{nats(difference.logprob)} {logprob_interval(difference)}"
        same = "–" if difference.same_outputs is None else f"{difference.same_outputs} of {difference.pairs}"
        rows.append([f"`{one.arm}`", size(row), same, nat, row.says])
    return grid(head, rows)


def _tasks(run: Run) -> str:
    arms = [str(arm["name"]) for arm in run.header["arms"]]
    places = list(dict.fromkeys((record.task, record.length) for record in run.records))
    several = len({length for _, length in places}) > 1
    rows = []
    for task, length in places:
        scores = [
            [r.score for r in run.records if (r.task, r.length, r.arm) == (task, length, arm) and r.score is not None]
            for arm in arms
        ]
        rows.append(
            [f"{task}{f' at {length:,}' if several else ''}", *(percent(fmean(s)) if s else "–" for s in scores)]
        )
    return grid(["score x 100", *(f"`{arm}`" for arm in arms)], rows)


def _zeros(run: Run, baseline: str) -> str:
    """How many tasks nothing can be lost on."""
    scores: dict[tuple[str, int], list[float]] = {}
    for record in run.records:
        if record.arm == baseline and record.score is not None:
            scores.setdefault((record.task, record.length), []).append(record.score)
    none = sum(not any(own) for own in scores.values())
    return f"`{baseline}` scores 0 in {none} of these {len(scores)} rows: nothing can be lost there."
