"""What is asked of a run, apart from the model: made in one place, for every command that asks it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anchoreval.arms.arm import Arm
from anchoreval.cards import Task, select_tasks, with_settings
from anchoreval.errors import AnchorEvalError
from anchoreval.prompt import NO_ARGS, Anchor, Form, Template, require_no_anchor
from anchoreval.records.parts import RuleName
from anchoreval.stats.sequential import Until, parse_until
from anchoreval.suites import SIZES
from anchoreval.texts.sources import HaystackKind, Sources
from anchoreval.texts.wordlists import WordLists


@dataclass(frozen=True, slots=True)
class Spec:
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
        document_tokens: int | None = None,
        until: str | None = None,
        **more: Any,
    ) -> Spec:
        """Return what is asked of tasks, by their names or as they are, in the words of the command line.

        Named tasks get the values of `settings` as arguments, and as many samples as these give. AnchorEvalError for a
        limit of nothing, and for an arm that acts on an anchor token where none is sent.
        """
        if limit is not None and limit < 1:
            raise AnchorEvalError("--limit takes a number of samples from 1 upwards")
        for arm in arms if anchor == "none" else ():
            require_no_anchor(arm)
        if isinstance(tasks, str):
            chosen, more["single"] = select_tasks(tasks)
            tasks = map(_sized, with_settings(chosen, settings))
        return cls(
            tasks=tuple(tasks), lengths=tuple(sorted(set(lengths))) if lengths else None, arms=tuple(arms), limit=limit,
            seed=seed, template=template, template_args=template_args, anchor=anchor, document_tokens=document_tokens,
            sources=Sources(data_dir, haystack, wordlists, context=context, text=text),
            until=parse_until(until) if until is not None else None, **more,
        )  # fmt: skip

    @property
    def form(self) -> Form:
        """The form in which prompts reach the model."""
        return "server" if self.served else self.template


def _sized(task: Task) -> Task:
    """Return the task with as many samples of a length as its arguments give, where they say it."""
    if task.generator not in SIZES:
        return task
    return task.model_copy(update={"samples": SIZES[task.generator](task.address, task.args)})
