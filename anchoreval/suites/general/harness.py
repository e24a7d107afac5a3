"""Tasks of lm-evaluation-harness 0.4.13: its definitions, its prompts, its filters and metrics; no model, no torch.

Answers are judged by its filters and `process_results`, given the row that was asked.

lm-eval's own `TaskManager` reads the YAML of one folder of its tasks (all 14,683 entries would take 12 s) and makes the
task. Only the source of the rows and the number of examples are overridden, and its log messages are silenced.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anchoreval.errors import AnchorEvalError, CardError, MissingExtra, RunError
from anchoreval.schema import Json, Score
from anchoreval.suites import NO_FACTS

COMPARED = "0.4.13"  # the release that prompts and scores were compared with
FEWSHOT_SEED = 1234  # lm-eval's default; every task draws its examples from a generator with this seed, row by row
MAX_NEW_TOKENS = 256  # the default of lm-eval's `hf` model, for tasks that state no number
LmTask = Any  # lm_eval.api.task.ConfigurableTask
Results = Mapping[tuple[str, str], Any]  # (metric, filter) -> what a sample adds to it


def require() -> dict[str, str]:
    """Return the release of lm-eval that makes scores and prompts; raise MissingExtra if lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise MissingExtra("general tasks are lm-evaluation-harness's own: pip install 'anchoreval[lm-eval]'")
    return {"lm-eval": metadata.version("lm-eval")}


def other_release() -> str | None:
    """Return the installed release of lm-eval if it is not COMPARED: its definitions may make other prompts."""
    release = metadata.version("lm-eval") if find_spec("lm_eval") else COMPARED
    return None if release == COMPARED else f"lm-eval {release}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars of `datasets` and lm-eval's warnings inside the block; restore both after it."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown, talk = not are_progress_bars_disabled(), logging.getLogger("lm_eval")
    level = talk.level
    disable_progress_bars()
    talk.setLevel(logging.ERROR)
    try:
        yield
    finally:
        talk.setLevel(level)
        if shown:
            enable_progress_bars()


@cache
def _manager(folder: str) -> Any:
    """Return lm-eval's TaskManager of one folder of its tasks; raise CardError if lm-eval has no such folder."""
    require()
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent.resolve()
    try:
        place = (root / folder).resolve()
    except (OSError, ValueError):  # a loop of links, a NUL
        place = Path()
    if not place.is_relative_to(root) or not place.is_dir():
        raise CardError(f"the installed lm-eval has no folder of tasks {folder[:80]!r}: name one below {root}")
    return lm_eval.tasks.TaskManager(include_path=str(place), include_defaults=False)


@cache
def _definitions() -> Mapping[str, tuple[Json, Json]]:
    """Return the (task, folder) of lm-eval that each card names, (None, None) for a card of another generator."""
    from anchoreval.cards import load_tasks

    return {name: (task.args.get("task"), task.args.get("folder")) for name, task in load_tasks()[0].items()}


def require_definition(task: str, facts: Mapping[str, Json]) -> None:
    """Raise RunError if the facts of a record of `task` name another definition of lm-eval than the task's card.

    A definition is YAML with Python beside it. Somebody else may have written the record, so it must not choose which
    definition is loaded.
    """
    stated, doc = facts.get("lm_eval"), facts.get("doc")
    names = ("task", "folder", "metric", "filter")
    if not isinstance(stated, Mapping) or not all(isinstance(stated.get(name), str) for name in names):
        raise RunError(f"facts > lm_eval: expected an object with {', '.join(names)} as text")
    if not isinstance(doc, Mapping):
        raise RunError("facts > doc: expected the row that was asked, an object")
    pair = stated["task"], stated["folder"]
    of_card = _definitions().get(task)
    if pair not in _definitions().values() or (of_card is not None and pair != of_card):
        named = "no card of lm-eval's tasks names" if of_card is None else f"the card {task} does not name"
        raise RunError(f"facts > lm_eval: {named} lm-eval's task {pair[0][:60]!r} of folder {pair[1][:60]!r}")


def load(name: str, folder: str, shots: int, rows: Mapping[str, Any] | None = None, **changes: Json) -> LmTask:
    """Return lm-eval's task `name` of its folder `folder` with `shots` examples and the few-shot seed set.

    `rows` maps a split to its `datasets.Dataset`; without `rows` lm-eval loads its data set as it always does. Without
    examples the training data are not touched. Raise CardError if the folder has no task of this name.
    """
    manager = _manager(folder)
    if name not in manager.all_subtasks:
        raise CardError(f"lm-eval has no task {name!r} in its folder {folder!r}")
    overrides: dict[str, Any] = {"task": name, "num_fewshot": shots, **changes}
    if not shots:
        overrides |= {"fewshot_split": None, "fewshot_config": {"samples": []}}
    if rows is not None:
        overrides["custom_dataset"] = lambda **_: rows
    with quiet():
        task = manager.load([{"group": "anchoreval", "task": [overrides]}])["tasks"][name]
    task.set_fewshot_seed(FEWSHOT_SEED)
    return task


