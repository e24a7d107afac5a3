"""The loop: samples -> requests -> outputs -> scores -> lines on disk. Resumes where an earlier run stopped.

Samples go through in groups of fixed size, each group under every arm before the next one: what is on disk is always
paired. Of a group that was cut off only the rest is computed; beside fewer others its answers may differ from those of
an unbroken run in their last bits, as a placebo's do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anchoreval.arms.arm import Arm
from anchoreval.backends import Backend, Described, waves
from anchoreval.cards import Task
from anchoreval.errors import AnchorEvalError, LengthError, MissingExtra
from anchoreval.prompt import NO_ARGS, Anchor, Form, Template, first_token, to_request, trimmed, wording, wrap_of
from anchoreval.prompt.documents import RULE, cut_documents
from anchoreval.records.folder import RunFolder
from anchoreval.records.header import SCHEMA, TWICE, Header, fingerprint
from anchoreval.records.parts import RuleName
from anchoreval.records.record import key_of, to_record
from anchoreval.runs import lengths as counted
from anchoreval.runs.dealing import names_source, shuffled
from anchoreval.runs.two_steps import Answered, Second, answers
from anchoreval.schema import GENERATED, SCORED, Output, Record, Request, Sample, Score, Wrap, uses_generated
from anchoreval.schema import Progress as Progress
from anchoreval.stats.sequential import Until
from anchoreval.suites import (
    CONTEXT_FREE,
    FOLLOW_UPS,
    GENERATORS,
    IN_FILES,
    LEFT_OUT,
    MADE_OF_WORDS,
    OWN_TEXTS,
    PROSE_FREE,
    SIZES,
)
from anchoreval.suites.recipe import Recipe
from anchoreval.suites.scorers import SCORERS, require, with_choices
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of a run, apart from the model; `single` names the tasks that were asked for one by one.

    `document_tokens` puts documents into blocks of that size; None leaves them as the task has them. `until`
    stops each cell when its verdict is in (rounds.py); None takes all samples. `grown` are the limits that the run
    had finished with before it went on with more samples. `served`: the server puts prompts into its chat template.
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

    @property
    def form(self) -> Form:
        """The form in which prompts reach the model."""
        return "server" if self.served else self.template

    def rule(self, tokenizer: TextTokenizer) -> counted.LengthRule:
        """What lengths count beside prompt and answer."""
        return counted.rule_of(self.length_rule, self.form, tokenizer, self.anchor, self.template_args)

    def wrap(self, tokenizer: TextTokenizer) -> Wrap:
        """What the chat template writes around a turn; empty without one."""
        return wrap_of(tokenizer, self.template, NO_ARGS if self.served else self.template_args, self.anchor)

    def wording(self, tokenizer: TextTokenizer) -> dict[str, Any]:
        """See `prompt.wording`."""
        return wording(self.wrap(tokenizer), self.template, self.template_args, self.anchor)

    def identity(self, backend: Described, tokenizer: TextTokenizer) -> dict[str, Any]:
        """Everything that changes a record, as JSON; throughput settings and the number of samples are left out.

        The rule that makes documents is part of it where an arm acts on them. A run that stops by a rule has its limit.
        """
        return {
            "schema": SCHEMA,
            "engine": backend.fingerprint,
            "tokenizer": tokenizer.sha256,
            "tasks": [task.model_dump(mode="json", exclude_defaults=True) for task in self.tasks],
            "lengths": self.lengths,
            "arms": [arm.fingerprint() for arm in self.arms],
            "seed": self.seed,
            "template": self.template,
            "form": self.form,
            "length_rule": self.length_rule,
            "document_tokens": self.document_tokens,
            "sources": self.sources.describe(),
            **({"documents": RULE} if any(not arm.arrangement.stock for arm in self.arms) else {}),
            **self.wording(tokenizer),
        } | ({"until": str(self.until), "limit": self.limit} if self.until else {})

    def incomparable(self, cells: Sequence[Cell]) -> dict[str, str]:
        """Task -> why its prompts are not those of the published benchmark, by what its first samples say.

        A task that uses no prose is made alike under any haystack, and one that reads files alone under any seed.
        """
        found = {}
        for cell in cells:
            parts = [f"haystack {GENERATED}"] if uses_generated(cell.facts) else []
            parts += [OWN_TEXTS[cell.task.generator]] if cell.task.generator in OWN_TEXTS else []
            if self.seed != 42 and cell.task.generator not in PROSE_FREE:
                parts.append(f"seed {self.seed}")
            if cell.facts.get("haystack") not in MADE_OF_WORDS:
                parts += self.sources.others
            if parts:
                found[cell.task.address] = ", ".join(parts)
        return found


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


@dataclass(slots=True)
class Makeable:
    """The cells that can be made, those that cannot with the reason, and what is to be said of cells."""

    cells: list[Cell] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    unmakeable: list[dict[str, Any]] = field(default_factory=list)


def recipe_of(task: Task, length: int, count: int, plan: Plan, tokenizer: TextTokenizer) -> Recipe:
    """What the generator of a task is given."""
    rule = plan.rule(tokenizer)
    return Recipe(
        task=task.address,
        length=length,
        max_new_tokens=task.max_new_tokens,
        count=count,
        args=task.args,
        tokenizer=tokenizer,
        sources=plan.sources,
        wrap=plan.wrap(tokenizer),
        seed=plan.seed,
        outside=rule.outside,
        uncounted=rule.uncounted(task),
        front=(tokenizer.bos or tokenizer.eos) if plan.anchor == "auto" else None,
    )


def asked_of(task: Task, length: int, plan: Plan, tokenizer: TextTokenizer) -> int:
    """How many samples of a task are asked for at a length."""
    most = min(plan.limit or task.samples, task.samples)
    size = IN_FILES.get(task.generator)
    return most if size is None else min(most, size(recipe_of(task, length, most, plan, tokenizer)))


def samples_of(
    task: Task, length: int, count: int, plan: Plan, tokenizer: TextTokenizer, window: int | None = None
) -> Iterator[Sample]:
    """`count` samples of a task at a length, lazily; LengthError when the task cannot be made that short."""
    recipe, rule = recipe_of(task, length, count, plan, tokenizer), plan.rule(tokenizer)
    made, room = GENERATORS[task.generator](recipe), counted.room_of(task, window)
    whole = (trimmed(sample, recipe.wrap, tokenizer) for sample in made) if recipe.wrap.trims else made
    return (rule.settled(sample, task, tokenizer, room) for sample in whole)


def second_of(task: Task, plan: Plan, tokenizer: TextTokenizer, window: int | None) -> Second:
    """How a task's samples of two steps go on, once the first is answered."""
    rule, room = plan.rule(tokenizer), counted.room_of(task, window)

    def second(sample: Sample, answer: str) -> tuple[Sample, Request]:
        recipe = recipe_of(task, sample.length, 1, plan, tokenizer)
        made = trimmed(FOLLOW_UPS[task.generator](recipe, sample, answer), recipe.wrap, tokenizer)
        made = rule.settled(made, task, tokenizer, room)
        left = None if room is None else room - rule.template
        request = to_request(made, tokenizer, task.reference, left, anchor=plan.anchor)
        return made, cut_documents(request, plan.document_tokens)

    return second


