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
#: Outcomes that the benchmark's own rule scores. A sample with any other outcome has no score and is asked again.
SCORED: frozenset[Outcome] = frozenset({"answered", "cut", "empty"})
Json = Any  # what json.dumps takes
#: Facts of an output that do not follow from the prompt. The first two are the tokens that a server counted in the
#: prompt, and in the second prompt of a sample with `then`; they are left out if just these token ids were sent.
#: The third is the reason why the reference has no log-probability.
PROMPT_READ, SECOND_PROMPT_READ, NO_LOGPROB = (
    "server_prompt_tokens", "second_server_prompt_tokens", "no_reference_logprob",
)  # fmt: skip
OUTPUT_FACTS: frozenset[str] = frozenset({PROMPT_READ, SECOND_PROMPT_READ, NO_LOGPROB})
NATURAL = 0  # `length` of samples whose prompts are neither filled nor cut to a length
GENERATED = "generated"  # value of a fact: the package generated this text in place of a published one
PLACEBO = "~placebo"  # suffix of an arm's name: the same arm, computed in other chunks and batches


def original_of(arm: str) -> str | None:
    """Return the name of the arm that `arm` is the placebo of, or None if `arm` is no placebo."""
    return arm.removesuffix(PLACEBO) if arm.endswith(PLACEBO) else None


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a prompt with its role.

    Masks and per-document positions act on documents. A segment of role `document` is one document. Segments of role
    `line` are the lines of one haystack, and neighbouring lines may be joined into one document.
    """

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Choice:
    """An answer to choose from. The log-probability is that of `text` given the prompt followed by `before`."""

    text: str
    before: str = ""


@dataclass(frozen=True, slots=True)
class Continuation:
    """A choice as the token ids that follow the prompt's. The last `counted` of them are the answer itself."""

    token_ids: tuple[int, ...]
    counted: int


class ChoiceScore(NamedTuple):
    """The natural log-probability of a choice, and whether each of its tokens was the most likely one."""

    logprob: float
    greedy: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """One test item as text.

    `segments`  joined without a separator, they are the prompt as sent under the base template, with the answer prefix
    `length`    in tokens of the model under test: everything the model is fed plus the answer budget; for tasks that
                cut prompts, the number of tokens at which they cut; NATURAL for tasks that neither fill nor cut
    `facts`     JSON values only
    `end`       text whose last token ends the answer as EOS does; empty for no such text. The first new token is then
                neither EOS nor that token
    `stop`      texts that end the answer
    `choices`   if not empty, the sample is judged by their log-probabilities; the fact `gold` is the index of the right
                choice
    `then`      if not empty, the two texts around the answer to this prompt in a second prompt. The answer to the
                second prompt is judged
    `ids`       if not empty, nothing is asked: they are the tokens of a text, and each is scored behind the anchor, or
                without an anchor behind the text's own first token
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
        """`suite/task@length#index`: with the run's header, enough to make the sample again."""
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

    `trims` is True if the template strips white space from both edges of the turn.
    """

    opening: str = ""
    closing: str = ""
    trims: bool = False


class Tokenizer(Protocol):
    """The tokenizer methods that sample generators may use."""

    def count(self, text: str) -> int:
        """Return the number of tokens of `text`, without special tokens."""
        ...

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return the character span (start, end) of every token of `text`, without special tokens."""
        ...

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the token ids of `text` and the character span of each, without special tokens."""
        ...

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """Return the token ids of `text`; with `special_tokens`, include those that the checkpoint itself adds."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Return the text of `ids` without special tokens."""
        ...


