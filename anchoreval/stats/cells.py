"""Records -> columns of numbers -> cells: the scores of one (task, length, arm), and the mean over several.

Samples of one source are not independent of each other. A source is a text that several questions ask about, or a
haystack that contains several needles. Text that all samples of a benchmark share (its instructions, RULER's one
haystack of essays) is not a source: it is part of the benchmark.

The interval of a mean over T tasks adds 4 / T pseudo-scores, half of them right, to each task, and is Wald's interval
about the mean of those (Agresti & Coull 1998 for one proportion, Price & Bonett 2004 for several), with the unbiased
variance of each task. If scores share sources, whole sources are added, of the effective size of the task's sources
(intervals.py). Combining the intervals of 13 tasks instead (MOVER) covered only 86 to 90% when tasks are near the
ceiling.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from statistics import fmean
from typing import Any

from anchoreval.errors import RunError
from anchoreval.schema import OUTCOMES, Json, Outcome, Record, outcome_of
from anchoreval.stats.intervals import LEVEL, Z95, Method, degrees, mean_interval, units_of

DECILES = 10
NOWHERE = -1  # the decile of a sample that has no single depth, and the environment of a record that names none
PSEUDO = 4.0  # total number of pseudo-scores over all tasks
ENOUGH = 0.9  # share of a length; tables have a note on cells below it
#: Fields of lm-eval's rows that hold or name the text that several rows ask about; the first one in a row counts.
PASSAGES = (
    "passage", "article", "paragraph", "context", "story", "document", "background", "source_id", "goal",
)  # fmt: skip
QA_BLOCK = 24  # so many neighbouring generated questions of ruler-balanced/qa_* are about the same invented people
MMLU_PASSAGE = "This question refers to the following information."  # the passage follows, the last line asks
Place = tuple[str, int]  # (task, length)
Key = tuple[str, int, str]  # (task, length, arm)
_NUMBER: Mapping[str, int] = {outcome: number for number, outcome in enumerate(OUTCOMES)}


@dataclass(slots=True)
class Scores:
    """The records of one arm at one task and length, as columns with one entry per record, in order.

    `score`, `logprob`  NaN if the record has none; `logprob` is per token
    `prompt`, `cluster`, `output`
                        64-bit marks of the prompt's hash, of the sample's source, and of the answer
    `decile`            the tenth of the context with the sample's single depth, or NOWHERE
    `outcome`           the outcome's number in the enum
    `run`               the number of the run on a board
    `stopped`           the phrase of the verdict that stopped the cell; empty without one
    """

    task: str = ""
    length: int = 0
    run: int = 0
    stopped: str = ""
    index: array[int] = field(default_factory=lambda: array("q"))
    score: array[float] = field(default_factory=lambda: array("d"))
    logprob: array[float] = field(default_factory=lambda: array("d"))
    prompt: array[int] = field(default_factory=lambda: array("Q"))
    cluster: array[int] = field(default_factory=lambda: array("Q"))
    decile: array[int] = field(default_factory=lambda: array("b"))
    output: array[int] = field(default_factory=lambda: array("Q"))
    outcome: array[int] = field(default_factory=lambda: array("b"))
    environment: array[int] = field(default_factory=lambda: array("q"))

    def add(self, of: Callable[[str], Any]) -> None:
        """Add a record; `of` returns its fields by name. Raise TypeError or ValueError for a field of a wrong type."""
        score, facts, index = of("score"), of("facts"), of("index")
        logprob, tokens, environment = of("reference_logprob"), of("reference_tokens"), of("environment")
        if logprob is not None:
            logprob = logprob / tokens if tokens > 0 else None
        depth = single_depth(facts)
        self.index.append(index)
        self.score.append(math.nan if score is None else score)
        self.logprob.append(math.nan if logprob is None else logprob)
        self.prompt.append(mark(of("prompt_sha256")))
        self.cluster.append(mark(repr(unit_of(self.task, of("sample_id"), index, of("references"), facts))))
        self.decile.append(NOWHERE if depth is None or not 0 <= depth <= 1 else min(DECILES - 1, int(DECILES * depth)))
        self.output.append(mark(of("output")))
        self.outcome.append(_NUMBER[of("outcome") or outcome_of(of("finish"), of("output"), bool(of("choices")))])
        self.environment.append(NOWHERE if environment is None else environment)

    def packed(self) -> bytes:
        """Return all columns as bytes, in the order of this machine."""
        return b"".join(getattr(self, name).tobytes() for name in _COLUMNS)

    @classmethod
    def unpacked(cls, task: str, length: int, packed: bytes) -> Scores:
        """Return the scores whose columns are these bytes."""
        scores, at = cls(task, length), 0
        count = len(packed) // ROW_BYTES
        for name in _COLUMNS:
            column = getattr(scores, name)
            size = count * column.itemsize
            column.frombytes(packed[at : at + size])
            at += size
        return scores

    def outcome_at(self, i: int) -> Outcome:
        """Return the outcome of the sample at a position."""
        return OUTCOMES[self.outcome[i]]

    def sample(self, i: int) -> str:
        """Return the id of the sample at a position."""
        return f"{self.task}@{self.length}#{self.index[i]}"

    def require_each_once(self, arm: str, where: str = "") -> None:
        """Raise RunError with the first sample that has two records."""
        if len(set(self.index)) < len(self.index):
            twice = next(i for i, index in enumerate(self.index) if index in self.index[:i])
            raise RunError(f"{where}two records of sample {self.sample(twice)} under arm {arm}")

    def silent(self) -> Scores:
        """Return the scores without log-probabilities."""
        return replace(self, logprob=array("d", [math.nan]) * len(self.index))

    def at_decile(self, depth: int) -> Scores:
        """Return the entries of one tenth of the context."""
        at = [i for i, tenth in enumerate(self.decile) if tenth == depth]
        kept: dict[str, Any] = {}
        for name in _COLUMNS:
            column = getattr(self, name)
            kept[name] = array(column.typecode, [column[i] for i in at])
        return replace(self, stopped="", **kept)


_COLUMNS = [column.name for column in fields(Scores) if column.default_factory is not MISSING]
ROW_BYTES = sum(getattr(Scores(), name).itemsize for name in _COLUMNS)


def scores_of(records: Iterable[Record]) -> dict[Key, Scores]:
    """Return the scores of every (task, length, arm), in the order of the first record of each.

    Raise RunError if an arm has two records of one sample.
    """
    by_key: dict[Key, Scores] = {}
    for record in records:
        key = record.task, record.length, record.arm
        if key not in by_key:
            by_key[key] = Scores(record.task, record.length)
        by_key[key].add(partial(getattr, record))
    for (*_, arm), scores in by_key.items():
        scores.require_each_once(arm)
    return by_key


def by_arm(records: Iterable[Record], arms: Iterable[str] = ()) -> dict[str, dict[Place, Scores]]:
    """Return the scores of every arm by task and length, `arms` first; raise RunError as `scores_of` does."""
    cells: dict[str, dict[Place, Scores]] = {arm: {} for arm in arms}
    for (task, length, arm), scores in scores_of(records).items():
        cells.setdefault(arm, {})[task, length] = scores
    return cells


def single_depth(facts: Mapping[str, Json]) -> float | None:
    """Return the depth in the context, 0..1, of the only needle or gold document; None for none or several."""
    depths = facts.get("depths", facts.get("depth"))
    if isinstance(depths, list):
        depths = depths[0] if len(depths) == 1 else None
    return depths if isinstance(depths, int | float) and not isinstance(depths, bool) else None


def per_token(record: Record) -> float | None:
    """Return the reference's log-probability per token, in nats; None if the record has none."""
    logprob, tokens = record.reference_logprob, record.reference_tokens
    return None if logprob is None or tokens <= 0 else logprob / tokens