def sized(tasks: Iterable[Task]) -> list[Task]:
    """The tasks with as many samples of a length as their arguments give, where those say it."""
    return [
        task.model_copy(update={"samples": SIZES[task.generator](task.address, task.args)})
        if task.generator in SIZES
        else task
        for task in tasks
    ]


def make_cells(plan: Plan, tokenizer: TextTokenizer, window: int | None) -> Makeable:
    """Every cell of the plan, its first sample already made.

    Lengths of which the model has none, and a singly named task that cannot be made at its length or scored without
    an extra, are errors; a task that came with its suite is set aside with the reason instead, unless no cell is left.
    """
    pairs = [(task, length) for task in plan.tasks for length in counted.lengths_of(task, plan.lengths, window)]
    made = Makeable(notices=counted.require_lengths(pairs, window))
    last: AnchorEvalError | None = None
    for task in plan.tasks:
        if not plan.sources.context and task.generator not in CONTEXT_FREE:
            raise AnchorEvalError(f"{task.address} has no prompt without its context: leave out --no-context")
        for length in counted.lengths_of(task, plan.lengths, window):
            try:
                cell = _cell(task, length, plan, tokenizer, window)
            except (LengthError, MissingExtra) as error:
                if task.address in plan.single:
                    raise
                last = last or error
                made.unmakeable.append({"task": task.address, "length": length, "why": str(error)})
                continue
            cell.samples = counted.require_room(cell, tokenizer, window, plan.rule(tokenizer), made.notices)
            made.cells.append(cell)
            if task.generator in LEFT_OUT:
                made.notices += LEFT_OUT[task.generator](recipe_of(task, length, cell.asked, plan, tokenizer))
    if last and not made.cells:
        raise last
    return made


