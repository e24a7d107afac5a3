"""The prompts of a run: what is asked (`Spec`) of a model, task by task and length by length."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from anchoreval.cards import Task
from anchoreval.errors import AnchorEvalError, LengthError, MissingExtra
from anchoreval.model import Model
from anchoreval.prompt import NO_ARGS, to_request, trimmed, wording, wrap_of
from anchoreval.prompt.documents import RULE, cut_documents
from anchoreval.records.header import SCHEMA
from anchoreval.runs.dealing import names_source, shuffled
from anchoreval.runs.lengths import LengthRule, lengths_of, require_lengths, room_of, rule_of
from anchoreval.runs.spec import Spec
from anchoreval.schema import GENERATED, Json, Output, Request, Sample, Wrap, uses_generated
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

Pair = tuple[Sample, Request]  # a sample as text and as it is sent
#: A sample and the answer to its prompt -> its second prompt; OverlongPrompt where that is too long.
Second = Callable[[Sample, str], Pair]


@dataclass(slots=True)
class Cell:
    """The samples of one task at one length, made one after the other, with answers of up to `new_tokens`.

    `facts` are those of the first sample in the task's own order; `shuffled` says that samples are taken in another.
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
        """The address of the task, and the length."""
        return self.task.address, self.length


@dataclass(slots=True)
class Cells:
    """The cells that can be made, those that cannot with the reason, and what is to be said of cells."""

    cells: list[Cell] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    unmakeable: list[dict[str, Any]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)

    @property
    def rows(self) -> list[dict[str, Json]]:
        """How many samples are asked for, as headers have it."""
        return [{"task": cell.task.address, "length": cell.length, "samples": cell.asked} for cell in self]


