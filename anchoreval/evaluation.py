"""One command as a function: model + tasks + lengths + arms -> a run on disk.

`anchoreval run` parses its flags into this call; nothing else stands between the two.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from anchoreval.arms import Arm, parse_arms
from anchoreval.backends import Backend, open_backend
from anchoreval.backends.checkpoint import folder_of
from anchoreval.cards import ModelCard, find_model, select_tasks, with_settings
from anchoreval.data.sources import HaystackKind, Sources
from anchoreval.errors import AnchorEvalError
from anchoreval.fleet.fleet import Fleet, Opening
from anchoreval.fleet.loop import run_cells_on
from anchoreval.prompt import Template, anchor_token
from anchoreval.results import Run, RunFolder, load_run
from anchoreval.rounds import rule_of, run_rounds
from anchoreval.run import Makeable, Plan, Progress, header_of, make_cells, run_cells, run_directory, sized
from anchoreval.stats.sequential import parse_until
from anchoreval.tokenizer import load_tokenizer

Engine = Backend | Fleet
Watch = Callable[[int], contextlib.AbstractContextManager[Progress]]


@contextlib.contextmanager
def unwatched(total: int) -> Iterator[Progress]:
    """Progress that is not shown; `total` is the number of records to come."""
    yield lambda _: None


def evaluate(
    model: str,
    tasks: str,
    *,
    lengths: Sequence[int] | None = None,
    rope: str = "native",
    limit: int | None = None,
    output: str | Path = "runs",
    dtype: str | None = None,
    kernel: str = "sdpa",
    backend: Literal["hf", "fake"] = "hf",
    template: Template | None = None,
    haystack: HaystackKind | None = None,
    data_dir: str | Path | None = None,
    wordlists: Literal["3.0.1", "2.2.0"] = "3.0.1",
    seed: int = 42,
    max_length: int | None = None,
    document_tokens: int | None = None,
    placebo: bool = False,
    until: str | None = None,
    context: bool = True,
    settings: Mapping[str, Any] | None = None,
    ray: str | None = None,
    workers: int | None = None,
    options: dict[str, Any] | None = None,
    watch: Watch = unwatched,
    tell: Callable[[str], None] = lambda _: None,
) -> Run:
    """The finished run: every sample of every task and length, answered under every arm and scored.

    `model` is a card of models/, a folder or a hub id; `tasks` are suites, sets, tasks or globs; `lengths` are tokens
    of the model under test, prompt plus answer (default: the task card's); `rope` are arms, comma separated.
    `template`, `haystack` and `dtype` default to the model card's, else base, published and the checkpoint's own;
    `document_tokens` puts documents into blocks of so many tokens, for the arms that act on documents;
    `context=False` leaves the context out of the prompts of tasks that can do without; `placebo` adds the first arm
    once more, in other chunks and batches: what differs then is noise; `until` ("1pt@95%") takes samples in rounds and
    stops a task and length when every arm's verdict is in (rounds.py); `max_length` overrides the positions that the
    checkpoint states; `settings` are what suites let be chosen (depths, needles, prompting, ...); `ray` is the address
    of a cluster on which so many `workers` compute (fleet/); `options` go to the backend (device, chunk_tokens, ...).
    The same call again resumes a run that was cut off. `watch` shows progress, `tell` takes notices.
    """
    chosen, single = select_tasks(tasks)
    name, card = find_model(model)
    dtype = dtype or card.dtype
    plan = Plan(
        tasks=tuple(sized(with_settings(chosen, settings or {}))),
        lengths=tuple(sorted(set(lengths))) if lengths else None,
        arms=_with_placebo(parse_arms(rope, dtype, kernel), placebo),
        limit=limit,
        seed=seed,
        template=template or card.template,
        sources=Sources(data_dir, _haystack(haystack, name, card, tell), wordlists, context=context),
        single=single,
        document_tokens=document_tokens,
        until=parse_until(until) if until is not None else None,
    )
    _check(plan, ray)
    given = {"dtype": dtype, "kernel": kernel, **(options or {})}
    open_engine = partial(_open, backend, card.checkpoint, given, ray, workers)
    return _execute(plan, name, model, card, max_length, Path(output), open_engine, watch, tell)


def _haystack(asked: HaystackKind | None, name: str, card: ModelCard, tell: Callable[[str], None]) -> HaystackKind:
    """The haystack asked for, else the card's, which is told where its prompts are not the published ones."""
    if asked is None and card.haystack != "published":
        tell(f"haystack {card.haystack}, as the card of {name} says: not comparable with published scores")
    return asked or card.haystack


def _open(backend: str, checkpoint: str, options: dict[str, Any], ray: str | None, workers: int | None) -> Engine:
    """One backend in this process, or workers with one each."""
    if ray is None:
        if workers is not None:
            raise AnchorEvalError("--workers needs --ray: local, auto or the address of a cluster")
        return open_backend(backend, checkpoint, **options)
    return Fleet.open(ray, workers, Opening(backend, checkpoint, options))


def _check(plan: Plan, ray: str | None) -> None:
    """AnchorEvalError for a limit of nothing, and for a stopping rule with nothing to compare."""
    if plan.limit is not None and plan.limit < 1:
        raise AnchorEvalError("--limit takes a number of samples from 1 upwards")
    if plan.until is not None and ray is not None:
        raise AnchorEvalError("--until takes samples in rounds, which --ray cannot: leave one of them out")
    if plan.until is not None and sum(not arm.placebo for arm in plan.arms) < 2:
        raise AnchorEvalError(f"--until {plan.until} compares arms with the first: --rope takes two or more, bf16,fp32")


def _execute(
    plan: Plan,
    name: str,
    model: str,
    card: ModelCard,
    max_length: int | None,
    output: Path,
    open_engine: Callable[[], Engine],
    watch: Watch,
    tell: Callable[[str], None],
) -> Run:
    """Prompts first, the model second, then every record; the run as it lies on disk."""
    folder = folder_of(card.checkpoint, weights=False)
    tokenizer = load_tokenizer(folder)
    window = max_length or card.max_length or stated_length(folder)
    made = make_cells(plan, tokenizer, window)
    for row in made.unmakeable:
        tell(f"left out: {row['why']}")
    if tokenizer.bos is None:
        tell(f"the tokenizer has no BOS token: the anchor token is {anchor_token(tokenizer)[0]!r}")
    engine = open_engine()
    try:
        facts = {"name": name, "path": model, "about": card.about, "window": window}
        header = header_of(plan, made, engine, tokenizer, facts, _now()) | {"version": metadata.version("anchoreval")}
        header |= {"until": rule_of(plan.until)} if plan.until else {}
        directory = run_directory(output, name, header)
        with RunFolder(directory, header) as disk, watch(_records(made, plan)) as progress:
            if isinstance(engine, Fleet):
                disk.update_header(workers=engine.workers)
                run_cells_on(engine, made.cells, plan, tokenizer, window, disk, progress)
            elif plan.until is None:
                run_cells(made.cells, plan, engine, tokenizer, window, disk, progress)
            else:
                verdicts = run_rounds(made.cells, plan, plan.until, engine, tokenizer, window, disk, progress)
                disk.update_header(until=rule_of(plan.until) | {"cells": verdicts})
            disk.finish(finished=_now(), sources=plan.sources.describe(), source_files=plan.sources.files())
    finally:
        engine.close()
    return load_run(directory)


def _with_placebo(arms: tuple[Arm, ...], wanted: bool) -> tuple[Arm, ...]:
    """The arms, and the placebo of the first behind them where it is wanted and not there yet."""
    return tuple(dict.fromkeys((*arms, replace(arms[0], placebo=True)))) if wanted else arms


def stated_length(folder: Path) -> int | None:
    """Positions that config.json states, None where it states none or where there is no such file."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    stated = config.get("text_config", config).get("max_position_embeddings")
    return stated if isinstance(stated, int) else None


def _records(made: Makeable, plan: Plan) -> int:
    return len(plan.arms) * sum(cell.asked for cell in made.cells)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
