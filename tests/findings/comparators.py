"""Others' rules of attention at inference beside anchor and intra-doc, as a section of docs/findings.md."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from anchoreval import compare
from anchoreval.arms.arm import parse_arm
from anchoreval.arms.patterns import SINK_WINDOW, numbers_of
from anchoreval.records.run import Run
from anchoreval.reports.words import logprob_interval, nats, percent, size
from anchoreval.schema import PLACEBO
from anchoreval.stats import Contrast
from findings.words import Finding, Sentence, grid

TITLE = "Attention at inference: Star Attention and StreamingLLM's keys beside anchor and intra-doc"
LAST = 1000  # never among the sentences at the top, which are of one model


def finding(runs: Sequence[Run]) -> Finding:
    """A sentence and a table for each run, what was compared with what, and a note on the arms."""
    sentences = [Sentence(LAST, sentence) for run in runs for sentence in (_full(run), _sinks(run)) if sentence]
    return Finding(TITLE, tuple(sentences), (*(_table(run) for run in runs), NOTE))


NOTE = (
    "The models were trained without any of these masks. `star:B` and `sink-window:S:W` are rules of arXiv 2411.17116 "
    "and 2309.17453 as [docs/arms.md](arms.md#attention) has them, with all tokens at their positions in the prompt: "
    "not the numbering of StreamingLLM's cache, so nothing here measures StreamingLLM past a model's trained length."
)


def _where(run: Run) -> str:
    header = run.header
    tasks, lengths = len(header["tasks"]), " and ".join(f"{length:,}" for length in header["lengths"])
    name = f"`{header['model']['name']}`, RULER's {tasks} tasks with several documents at {lengths} tokens"
    return f"{name}, {header['backend']['dtype']}, generated haystack"


def _full(run: Run) -> str:
    """Each arm against full attention: pairs, points, verdict."""
    contrasts = [one for one in compare([run]) if not one.arm.endswith(PLACEBO)]
    first = contrasts[0]
    each = "; ".join(f"`{one.arm}` {size(one.pooled)} ({one.pooled.says})" for one in contrasts)
    floor = next((one.pooled.floor for one in contrasts if one.pooled.floor is not None), None)
    noise = "no placebo was run" if floor is None else f"floor: {100 * floor.discordant:.1f}% of scores change"
    count = first.pooled.difference.pairs
    return f"{_where(run)}, points of score minus `{first.baseline}` over {count:,} pairs: {each}; {noise}."


def _sinks(run: Run) -> str:
    """What the sinks bring: the window with them minus the window alone."""
    kept = {sinks: name for name in _arms(run) if (sinks := numbers_of(parse_arm(name).attention, SINK_WINDOW))}
    alone = next((name for (sinks, _), name in kept.items() if sinks == 0), None)
    if alone is None:
        return ""
    contrasts = {one.arm: one for one in compare([run], baseline=alone)}
    (name,) = (name for (sinks, _), name in kept.items() if sinks)
    return f"{_where(run)}: the sinks of `{name}` add to `{alone}` {_both(contrasts[name])}."


def _both(one: Contrast) -> str:
    row, difference = one.pooled, one.pooled.difference
    assert difference.logprob is not None
    logprob = f"{nats(difference.logprob)} {logprob_interval(difference)} nats per token ({row.logprob_says})"
    return f"{size(row)} points ({row.says}) and {logprob}"


def _arms(run: Run) -> list[str]:
    return [str(arm["name"]) for arm in run.header["arms"]]


def _table(run: Run) -> str:
    """Means by arm, and the log-probability of the reference answer against the first arm."""
    contrasts = {one.arm: one.pooled for one in compare([run])}
    rows = []
    for arm in _arms(run):
        mean = percent(fmean(r.score for r in run.records if r.arm == arm and r.score is not None))
        row = contrasts.get(arm)
        if row is None or row.difference.logprob is None:
            rows.append([f"`{arm}`", mean, "–", "–"])
        else:
            gain = f"{nats(row.difference.logprob)} {logprob_interval(row.difference)}"
            rows.append([f"`{arm}`", mean, gain, row.logprob_says])
    first = _arms(run)[0]
    name = run.header["model"]["name"]
    return grid([f"`{name}`", "mean score x 100", f"nats per token minus `{first}`", "verdict"], rows)