_TEXT: tuple[Role, ...] = ("document",)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt as token ids, the anchor token first.

    `segment_ids[i]` is the index into `roles` of the segment that token i belongs to (the anchor: -1).
    `reference_ids` is the reference answer that is teacher-forced after the prompt, cut to `max_new_tokens` tokens;
    empty if the sample has no reference. `end_ids` end the answer as EOS does; the first `min_new_tokens` tokens are
    neither EOS nor one of `end_ids`. Each of `choices` is scored by itself after the prompt; `gold` is the index of
    the right choice. A reference with no budget for an answer is a text that is scored as a whole.
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
        """Number of tokens in the log-probability of the reference; with choices, those of the right choice."""
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
    """Return True if a sample with these facts holds text that the package generated in place of a published one."""
    return GENERATED in (facts.get("haystack"), facts.get("background"))


def outcome_of(finish: Finish, text: str, choices: bool = False) -> Outcome:
    """Return the outcome that follows from how an answer ended, for an output whose backend names no other outcome.

    `answered`: the model ended the answer, or `choices` or a text were scored; `cut`: the answer filled its budget of
    new tokens; `empty`: the answer holds nothing but white space; `failed`: there is no answer. Backends name the other
    outcomes themselves: `unclosed` (the budget went into reasoning that never ended), `refused` (a server did not
    accept the request), `not_finite` (logits or log-probabilities are not numbers), `does_not_fit` (prompt and answer
    need more positions than the model has).
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
    """What a backend returns for one request.

    `reference_logprob` is the summed natural log-probability of `reference_ids` (None if the request has none), and
    `token_logprobs` that of each of them, as float32 holds it (None if it was not computed);
    `choices` has a score for each choice, in order (none only if `finish` is "error");
    `seconds` is the wall time of the batch divided by its size;
    `lost` is the outcome of a request without an answer, if the backend knows more than that it failed; `facts` holds
    facts named in `OUTPUT_FACTS`, which the record holds beside the facts of the sample.
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
        """`lost` if it is set, else the outcome that follows from text and finish."""
        return self.lost or outcome_of(self.finish, self.text, bool(self.choices))


def lost_output(sample_id: str, outcome: Outcome, why: str, seconds: float = 0.0) -> Output:
    """Return the output of a request without an answer."""
    return Output(sample_id, "", (), "error", None, seconds, why, lost=outcome)


@dataclass(frozen=True, slots=True)
class Score:
    """A judgement: `value` in 0..1, or None with the reason in `why`. `why` may also hold a note on a value."""

    value: float | None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One line of records.jsonl; `key` identifies prompt tokens + weights + arm + decoding + engine.

    `choices` stands on the line only if the sample has choices; `output` is then the likeliest of them. Lines of
    format 1 hold no `outcome`; theirs follows from `finish` and `output`. `environment` is the index, in the header's
    `environments`, of the machine and versions that computed the line; None on lines of format 1.
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
    """The progress of a piece of work. This base class shows nothing."""

    def __call__(self, done: int) -> None:
        """Add `done` units that this process has finished."""

    def had(self, done: int) -> None:
        """Add `done` units that were finished before this process began."""

    def at(self, what: str) -> None:
        """Name the stage that is being computed from now on."""


SILENT = Progress()
#: Opens the progress of a number of units of work. 0 units are a stage before the work, for which only the time is
#: shown. The context manager yields a function that is called with the number of newly finished units; if it yields a
#: `Progress`, the other two methods of that are called too.
Watch = Callable[[int], AbstractContextManager[Callable[[int], None]]]


@contextlib.contextmanager
def unwatched(total: int) -> Iterator[Progress]:
    """Yield a progress that shows nothing; `total` is the number of units to come."""
    yield SILENT


class _Counted(Progress):
    """A progress that calls a plain function of the caller with each number of finished units."""

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count

    def __call__(self, done: int) -> None:
        self._count(done)

    def had(self, done: int) -> None:
        self._count(done)


@contextlib.contextmanager
def work(watch: Watch, total: int, what: str = "") -> Iterator[Progress]:
    """Yield the progress of `total` units of work, or of the stage `what` before them (`total` 0)."""
    with watch(total) as opened:
        progress = opened if isinstance(opened, Progress) else _Counted(opened)
        progress.at(what)
        yield progress
