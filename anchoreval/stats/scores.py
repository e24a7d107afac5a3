"""`Scores`: records reduced to columns of numbers, so that boards of many runs fit into memory."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from typing import Any

from anchoreval.errors import RunError
from anchoreval.schema import OUTCOMES, Json, Outcome, Record, outcome_of
from anchoreval.stats.sources import unit_of

DECILES = 10
NOWHERE = -1  # the decile of a sample that has no single depth, and the environment of a record that names none
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
        logprob, environment = per_token_of(of("reference_logprob"), of("reference_tokens")), of("environment")
        self.index.append(index)
        self.score.append(math.nan if score is None else score)
        self.logprob.append(math.nan if logprob is None else logprob)
        self.prompt.append(mark(of("prompt_sha256")))
        self.cluster.append(mark(repr(unit_of(self.task, of("sample_id"), index, of("references"), facts))))
        self.decile.append(decile(facts))
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
        columns = {name: getattr(self, name) for name in _COLUMNS}
        kept: dict[str, Any] = {
            name: array(column.typecode, map(column.__getitem__, at)) for name, column in columns.items()
        }
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


def decile(facts: Mapping[str, Json]) -> int:
    """Return the tenth of the context, 0..9, of the `single_depth`; NOWHERE without one."""
    depth = single_depth(facts)
    return NOWHERE if depth is None or not 0 <= depth <= 1 else min(DECILES - 1, int(DECILES * depth))


def per_token(record: Record) -> float | None:
    """Return the reference's log-probability per token, in nats; None if the record has none."""
    return per_token_of(record.reference_logprob, record.reference_tokens)


def per_token_of(logprob: float | None, tokens: int) -> float | None:
    """Return the log-probability per token, in nats, from the sum and the number of tokens; None without either."""
    return None if logprob is None or tokens <= 0 else logprob / tokens


def mark(text: str) -> int:
    """Return a 64-bit hash of any text, the same in every process."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
