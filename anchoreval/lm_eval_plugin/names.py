"""Write our cards as task files of lm-eval: a task per (task, length), and a group per (suite, length).

Every name begins with `anchor_` and the only tag is `anchoreval`, because in lm-eval a later file with the same name or
tag replaces it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from anchoreval.cards import Task
from anchoreval.suites import generator_of
from anchoreval.suites.outside import known_tasks

TAG = "anchoreval"
_CLASS = "!function anchoreval.lm_eval_plugin.tasks.AnchorTask"


def task_name(task: Task, length: int) -> str:
    """Return the name of a task in lm-eval, such as `anchor_ruler_niah_single_1_4096`."""
    return f"anchor_{task.suite}_{task.name}_{length}"


def asked_lengths(names: Iterable[str]) -> set[int]:
    """Return the lengths at the end of our names; a user may ask for any length in this way."""
    matches = (re.fullmatch(r"anchor_.*_(\d+)", name) for name in names)
    return {int(match[1]) for match in matches if match and int(match[1]) > 0}


def certainly_ours(name: str) -> bool:
    """Return True if a name or glob can only match our tasks, groups or tag."""
    return name.startswith("anchor_") or name == TAG


def write_tasks(folder: Path, names: Sequence[str] = (), limit: int | None = None) -> dict[str, tuple[Task, int]]:
    """Write a file for every task, at its card's lengths and at those of `names`; return name -> (task, length).

    The tasks are those of the package and of the suites from outside that were named. Tasks of natural length are left
    out, because they are lm-eval's own tasks under its own names. Tasks that score whole texts are left out too.
    `limit` is the number of samples that will be used, if it is known.
    """
    tasks, _ = known_tasks()
    extra, written = asked_lengths(names), {}
    groups: dict[tuple[str, int], list[str]] = {}
    for task in tasks.values():
        if task.length_of == "natural" or generator_of(task).in_files:
            continue
        for length in sorted({*task.lengths, *extra}):
            name = task_name(task, length)
            written[name] = (task, length)
            groups.setdefault((task.suite, length), []).append(name)
            about = {"task": task.address, "length": length} | ({"limit": limit} if limit else {})
            metadata = json.dumps({"version": task.version, "anchoreval": about})
            text = f"task: {name}\nclass: {_CLASS}\ntag: [{TAG}]\nmetadata: {metadata}\n"
            (folder / f"{name}.yaml").write_text(text, "utf-8")
    for (suite, length), members in groups.items():
        group = {
            "group": f"anchor_{suite}_{length}",
            "task": members,
            "aggregate_metric_list": [{"metric": "score", "aggregation": "mean", "weight_by_size": False}],
            "metadata": {"version": 1},
        }
        (folder / f"group_{suite}_{length}.yaml").write_text(json.dumps(group), "utf-8")
    return written
