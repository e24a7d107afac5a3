"""`evaluate`: model + tasks + lengths + arms -> a run on disk.

`anchoreval run` parses its flags and makes exactly this call.
"""

from __future__ import annotations

import functools
import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, ParamSpec, Protocol, overload

from anchoreval.arms.arm import DEFAULT_KERNEL, Arm, parse_arms, widest_product
from anchoreval.backends import Backend, Described, capabilities_of, open_backend, opened_with, waves
from anchoreval.errors import AnchorEvalError, UnsupportedArm
from anchoreval.files import forget, require_writable
from anchoreval.model import Model
from anchoreval.prompt import NO_ARGS, Anchor, Template, first_token
from anchoreval.records.folder import RunFolder
from anchoreval.records.header import HEADER, RAW_TEXT, Header
from anchoreval.records.run import Run, load_run
from anchoreval.runs.identity import header_of, now, tell_beside
from anchoreval.runs.prompts import Cells, Prompts, Spec
from anchoreval.runs.resume import finished_beside, gone_on
from anchoreval.runs.rounds import run_rounds
from anchoreval.runs.units import Units, in_order, work_here
from anchoreval.runs.workers.actors import Fleet, Opening
from anchoreval.schema import Json, Watch, work
from anchoreval.schema import unwatched as unwatched
from anchoreval.suites import generator_of
from anchoreval.texts.sources import HaystackKind

Engine = Backend | Fleet
Tell = Callable[[str], None]
P = ParamSpec("P")


