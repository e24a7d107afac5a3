"""`Spec`: everything that a user asks of a run, apart from the model. Every command makes it here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anchoreval.arms.arm import Arm
from anchoreval.cards import Task, with_settings
from anchoreval.errors import AnchorEvalError
from anchoreval.prompt import NO_ARGS, Anchor, Form, Template, require_no_anchor
from anchoreval.records.parts import RuleName
from anchoreval.stats.sequential import Until, parse_until
from anchoreval.suites import generator_of, select_tasks
from anchoreval.texts.sources import HaystackKind, Sources
from anchoreval.texts.wordlists import WordLists


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
            tasks = map(_sized, with_settings(chosen, given))
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


def _sized(task: Task) -> Task:
    """Return the task with the number of samples per length that its arguments imply, if its generator has a rule."""
    size = generator_of(task).size
    return task if size is None else task.model_copy(update={"samples": size(task.address, task.args)})
