"""`Spec`: what a user asks of a run. `Prompts`: its samples and requests, made from a `Spec` and a `Model`.

`LengthRule` says which tokens a length counts, `lengths_of` at which lengths a task is run, `room_of` how many tokens a
model has room for.

A cell is one task at one length. `Prompts.cells` plans the cells; `samples`, `request` and `second` make what is sent.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from anchoreval.arms.arm import Arm
from anchoreval.cards import Task, with_settings
from anchoreval.errors import AnchorEvalError, LengthError, MissingExtra
from anchoreval.model import Model
from anchoreval.prompt import (
    DOCUMENT_RULE,
    NO_ARGS,
    Anchor,
    Form,
    Template,
    cut_documents,
    positions,
    require_no_anchor,
    template_text,
    to_request,
    trimmed,
    wrap_of,
)  # fmt: skip
from anchoreval.records.header import SCHEMA
from anchoreval.records.parts import RuleName, TaskSaid
from anchoreval.runs.dealing import names_source, shuffled
from anchoreval.schema import GENERATED, NATURAL, Json, Output, Request, Sample, Wrap, lost_output, uses_generated
from anchoreval.stats.sequential import Until, parse_until
from anchoreval.suites import MADE_OF_WORDS, generator_of, scorer_of, select_tasks
from anchoreval.suites.recipe import Recipe
from anchoreval.texts.sources import HaystackKind, Sources
from anchoreval.texts.wordlists import WordLists
from anchoreval.tokenizer import TextTokenizer

Pair = tuple[Sample, Request]  # the same prompt as text and as token ids
#: A sample and the answer to its prompt -> its second prompt. Raises OverlongPrompt if that is too long.
Second = Callable[[Sample, str], Pair]


ANCHOR_TOKENS = 1
UNWRAPPED = Wrap()


@dataclass(frozen=True, slots=True)
class LengthRule:
    """Which tokens a length counts: everything that the model is fed, plus the answer budget.

    That is the prompt's own text and, outside of it, the `anchor` token in front and the `template` that a server puts
    around a turn (counted with the given tokenizer). Recipes, answer budgets, windows, and prompts that are made again
    from a header all use this rule, and nothing else defines it.
    """

    anchor: int = ANCHOR_TOKENS
    template: int = 0

    def settled(
        self, sample: Sample, task: Task, tokenizer: TextTokenizer, room: int | None, wrap: Wrap = UNWRAPPED
    ) -> Sample:
        """Return the sample with its facts on the length, and a smaller answer budget if only the anchor is too much.

        Its turn is first trimmed as the chat template around it (`wrap`) does.

        That happens to published prompts: RULER's may exceed their length, prompts that are cut may exceed the model's
        `room`. The fact `budget_less` is the number of tokens that the budget lost.
        """
        if wrap.trims:
            sample = trimmed(sample, wrap, tokenizer)
        if self.template:
            sample = replace(sample, facts={**sample.facts, "template_tokens": self.template})
        if task.length_of == "sample":
            over = int(sample.facts.get("tokens", 0)) + self.anchor + self.template - sample.length
        elif task.length_of == "natural" or room is None or not self.anchor:
            return sample
        else:
            over = len(tokenizer.encode(sample.prompt)) + self.anchor + self.template + sample.max_new_tokens - room
        if not 0 < over <= self.anchor or over >= sample.max_new_tokens:
            return sample
        facts: dict[str, Json] = {**sample.facts, "budget_less": over}
        if "tokens" in facts:
            facts["tokens"] -= over
        return replace(sample, max_new_tokens=sample.max_new_tokens - over, facts=facts)


#: The rule of runs whose header names none: a length counts only the prompt and the answer budget.
PUBLISHED_RULE = LengthRule(anchor=0)


def template_tokens(tokenizer: TextTokenizer, anchor: Anchor = "auto", args: Mapping[str, Json] = NO_ARGS) -> int:
    """Return the number of tokens that the tokenizer's chat template puts around a user's turn.

    If no anchor is counted, the BOS in front is included, because a server puts it there anyway. Without a chat
    template, that BOS is all that is known.
    """
    if not tokenizer.chat_template:
        return 0 if anchor == "auto" else len(tokenizer.front)
    wrap = wrap_of(tokenizer, "chat", args, anchor)
    return len(tokenizer.encode(wrap.opening)) + len(tokenizer.encode(wrap.closing))


def lengths_of(task: Task | TaskSaid, asked: Sequence[int] | None, window: int | None) -> tuple[int, ...]:
    """Return the lengths that a task is run at: those asked for, else its card's.

    For a task that cuts prompts, the default is the card's longest length that the model's `window` holds. A task that
    neither fills nor cuts prompts has NATURAL as its only length.
    """
    if task.length_of == "natural":
        return (NATURAL,)
    if asked or task.length_of == "sample":
        return tuple(asked or task.lengths)
    return (max((length for length in task.lengths if window is None or length <= window), default=min(task.lengths)),)


def room_of(task: Task, window: int | None) -> int | None:
    """Return the number of positions that a prompt and its answer may take; None for no limit.

    A window that equals one of the card's cut lengths is upstream's max_length: prompts are cut at it, and answers come
    on top of it.
    """
    return None if task.length_of == "prompt" and window in task.lengths else window


@dataclass(frozen=True, slots=True)
class Spec:
    """What a user asks of a run, apart from the model: tasks, lengths, arms, and how prompts are made.

    A Spec holds no tokenizer, no prompt and no open file. `Prompts` joins a Spec to a `Model` and makes the samples.
    Make one with `Spec.of`, which checks the values and expands the names of tasks.

    `tasks`, `lengths`, `arms`
                        each task is run at each length under each arm; `lengths` None takes those of the task card
    `limit`             the largest number of samples of a cell; None takes as many as the task has
    `seed`              seeds the samples
    `template`, `template_args`, `anchor`
                        the text and the token that are put around each prompt (prompt/)
    `served`            True if the server puts prompts into its own chat template
    `sources`           where the source texts come from: haystack, word lists, files
    `single`            addresses of the tasks that were asked for one by one, not as part of a suite or set. If such a
                        task cannot be made the run fails; any other task is left out with a notice
    `group`             the number of samples that are computed together (`Group`)
    `document_tokens`   the size of the blocks that documents are joined and cut into; None keeps the task's documents
    `until`             stops each cell as soon as its verdict is in (rounds.py); None takes all samples
    `grown`             the limits at which the run had finished earlier, before it was resumed with more samples
    `length_rule`       which tokens count towards a length (`LengthRule`)
    """

    tasks: tuple[Task, ...]
    lengths: tuple[int, ...] | None
    arms: tuple[Arm, ...]
    limit: int | None
    seed: int
    template: Template
    sources: Sources
    single: frozenset[str] = frozenset()
    group: int = 64
    document_tokens: int | None = None
    until: Until | None = None
    grown: tuple[int, ...] = ()
    template_args: Mapping[str, Any] = field(default_factory=dict)
    anchor: Anchor = "auto"
    served: bool = False
    length_rule: RuleName = "fed"

    @classmethod
    def of(
        cls,
        tasks: str | Iterable[Task],
        *,
        settings: Mapping[str, Any] = NO_ARGS,
        lengths: Sequence[int] | None = None,
        arms: Sequence[Arm] = (),
        limit: int | None = None,
        seed: int = 42,
        template: Template = "base",
        template_args: Mapping[str, Any] = NO_ARGS,
        anchor: Anchor = "auto",
        haystack: HaystackKind = "published",
        data_dir: str | Path | None = None,
        text: str | Path | None = None,
        wordlists: WordLists = "3.0.1",
        context: bool = True,
        offline: bool = False,
        document_tokens: int | None = None,
        until: str | None = None,
        **more: Any,
    ) -> Spec:
        """Return the Spec of values as the command line takes them; `tasks` are names in one text, or Task objects.

        Tasks given by name get the values of `settings` as arguments, and the number of samples that these imply. Raise
        AnchorEvalError for a limit below 1, and for an arm that acts on the anchor token if `anchor` is "none".
        """
        if limit is not None and limit < 1:
            raise AnchorEvalError("--limit takes a number of samples from 1 upwards")
        for arm in arms if anchor == "none" else ():
            require_no_anchor(arm)
        if isinstance(tasks, str):
            chosen, more["single"] = select_tasks(tasks)
            given = {name: value for name, value in settings.items() if value is not None}
            tasks = []
            for task in with_settings(chosen, given):
                size = generator_of(task).size  # the number of samples that the arguments imply
                tasks.append(task.model_copy(update={"samples": size(task.address, task.args)}) if size else task)
        return cls(
            tasks=tuple(tasks), lengths=tuple(sorted(set(lengths))) if lengths else None, arms=tuple(arms), limit=limit,
            seed=seed, template=template, template_args=template_args, anchor=anchor, document_tokens=document_tokens,
            sources=Sources(data_dir, haystack, wordlists, offline=offline, context=context, text=text),
            until=parse_until(until) if until is not None else None, **more,
        )  # fmt: skip

    @property
    def form(self) -> Form:
        """The form in which prompts reach the model: the name of the template, or "server"."""
        return "server" if self.served else self.template


@dataclass(slots=True)
class Cell:
    """The samples of one task at one length.

    `samples` makes them one by one, and is consumed by whoever takes them. `asked` is how many there are to be.
    `new_tokens` is the answer budget, and `facts` are the facts, of the first sample in the task's own order.
    `shuffled` is True if the samples are taken in another order than that.
    """

    task: Task
    length: int
    samples: Iterator[Sample]
    asked: int
    new_tokens: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    shuffled: bool = False

    @property
    def place(self) -> tuple[str, int]:
        """The key of the cell: address of the task, and length."""
        return self.task.address, self.length


@dataclass(eq=False)
class Cells(list[Cell]):
    """The cells of a run that can be made; `unmakeable` cannot (task, length, reason), and `notices` are printed."""

    notices: list[str] = field(default_factory=list)
    unmakeable: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Json]]:
        """The value of `asked` in the header: the number of samples of each cell."""
        return [{"task": cell.task.address, "length": cell.length, "samples": cell.asked} for cell in self]


@dataclass(frozen=True)
class Prompts:
    """A `Spec` applied to a `Model`: makes every prompt of a run, first as a Sample (text), then as a Request (ids).

    Prompts needs the model's tokenizer and the number of its positions, but neither weights nor backend. The same
    Prompts can therefore plan a run, compute it, estimate it, and be made again from a header to verify it
    (rebuild.py). The same Spec and tokenizer always give the same prompts. In the order of use:

    `cells()`       the cells that can be made, with the first sample of each made as a test
    `samples()`     the samples of one task at one length
    `request()`     the token ids of a sample, with its documents
    `second()`      the second prompt of a sample that is asked in two steps
    `identity()`    everything that changes a record, for the header
    """

    spec: Spec
    model: Model

    @cached_property
    def rule(self) -> LengthRule:
        """The rule that says which tokens a length counts besides prompt and answer."""
        spec = self.spec
        if spec.length_rule == "published":
            return PUBLISHED_RULE
        template = template_tokens(self.model.tokenizer, spec.anchor, spec.template_args) if spec.served else 0
        return LengthRule(ANCHOR_TOKENS if spec.anchor == "auto" else 0, template)

    @cached_property
    def wrap(self) -> Wrap:
        """The text that the chat template writes around a turn; empty without a template."""
        spec = self.spec
        return wrap_of(self.model.tokenizer, spec.template, NO_ARGS if spec.served else spec.template_args, spec.anchor)

    @property
    def wording(self) -> dict[str, Any]:
        """The part of a run's identity that decides prompt text and first token besides the template's name."""
        spec = self.spec
        text = {"template_text": template_text(self.wrap)} if spec.template == "chat" else {}
        given = {"template_args": dict(spec.template_args)} if spec.template_args else {}
        return text | given | ({"anchor": spec.anchor} if spec.anchor != "auto" else {})

    def asking(self, **changes: Any) -> Prompts:
        """Return the prompts of the same model under a Spec with these fields changed."""
        return Prompts(replace(self.spec, **changes), self.model)

    def cells(self) -> Cells:
        """Return every cell, with its first sample already made.

        Raise LengthError if the model has none of the lengths. If a task cannot be made at its length, or its scorer
        needs an extra that is not installed, raise that error for a task that was named singly; list a task that came
        with its suite under `unmakeable` instead, unless no cell is left.
        """
        spec = self.spec
        pairs = [(task, length) for task in spec.tasks for length in lengths_of(task, spec.lengths, self.model.window)]
        # Only prompts that are filled to a length can be too long as a whole: the samples of such a cell are made and
        # counted, and get the outcome `does_not_fit` instead of an answer.
        window, filled = self.model.window, sorted({length for task, length in pairs if task.length_of == "sample"})
        over = [length for length in filled if window is not None and length > window]
        limit = f"over the model's limit of {window} positions"
        if over and len(over) == len(filled):
            raise LengthError(f"length {over[0]} is {limit}: --lengths up to {window}")
        cells = Cells([f"length {length} is {limit}: its samples get no answer (does_not_fit)" for length in over])
        last: AnchorEvalError | None = None
        for task, length in pairs:
            if not spec.sources.context and not generator_of(task).context_free:
                raise AnchorEvalError(f"{task.address} has no prompt without its context: leave out --no-context")
            try:
                scorer_of(task).packages()
                count = self.count(task, length)
                samples = self.samples(task, length, count)
                first = next(samples)
                ordered: Iterator[Sample] = itertools.chain([first], samples)
                # with a stopping rule, samples that come in the order of a file or of their sources are shuffled
                if mixed := spec.until is not None and (generator_of(task).prose_free or names_source(first)):
                    ordered = shuffled(ordered, spec.seed)
                cell = Cell(task, length, ordered, count, first.max_new_tokens, first.facts, mixed)
            except (LengthError, MissingExtra) as error:
                if task.address in spec.single:
                    raise
                last = last or error
                cells.unmakeable.append({"task": task.address, "length": length, "why": str(error)})
                continue
            if task.length_of == "prompt":
                self._require_room(cell, cells.notices)
            cells.append(cell)
            if left_out := generator_of(task).left_out:
                cells.notices += left_out(self.recipe(task, length, cell.asked))
        if last and not cells:
            raise last
        return cells

    def count(self, task: Task, length: int) -> int:
        """Return how many samples of a task are asked for at a length; never more than its text files hold."""
        most = min(self.spec.limit or task.samples, task.samples)
        in_files = generator_of(task).in_files
        return most if in_files is None else min(most, in_files(self.recipe(task, length, most)))

    def _require_room(self, cell: Cell, notices: list[str]) -> None:
        """Raise LengthError if a cell cuts prompts at more tokens than there is room for and no prompt is shorter.

        If at least one prompt is shorter, append a line to `notices` instead.
        """
        task, length, new_tokens, room = cell.task, cell.length, cell.new_tokens, room_of(cell.task, self.model.window)
        if room is None or length + new_tokens + self.rule.template <= room:
            return
        problem = (
            f"{task.address} cuts prompts at {length} tokens and adds {new_tokens} of the answer, the model has {room}"
        )
        hint = f": --lengths up to {max(1, room - new_tokens)}"
        samples: list[Sample] = []
        for sample in cell.samples:
            samples.append(sample)
            needed = positions(to_request(sample, self.model.tokenizer, task.reference, None)) + self.rule.template
            if needed <= room:
                notices.append(f"{problem} positions, and prompts that are longer get no answer{hint}")
                cell.samples = itertools.chain(samples, cell.samples)
                return
        raise LengthError(f"{problem} positions, and no prompt is shorter{hint}")

    def recipe(self, task: Task, length: int, count: int) -> Recipe:
        """Return the arguments of a task's generator."""
        return Recipe(
            task=task.address,
            length=length,
            max_new_tokens=task.max_new_tokens,
            count=count,
            args=task.args,
            tokenizer=self.model.tokenizer,
            sources=self.spec.sources,
            wrap=self.wrap,
            seed=self.spec.seed,
            outside=self.rule.anchor + self.rule.template,
            uncounted=self.rule.anchor if generator_of(task).published else 0,
            front=(self.model.tokenizer.bos or self.model.tokenizer.eos) if self.spec.anchor == "auto" else None,
        )

    def samples(self, task: Task, length: int, count: int) -> Iterator[Sample]:
        """Yield `count` samples of a task at a length; raise LengthError if the task cannot be made that short."""
        room = room_of(task, self.model.window)
        for sample in generator_of(task)(self.recipe(task, length, count)):
            yield self.rule.settled(sample, task, self.model.tokenizer, room, self.wrap)

    def request(self, task: Task, sample: Sample, room: int | None = None) -> Request:
        """Return the request of a sample; raise OverlongPrompt if it takes more positions than `room`."""
        request = to_request(sample, self.model.tokenizer, task.reference, room, anchor=self.spec.anchor)
        tokens = self.spec.document_tokens
        return request if tokens is None else cut_documents(request, tokens)

    def second(self, task: Task, sample: Sample, answer: str) -> Pair:
        """Return the second prompt of a two-step sample, made from the answer to its first prompt."""
        recipe, room = self.recipe(task, sample.length, 1), room_of(task, self.model.window)
        follow_up = generator_of(task).follow_up
        assert follow_up is not None, "only a generator of two steps gives a sample a second"
        prompt = self.rule.settled(follow_up(recipe, sample, answer), task, self.model.tokenizer, room, self.wrap)
        return prompt, self.request(task, prompt, None if room is None else room - self.rule.template)

    def does_not_fit(self, task: Task, request: Request) -> Output | None:
        """Return an output that says so if a request takes more positions than the model has, else None.

        Such a request is not sent to the backend.
        """
        room = room_of(task, self.model.window)
        if room is None or (needed := positions(request) + self.rule.template) <= room:
            return None
        why = f"needs {needed} positions, the model has {room}, and nothing is cut"
        return lost_output(request.sample_id, "does_not_fit", why)

    def identity(self, engine: str) -> dict[str, Json]:
        """Return everything that changes a record: not throughput settings, not the number of samples.

        The rule that makes documents is part of it only if an arm acts on documents; the release of lm-eval only if
        its definitions make prompts and it is not the one that they were compared with; the limit only with `until`.
        """
        spec = self.spec
        releasing = dict.fromkeys(made.release for task in spec.tasks if (made := generator_of(task)).release)
        releases = [release for of in releasing if of is not None and (release := of())]
        return {
            "schema": SCHEMA,
            "engine": engine,
            "tokenizer": self.model.tokenizer.sha256,
            "tasks": [task.model_dump(mode="json", exclude_defaults=True) for task in spec.tasks],
            "lengths": spec.lengths,
            "arms": [arm.fingerprint() for arm in spec.arms],
            "seed": spec.seed,
            "template": spec.template,
            "form": spec.form,
            "length_rule": spec.length_rule,
            "document_tokens": spec.document_tokens,
            "sources": spec.sources.describe(),
            **({"documents": DOCUMENT_RULE} if any(not arm.stock for arm in spec.arms) else {}),
            **({"releases": releases} if releases else {}),
            **self.wording,
        } | ({"until": str(spec.until), "limit": spec.limit} if spec.until else {})

    def incomparable(self, cells: Iterable[Cell]) -> dict[str, str]:
        """Return task -> why its prompts are not those of the published benchmark, by the facts of its first samples.

        The haystack does not change a task without prose. The seed does not change a task that only reads files.
        """
        reasons, seed = {}, self.spec.seed
        for cell in cells:
            parts = [f"haystack {GENERATED}"] if uses_generated(cell.facts) else []
            generator = generator_of(cell.task)
            own_texts = generator.own_texts or ("a suite from outside the package" if cell.task.outside else "")
            parts += [own_texts] if own_texts else []
            parts += [f"seed {seed}"] if seed != 42 and not generator.prose_free else []
            parts += self.spec.sources.others if cell.facts.get("haystack") not in MADE_OF_WORDS else []
            if parts:
                reasons[cell.task.address] = ", ".join(parts)
        return reasons