def instances(task: LmTask, doc: Mapping[str, Json]) -> list[Any]:
    """Return lm-eval's requests for one row, as its `build_all_requests` makes them.

    Call this for the rows in order: each call draws the next examples.
    """
    context = task.fewshot_context(doc, num_fewshot=task.config.num_fewshot, gen_prefix=task.doc_to_prefix(doc))
    requests = task.construct_requests(doc=doc, ctx=context, metadata=(task.config.task, 0, 1))
    return requests if isinstance(requests, list) else [requests]


def alone(task: LmTask, doc: Mapping[str, Json]) -> str:
    """Return the context of a row without examples, or "" if every choice has its own context."""
    context = task.fewshot_context(doc, num_fewshot=0, gen_prefix=task.doc_to_prefix(doc))
    return context if isinstance(context, str) else ""


def metrics(task: LmTask) -> list[tuple[str, str]]:
    """Return every (metric, filter) that the task reports."""
    return [(metric, each.name) for each in task._filters for metric in task.aggregation()]


class Judge:
    """One task without its data. It judges answers as lm-eval does, given the row that was asked."""

    def __init__(self, task: LmTask) -> None:
        self.task = task

    def results(self, doc: Mapping[str, Json], answers: Sequence[Any]) -> Results:
        """Return what the answers to one row add to every metric.

        `answers` are one text, or a pair (log-probability, greedy) for each choice. Raise RunError for a row that the
        task's own code cannot judge.
        """
        from lm_eval.api.instance import Instance

        try:
            kind = "loglikelihood" if isinstance(answers[0], tuple) else "generate_until"
            instances = [Instance(kind, doc, (), i, (None, 0, 1), resps=[answer]) for i, answer in enumerate(answers)]
            results: dict[tuple[str, str], Any] = {}
            for each in self.task._filters:
                each.apply(instances)
                row = self.task.process_results(doc, [instance.filtered_resps[each.name] for instance in instances])
                results |= {(metric, each.name): value for metric, value in row.items()}
        except AnchorEvalError:
            raise
        except Exception as error:  # whatever a filter or a function of lm-eval makes of a row
            raise RunError(f"facts > doc: lm-eval cannot judge this row: {_line(error)}") from error
        return results

    def aggregate(self, metric: str, values: Sequence[Any]) -> float:
        """Return lm-eval's own figure for a metric over the task's rows; raise RunError if it cannot compute one."""
        try:
            return float(self.task.aggregation()[metric](list(values)))
        except Exception as error:  # whatever an aggregation of lm-eval makes of odd values
            raise RunError(f"lm-eval has no {metric} of these records: {_line(error)}") from error

    def higher_is_better(self, metric: str) -> bool:
        return bool(self.task.higher_is_better()[metric])


_judges: dict[tuple[str, str], Judge] = {}


def judge_of(name: str, folder: str, doc: Mapping[str, Json]) -> Judge:
    """Return the judge of a task, made once; `doc` is any row of the task as its prompts use it (see `plain`)."""
    if (name, folder) not in _judges:
        import datasets

        rows: Mapping[str, Any] = defaultdict(lambda: datasets.Dataset.from_list([dict(doc)]))
        try:
            _judges[name, folder] = Judge(load(name, folder, 0, rows, process_docs=None))
        except AnchorEvalError:
            raise
        except Exception as error:  # the row is not one of this task
            raise RunError(f"facts > doc: lm-eval's {name} cannot be made of this row: {_line(error)}") from error
    return _judges[name, folder]


def _line(error: Exception) -> str:
    """Return an error of foreign code as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def first_line(error: Exception) -> str:
    """Return the first line of an error of foreign code."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def plain(doc: Mapping[str, Json]) -> dict[str, Json]:
    """Return the row after a round trip through JSON."""
    row: dict[str, Json] = json.loads(json.dumps(doc, default=str))
    return row


def results(text: str, facts: Mapping[str, Json]) -> Results:
    """Return what an answer adds to every (metric, filter) of its task.

    `facts` are those of a sample of the generator `lm_eval`, with `choices` if the sample has any.
    """
    stated = facts["lm_eval"]
    judge = judge_of(stated["task"], stated["folder"], facts["doc"])
    answers: list[Any] = [tuple(each) for each in facts.get("choices", ())] or [text]
    return judge.results(facts["doc"], answers)


def lm_eval(text: str, _: Sequence[str], facts: Mapping[str, Json] = NO_FACTS) -> Score:
    """Return the metric that the task card names, 0..1, or None with the reason if lm-eval gives no such number."""
    stated = facts.get("lm_eval")
    if not isinstance(stated, Mapping):
        return Score(None, "the record does not hold the document that lm-eval judges")
    value: Any = results(text, facts).get((stated["metric"], stated["filter"]))
    if not isinstance(value, int | float) and not hasattr(value, "item"):
        return Score(None, f"lm-eval gives no number for {stated['metric']}")
    number = float(value)
    if not 0 <= number <= 1:
        return Score(None, f"lm-eval gives {number} for {stated['metric']}, no score between 0 and 1")
    return Score(number)


def refuse(task: str, facts: Mapping[str, Json]) -> None:
    """Raise RunError if the facts of a record name another definition of lm-eval than the task's card."""
    if "lm_eval" in facts:
        require_definition(task, facts)
