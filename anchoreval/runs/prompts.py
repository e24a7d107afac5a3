"""`Prompts`: the samples and requests of a run, made from a `Spec` and a `Model`, one cell after the other.

A cell is one task at one length. `Prompts.cells` plans the cells; `samples`, `request` and `second` make what is sent.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from anchoreval.cards import Task
from anchoreval.errors import AnchorEvalError, LengthError, MissingExtra
from anchoreval.model import Model
from anchoreval.prompt import DOCUMENT_RULE, NO_ARGS, cut_documents, template_text, to_request, trimmed, wrap_of
from anchoreval.records.header import SCHEMA
from anchoreval.runs.dealing import names_source, shuffled
from anchoreval.runs.lengths import LengthRule, lengths_of, require_lengths, room_of, rule_of
from anchoreval.runs.spec import Spec
from anchoreval.schema import GENERATED, Json, Output, Request, Sample, Wrap, lost_output, uses_generated
from anchoreval.suites import (
    CONTEXT_FREE,
    FOLLOW_UPS,
    GENERATORS,
    IN_FILES,
    LEFT_OUT,
    MADE_OF_WORDS,
    OWN_TEXTS,
    PROSE_FREE,
    RELEASES,
)
from anchoreval.suites.recipe import Recipe
from anchoreval.suites.scorers import require
from anchoreval.tokenizer import TextTokenizer

Pair = tuple[Sample, Request]  # the same prompt as text and as token ids
#: A sample and the answer to its prompt -> its second prompt. Raises OverlongPrompt if that is too long.
Second = Callable[[Sample, str], Pair]


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


@dataclass(slots=True)
class Cells:
    """The cells of a run: `cells` can be made, `unmakeable` cannot (task, length, reason); `notices` are printed."""

    cells: list[Cell] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    unmakeable: list[dict[str, Any]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)

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

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer that counts lengths."""
        return self.model.tokenizer

    @property
    def window(self) -> int | None:
        """The number of positions that the model has; None for no limit."""
        return self.model.window

    @cached_property
    def rule(self) -> LengthRule:
        """The rule that says which tokens a length counts besides prompt and answer."""
        spec = self.spec
        return rule_of(spec.length_rule, spec.form, self.tokenizer, spec.anchor, spec.template_args)

    @cached_property
    def wrap(self) -> Wrap:
        """The text that the chat template writes around a turn; empty without a template."""
        spec = self.spec
        return wrap_of(self.tokenizer, spec.template, NO_ARGS if spec.served else spec.template_args, spec.anchor)

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
        pairs = [(task, length) for task in spec.tasks for length in lengths_of(task, spec.lengths, self.window)]
        cells = Cells(notices=require_lengths(pairs, self.window))
        last: AnchorEvalError | None = None
        for task, length in pairs:
            if not spec.sources.context and task.generator not in CONTEXT_FREE:
                raise AnchorEvalError(f"{task.address} has no prompt without its context: leave out --no-context")
            try:
                cell = self._cell(task, length)
            except (LengthError, MissingExtra) as error:
                if task.address in spec.single:
                    raise
                last = last or error
                cells.unmakeable.append({"task": task.address, "length": length, "why": str(error)})
                continue
            if task.length_of == "prompt":
                self._require_room(cell, cells.notices)
            cells.cells.append(cell)
            if task.generator in LEFT_OUT:
                cells.notices += LEFT_OUT[task.generator](self.recipe(task, length, cell.asked))
        if last and not cells.cells:
            raise last
        return cells

    def _cell(self, task: Task, length: int) -> Cell:
        """Return one cell with its first sample made. Raise MissingExtra if its scorer lacks a package.

        With `until`, samples that come in the order of a file or of their sources are shuffled.
        """
        require(task.scorer)
        count = self.count(task, length)
        samples = self.samples(task, length, count)
        first = next(samples)
        ordered: Iterator[Sample] = itertools.chain([first], samples)
        if mixed := self.spec.until is not None and (task.generator in PROSE_FREE or names_source(first)):
            ordered = shuffled(ordered, self.spec.seed)
        return Cell(task, length, ordered, count, first.max_new_tokens, first.facts, mixed)

    def count(self, task: Task, length: int) -> int:
        """Return how many samples of a task are asked for at a length; never more than its text files hold."""
        most = min(self.spec.limit or task.samples, task.samples)
        in_files = IN_FILES.get(task.generator)
        return most if in_files is None else min(most, in_files(self.recipe(task, length, most)))

    def _require_room(self, cell: Cell, notices: list[str]) -> None:
        """Raise LengthError if a cell cuts prompts at more tokens than there is room for and no prompt is shorter.

        If at least one prompt is shorter, append a line to `notices` instead.
        """
        task, length, new_tokens, room = cell.task, cell.length, cell.new_tokens, room_of(cell.task, self.window)
        if room is None or length + new_tokens + self.rule.template <= room:
            return
        problem = (
            f"{task.address} cuts prompts at {length} tokens and adds {new_tokens} of the answer, the model has {room}"
        )
        hint = f": --lengths up to {max(1, room - new_tokens)}"
        samples: list[Sample] = []
        for sample in cell.samples:
            samples.append(sample)
            if self.rule.positions(to_request(sample, self.tokenizer, task.reference, None)) <= room:
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
            tokenizer=self.tokenizer,
            sources=self.spec.sources,
            wrap=self.wrap,
            seed=self.spec.seed,
            outside=self.rule.outside,
            uncounted=self.rule.uncounted(task),
            front=(self.tokenizer.bos or self.tokenizer.eos) if self.spec.anchor == "auto" else None,
        )

    def samples(self, task: Task, length: int, count: int) -> Iterator[Sample]:
        """Yield `count` samples of a task at a length; raise LengthError if the task cannot be made that short."""
        return map(self._settled, itertools.repeat(task), GENERATORS[task.generator](self.recipe(task, length, count)))

    def _settled(self, task: Task, sample: Sample) -> Sample:
        """Return the sample trimmed as its chat template does, with its facts on the length."""
        turn = trimmed(sample, self.wrap, self.tokenizer) if self.wrap.trims else sample
        return self.rule.settled(turn, task, self.tokenizer, room_of(task, self.window))

    def request(self, task: Task, sample: Sample, room: int | None = None) -> Request:
        """Return the request of a sample; raise OverlongPrompt if it takes more positions than `room`."""
        request = to_request(sample, self.tokenizer, task.reference, room, anchor=self.spec.anchor)
        tokens = self.spec.document_tokens
        return request if tokens is None else cut_documents(request, tokens)

    def second(self, task: Task, sample: Sample, answer: str) -> Pair:
        """Return the second prompt of a two-step sample, made from the answer to its first prompt."""
        recipe, room = self.recipe(task, sample.length, 1), room_of(task, self.window)
        prompt = self._settled(task, FOLLOW_UPS[task.generator](recipe, sample, answer))
        return prompt, self.request(task, prompt, None if room is None else room - self.rule.template)

    def does_not_fit(self, task: Task, request: Request) -> Output | None:
        """Return an output that says so if a request takes more positions than the model has, else None.

        Such a request is not sent to the backend.
        """
        room = room_of(task, self.window)
        if room is None or (needed := self.rule.positions(request)) <= room:
            return None
        why = f"needs {needed} positions, the model has {room}, and nothing is cut"
        return lost_output(request.sample_id, "does_not_fit", why)

    def identity(self, engine: str) -> dict[str, Json]:
        """Return everything that changes a record: not throughput settings, not the number of samples.

        The rule that makes documents is part of it only if an arm acts on documents; the release of lm-eval only if
        its definitions make prompts and it is not the one that they were compared with; the limit only with `until`.
        """
        spec = self.spec
        generators = dict.fromkeys(task.generator for task in spec.tasks)
        releases = [release for name in generators if name in RELEASES and (release := RELEASES[name]())]
        return {
            "schema": SCHEMA,
            "engine": engine,
            "tokenizer": self.tokenizer.sha256,
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
            parts += [OWN_TEXTS[cell.task.generator]] if cell.task.generator in OWN_TEXTS else []
            parts += [f"seed {seed}"] if seed != 42 and cell.task.generator not in PROSE_FREE else []
            parts += self.spec.sources.others if cell.facts.get("haystack") not in MADE_OF_WORDS else []
            if parts:
                reasons[cell.task.address] = ", ".join(parts)
        return reasons