def ask(
    model: str,
    tasks: str,
    *,
    lengths: Sequence[int] | None = None,
    arms: str = "native",
    limit: int | None = None,
    output: str | Path = "runs",
    dtype: str | None = None,
    kernel: str = DEFAULT_KERNEL,
    device: str = "auto",
    trust_remote_code: bool = False,
    chunk_tokens: int | None = None,
    batch_tokens: int | None = None,
    realisation: str | None = None,
    backend: str = "hf",
    backend_args: Mapping[str, Any] = NO_ARGS,
    base_url: str | None = None,
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
    offline: bool = False,
    document_tokens: int | None = None,
    placebo: bool = False,
    until: str | None = None,
    no_context: bool = False,
    ray: str | None = None,
    workers: int | None = None,
    same_environment: bool = False,
    rehash: bool = False,
    watch: Watch = unwatched,
    tell: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> Evaluation:
    """Evaluate a model and return the finished run: every sample answered under every arm, and scored.

    The keywords are the flags of `anchoreval run`; its help explains them. A list of models gives a list of runs. Here:

    `tasks`             may name cards of suites from outside, whose modules are then run
    `lengths`           a sequence; `template_args` and `backend_args` are mappings
    `offline`           reads source texts on this machine alone; for models set HF_HUB_OFFLINE=1, as the flag does
    `settings`          settings of suites by name: depths, needles, ...
    `watch`, `tell`     take progress and notices
    The same call resumes a run: samples without an answer are asked again, and a greater `limit` adds samples.
    """
    given = opened_with(
        backend, backend_args, base_url=base_url, device=device, trust_remote_code=trust_remote_code,
        chunk_tokens=chunk_tokens, batch_tokens=batch_tokens, realisation=realisation,
    )  # fmt: skip
    asked = _model(model, backend, tokenizer, max_length)
    card, dtype = asked.card, dtype or asked.card.dtype
    spec = Spec.of(
        tasks, settings=settings, lengths=lengths, limit=limit, seed=seed,
        arms=_arms(parse_arms(arms, dtype, kernel), placebo, backend, tell),
        template=template or card.template, template_args=template_args, anchor=anchor,
        haystack=haystack or card.haystack, data_dir=data_dir, text=text, wordlists=wordlists,
        context=not no_context, offline=offline, document_tokens=document_tokens, until=until,
        served=capabilities_of(backend).one_server and given.get("api") == "chat",
    )  # fmt: skip
    if haystack is None and card.haystack != "published":
        tell(f"haystack {card.haystack}, as the card of {asked.name} says: not comparable with published scores")
    _check(spec, backend, ray, str(given.get("api")))
    require_writable(Path(output) / asked.name)
    if kernel == "flex_attention" and capabilities_of(backend).kernels_of_torch:
        tell("kernel flex_attention is compiled by torch anew for every shape: that takes minutes on a CPU")
    if rehash:
        forget(asked.folder)
    given = {"dtype": dtype, "kernel": kernel} | _of_run(backend, asked, spec.arms) | given
    given |= {"template_args": dict(template_args)} if spec.served and template_args else {}
    opening = Opening(backend, asked.checkpoint, given, rehash, ray, workers)
    raw = template is None and spec.form == "base"
    folder = Path(output) / asked.name
    return Evaluation(Prompts(spec, asked), opening, folder, same_environment, raw, watch, tell)


class Computed(Protocol[P]):
    """`ask`, computed: one model gives its run, a list of models theirs, in order."""

    @overload
    def __call__(self, *args: P.args, **named: P.kwargs) -> Run: ...
    @overload
    def __call__(self, model: list[str] | tuple[str, ...], tasks: str, **named: Any) -> list[Run]: ...


def _computed(ask: Callable[P, Evaluation]) -> Computed[P]:
    """Return the function that computes what `ask` checks, with its keywords; those of version 0.1 work until 0.3.

    Models of a list are computed one after the other, each as if it were asked for alone (several.py).
    """
    checked: Callable[..., Evaluation] = ask
    usual = {name: keyword.default for name, keyword in inspect.signature(ask).parameters.items()}

    @functools.wraps(ask)
    def evaluate(*args: Any, **named: Any) -> Any:
        given: dict[str, Any] = dict(zip(usual, args, strict=False)) | named
        if old := [name for name in _OLD_KEYWORDS if name in given]:
            text = f"{', '.join(old)} of evaluate() will go with version 0.3: its keywords are the flags of `run`"
            warnings.warn(text, DeprecationWarning, stacklevel=2)
            for name in old:
                given |= _OLD_KEYWORDS[name](given.pop(name))
        asked = {name: value for name, value in given.items() if name not in _NOT_ASKED and value != usual.get(name)}
        if isinstance(given.get("model"), list | tuple):
            from anchoreval.runs.several import evaluate_each

            def ask_one(model: str, tell: Tell) -> Evaluation:
                text = json.dumps(asked | {"model": model}, default=str)
                return replace(checked(**given | {"model": model, "tell": tell}), options=json.loads(text))

            return evaluate_each(given["model"], ask_one, given.get("tell", usual["tell"]))
        return replace(checked(**given), options=json.loads(json.dumps(asked, default=str))).run()

    return evaluate


#: Keywords of version 0.1 -> those of today, given a value.
_OLD_KEYWORDS: Mapping[str, Callable[[Any], Mapping[str, Any]]] = {
    "rope": lambda value: {"arms": value},
    "options": lambda value: {"backend_args": value or {}},
    "context": lambda value: {"no_context": not value},
    "settings": lambda value: value or {},
}
#: Keywords that decide nothing about the records: where they are written, and who watches. The address of a server is
#: kept by the backend, without keys.
_NOT_ASKED = ("output", "watch", "tell", "rehash", "same_environment", "base_url")
evaluate = _computed(ask)


def _model(asked: str, backend: str, tokenizer: str | None, max_length: int | None) -> Model:
    """Return the model of a card, folder or hub id; for a server, the model of its name there and of `tokenizer`."""
    if not capabilities_of(backend).needs_tokenizer:
        if tokenizer is not None:
            raise AnchorEvalError("--tokenizer goes with --backend openai: elsewhere it is the checkpoint's own")
        return Model.of(asked, max_length=max_length)
    if tokenizer is None:
        raise AnchorEvalError(
            f"--backend {backend} needs --tokenizer: a folder, hub id or card with the model's tokenizer"
        )
    return Model.served(asked, tokenizer, max_length)


def _of_run(backend: str, model: Model, arms: Sequence[Arm]) -> dict[str, Any]:
    """Return the backend options that follow from the run, as far as the backend takes them."""
    takes, options = capabilities_of(backend).takes, dict[str, Any]()
    if "tokenizer" in takes:
        options["tokenizer"] = str(model.folder)
    if "product" in takes:
        options["product"] = widest_product(arms)
    if "max_model_len" in takes:
        options["max_model_len"] = model.window
    return options


def _arms(arms: tuple[Arm, ...], wanted: bool, backend: str, tell: Tell) -> tuple[Arm, ...]:
    """Return the settled arms, followed by the placebo of the first if it is wanted and not among them.

    Two or more arms always get a placebo on a backend whose log-probabilities depend on the batch. Arms that name
    outside code import it here, and not before: a user typed the name, and the backend can compute it.
    """
    arms = tuple(arm.settled(backend) for arm in arms)
    if capabilities_of(backend).always_placebo and len(arms) > 1 and not any(arm.placebo for arm in arms):
        wanted = True
        tell(f"{replace(arms[0], placebo=True).name} is added: on {backend} every comparison has its noise floor")
    return tuple(dict.fromkeys((*arms, replace(arms[0], placebo=True)))) if wanted else arms


def _check(spec: Spec, backend: str, ray: str | None, api: str) -> None:
    """Raise AnchorEvalError for a stopping rule with nothing to compare, and for options that exclude each other."""
    server = capabilities_of(backend).one_server
    if server and (api, spec.template) == ("chat", "chat"):
        raise AnchorEvalError("api=chat: the server applies the chat template itself: use --template base")
    if spec.template_args and spec.template == "base" and not spec.served:
        how = "api=chat to --backend-args, or --template chat" if server else "--template chat"
        raise AnchorEvalError(f"--template-args are arguments of a chat template: add {how}")
    for task in (task for task in spec.tasks if generator_of(task).one_document):
        require_one_document(spec.arms, task.address)
    if spec.until is not None and ray is not None:
        raise AnchorEvalError("--until takes samples in rounds, which --ray cannot: leave one of them out")
    if spec.until is not None and sum(not arm.placebo for arm in spec.arms) < 2:
        raise AnchorEvalError(f"--until {spec.until} compares arms with the first: --arms takes two or more, bf16,fp32")
    if spec.until is not None and len(waves(backend, spec.arms)) > 1:
        raise AnchorEvalError(
            f"--until takes arms in turn, for which {backend} would start anew each time: leave it out"
        )
    if server and ray is not None:
        text = f"--ray spreads engines over a cluster, {backend} has one server: use concurrency=N instead"
        raise AnchorEvalError(text)


def require_one_document(arms: Sequence[Arm], task: str) -> None:
    """Raise UnsupportedArm if an arm's attention or positions need several documents."""
    for arm in arms:
        if arm.masks_documents:
            reason = f"attention {arm.attention!r} needs several"
        elif arm.positions.restarts:
            reason = f"positions {str(arm.positions)!r} restart at each of several"
        else:
            continue
        raise UnsupportedArm(f"arm {arm.name!r}: a text is one document to {task}; {reason}")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one call of `evaluate` computes: prompts, how to open the engine, the folder of the model's runs.

    `raw` is True if prompts are raw text although nobody asked for that. `options` are those that were given.
    """

    prompts: Prompts
    opening: Opening
    output: Path
    same_environment: bool
    raw: bool
    watch: Watch
    tell: Tell
    options: Mapping[str, Json] = field(default_factory=dict)

    def run(self) -> Run:
        """Make the first prompts, open the engine, then compute every record; return the run on disk."""
        prompts, model, tell = self.prompts, self.prompts.model, self.tell
        beside = any(self.output.glob(f"*/{HEADER}"))
        finished = list(finished_beside(self.output, prompts.spec)) if beside and not self.same_environment else []
        with work(self.watch, 0, "making the first prompt of every task and length"):
            cells = prompts.cells() if not finished else None

        tokenizer, spec = model.tokenizer, prompts.spec
        front = first_token(tokenizer, spec.template, spec.template_args, spec.anchor)
        if tokenizer.reading and tokenizer.reading.differs:
            tell(tokenizer.reading.words)
        if spec.anchor == "none" and tokenizer.front:
            first = tokenizer.decode(tokenizer.front, skip_special_tokens=False)
            tell(f"--anchor none: the {first!r} that the tokenizer puts in front of a text is left out too")
        if front["anchor_from"] == "anchoreval":
            tell(
                f"the tokenizer puts no token in front: anchoreval puts its {'BOS' if tokenizer.bos else 'EOS'} token "
                f"{front['anchor_token']!r} there as the anchor (--anchor none leaves it out)"
            )
        if unused := bool(self.raw and tokenizer.chat_template):
            tell(RAW_TEXT)
        if spec.served and not tokenizer.chat_template:
            tell("lengths leave out the chat template of the server: the tokenizer given has none to count")

        with work(self.watch, 0, f"opening {model.name}"):
            engine = self.open()
        try:
            one_server = capabilities_of(self.opening.backend).one_server
            served = as_served(prompts, engine) if one_server else prompts
            if served.spec is not spec:
                cells, finished = None, []
            for run in finished:
                if run.is_asked_for(served, engine):
                    return self._as_it_is(run.path, run.header, engine)
            if cells is None or served.model is not model:
                cells = served.cells()
            for line in (*(f"left out: {row['why']}" for row in cells.unmakeable), *cells.notices):
                tell(line)
            with work(self.watch, 0, "trying every arm once"):
                header = header_of(served, cells, engine, unused)
                header["options"] = dict(self.options)
            return self._written(served, cells, engine, header)
        finally:
            engine.close()

    def open(self) -> Engine:
        """Return a backend in this process, or a fleet of workers with one backend each."""
        opening = self.opening
        if opening.ray is not None:
            return Fleet.open(opening, self.tell)
        if opening.workers is not None:
            raise AnchorEvalError("--workers needs --ray: local, auto or the address of a cluster")
        return open_backend(opening.backend, opening.model, **opening.options)

    def _as_it_is(self, path: Path, header: Header, engine: Engine) -> Run:
        """Return a run that is already finished, with the notices and progress of one that is computed."""
        for reason in header.unmakeable.values():
            self.tell(f"left out: {reason}")
        for line in notices(engine.describe()):
            self.tell(line)
        run = load_run(path)
        with self.watch(len(run.records)) as progress:
            progress(len(run.records))
        return run

    def _written(self, prompts: Prompts, cells: Cells, engine: Engine, header: Header) -> Run:
        """Answer all cells and return the finished run.

        Arms run in the reverse order of their verification, so the engine that is already loaded is used first. The
        records are sorted at the end if arms ran in several waves, if workers computed them, or if a resumed run left
        them unordered.
        """
        for line in notices(header.backend):
            self.tell(line)
        directory = self.output / header.run
        if not (directory / HEADER).exists() and any(self.output.glob(f"*/{HEADER}")):
            tell_beside(directory, header, self.tell)
        with RunFolder(directory, header, self.same_environment) as disk:
            if disk.old is not None:
                prompts, cells = gone_on(prompts, cells, disk, self.tell)
            spec, many = prompts.spec, isinstance(engine, Fleet)
            groups = waves(str(header.backend["engine"]), spec.arms)
            if isinstance(engine, Fleet):
                disk.update_header(workers=engine.workers)
            with work(self.watch, len(spec.arms) * sum(cell.asked for cell in cells)) as progress:
                for arms in reversed(groups):
                    units = Units(prompts.asking(arms=arms), disk, engine.fingerprint, progress)
                    if isinstance(engine, Fleet):
                        engine.work(units.of(cells, alone_at_last=True, in_background=True))
                    elif spec.until is not None:
                        run_rounds(cells, spec.until, units, engine)
                    else:
                        work_here(engine, units.of(cells))
                    cells = prompts.cells() if arms is not groups[0] else cells
            if isinstance(engine, Fleet):
                disk.update_header(workers=engine.came)
            if many or len(groups) > 1 or (disk.unordered and spec.until is None):
                disk.sort([record.key for record in in_order(disk.done.values(), cells, spec)])
            return disk.finish(finished=now(), sources=spec.sources.describe(), source_files=spec.sources.files())


def as_served(prompts: Prompts, engine: Described) -> Prompts:
    """Return the prompts as the server takes them: in the server's template if it turned out to answer chat only.

    If the server has fewer positions than the card says, the prompts get these.
    """
    described = engine.describe()
    name, positions = str(described["engine"]), described.get("max_length")
    if not prompts.spec.served and described.get("server", {}).get("api") == "chat":
        prompts = prompts.asking(served=True)
        _check(prompts.spec, name, None, "chat")
    return replace(prompts, model=prompts.model.within(positions)) if isinstance(positions, int) else prompts


def notices(described: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a user may not expect of the backend: another kernel, weights that are left out."""
    if why := described.get("kernel_why"):
        yield f"kernel {described['kernel']} for all arms: {why}"
    for kind, weights in (described.get("unused_weights") or {}).items():
        if kind == "frequencies_off":
            yield f"the checkpoint's own rotary frequencies are off the computed ones by up to {weights:.2g}, relative"
        else:
            yield f"left out, {kind}: {weights['weights']} weights of the checkpoint ({weights['first'][0]}, ...)"
