"""Which runs the probe makes and compares, and the rows that result.

For each text and length the model runs once under the oracle (level `fp64`, first shift), then under every level at
both shifts. A model stored in bf16 or fp16 is then converted to float32 in place, which changes no weight, and
everything is done again with the roundings of the levels made explicit: there they are the only roundings to 16 bits.
In float32 every level also runs layer by layer on the oracle's hidden states. The measures of a text under a level are
kept at once, so that a cut study resumes where it was cut.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, zip_longest
from statistics import stdev
from typing import Any

import torch
from torch import Tensor

from anchoreval.arms.inspect_hf import inspect_rope, selftest
from anchoreval.arms.rope import LEVELS, RopeLevel, parse_level
from anchoreval.backends.hf.load import DEFAULT, load
from anchoreval.diagnostics.probe.record import Recording, compare, query_rows, record
from anchoreval.diagnostics.probe.sheet import (
    ALL,
    BY_HEAD,
    DIGITS,
    RANDOM,
    Against,
    Difference,
    Mode,
    OfText,
    Part,
    Row,
    Setting,
    Study,
    packed,
    unpacked,
)  # fmt: skip
from anchoreval.errors import LengthError, ModelError, SourceError
from anchoreval.model import Model
from anchoreval.model.checkpoint import find_checkpoint
from anchoreval.prompt import Anchor, anchor_token
from anchoreval.records.header import fingerprint
from anchoreval.records.kept import Kept
from anchoreval.schema import GENERATED, Progress, Watch, unwatched, work
from anchoreval.texts import prose
from anchoreval.texts.sources import ESSAYS, Sources
from anchoreval.tokenizer import TextTokenizer

ORACLE = LEVELS["fp64"]
#: The levels of `all`. The oracle is in every study anyway, and fp16 tables alone are close to fp16.
LADDER = ("native", "fp32-qk", "fp32", "bf16-table", "bf16", "bf16-angle", "fp16")
MODES: tuple[Mode, Mode] = ("end-to-end", "one-layer")
TEXTS = 2
#: Tokens of all texts of one length, if the number of texts is left open: two of 512, one of 1024 and above.
TEXT_TOKENS = 1024
#: First shifts of the curve of D against the shift, with the second shift fixed: a selection of the paper's.
SWEEP = (0, 8, 15, 17, 20, 100, 1000)
SWEEP_LENGTH = 256
#: Number of keys that are listed one by one; the other keys are in bins that double.
SINGLE_KEYS = 4


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user asks for.

    The last of `shifts` is the shift of the second run in every pair, the first of them that of the first run. The
    others, or SWEEP if there are only two, make the curve at one length: `curve_length`, else the length nearest to
    SWEEP_LENGTH. `texts` are pairs (from this length on, number of texts), ascending. Without `copy` a model stored in
    16 bits is not measured in float32 as well.
    """

    lengths: tuple[int, ...]
    shifts: tuple[int, ...]
    levels: str
    texts: tuple[tuple[int, int], ...]
    queries: int
    seed: int
    random_init: bool = False
    curve_length: int | None = None
    copy: bool = True

    @property
    def pair(self) -> tuple[int, int]:
        """The shifts that are measured at every length."""
        return self.shifts[0], self.shifts[-1]

    def count(self, length: int) -> int:
        """Return the number of texts of this length."""
        stated = [count for least, count in self.texts if least <= length]
        return stated[-1] if stated else max(1, min(TEXTS, TEXT_TOKENS // length))

    def sweep(self, length: int) -> list[int]:
        """Return further first shifts at this length; only the length of the curve has any."""
        at = self.curve_length or min(self.lengths, key=lambda n: abs(math.log(n / SWEEP_LENGTH)))
        return [s for s in self.shifts[1:-1] or SWEEP if s not in self.pair] if length == at else []


@dataclass(frozen=True, slots=True)
class Rung:
    """A level as asked and as it is applied in the model at hand."""

    name: str
    level: RopeLevel


#: Up to this number of parameters a study always has random weights, the green line of the paper's Figure 1.
RANDOM_UP_TO = 100_000_000


@dataclass(frozen=True, slots=True)
class Measured:
    """The parts of one text under one rung."""

    dtype: str
    rung: Rung
    length: int
    queries: int
    text: int
    parts: list[Part]


def investigate(
    model: Model,
    settings: Settings,
    sources: Sources,
    dtype: str,
    device: str,
    kernel: str,
    trust_remote_code: bool,
    kept: Kept | None = None,
    watch: Watch = unwatched,
    anchor: Anchor = "auto",
) -> Study:
    """Measure a model and return the study.

    `kept` holds the measures of an earlier, cut study. The unit of work of `watch` is one level on one text.
    """
    rungs = parse_rungs(settings.levels)
    checkpoint, tokenizer = find_checkpoint(model.checkpoint), model.tokenizer
    texts = {n: read_texts(sources, tokenizer, n, settings.count(n), settings.seed, anchor) for n in settings.lengths}
    stock = DEFAULT if kernel in ("auto", "fused") else kernel
    with work(watch, 0, f"opening {model.name}"):
        network = load(checkpoint, dtype, device, stock, trust_remote_code).model
    report = inspect_rope(network)
    if not report.has_rope:
        raise ModelError(f"{model.asked} has no RoPE: there is nothing to probe")
    check = selftest(network)
    if not (check["native_equals_stock"] and check["restored"]):
        raise ModelError(f"{model.asked}: the untouched level does not reproduce this model's own logits")
    stored = report.model_dtype
    randomised = settings.random_init or network.num_parameters() <= RANDOM_UP_TO
    computations = tuple(dict.fromkeys((stored, "fp32"))) if settings.copy else (stored,)
    with work(watch, (randomised + len(rungs) * len(computations)) * sum(map(len, texts.values()))) as progress:
        bench = _Bench(settings, texts, checkpoint.weights_sha256, stored, kept or Kept(), progress)
        if randomised:
            bench.measure(random_weights(network, settings.seed), stored, [Rung(RANDOM, LEVELS["native"])])
        for computed in computations:
            if computed != stored:
                network = network.to(torch.float32)
            exact = report.detected if check["explicit_equals_stock"] and not report.damaged else None
            applied = [Rung(r.name, isolated(r.level, stored, report.detected, computed, exact)) for r in rungs]
            bench.measure(network, computed, applied)
    rows = _rows(bench.measured)
    if sources.text is not None:
        about = sources.text.name
    elif sources.haystack == GENERATED:
        about = f"generated prose, seed {settings.seed}"
    else:
        about = f"{ESSAYS.file}, {sources.describe()[ESSAYS.file]}"
    of_texts = (
        OfText(_setting(of, part, 1), of.text, part.values)
        for of in bench.measured
        for part in of.parts
        if part.layer == part.head == part.key == ALL
    )
    facts = {
        "stored": stored,
        "detected": report.detected,
        "damaged": [f"{d.name} ({d.dtype}, {d.max_relative_error:.2g})" for d in report.damaged],
        "text": about,
        "anchor": anchor_token(tokenizer)[0] if anchor == "auto" else None,
        "weights_sha256": checkpoint.weights_sha256,
        "layers": len({row.layer for row in rows if row.layer != ALL}),
        "heads": len({row.head for row in rows if row.head != ALL}),
        "scale": "scores carry the model's own scaling",
        "window": model.window,
    }
    return Study(model.name, rows, facts, tuple(of_texts))


@dataclass
class _Bench:
    """The settings and texts that are the same for every model, and everything measured so far."""

    settings: Settings
    texts: dict[int, list[list[int]]]
    weights: str
    stored: str
    kept: Kept
    progress: Progress
    measured: list[Measured] = field(default_factory=list)

    def measure(self, network: Any, computed: str, rungs: Sequence[Rung]) -> None:
        """Measure every text under every rung, or read the measures from `kept`.

        Runs on shared hidden states are made in float32 only, where a rung's roundings are the only ones. A 16-bit
        model would round q and k before the rotation in both runs alike, so it would show the same at the same cost.
        """
        randomised = rungs[0].name == RANDOM
        modes = MODES if computed == "fp32" and not randomised else MODES[:1]
        for length, ids in self.texts.items():
            about = f"{computed} model{', random weights' if randomised else ''}"
            self.progress.at(f"{about}, {length:,} tokens")
            for at, one in enumerate(ids):
                text = _Text(network, one, self.settings, with_heads=at == 0)
                for rung in rungs:
                    level = replace(rung.level, product="model") if rung.level.product == computed else rung.level
                    decisive = {  # a float32 copy has weights as the 16-bit model rounds them, maybe not the file's
                        **({} if computed == self.stored else {"stored": self.stored}),
                        "weights": self.weights,
                        "random": self.settings.seed if randomised else None,
                        "dtype": computed,
                        "level": str(level),
                        "ids": fingerprint({"ids": one}),
                        "shifts": [*self.settings.pair, *self.settings.sweep(len(one))],
                        "queries": self.settings.queries,
                        "heads": at == 0,
                    }
                    name = fingerprint(decisive)
                    parts = self.kept.read(name, unpacked)
                    if parts is not None:
                        self.progress.had(1)
                    else:
                        self.kept.add(name, packed(text.measure(rung.level, modes)))
                        parts = unpacked(self.kept.lines[name])
                        self.progress(1)
                    self.measured.append(Measured(computed, rung, length, len(text.rows), at, parts))


def random_weights(network: Any, seed: int) -> Any:
    """Return an untrained model of the same configuration, dtype and device.

    Matrices are Kaiming uniform with a = sqrt(5), as torch.nn.Linear starts and as the paper says of its random model;
    vectors (norms, biases) have the initial values of the architecture.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = type(network)._from_config(network.config, dtype=network.dtype)
        with torch.no_grad():
            for weight in untrained.parameters():
                if weight.ndim > 1:
                    torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    return untrained.to(network.device).eval()


def parse_rungs(levels: str) -> list[Rung]:
    """Return the levels that the user names; `all` is LADDER. Levels with explicit sites are separated by blanks."""
    if levels.strip() == ALL:
        return [Rung(name, LEVELS[name]) for name in LADDER]
    parts = levels.replace(";", " ").split() if "rope:" in levels else levels.replace(",", " ").split()
    return [Rung(name, parse_level(name)) for name in dict.fromkeys(parts)]


def isolated(level: RopeLevel, stored: str, detected: str | None, computed: str, exact: str | None = None) -> RopeLevel:
    """Return `level` for the float32 copy, with every rounding made explicit that the stored dtype would bring.

    `native` becomes the detected level; if no level was detected, it stays the float32 copy's own code. In the model as
    stored a level stays itself, and `native` becomes `exact`, the level that equals it bit for bit, if there is one.
    """
    if computed == stored:
        return parse_level(exact) if level.native and exact else level
    if level.native:
        return isolated(parse_level(detected), stored, None, computed) if detected else level
    return replace(level, product=stored) if level.product == "model" else level


def read_texts(
    sources: Sources, tokenizer: TextTokenizer, length: int, count: int, seed: int, anchor: Anchor = "auto"
) -> list[list[int]]:
    """Return `count` texts of `length` token ids, with the anchor token first unless `anchor` is none.

    They are of the text that `sources` names, else of its haystack: generated prose or the published essays. A file
    gives its parts one after the other; a folder the first part of each *.txt, then the second of each, and so on.
    """
    front = [anchor_token(tokenizer)[1]] if anchor == "auto" else []
    taken = length - len(front)
    if sources.text is None and sources.haystack == GENERATED:
        made = []
        for at in range(count):
            sentences, text, ids = prose.sentences(seed + at), "", list[int]()
            while len(ids) < taken:
                text += " ".join(islice(sentences, max(8, taken // 8))) + " "
                ids = tokenizer.encode(text)
            made.append([*front, *ids[:taken]])
        return made
    file = sources.text
    try:
        if file is None:
            texts = [sources.essay()]
        else:
            files = sorted(file.rglob("*.txt")) if file.is_dir() else [file]
            texts = [each.read_text(encoding="utf-8") for each in files]
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read {file} as UTF-8 text: {error}") from error
    whole = [tokenizer.encode(text) for text in texts]
    cut = [[ids[at : at + taken] for at in range(0, len(ids) - taken + 1, taken)] for ids in whole]
    turns = (part for turn in zip_longest(*cut) for part in turn if part)
    parts = list(islice(turns, count))
    if not parts:
        most = max(map(len, whole), default=0)
        raise LengthError(f"{file or ESSAYS.file} has {most} tokens, fewer than a text of {length} needs")
    return [[*front, *part] for part in parts]


class _Text:
    """All runs over one text in one model."""

    def __init__(self, model: Any, ids: list[int], settings: Settings, with_heads: bool) -> None:
        self.model, self.ids, self.settings, self.with_heads = model, ids, settings, with_heads
        self.rows = query_rows(len(ids), settings.queries)

    @cached_property
    def oracle(self) -> Recording:
        """The run with which other runs are compared, and whose hidden states they share."""
        return self._run(ORACLE, self.settings.pair[0], keep_inputs=True)

    def measure(self, level: RopeLevel, modes: Sequence[Mode]) -> list[Part]:
        """Compare the level with the oracle and with itself under other shifts, in these modes."""
        shift, other = self.settings.pair
        parts: list[Part] = []

        def add(mode: Mode, against: Against, shifts: tuple[int, int], one: Recording, two: Recording) -> None:
            differences = [compare(one.layers[at], two.layers[at]) for at in sorted(one.layers)]
            whole = shifts[0] == shift
            values = _values(differences, whole, whole and against == "shift", whole and self.with_heads)
            parts.extend(
                Part(
                    mode,
                    against,
                    *shifts,
                    *place,
                    {name: float(f"{value:.{DIGITS}g}") for name, value in measures.items()},
                )
                for place, measures in values
            )

        for mode in modes:
            shared = self.oracle if mode == "one-layer" else None
            first = self._run(level, shift, shared=shared)
            add(mode, "oracle", (shift, shift), first, self.oracle)
            second = self._run(level, other, shared=shared)
            add(mode, "shift", (shift, other), first, second)
            for start in self.settings.sweep(len(self.ids)):
                add(mode, "shift", (start, other), self._run(level, start, shared=shared), second)
        return parts

    def _run(self, level: RopeLevel, shift: int, **named: Any) -> Recording:
        return record(self.model, level, self.ids, shift=shift, rows=self.rows, **named)


def _values(
    differences: list[Difference], keys: bool, layers: bool, heads: bool
) -> Iterator[tuple[tuple[str, str, str], dict[str, float]]]:
    """Yield (layer, head, key) with its measures: the total, then, as asked for, single keys, layers and heads."""
    by_head = {name: torch.stack([getattr(one, name) for one in differences]) for name in BY_HEAD}

    def over(values: dict[str, Tensor]) -> dict[str, float]:
        return {n: float(v.sum() if n in ("D", "D_logit") else v.mean()) for n, v in values.items()}

    yield (ALL, ALL, ALL), over(by_head)
    if keys:
        weight = torch.stack([one.key_weight for one in differences]).sum(0)
        logit = torch.stack([one.key_logit for one in differences]).sum(0)
        for low, high in bins(len(weight)):
            name = str(low) if high == low + 1 else f"{low}-{high - 1}"
            means = {"key_logit": float(logit[low:high].mean()), "key_weight": float(weight[low:high].mean())}
            yield (ALL, ALL, name), means
    for layer in range(len(differences)):
        if layers:
            yield (str(layer), ALL, ALL), over({name: v[layer] for name, v in by_head.items()})
        if heads:
            for head in range(by_head["D"].shape[1]):
                yield (str(layer), str(head), ALL), {name: float(v[layer, head]) for name, v in by_head.items()}


def bins(length: int) -> Iterator[tuple[int, int]]:
    """Yield (low, high) of the first keys one by one, then of bins that double, up to `length`."""
    yield from ((at, at + 1) for at in range(min(SINGLE_KEYS, length)))
    low = SINGLE_KEYS
    while low < length:
        yield low, min(2 * low, length)
        low *= 2


def _rows(measured: Sequence[Measured]) -> tuple[Row, ...]:
    """Return a row for every place: means over the texts, and half the width of their 95% t intervals if several."""
    from scipy.special import stdtrit

    texts = Counter((of.dtype, of.rung.name, of.length) for of in measured)
    places: dict[tuple[Setting, str, str, str], list[dict[str, float]]] = {}
    for of in measured:
        for part in of.parts:
            setting = _setting(of, part, texts[of.dtype, of.rung.name, of.length])
            places.setdefault((setting, part.layer, part.head, part.key), []).append(part.values)
    rows = []
    for place, each in places.items():
        count, halves = len(each), {}
        means = {name: math.fsum(values[name] for values in each) / count for name in each[0]}
        if count > 1:
            quantile = float(stdtrit(count - 1, 0.975)) / math.sqrt(count)
            halves = {name: quantile * stdev(values[name] for values in each) for name in means}
        rows.append(Row(*place, means, halves))
    return tuple(rows)


def _setting(of: Measured, part: Part, texts: int) -> Setting:
    place = (of.length, part.shift, part.other, 1 if part.head != ALL else texts, of.queries)
    return Setting(of.dtype, part.mode, part.against, of.rung.name, str(of.rung.level), *place)
