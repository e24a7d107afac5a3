"""Tasks of lm-evaluation-harness 0.4.13: its definitions, its prompts, its filters and metrics; no model, no torch.

lm-eval's own `TaskManager` reads the YAML of one folder of it (all 14,683 entries would take 12 s) and makes the task;
what is overridden is where the rows come from, the number of examples, and its talk.
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

from anchoreval.errors import CardError, MissingExtra
from anchoreval.schema import Json

FEWSHOT_SEED = 1234  # lm-eval's default; every task draws its examples anew from it, sample by sample
MAX_NEW_TOKENS = 256  # of lm-eval's `hf` model, where a task states none
LmTask = Any  # lm_eval.api.task.ConfigurableTask
Results = Mapping[tuple[str, str], Any]  # (metric, filter) -> what a sample adds to it


def require() -> dict[str, str]:
    """The release of lm-eval that scores and prompts are from; MissingExtra where it is not installed."""
    if find_spec("lm_eval") is None:
        raise MissingExtra("general tasks are lm-evaluation-harness's own: pip install 'anchoreval[lm-eval]'")
    return {"lm-eval": metadata.version("lm-eval")}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of `datasets` and no notes of lm-eval; both as they were behind it."""
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
    """lm-eval's TaskManager of one folder of its tasks."""
    require()
    import lm_eval.tasks

    return lm_eval.tasks.TaskManager(
        include_path=str(Path(lm_eval.tasks.__file__).parent / folder), include_defaults=False
    )


def load(name: str, folder: str, shots: int, rows: Mapping[str, Any] | None = None, **changes: Json) -> LmTask:
    """lm-eval's task `name` of its folder `folder` with `shots` examples, few-shot seed set.

    `rows` are a `datasets.Dataset` by split; without them lm-eval loads its data set as it always does. Without
    examples the training data are not touched. CardError for a name that the folder does not have.
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
    """lm-eval's requests for one row, as its `build_all_requests` makes them; examples are drawn in order of rows."""
    context = task.fewshot_context(doc, num_fewshot=task.config.num_fewshot, gen_prefix=task.doc_to_prefix(doc))
    made = task.construct_requests(doc=doc, ctx=context, metadata=(task.config.task, 0, 1))
    return made if isinstance(made, list) else [made]


def alone(task: LmTask, doc: Mapping[str, Json]) -> str:
    """The context of a row without examples; nothing where every choice has its own."""
    context = task.fewshot_context(doc, num_fewshot=0, gen_prefix=task.doc_to_prefix(doc))
    return context if isinstance(context, str) else ""


def metrics(task: LmTask) -> list[tuple[str, str]]:
    """Every (metric, filter) that the task reports."""
    return [(metric, each.name) for each in task._filters for metric in task.aggregation()]


class Judge:
    """One task without its data: what lm-eval makes of answers, given the row that was asked."""

    def __init__(self, task: LmTask) -> None:
        self.task = task

    def results(self, doc: Mapping[str, Json], answers: Sequence[Any]) -> Results:
        """What the answers to one row add to every metric; a text, or (log-probability, greedy) for each choice."""
        from lm_eval.api.instance import Instance

        kind = "loglikelihood" if isinstance(answers[0], tuple) else "generate_until"
        asked = [Instance(kind, doc, (), i, (None, 0, 1), resps=[answer]) for i, answer in enumerate(answers)]
        found: dict[tuple[str, str], Any] = {}
        for each in self.task._filters:
            each.apply(asked)
            row = self.task.process_results(doc, [one.filtered_resps[each.name] for one in asked])
            found |= {(metric, each.name): value for metric, value in row.items()}
        return found

    def aggregate(self, metric: str, values: Sequence[Any]) -> float:
        """lm-eval's own figure for a metric over the rows of the task."""
        return float(self.task.aggregation()[metric](list(values)))

    def higher_is_better(self, metric: str) -> bool:
        """Whether more of a metric is better."""
        return bool(self.task.higher_is_better()[metric])


@cache
def _judges() -> dict[tuple[str, str], Judge]:
    return {}


def judge_of(name: str, folder: str, doc: Mapping[str, Json]) -> Judge:
    """The judge of a task, made once; `doc` is any row of it, as its prompts are made from (`plain`)."""
    if (name, folder) not in _judges():
        import datasets

        rows: Mapping[str, Any] = defaultdict(lambda: datasets.Dataset.from_list([dict(doc)]))
        _judges()[name, folder] = Judge(load(name, folder, 0, rows, process_docs=None))
    return _judges()[name, folder]


def plain(doc: Mapping[str, Json]) -> dict[str, Json]:
    """The row as JSON gives it back."""
    row: dict[str, Json] = json.loads(json.dumps(doc, default=str))
    return row