def _cell(task: Task, length: int, plan: Plan, tokenizer: TextTokenizer, window: int | None) -> Cell:
    """One cell with its first sample made; its scorer has what it needs.

    Under a rule that stops cells, samples that stand in the order of a file or of their sources are shuffled.
    """
    require(task.scorer)
    count = asked_of(task, length, plan, tokenizer)
    samples = samples_of(task, length, count, plan, tokenizer, window)
    first = next(samples)
    whole: Iterator[Sample] = itertools.chain([first], samples)
    in_order = task.generator in PROSE_FREE or names_source(first)
    if mixed := plan.until is not None and in_order:
        whole = shuffled(whole, plan.seed)
    return Cell(task, length, whole, count, first.max_new_tokens, first.facts, mixed)


def judge(task: Task, output: Output, sample: Sample) -> Score:
    """The task's score of an output; None with the reason where the outcome is one that is not scored."""
    if output.outcome not in SCORED:
        return Score(None, output.why or "the backend failed on this request")
    logprob = output.logprob_per_token if output.finish == "scored" else None
    return SCORERS[task.scorer](output.text, sample.references, with_choices(sample.facts, output.choices, logprob))


def run_group(
    cell: Cell,
    samples: Sequence[Sample],
    plan: Plan,
    backend: Backend,
    tokenizer: TextTokenizer,
    window: int | None,
    folder: RunFolder,
    progress: Progress,
) -> dict[str, list[Record]]:
    """Arm -> the records of `samples` in their order, all on disk."""
    left, rule = to_look_at(samples, plan, folder), plan.rule(tokenizer)
    requests, second = requests_of(cell, left, plan, tokenizer), second_of(cell.task, plan, tokenizer, window)
    found = {}
    for arm in plan.arms:
        progress.at(f"{cell.task.address} at {cell.length:,}, {arm.name}")
        progress.had(len(samples) - len(left))
        _run_group(cell.task, left, requests, arm, backend, window, rule, folder, second, progress)
        found[arm.name] = [folder.of(sample.id, arm.name) for sample in samples]
    return found


def to_look_at(samples: Sequence[Sample], plan: Plan, folder: RunFolder) -> list[Sample]:
    """The samples of a group whose requests are made: those that wait under an arm or lie there with another prompt.

    The first is among them, so that the keys of what lies there are compared once a group.
    """
    return [
        sample
        for at, sample in enumerate(samples)
        if at == 0 or not all(_has_its_answer(sample, arm.name, folder) for arm in plan.arms)
    ]


def _has_its_answer(sample: Sample, arm: str, folder: RunFolder) -> bool:
    if not folder.holds(sample.id, arm):
        return False
    record = folder.of(sample.id, arm)
    return record.outcome in SCORED and record.prompt_sha256 == sample.prompt_sha256


def requests_of(cell: Cell, samples: Sequence[Sample], plan: Plan, tokenizer: TextTokenizer) -> list[Request]:
    """The samples of a cell as they are sent."""
    size, form, anchor = plan.document_tokens, cell.task.reference, plan.anchor
    return [cut_documents(to_request(sample, tokenizer, form, None, anchor=anchor), size) for sample in samples]


