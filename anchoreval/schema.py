"""The vocabulary: what one prompt is at each stage of its path. Frozen, standard library only.

Sample (text) -> Request (token ids) -> Output (what the model said) -> Score -> Record (the line on disk).
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, get_args

Role = Literal["preamble", "document", "line", "query", "answer_prefix"]
Finish = Literal["stop", "length", "error", "scored"]  # scored: a text, behind which nothing was generated
Outcome = Literal["answered", "cut", "empty", "unclosed", "refused", "failed", "not_finite", "does_not_fit"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
#: Outcomes that the benchmark's own rule scores; a sample with another has no score and is asked again.
SCORED: frozenset[Outcome] = frozenset({"answered", "cut", "empty"})
Json = Any  # what json.dumps takes
#: Facts of an output, which follow from no prompt: the tokens that a server counted in the prompt, and in the second
#: one of samples in two steps, where they are not those that were meant; why the reference has no log-probability.
PROMPT_READ, SECOND_PROMPT_READ, NO_LOGPROB = (
    "server_prompt_tokens", "second_server_prompt_tokens", "no_reference_logprob",
)  # fmt: skip
OUTPUT_FACTS: frozenset[str] = frozenset({PROMPT_READ, SECOND_PROMPT_READ, NO_LOGPROB})
NATURAL = 0  # the length of a sample that is as long as it is
GENERATED = "generated"  # what facts say of a text that the package made in place of a published one
PLACEBO = "~placebo"  # behind an arm's name: the same arm, computed in other chunks and batches


def original_of(arm: str) -> str | None:
    """Return the name of the arm that `arm` is the placebo of; None where it is none."""
    return arm.removesuffix(PLACEBO) if arm.endswith(PLACEBO) else None


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a prompt. Masks and per-document positions act on documents: the pieces of role `document`, which
    stand for themselves, and of role `line`, lines of one haystack, which may be joined with their neighbours.
    """

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Choice:
    """An answer to choose from: `text`, whose log-probability is taken behind the prompt and `before`."""

    text: str
    before: str = ""


@dataclass(frozen=True, slots=True)
class Continuation:
    """A choice as token ids behind the prompt's, of which the last `counted` are those of the answer itself."""

    token_ids: tuple[int, ...]
    counted: int


