"""General benchmarks as lm-evaluation-harness 0.4.13 asks them: its prompts, examples, choices and stop strings.

Prompts are those of lm-eval's `hf` model without a chat template. The examples of a row follow from lm-eval's seed and
the row's number alone: every task draws examples from its first row on, whatever else runs and however many rows are
asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anchoreval.errors import CardError, ModelError, SourceError
from anchoreval.schema import NATURAL, Choice, Json, Sample, Segment
from anchoreval.suites.general import harness as lm_eval_tasks
from anchoreval.suites.general import rows as general_rows
from anchoreval.suites.general.harness import MAX_NEW_TOKENS, LmTask, first_line
from anchoreval.suites.recipe import BASE, Recipe, options


@dataclass(frozen=True, slots=True)
class GeneralTask:
    """The `args` of a task card: lm-eval's task, its YAML's folder, the number of examples, and the scored metric."""

    task: str
    folder: str
    metric: str
    filter: str = "none"
    shots: int = 0


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield samples of the first rows of a task, in the order of its data set; errors of the card come before them."""
    card = options(recipe, GeneralTask)
    if recipe.wrap != BASE:
        raise ModelError(f"{recipe.task} is sent without a chat template, as lm-eval does: --template base")
    lm_eval_tasks.require()
    task = _task(recipe, card)
    _check(recipe, card, task)
    for index in range(recipe.count):
        doc = lm_eval_tasks.plain(task.task_docs[index])
        try:
            with lm_eval_tasks.quiet():
                sample = _sample(recipe, card, index, task, doc)
        except Exception as error:  # whatever a template or a function of lm-eval makes of a row
            said = f"{recipe.task}: row {index} is not as lm-eval expects it: {first_line(error)}"
            raise SourceError(said) from error
        if not sample.prompt.strip():
            raise SourceError(f"{recipe.task}: row {index} has no text")
        yield sample


def _task(recipe: Recipe, card: GeneralTask) -> LmTask:
    """Return lm-eval's task over the rows of a source folder, else the hub's; raise SourceError if neither has them."""
    rows = general_rows.local(recipe.sources, card.task)
    place = f"{general_rows.FOLDER}/{card.task}"
    if rows is None and recipe.sources.offline:
        raise SourceError(_missing(recipe, place, "offline"))
    try:
        pins = {} if rows is not None else general_rows.pinned(card.folder)
        task = lm_eval_tasks.load(card.task, card.folder, card.shots, rows, **pins)
    except (CardError, SourceError):
        raise
    except Exception as error:  # datasets and huggingface_hub raise many kinds; so do templates on other rows
        said = first_line(error)
        if rows is None:
            raise SourceError(_missing(recipe, place, said)) from error
        raise SourceError(f"{rows.folder}: not the rows that lm-eval's {card.task} expects: {said}") from error
    hub, folder = general_rows.HUB.get(card.folder), rows.folder if rows is not None else None
    for split in _splits(task, card.shots):
        general_rows.note(recipe.sources, card.task, split, task.dataset[split], hub, folder)
    if (there := len(task.task_docs)) < recipe.count:
        lacking = f"{recipe.task}: {there} rows are there, {recipe.count} were asked for"
        raise SourceError(f"{lacking}: --limit {there}, or the whole split in {place}")
    return task


def _missing(recipe: Recipe, place: str, why: str) -> str:
    looked = " and ".join(map(str, recipe.sources.places()))
    return (
        f"{recipe.task}: its rows are neither in {place} (looked in {looked}) nor to be had from the hub ({why}): "
        f"put <split>.jsonl files there and name the folder above with --data-dir"
    )


def _splits(task: LmTask, shots: int) -> list[str]:
    """Return the splits that prompts are made of: the split that is asked, then the one of the examples."""
    config, examples = task.config, task.config.fewshot_config
    asked = config.test_split or config.validation_split
    if not shots or (examples.split is None and examples.samples is not None):
        return [asked]
    drawn = examples.split or config.training_split or config.validation_split or config.test_split
    return list(dict.fromkeys([asked, drawn]))