@dataclass(frozen=True)
class Prompts:
    """What is asked of a model: its samples, as text and as they are sent."""

    spec: Spec
    model: Model

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer that lengths are counted with."""
        return self.model.tokenizer

    @property
    def window(self) -> int | None:
        """The positions that the model has; None: any number."""
        return self.model.window

    @cached_property
    def rule(self) -> LengthRule:
        """What lengths count beside prompt and answer."""
        spec = self.spec
        return rule_of(spec.length_rule, spec.form, self.tokenizer, spec.anchor, spec.template_args)

    @cached_property
    def wrap(self) -> Wrap:
        """What the chat template writes around a turn; empty without one."""
        spec = self.spec
        return wrap_of(self.tokenizer, spec.template, NO_ARGS if spec.served else spec.template_args, spec.anchor)

    @property
    def wording(self) -> dict[str, Any]:
        """See `prompt.wording`."""
        return wording(self.wrap, self.spec.template, self.spec.template_args, self.spec.anchor)

    def asking(self, **changes: Any) -> Prompts:
        """Return the prompts of the same model where something else is asked."""
        return Prompts(replace(self.spec, **changes), self.model)

    def cells(self) -> Cells:
        """Return every cell, its first sample already made.

        Lengths of which the model has none, and a singly named task that cannot be made at its length or scored without
        an extra, are errors; a task that came with its suite is set aside with the reason instead, unless no cell is
        left.
        """
        spec = self.spec
        pairs = [(task, length) for task in spec.tasks for length in lengths_of(task, spec.lengths, self.window)]
        made = Cells(notices=require_lengths(pairs, self.window))
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
                made.unmakeable.append({"task": task.address, "length": length, "why": str(error)})
                continue
            self._require_room(cell, made.notices)
            made.cells.append(cell)
            if task.generator in LEFT_OUT:
                made.notices += LEFT_OUT[task.generator](self.recipe(task, length, cell.asked))
        if last and not made.cells:
            raise last
        return made

    def _cell(self, task: Task, length: int) -> Cell:
        """One cell with its first sample made; its scorer has what it needs.

        Under a rule that stops cells, samples that stand in the order of a file or of their sources are shuffled.
        """
        require(task.scorer)
        count = self.count(task, length)
        samples = self.samples(task, length, count)
        first = next(samples)
        whole: Iterator[Sample] = itertools.chain([first], samples)
        if mixed := self.spec.until is not None and (task.generator in PROSE_FREE or names_source(first)):
            whole = shuffled(whole, self.spec.seed)
        return Cell(task, length, whole, count, first.max_new_tokens, first.facts, mixed)

    def count(self, task: Task, length: int) -> int:
        """Return how many samples of a task are asked for at a length: of texts, no more than their files hold."""
        most = min(self.spec.limit or task.samples, task.samples)
        held = IN_FILES.get(task.generator)
        return most if held is None else min(most, held(self.recipe(task, length, most)))

    def _require_room(self, cell: Cell, notices: list[str]) -> None:
        """LengthError where a cell cuts prompts at more than there is room for and none is short enough.

        Where one at least is, `notices` say so.
        """
        task, length, new_tokens, room = cell.task, cell.length, cell.new_tokens, room_of(cell.task, self.window)
        if task.length_of != "prompt" or room is None or length + new_tokens + self.rule.template <= room:
            return
        said = (
            f"{task.address} cuts prompts at {length} tokens and adds {new_tokens} of the answer, the model has {room}"
        )
        hint = f": --lengths up to {max(1, room - new_tokens)}"
        made: list[Sample] = []
        for sample in cell.samples:
            made.append(sample)
            if self.rule.positions(to_request(sample, self.tokenizer, task.reference, None)) <= room:
                notices.append(f"{said} positions, and prompts that are longer get no answer{hint}")
                cell.samples = itertools.chain(made, cell.samples)
                return
        raise LengthError(f"{said} positions, and no prompt is shorter{hint}")

    def recipe(self, task: Task, length: int, count: int) -> Recipe:
        """Return what the generator of a task is given."""
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
        """Yield `count` samples of a task at a length; LengthError when the task cannot be made that short."""
        return map(self._settled, itertools.repeat(task), GENERATORS[task.generator](self.recipe(task, length, count)))

    def _settled(self, task: Task, sample: Sample) -> Sample:
        """The sample as a turn of its chat template, with its facts on the length."""
        whole = trimmed(sample, self.wrap, self.tokenizer) if self.wrap.trims else sample
        return self.rule.settled(whole, task, self.tokenizer, room_of(task, self.window))

    def request(self, task: Task, sample: Sample, room: int | None = None) -> Request:
        """Return a sample as it is sent; OverlongPrompt where it takes more positions than `room`."""
        request = to_request(sample, self.tokenizer, task.reference, room, anchor=self.spec.anchor)
        return cut_documents(request, self.spec.document_tokens)

    def second(self, task: Task, sample: Sample, answer: str) -> Pair:
        """Return the second prompt of a sample that is asked in two steps, behind the answer to its first."""
        recipe, room = self.recipe(task, sample.length, 1), room_of(task, self.window)
        made = self._settled(task, FOLLOW_UPS[task.generator](recipe, sample, answer))
        return made, self.request(task, made, None if room is None else room - self.rule.template)

    def does_not_fit(self, task: Task, request: Request) -> Output | None:
        """Return the output of a sample that takes more positions than there are, and is not asked; None for others."""
        room = room_of(task, self.window)
        if room is None or (needed := self.rule.positions(request)) <= room:
            return None
        why = f"needs {needed} positions, the model has {room}, and nothing is cut"
        return Output(request.sample_id, "", (), "error", None, 0.0, why, lost="does_not_fit")

    def identity(self, engine: str) -> dict[str, Json]:
        """Return everything that changes a record; throughput settings and the number of samples are left out.

        The rule that makes documents is part of it where an arm acts on them, the release of lm-eval where its
        definitions make prompts and it is another than the one they were compared with. A run that stops by a rule
        has its limit.
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
            **({"documents": RULE} if any(not arm.arrangement.stock for arm in spec.arms) else {}),
            **({"releases": releases} if releases else {}),
            **self.wording,
        } | ({"until": str(spec.until), "limit": spec.limit} if spec.until else {})

    def incomparable(self, cells: Iterable[Cell]) -> dict[str, str]:
        """Return task -> why its prompts are not those of the published benchmark, by what its first samples say.

        A task that uses no prose is made alike under any haystack, and one that reads files alone under any seed.
        """
        found, seed = {}, self.spec.seed
        for cell in cells:
            parts = [f"haystack {GENERATED}"] if uses_generated(cell.facts) else []
            parts += [OWN_TEXTS[cell.task.generator]] if cell.task.generator in OWN_TEXTS else []
            parts += [f"seed {seed}"] if seed != 42 and cell.task.generator not in PROSE_FREE else []
            parts += self.spec.sources.others if cell.facts.get("haystack") not in MADE_OF_WORDS else []
            if parts:
                found[cell.task.address] = ", ".join(parts)
        return found