class ChoiceScore(NamedTuple):
    """The natural log-probability of a choice, and whether each of its tokens was the most likely one."""

    logprob: float
    greedy: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """One test item as text.

    `segments` joined without separator are the prompt as sent under the base template, answer prefix included.
    `length` is in tokens of the model under test: all it is fed and its answer budget, or, for tasks that cut prompts,
    where they are cut; NATURAL for tasks whose prompts are neither filled nor cut. `facts` holds JSON values only. The
    last token of `end`, where it is not empty, ends the answer as EOS does, and the first new token is then neither of
    the two. `stop` are texts that end the answer. A sample with `choices` is judged by their log-probabilities; its
    fact `gold` is the index of the right one. Where `then` is not empty, a second prompt is asked with the answer to
    this one between its two texts, and its answer is judged. Where `ids` is not empty, nothing is asked: they are the
    tokens of the text, which is scored one by one behind the anchor, or without an anchor behind its own first token.
    """

    task: str
    length: int
    index: int
    segments: tuple[Segment, ...]
    references: tuple[str, ...]
    max_new_tokens: int
    facts: Mapping[str, Json] = field(default_factory=dict)
    end: str = ""
    stop: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()
    then: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        """`suite/task@length#index`, enough to make the sample again from the run's header."""
        return f"{self.task}@{self.length}#{self.index}"

    @property
    def prompt(self) -> str:
        """The whole text that is sent."""
        return "".join(segment.text for segment in self.segments)

    @property
    def prompt_sha256(self) -> str:
        """SHA-256 of the text that is sent."""
        return hashlib.sha256(self.prompt.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Wrap:
    """The text that a chat template puts before and after the user's turn; both empty for the base template.

    `trims` says that it takes white space off both edges of the turn.
    """

    opening: str = ""
    closing: str = ""
    trims: bool = False


class Tokenizer(Protocol):
    """What sample generators may know of a tokenizer."""

    def count(self, text: str) -> int:
        """Tokens of `text`, no special tokens added."""
        ...

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Character span (start, end) of every token of `text`, no special tokens added."""
        ...

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """Token ids of `text`; with `special_tokens`, what the checkpoint itself puts around a text."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, special tokens left out."""
        ...


_TEXT: tuple[Role, ...] = ("document",)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt as token ids, the anchor token first.

    `segment_ids[i]` is the index into `roles` of the segment that token i belongs to (the anchor: -1).
    `reference_ids` is the reference answer that is teacher-forced after the prompt, as much of it as `max_new_tokens`
    could say; empty when there is none. `end_ids` end the answer as EOS does; the first `min_new_tokens` tokens are
    neither EOS nor one of them. `choices` are scored behind the prompt, each for itself; `gold` is the right one. A
    reference behind which nothing may be said is a text that is scored as a whole.
    """

    sample_id: str
    token_ids: tuple[int, ...]
    segment_ids: tuple[int, ...]
    roles: tuple[Role, ...]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    reference_ids: tuple[int, ...] = ()
    end_ids: tuple[int, ...] = ()
    min_new_tokens: int = 0
    choices: tuple[Continuation, ...] = ()
    gold: int | None = None

    @property
    def reference_tokens(self) -> int:
        """Tokens whose log-probability is that of the reference: the right choice's where there are choices."""
        return len(self.reference_ids) if self.gold is None else self.choices[self.gold].counted

    @property
    def scores_text(self) -> bool:
        """Whether the reference is a text that is scored, nothing being generated."""
        return self.max_new_tokens == 0 and bool(self.reference_ids)

    @property
    def unsaid(self) -> Finish:
        """How a request ends for which nothing is generated."""
        return "stop" if self.choices else "scored" if self.scores_text else "length"

    def as_text(self) -> Request:
        """Return the prompt and the text that is scored behind it as one prompt, the text being a document."""
        tokens = len(self.reference_ids)
        segments = (*self.segment_ids, *[len(self.roles)] * tokens)
        whole, roles = (*self.token_ids, *self.reference_ids), (*self.roles, *_TEXT)
        return replace(self, token_ids=whole, segment_ids=segments, roles=roles, reference_ids=())


def uses_generated(facts: Mapping[str, Json]) -> bool:
    """Whether a sample with these facts holds text that the package made in place of a published one."""
    return GENERATED in (facts.get("haystack"), facts.get("background"))


def outcome_of(finish: Finish, text: str, choices: bool = False) -> Outcome:
    """Return the outcome that follows from how an answer ended, where the backend names no other.

    `answered`: the model ended it, or `choices` or a text were scored; `cut`: it filled its budget of new tokens;
    `empty`: it holds nothing but white space; `failed`: there is no answer. A backend names the rest itself: `unclosed`
    (the budget went into reasoning that never ended), `refused` (a server would not take the request), `not_finite`
    (logits or log-probabilities are not numbers), `does_not_fit` (prompt and answer need more positions than there
    are).
    """
    if finish == "error":
        return "failed"
    if choices or finish == "scored":
        return "answered"
    if not text.strip():
        return "empty"
    return "cut" if finish == "length" else "answered"


def rounded(logprob: float) -> float:
    """Return a log-probability as float32 holds it."""
    nearest: float = struct.unpack("<f", struct.pack("<f", logprob))[0]
    return nearest


@dataclass(frozen=True, slots=True)
class Output:
    """What a backend made of one request.

    `reference_logprob` is the summed natural log-probability of `reference_ids` (None when there are none), and
    `token_logprobs` that of each of them, as float32 holds it (None where it was not computed);
    `choices` has a score for each choice, in order; `seconds` is the wall time of the batch divided by its size;
    `lost` is the outcome of a request without an answer, where the backend knows more than that it failed; `facts` are
    those of `OUTPUT_FACTS` that hold, which stand on the record beside the sample's.
    """

    sample_id: str
    text: str
    token_ids: tuple[int, ...]
    finish: Finish
    reference_logprob: float | None
    seconds: float
    why: str | None = None
    choices: tuple[ChoiceScore, ...] = ()
    lost: Outcome | None = None
    facts: Mapping[str, Json] = field(default_factory=dict)
    token_logprobs: tuple[float, ...] | None = None

    @property
    def logprob_per_token(self) -> float | None:
        """The mean log-probability of the tokens of a reference, in nats; None where it was not computed."""
        tokens = self.token_logprobs
        return self.reference_logprob / len(tokens) if tokens and self.reference_logprob is not None else None

    @property
    def outcome(self) -> Outcome:
        """What became of the request: `lost`, else what follows from text and finish."""
        return self.lost or outcome_of(self.finish, self.text, bool(self.choices))


@dataclass(frozen=True, slots=True)
class Score:
    """A judgement: `value` in 0..1, or None with the reason in `why`, which may also hold a note on a value."""

    value: float | None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One line of records.jsonl; `key` identifies prompt tokens + weights + arm + decoding + engine.

    `choices` stands on the line only where the sample has choices; `output` is then the likeliest of them. `outcome`
    follows from `finish` and `output` on lines of format 1, which do not hold it. `environment` is the index, in the
    header's `environments`, of the machine and versions that computed the line; None on lines of format 1.
    """

    key: str
    sample_id: str
    task: str
    length: int
    index: int
    arm: str
    prompt_sha256: str
    prompt_tokens: int
    references: tuple[str, ...]
    facts: Mapping[str, Json]
    output: str
    output_tokens: int
    finish: Finish
    score: float | None
    why: str | None
    reference_logprob: float | None
    reference_tokens: int
    seconds: float
    choices: tuple[ChoiceScore, ...] = ()
    outcome: Outcome | None = None
    environment: int | None = None

    def __post_init__(self) -> None:
        if self.outcome is None:
            object.__setattr__(self, "outcome", outcome_of(self.finish, self.output, bool(self.choices)))


class Progress:
    """What a piece of work says of its way; nobody listens to this one."""

    def __call__(self, done: int) -> None:
        """So many more are done."""

    def had(self, done: int) -> None:
        """So many more are done, which were done before this process began."""

    def at(self, what: str) -> None:
        """What is being computed from here on."""


SILENT = Progress()
#: Opens the progress of so many units of work; none (0) is a stage before the work, of which only the time is known.
#: What it gives is called with how many more are done; a plain function is told nothing else.
Watch = Callable[[int], AbstractContextManager[Callable[[int], None]]]


@contextlib.contextmanager
def unwatched(total: int) -> Iterator[Progress]:
    """Progress that is not shown; `total` is the number of units to come."""
    yield SILENT


class _Counted(Progress):
    """Progress that a function of the caller's own is told of."""

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count

    def __call__(self, done: int) -> None:
        self._count(done)

    def had(self, done: int) -> None:
        self._count(done)


@contextlib.contextmanager
def work(watch: Watch, total: int, what: str = "") -> Iterator[Progress]:
    """The progress of so many units, or of the stage `what` before them."""
    with watch(total) as given:
        progress = given if isinstance(given, Progress) else _Counted(given)
        progress.at(what)
        yield progress