def _check(recipe: Recipe, card: GeneralTask, task: LmTask) -> None:
    """Raise CardError if the card and lm-eval's task disagree, or if the task's requests cannot be computed."""
    kind, where = task.OUTPUT_TYPE, f"{recipe.task}: lm-eval's {card.task}"
    if kind == "loglikelihood_rolling":
        raise CardError(f"{where} scores whole texts (loglikelihood_rolling), which has no prompt: anchoreval nll does")
    if (card.metric, card.filter) not in lm_eval_tasks.metrics(task):
        known = ", ".join(",".join(pair) for pair in lm_eval_tasks.metrics(task))
        raise CardError(f"{where} reports {known}, not {card.metric},{card.filter}")
    decoding: dict[str, Any] = task.config.generation_kwargs or {} if kind == "generate_until" else {"max_gen_toks": 0}
    if decoding.get("do_sample") or float(decoding.get("temperature") or 0) > 0 or task.config.repeats > 1:
        raise CardError(f"{where} draws its answers at random, and answers here are greedy")
    most = decoding.get("max_gen_toks", MAX_NEW_TOKENS)
    if recipe.max_new_tokens != most:
        raise CardError(f"{where} generates {most} tokens, the card says max_new_tokens: {recipe.max_new_tokens}")


def _sample(recipe: Recipe, card: GeneralTask, index: int, task: LmTask, doc: Mapping[str, Json]) -> Sample:
    requests = lm_eval_tasks.instances(task, doc)
    choices, stop, references = tuple[Choice, ...](), (), tuple[str, ...]()
    facts: dict[str, Json] = {
        "lm_eval": {"task": card.task, "folder": card.folder, "metric": card.metric, "filter": card.filter},
        "shots": card.shots,
        "doc": doc,
    }
    if task.OUTPUT_TYPE == "generate_until":
        prompt, decoding = requests[0].args
        stop, target = tuple(decoding.get("until") or ()), task.doc_to_target(doc)
        references = tuple(map(str, target)) if isinstance(target, list) else (str(target),)
    else:
        prompt, choices = split([request.args for request in requests])
        if (gold := _gold(task, doc)) is not None:
            alone = task.OUTPUT_TYPE == "loglikelihood"
            references = (choices[0].text.strip() if alone else str(task.doc_to_choice(doc)[gold]),)
            facts["gold"] = gold
    # the description and examples before the question, and the question itself
    question = lm_eval_tasks.alone(task, doc)
    same = _same(prompt[::-1], question[::-1]) or len(prompt)
    pieces = (Segment("preamble", prompt[:-same]), Segment("query", prompt[-same:]))
    segments = tuple(piece for piece in pieces if piece.text)
    return Sample(
        recipe.task, NATURAL, index, segments, references, recipe.max_new_tokens, facts, stop=stop, choices=choices
    )


def split(pairs: Sequence[tuple[str, str]]) -> tuple[str, tuple[Choice, ...]]:
    """Return the prompt that all (context, continuation) pairs share, and a choice for each pair.

    `before` of a choice is the rest of its context. If contexts differ, the prompt ends before a blank or a newline, so
    that no token lies across its end.
    """
    contexts = [context for context, _ in pairs]
    shared = contexts[0][: min(_same(contexts[0], other) for other in contexts)]
    if len(set(contexts)) > 1:
        shared = shared[: max(shared.rfind(" "), shared.rfind("\n"), 0)]
    return shared, tuple(Choice(text, context[len(shared) :]) for context, text in pairs)


def _same(one: str, other: str) -> int:
    """Return the number of characters that two texts share at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _gold(task: LmTask, doc: Mapping[str, Json]) -> int | None:
    """Return the index of the right choice, or None if several are right; raise ValueError if a row names no choice."""
    if task.OUTPUT_TYPE == "loglikelihood":
        return 0
    named = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(named, list):
        return None
    choices = task.doc_to_choice(doc)
    index = choices.index(named) if isinstance(named, str) and named in choices else named
    if not isinstance(index, int) or not 0 <= index < len(choices):
        raise ValueError(f"the right one is {str(named)[:40]!r}, of {len(choices)} choices")
    return index