def mark(text: str) -> int:
    """Return a 64-bit hash of any text, the same in every process."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def cluster_of(record: Record) -> Hashable:
    """Return a key that is equal for records that are not independent of each other."""
    return unit_of(record.task, record.sample_id, record.index, record.references, record.facts)


def unit_of(task: str, sample_id: str, index: int, references: Sequence[str], facts: Mapping[str, Json]) -> Hashable:
    """Return the source that a sample names; without one, its number and references, which are equal at every length.

    Most generators draw the same needle for sample i of a task at every length. If a generator does not, the references
    differ, and so do the units. At one length every number occurs once.
    """
    source = source_of(task, sample_id, index, facts)
    return (task, index, *references) if source == sample_id else source


def source_of(task: str, sample_id: str, index: int, facts: Mapping[str, Json]) -> Hashable:
    """Return the source of a sample with these facts: a document, a story or a row; else the sample's id.

    The fact `source` names it: by the hash or name of a text, which several tasks may share, or by a number within the
    task. Older records without that fact have the number of RULER's question or of BABILong's story. The numbers of
    ruler-balanced's invented people repeat every 24 samples, so the block of the sample is part of the source.
    """
    if facts.get("haystack") == "generated" and task.startswith("ruler-balanced/qa_"):
        task = f"{task}, people {index // QA_BLOCK}"
    source = facts.get("source")
    if isinstance(source, str):
        return "source", source
    if source is not None:
        return task, "source", str(source)
    if "lm_eval" in facts:
        return _row(facts) or sample_id
    for fact in ("question", "story"):
        if isinstance(facts.get(fact), int):
            return task, fact, str(facts[fact])
    return sample_id


def _row(facts: Mapping[str, Json]) -> Hashable:
    """Return the passage that a row of lm-eval asks about, else the row, which several tasks of a folder may share."""
    task, row = facts["lm_eval"], facts.get("doc")
    if not isinstance(task, Mapping) or not isinstance(row, Mapping):
        return None
    question = row.get("question")
    passages = (name for name in PASSAGES if isinstance(row.get(name), str) and row[name].strip())
    if passage := next(passages, None):
        kind, text = passage, row[passage]
    elif isinstance(question, str) and question.startswith(MMLU_PASSAGE):
        kind, text = "passage", question.rstrip().rpartition("\n")[0]
    else:
        kind, text = "row", json.dumps(row, sort_keys=True, default=str)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    return "rows", str(task.get("folder")), kind, digest


@dataclass(frozen=True, slots=True)
class Sampled:
    """How the scores of one task vary: variance, number of independent scores, degrees of freedom.

    If scores share sources, `independent` counts sources, and `variance` is that of so many independent scores whose
    mean is as uncertain. `df` is None for right/wrong scores that share no source, because their variance follows from
    their mean. `sources` names the sources, and `shares` holds what each adds to the deviation of the mean.
    """

    variance: float
    independent: float
    df: float | None
    sources: Sequence[Hashable] = field(default=(), repr=False)
    shares: Sequence[float] = field(default=(), repr=False)


def sampled(scores: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Sampled:
    """Return how scores vary; `clusters` names the source of each score."""
    mean, units = fmean(scores), units_of(scores, clusters)
    variance = max(0.0, fmean(score * score for score in scores) - mean * mean)
    shares = dict.fromkeys(clusters or (), 0.0)
    for score, source in zip(scores, clusters or (), strict=bool(clusters)):
        shares[source] += (score - mean) / len(scores)
    marks = [source for source in shares if type(source) is int and 0 <= source < 2**64]
    packed = array("Q", marks) if len(marks) == len(shares) else list(shares)  # eight bytes each
    columns = packed, array("d", shares.values())
    if len(units.sizes) < len(scores):
        alone, together = variance / len(scores), math.fsum(share * share for share in shares.values())
        return Sampled(max(alone, together) * units.effective, units.effective, degrees(units.sizes), *columns)
    right_or_wrong = all(score in (0, 1) for score in scores)
    return Sampled(variance, len(scores), None if right_or_wrong else len(scores) - 1, *columns)


def average_interval(parts: Sequence[tuple[float, float, Sampled]]) -> tuple[float, float]:
    """Return the 95% interval of the mean of several tasks in 0..1; `parts` are (weight, mean, Sampled) of each.

    A source that several parts share (such as the same needle at every length) widens the interval.
    """
    from scipy.special import stdtrit

    total, added = math.fsum(weight for weight, _, _ in parts), PSEUDO / len(parts)
    centre, errors = 0.0, []
    for weight, mean, scores in parts:
        n = scores.independent + added
        pseudo = (scores.independent * mean + added / 2) / n
        square = (scores.independent * (scores.variance + mean * mean) + added / 2) / n
        centre += weight / total * pseudo
        few = max(2.0, scores.independent)  # for the unbiased variance: n / (n - 1)
        errors.append(((weight / total) ** 2 * max(0.0, square - pseudo * pseudo) / n * few / (few - 1), scores.df))

    # The variance relative to parts without common sources, from the sum over parts of what each source adds, as for
    # clusters (Liang & Zeger 1986).
    together: dict[Hashable, float] = {}
    apart = 0.0
    for weight, _, scores in parts:
        for source, share in zip(scores.sources, scores.shares, strict=True):
            together[source] = together.get(source, 0.0) + weight * share
            apart += (weight * share) ** 2
    overlap = max(1.0, math.fsum(share * share for share in together.values()) / apart) if apart > 0 else 1.0

    # Student's quantile for a sum of variances (Satterthwaite 1946), or the normal one if none is estimated.
    variance = math.fsum(error for error, _ in errors)
    estimated = math.fsum(error * error / max(1, df) for error, df in errors if df is not None)
    quantile = Z95
    if estimated:
        df = max(1.0, variance * variance / estimated / overlap)
        quantile = float(stdtrit(df, 1 - (1 - LEVEL) / 2))
    half = quantile * math.sqrt(overlap * variance)
    value = math.fsum(weight * mean for weight, mean, _ in parts) / total
    return max(0.0, min(centre - half, value)), min(1.0, max(centre + half, value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The counts of samples asked and scored, and the mean of the scores with its interval, None if nothing was scored.

    `logprob` is the mean over samples of the reference's log-probability per token, in nats. `outcomes` counts samples
    by outcome, and `sources` is the number of sources of the scores.
    """

    asked: int
    scored: int
    mean: float | None
    low: float | None
    high: float | None
    method: Method | None = None
    logprob: float | None = None
    outcomes: Mapping[Outcome, int] = field(default_factory=dict, hash=False)
    sampled: Sampled | None = None
    sources: int = 0

    @property
    def lost(self) -> int:
        """The number of samples without a score."""
        return self.asked - self.scored

    @property
    def as_wrong(self) -> float:
        """The mean if every sample without a score counts as wrong."""
        return (self.mean or 0.0) * self.scored / self.asked


