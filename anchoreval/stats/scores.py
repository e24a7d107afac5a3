"""What statistics keep of records: a column per number, so that boards of many runs fit into memory."""

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
NOWHERE = -1  # the decile of a sample without one single depth, and the environment of a line that names none
Place = tuple[str, int]  # (task, length)
Key = tuple[str, int, str]  # (task, length, arm)
_NUMBER: Mapping[str, int] = {outcome: number for number, outcome in enumerate(OUTCOMES)}


@dataclass(slots=True)
class Scores:
    """The records of one arm at one task and length, in their order: a column per number, an entry per record.

    `score` and `logprob` (per token) hold NaN where the record has none; `prompt`, `cluster` and `output` are 64-bit
    marks of the prompt's hash, of what makes samples dependent and of the answer; `decile` is that of the sample's one
    depth, or NOWHERE; `outcome` is its number in the enum. `run` is the number of the run on a board, `stopped` are the
    words of the verdict with which a rule stopped the cell.
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
        """One more record, `of` giving its fields by name; TypeError and ValueError where one is of the wrong type."""
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

    def outcome_at(self, i: int) -> Outcome:
        """What became of a sample, by its position."""
        return OUTCOMES[self.outcome[i]]

    def sample(self, i: int) -> str:
        """The name of a sample, by its position."""
        return f"{self.task}@{self.length}#{self.index[i]}"

    def require_each_once(self, arm: str, where: str = "") -> None:
        """Raise RunError that names a sample which is there twice."""
        if len(set(self.index)) < len(self.index):
            twice = next(i for i, index in enumerate(self.index) if index in self.index[:i])
            raise RunError(f"{where}two records of sample {self.sample(twice)} under arm {arm}")

    def silent(self) -> Scores:
        """The same without log-probabilities."""
        return replace(self, logprob=array("d", [math.nan]) * len(self.index))

    def at_decile(self, depth: int) -> Scores:
        """The entries of one tenth of the context."""
        at = [i for i, of in enumerate(self.decile) if of == depth]
        columns = {name: getattr(self, name) for name in _COLUMNS}
        kept: dict[str, Any] = {
            name: array(column.typecode, map(column.__getitem__, at)) for name, column in columns.items()
        }
        return replace(self, stopped="", **kept)


_COLUMNS = [one.name for one in fields(Scores) if one.default_factory is not MISSING]


def scores_of(records: Iterable[Record]) -> dict[Key, Scores]:
    """Return the scores of every (task, length, arm), in the order in which the records first name them.

    RunError where an arm holds two records of one sample.
    """
    found: dict[Key, Scores] = {}
    for record in records:
        key = record.task, record.length, record.arm
        if key not in found:
            found[key] = Scores(record.task, record.length)
        found[key].add(partial(getattr, record))
    for (*_, arm), scores in found.items():
        scores.require_each_once(arm)
    return found


def by_arm(records: Iterable[Record], arms: Iterable[str] = ()) -> dict[str, dict[Place, Scores]]:
    """Return the scores of every arm by task and length, `arms` first; RunError as `scores_of`."""
    found: dict[str, dict[Place, Scores]] = {arm: {} for arm in arms}
    for (task, length, arm), scores in scores_of(records).items():
        found.setdefault(arm, {})[task, length] = scores
    return found


def single_depth(facts: Mapping[str, Json]) -> float | None:
    """Where in the context, 0..1, the one needle or gold document stands; None for none or several."""
    depths = facts.get("depths", facts.get("depth"))
    if isinstance(depths, list):
        depths = depths[0] if len(depths) == 1 else None
    return depths if isinstance(depths, int | float) and not isinstance(depths, bool) else None


def decile(facts: Mapping[str, Json]) -> int:
    """The tenth of the context, 0..9, of the `single_depth`; NOWHERE without one."""
    depth = single_depth(facts)
    return NOWHERE if depth is None or not 0 <= depth <= 1 else min(DECILES - 1, int(DECILES * depth))


def per_token(record: Record) -> float | None:
    """The reference's log-probability per token, in nats; None when there is none."""
    return per_token_of(record.reference_logprob, record.reference_tokens)


def per_token_of(logprob: float | None, tokens: int) -> float | None:
    """The same from a summed log-probability, in nats, and the number of tokens."""
    return None if logprob is None or tokens <= 0 else logprob / tokens


def mark(text: str) -> int:
    """A 64-bit mark of any text, the same in every process."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