def _run_group(
    task: Task,
    samples: Sequence[Sample],
    requests: Sequence[Request],
    arm: Arm,
    backend: Backend,
    window: int | None,
    rule: counted.LengthRule,
    folder: RunFolder,
    second: Second,
    progress: Progress,
) -> None:
    """Answer what has no answer yet of one group under one arm."""
    keys = {request.sample_id: key_of(request, arm, backend.fingerprint) for request in requests}
    waiting = folder.waiting(arm.name, keys)
    progress.had(len(keys) - len(waiting))
    if not waiting:
        return
    by_id = {sample.id: (sample, request) for sample, request in zip(samples, requests, strict=True)}
    asked = {name: pair for name, pair in by_id.items() if name in waiting}
    short, refused = counted.fitting(task, asked, window, rule)
    with backend.under(arm):
        for one in itertools.chain(refused, answers(backend, short, second, keys, folder.firsts)):
            store(task, one, arm, keys, folder, folder.environment)
            progress(1)


def store(
    task: Task, one: Answered, arm: Arm, keys: Mapping[str, str], folder: RunFolder, environment: int | None
) -> None:
    """Judges what was answered and puts its record on disk, unless one with an answer is there."""
    key = keys[one.sample.id]
    if not folder.answered(key):
        score = judge(task, one.output, one.sample)
        record = to_record(key, one.sample, one.request, arm, one.output, score, environment)
        folder.append(record, one.output.token_logprobs)


def applied_arms(plan: Plan, backend: Described) -> list[dict[str, Any]]:
    """Every arm as asked and as applied, each installed once for proof; UnsupportedArm before anything is computed."""
    said = {}
    for arm in itertools.chain(*waves(str(backend.describe()["engine"]), plan.arms)):
        with backend.under(arm) as applied:
            said[arm] = {"name": arm.name, "asked": arm.asked(), "applied": dict(applied)}
    return [said[arm] for arm in plan.arms]


def header_of(
    plan: Plan,
    made: Makeable,
    backend: Described,
    tokenizer: TextTokenizer,
    model: dict[str, Any],
    created: str,
    decided_by: dict[str, Any],
) -> Header:
    """The header of the run: asked, applied, versions, sources; written before the first sample is answered.

    `decided_by` is the part of the identity that follows from files (identity.py).
    """
    identity, incomparable = plan.identity(backend, tokenizer) | decided_by, plan.incomparable(made.cells)
    described = {name: value for name, value in backend.describe().items() if name != "environment"}
    said = {"sha256": "weights_sha256", "parameters": "parameters", "dtype": "dtype"}
    said |= {"adapter": "adapter"} if described.get("adapter") else {}
    facts = {
        "schema": SCHEMA,
        "run": fingerprint(identity),
        "created": created,
        "identity": identity,
        "model": model | {key: described[name] for key, name in said.items()},
        "backend": described,
        "tokenizer": {"sha256": tokenizer.sha256}
        | first_token(tokenizer, plan.template, plan.template_args, plan.anchor)
        | ({"read_by_transformers": str(tokenizer.reading)} if tokenizer.reading else {}),
        "arms": applied_arms(plan, backend),
        "tasks": [task.address for task in plan.tasks],
        "scorers": {task.address: task.scorer for task in plan.tasks},
        "scorer_packages": {name: text for cell in made.cells for name, text in require(cell.task.scorer).items()},
        "lengths": sorted({cell.length for cell in made.cells} | {row["length"] for row in made.unmakeable}),
        "asked": [{"task": cell.task.address, "length": cell.length, "samples": cell.asked} for cell in made.cells],
        "unmakeable": made.unmakeable,
        "limit": plan.limit,
        "group": plan.group,
        "sources": identity["sources"],
        "comparable": not incomparable,
        "incomparable": incomparable,
    }
    return Header(facts | {name: identity[name] for name in TWICE if name in identity})


def run_directory(output: Path, model_name: str, header: Header) -> Path:
    """`<output>/<model>/<run>`, the place of a run's files."""
    return output / model_name / header.run
