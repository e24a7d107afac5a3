"""One command as a function: model + tasks + lengths + arms -> a run on disk.

`anchoreval run` parses its flags into this call; nothing else stands between the two.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from anchoreval.arms.arm import DEFAULT_KERNEL, Arm, parse_arms, widest_product
from anchoreval.backends import Backend, capabilities_of, open_backend, waves
from anchoreval.cards import ModelCard, find_model, select_tasks, with_settings
from anchoreval.errors import AnchorEvalError, UnsupportedArm
from anchoreval.model import folder_of
from anchoreval.model.hashes import forget
from anchoreval.prompt import NO_ARGS, Anchor, Template, anchor_from, anchor_token, require_no_anchor
from anchoreval.records.folder import RunFolder
from anchoreval.records.header import HEADER, RAW_TEXT, UNUSED_TEMPLATE, Header
from anchoreval.records.own import require_own
from anchoreval.records.run import Run, load_run
from anchoreval.records.writable import require_writable
from anchoreval.runs.finished import Finished, finished_beside
from anchoreval.runs.groups import in_order, run_cells
from anchoreval.runs.identity import decided_by, environment_of, tell_beside
from anchoreval.runs.loop import (
    Cell,
    Makeable,
    Plan,
    header_of,
    make_cells,
    run_directory,
    sized,
)
from anchoreval.runs.resume import gone_on
from anchoreval.runs.rounds import drop_behind, rule_of, run_rounds
from anchoreval.runs.workers.actors import Fleet, Opening
from anchoreval.runs.workers.loop import run_cells_on
from anchoreval.schema import Progress, Watch, work
from anchoreval.schema import unwatched as unwatched
from anchoreval.stats.sequential import parse_until
from anchoreval.suites import ONE_DOCUMENT
from anchoreval.texts.sources import HaystackKind, Sources
from anchoreval.tokenizer import TextTokenizer, load_tokenizer

Engine = Backend | Fleet


def evaluate(
    model: str,
    tasks: str,
    *,
    lengths: Sequence[int] | None = None,
    rope: str = "native",
    limit: int | None = None,
    output: str | Path = "runs",
    dtype: str | None = None,
    kernel: str = DEFAULT_KERNEL,
    backend: str = "hf",
    tokenizer: str | None = None,
    template: Template | None = None,
    template_args: Mapping[str, Any] = NO_ARGS,
    anchor: Anchor = "auto",
    haystack: HaystackKind | None = None,
    data_dir: str | Path | None = None,
    text: str | Path | None = None,
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
    same_environment: bool = False,
    rehash: bool = False,
    watch: Watch = unwatched,
    tell: Callable[[str], None] = lambda _: None,
) -> Run:
    """The finished run: every sample of every task and length, answered under every arm and scored.

    `model` is a card of models/, a folder or a hub id; behind the backend `openai`, its name at the server of the
    option `base_url`, and `tokenizer` is a card, folder or hub id. `tasks` are suites, sets, tasks or globs; `lengths`
    are tokens of the model under test, all that it is fed and its answer (default: the card's); `rope` are arms.
    `template`, `haystack` and `dtype` default to the model card's; `template_args` go to the chat template;
    `anchor="none"` puts no anchor token in front, which arms that act on it refuse; `document_tokens` puts documents
    into blocks of so many tokens; `context=False` leaves the context out of the prompts; `placebo` adds the first arm
    once more, in other batches: what differs then is noise (on `vllm` it is always there); `until` ("1pt@95%") stops a
    task and length when every arm's verdict is in (rounds.py); `max_length` overrides the positions that the checkpoint
    states; `text` is the file or folder of the texts that `nll` scores; `settings` are what suites let be chosen
    (depths, needles, ...); `ray` is the address of a cluster on which
    so many `workers` compute (fleet/); `options` go to the backend. The same call resumes a run, asks again what has no
    answer, and goes on with more samples under a greater `limit`; with `same_environment` only where and with the
    versions it was begun. `rehash` reads files again whose hashes are known. `watch` shows progress, `tell` takes
    notices.
    """
    (chosen, single), subject = select_tasks(tasks), _subject(model, backend, tokenizer)
    card, dtype = subject.card, dtype or subject.card.dtype
    plan = Plan(
        tasks=tuple(sized(with_settings(chosen, settings or {}))), single=single, limit=limit, seed=seed,
        lengths=tuple(sorted(set(lengths))) if lengths else None,
        arms=_arms(parse_arms(rope, dtype, kernel), placebo, backend, tell),
        template=template or card.template, template_args=template_args, anchor=anchor,
        sources=Sources(data_dir, _haystack(haystack, subject, tell), wordlists, context=context, text=text),
        document_tokens=document_tokens, until=parse_until(until) if until is not None else None,
        served=capabilities_of(backend).one_server and (options or {}).get("api") == "chat",
    )  # fmt: skip
    _check(plan, backend, ray, str((options or {}).get("api")))
    require_writable(Path(output) / subject.name)
    given = {"dtype": dtype, "kernel": kernel} | _own_options(backend, card, max_length, plan.arms) | (options or {})
    if kernel == "flex_attention" and capabilities_of(backend).kernels_of_torch:
        tell("kernel flex_attention is compiled by torch anew for every shape: that takes minutes on a CPU")
    if rehash:
        forget(folder_of(card.checkpoint, weights=False))
    if plan.served and template_args:
        given |= {"template_args": dict(template_args)}
    opener = partial(_open, Opening(backend, subject.checkpoint, given, rehash), ray, workers)
    raw = template is None and plan.form == "base"
    return _execute(plan, subject, max_length, Path(output), opener, same_environment, raw, watch, tell)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is evaluated: its name on boards, as asked for, the card whose tokenizer and limits hold, and what the
    backend is opened with.
    """

    name: str
    asked: str
    card: ModelCard
    checkpoint: str
    tokenizer: str | None = None  # where it is not the checkpoint's


def _subject(model: str, backend: str, tokenizer: str | None) -> Subject:
    """The model of a card, folder or hub id; behind a server, its name there and the card of its tokenizer."""
    if capabilities_of(backend).needs_tokenizer:
        if tokenizer is None:
            raise AnchorEvalError(
                f"--backend {backend} needs --tokenizer: a folder, hub id or card with the model's tokenizer"
            )
        card = find_model(tokenizer)[1].model_copy(update={"about": f"{model}, behind a server", "dtype": "auto"})
        return Subject(model.rstrip("/").rpartition("/")[2], model, card, model, tokenizer)
    if tokenizer is not None:
        raise AnchorEvalError("--tokenizer goes with --backend openai: elsewhere it is the checkpoint's own")
    name, card = find_model(model)
    return Subject(name, model, card, card.checkpoint)


def _own_options(backend: str, card: ModelCard, max_length: int | None, arms: Sequence[Arm]) -> dict[str, Any]:
    """What a backend is told of the run."""
    facts: dict[str, Callable[[], Any]] = {
        "tokenizer": lambda: str(folder_of(card.checkpoint, weights=False)),
        "product": lambda: widest_product(arms),
        "max_model_len": lambda: window_of(card, max_length),
    }
    return {name: fact() for name, fact in facts.items() if name in capabilities_of(backend).takes}


def notices(described: Mapping[str, Any]) -> Iterator[str]:
    """What the backend says of itself that whoever asked may not expect: another kernel, weights that are left out."""
    if why := described.get("kernel_why"):
        yield f"kernel {described['kernel']} for all arms: {why}"
    for kind, found in (described.get("unused_weights") or {}).items():
        if kind == "frequencies_off":
            yield f"the checkpoint's own rotary frequencies are off the computed ones by up to {found:.2g}, relative"
        else:
            yield f"left out, {kind}: {found['weights']} weights of the checkpoint ({found['first'][0]}, ...)"


def window_of(card: ModelCard, max_length: int | None) -> int | None:
    """The positions that the model has: those asked for, else the card's, else the checkpoint's; None: not stated."""
    return max_length or card.max_length or stated_length(folder_of(card.checkpoint, weights=False))


def _haystack(asked: HaystackKind | None, subject: Subject, tell: Callable[[str], None]) -> HaystackKind:
    """The haystack asked for, else the card's, which is told where its prompts are not the published ones."""
    own = subject.card.haystack
    if asked is None and own != "published":
        tell(f"haystack {own}, as the card of {subject.name} says: not comparable with published scores")
    return asked or own


def _open(opening: Opening, ray: str | None, workers: int | None) -> Engine:
    """One backend in this process, or workers with one each."""
    if ray is None:
        if workers is not None:
            raise AnchorEvalError("--workers needs --ray: local, auto or the address of a cluster")
        return open_backend(opening.backend, opening.model, **opening.options)
    return Fleet.open(ray, workers, opening)


def _check(plan: Plan, backend: str, ray: str | None, api: str) -> None:
    """AnchorEvalError for a limit of nothing, a stopping rule with nothing to compare, and what cannot go together."""
    if plan.limit is not None and plan.limit < 1:
        raise AnchorEvalError("--limit takes a number of samples from 1 upwards")
    server = capabilities_of(backend).one_server
    if server and (api, plan.template) == ("chat", "chat"):
        raise AnchorEvalError("api=chat: the server applies the chat template itself: use --template base")
    if plan.template_args and plan.template == "base" and not plan.served:
        how = "api=chat to --backend-args, or --template chat" if server else "--template chat"
        raise AnchorEvalError(f"--template-args are arguments of a chat template: add {how}")
    for arm in plan.arms if plan.anchor == "none" else ():
        require_no_anchor(arm)
    for task in (task for task in plan.tasks if task.generator in ONE_DOCUMENT):
        require_one_document(plan.arms, task.address)
    if plan.until is not None and ray is not None:
        raise AnchorEvalError("--until takes samples in rounds, which --ray cannot: leave one of them out")
    if plan.until is not None and sum(not arm.placebo for arm in plan.arms) < 2:
        raise AnchorEvalError(f"--until {plan.until} compares arms with the first: --rope takes two or more, bf16,fp32")
    if plan.until is not None and len(waves(backend, plan.arms)) > 1:
        raise AnchorEvalError(
            f"--until takes arms in turn, for which {backend} would start anew each time: leave it out"
        )
    if server and ray is not None:
        text = f"--ray spreads engines over a cluster, {backend} has one server: use concurrency=N instead"
        raise AnchorEvalError(text)


def require_one_document(arms: Sequence[Arm], task: str) -> None:
    """Raise UnsupportedArm for attention and positions that need several documents."""
    for arm in arms:
        if arm.masks_documents:
            reason = f"attention {arm.attention!r} needs several"
        elif arm.positions.restarts:
            reason = f"positions {str(arm.positions)!r} restart at each of several"
        else:
            continue
        raise UnsupportedArm(f"arm {arm.name!r}: a text is one document to {task}; {reason}")


def _execute(
    plan: Plan,
    subject: Subject,
    max_length: int | None,
    output: Path,
    open_engine: Callable[[], Engine],
    same_environment: bool,
    raw: bool,
    watch: Watch,
    tell: Callable[[str], None],
) -> Run:
    """Prompts first, the model second, then every record; the run as it lies on disk.

    `raw`: prompts are raw text, and nobody asked for that.
    """
    folder = folder_of(subject.card.checkpoint, weights=False)
    tokenizer = load_tokenizer(folder)
    window = window_of(subject.card, max_length)
    finished = [] if same_environment else finished_beside(output / subject.name, plan)
    with work(watch, 0, "making the first prompt of every task and length"):
        made = _cells(plan, tokenizer, window, tell) if not finished else None
    for line in tokenizer_lines(plan, tokenizer):
        tell(line)
    unused = {UNUSED_TEMPLATE: True} if raw and tokenizer.chat_template else {}
    if unused:
        tell(RAW_TEXT)
    if plan.served and not tokenizer.chat_template:
        tell("lengths leave out the chat template of the server: the tokenizer given has none to count")
    with work(watch, 0, f"opening {subject.name}"):
        engine = open_engine()
    try:
        within = _within_server(engine, window)
        if (served := _as_served(engine, plan)) is not plan:
            plan, made, finished = served, None, []
        for run in finished:
            if run.is_asked_for(plan, engine, tokenizer, folder, within) and run.is_whole(plan, engine):
                return _as_it_is(run, engine, watch, tell)
        made = made or _cells(plan, tokenizer, window, tell)
        if within != window:
            window, made = within, make_cells(plan, tokenizer, within)
        for notice in made.notices:
            tell(notice)
        facts = {"name": subject.name, "path": subject.asked, "about": subject.card.about, "window": window}
        described = engine.describe()
        decided = decided_by(plan, made, described, tokenizer, folder)
        with work(watch, 0, "trying every arm once"):
            header = header_of(plan, made, engine, tokenizer, facts, _now(), decided)
        header["tokenizer"] |= {"path": subject.tokenizer} if subject.tokenizer else {}
        header |= {"version": metadata.version("anchoreval"), "environments": [environment_of(described)]}
        header |= unused
        header |= {"until": rule_of(plan.until)} if plan.until else {}
        for line in notices(header.backend):
            tell(line)
        directory = run_directory(output, subject.name, header)
        if not (directory / HEADER).exists():
            tell_beside(directory, Header(json.loads(json.dumps(header))), tell)
        with RunFolder(directory, header, same_environment) as disk:
            require_own(disk)
            plan, made = gone_on(plan, made, disk, tokenizer, window, tell)
            with work(watch, _records(made, plan)) as progress:
                _compute(engine, made, plan, tokenizer, window, disk, progress)
            disk.finish(finished=_now(), sources=plan.sources.describe(), source_files=plan.sources.files())
    finally:
        engine.close()
    return load_run(directory)


def _cells(plan: Plan, tokenizer: TextTokenizer, window: int | None, tell: Callable[[str], None]) -> Makeable:
    """The cells of the plan; what is left out of it is told."""
    made = make_cells(plan, tokenizer, window)
    for row in made.unmakeable:
        tell(f"left out: {row['why']}")
    return made


def _as_it_is(finished: Finished, engine: Engine, watch: Watch, tell: Callable[[str], None]) -> Run:
    """A run that had finished with every answer, told of as one that is computed."""
    for reason in finished.header.unmakeable.values():
        tell(f"left out: {reason}")
    for line in notices(engine.describe()):
        tell(line)
    run = load_run(finished.path)
    with watch(len(run.records)) as progress:
        progress(len(run.records))
    return run


def tokenizer_lines(plan: Plan, tokenizer: TextTokenizer) -> Iterator[str]:
    """What is to be said of the tokens of a run: another reading of its files, an anchor that is not the model's."""
    if tokenizer.reading and tokenizer.reading.differs:
        yield tokenizer.reading.differs
    if plan.anchor == "none":
        if tokenizer.front:
            first = tokenizer.decode(tokenizer.front, skip_special_tokens=False)
            yield f"--anchor none: the {first!r} that the tokenizer puts in front of a text is left out too"
    elif anchor_from(tokenizer, plan.template, plan.template_args) == "anchoreval":
        kind = "BOS" if tokenizer.bos else "EOS"
        yield (
            f"the tokenizer puts no token in front: anchoreval puts its {kind} token {anchor_token(tokenizer)[0]!r} "
            "there as the anchor (--anchor none leaves it out)"
        )


def _compute(
    engine: Engine,
    made: Makeable,
    plan: Plan,
    tokenizer: TextTokenizer,
    window: int | None,
    disk: RunFolder,
    progress: Progress,
) -> None:
    """Every record on disk; the engine of the arms that were proved last is the first to run.

    Where that is not the plan's order, many write or the run went on after its end, the records are put into it at the
    end.
    """
    cells: Sequence[Cell] = made.cells
    if plan.until is not None and not isinstance(engine, Fleet):
        taken: set[str] = set()
        verdicts = run_rounds(cells, plan, plan.until, engine, tokenizer, window, disk, progress, taken)
        drop_behind(disk, taken)
        disk.update_header(until=rule_of(plan.until) | {"cells": verdicts})
        return
    if isinstance(engine, Fleet):
        disk.update_header(workers=engine.workers)
    groups = waves(str(engine.describe()["engine"]), plan.arms)
    for arms in reversed(groups):
        part = replace(plan, arms=arms)
        if isinstance(engine, Fleet):
            run_cells_on(engine, cells, part, tokenizer, window, disk, progress)
        else:
            run_cells(cells, part, engine, tokenizer, window, disk, progress)
        cells = make_cells(plan, tokenizer, window).cells if arms is not groups[0] else cells
    if isinstance(engine, Fleet) or len(groups) > 1 or disk.unordered:
        disk.sort([record.key for record in in_order(disk.done.values(), cells, plan)])


def _as_served(engine: Engine, plan: Plan) -> Plan:
    """The plan, another one where a server turned out to answer chat alone, in its own template."""
    said = engine.describe()
    if plan.served or said.get("server", {}).get("api") != "chat":
        return plan
    _check(served := replace(plan, served=True), str(said["engine"]), None, "chat")
    return served


def _within_server(engine: Engine, window: int | None) -> int | None:
    """The positions that the run has: the server's, where it says that it has fewer than the card."""
    described = engine.describe()
    served = described.get("max_length")
    if not capabilities_of(str(described["engine"])).one_server or not isinstance(served, int):
        return window
    return served if window is None else min(window, served)


def _arms(arms: tuple[Arm, ...], wanted: bool, backend: str, tell: Callable[[str], None]) -> tuple[Arm, ...]:
    """The arms, settled, and the placebo of the first behind them where it is wanted and not there yet.

    Two arms or more always have one on a backend where what is computed together may move log-probabilities too. What
    is from outside is imported here, where a user typed it and the backend computes it, and nowhere before.
    """
    arms = tuple(arm.settled(backend) for arm in arms)
    if capabilities_of(backend).always_placebo and len(arms) > 1 and not any(arm.placebo for arm in arms):
        wanted = True
        tell(f"{replace(arms[0], placebo=True).name} is added: on {backend} every comparison has its noise floor")
    return tuple(dict.fromkeys((*arms, replace(arms[0], placebo=True)))) if wanted else arms


def stated_length(folder: Path) -> int | None:
    """Positions that config.json states, None where it states none or where there is no such file."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    stated = (config.get("text_config") or config).get("max_position_embeddings")
    return stated if isinstance(stated, int) else None


def _records(made: Makeable, plan: Plan) -> int:
    return len(plan.arms) * sum(cell.asked for cell in made.cells)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