def average_ends(parts: Sequence[tuple[float, Asked]]) -> tuple[float, float]:
    """Return the 95% interval of the weighted mean of the scored cells; a single cell keeps its own interval."""
    only = parts[0][1]
    if len(parts) == 1 and only.low is not None and only.high is not None:
        return only.low, only.high
    scored = [
        (weight, cell.mean, cell.sampled or Sampled(cell.mean * (1 - cell.mean), cell.scored, None))
        for weight, cell in parts
        if cell.mean is not None
    ]
    return average_interval(scored)


@dataclass(frozen=True, slots=True)
class Cell(Asked):
    """The scores of one (task, length, arm)."""

    task: str
    length: int
    arm: str


def cells(records: Iterable[Record]) -> list[Cell]:
    """Return one cell per (task, length, arm), in the order of the first record of each.

    Raise RunError if an arm has two records of one sample.
    """
    return [Cell(*key, **figures([scores])) for key, scores in scores_of(records).items()]


def figures(parts: Sequence[Scores]) -> dict[str, Any]:
    """Return the fields of a `Cell` that follow from the samples of all parts together."""
    scored = [
        (value, source)
        for part in parts
        for value, source in zip(part.score, part.cluster, strict=True)
        if value == value
    ]
    scores, sources = [value for value, _ in scored], [source for _, source in scored]
    logprobs = [value for part in parts for value in part.logprob if value == value]
    outcomes = Counter(OUTCOMES[number] for part in parts for number in part.outcome)
    low, high, method = mean_interval(scores, sources) if scores else (None, None, None)
    return {
        "asked": sum(len(part.index) for part in parts),
        "scored": len(scores),
        "mean": fmean(scores) if scores else None,
        "low": low,
        "high": high,
        "method": method,
        "logprob": fmean(logprobs) if logprobs else None,
        "outcomes": {outcome: outcomes[outcome] for outcome in OUTCOMES if outcomes[outcome]},
        "sampled": sampled(scores, sources) if scores else None,
        "sources": len(set(sources)),
    }


def counted(records: Iterable[Record]) -> dict[Outcome, int]:
    """Return outcome -> number of records, in the order of the enum."""
    counts = Counter(record.outcome for record in records)
    return {outcome: counts[outcome] for outcome in OUTCOMES if counts[outcome]}


def underfilled(records: Iterable[Record]) -> dict[Place, float]:
    """Return (task, length) -> the mean share of the length that its samples take, 0..1, where that is below ENOUGH.

    Tasks whose samples do not fill a length are left out.
    """
    shares: dict[Place, list[float]] = {}
    for record in records:
        tokens = record.facts.get("tokens")
        if record.length and isinstance(tokens, int):
            shares.setdefault((record.task, record.length), []).append(tokens / record.length)
    means = {place: fmean(values) for place, values in shares.items()}
    return {place: share for place, share in means.items() if share < ENOUGH}
