"""`bench train-attention`: what masks between documents save in training, against the fastest full attention here.

Forward and backward at the shapes of Llama-2-7B and Llama-3-8B over windows of a stated mix of documents, row by row in
turn, medians. CUDA computes in bf16 and is timed by the wall; a CPU computes in fp32 and is timed in CPU seconds of the
process, in one of several slices of the heads (and of the MLP's width), as a tensor-parallel rank has them: all
proportions are those of the whole layer.

The density limit of a row is the time of its kernel on one document, times the density of the window: the share of full
causal attention that the mask leaves. TFLOP/s are of the mask's own operations, 3.5 times the forward's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchoreval.bench import training_kernels as kernels
from anchoreval.bench.gpu import machine, now, open_bench
from anchoreval.bench.training_kernels import FORMS, Form, Place, Work
from anchoreval.errors import AnchorEvalError, UnknownName
from anchoreval.model.machine import processor
from anchoreval.training.packing import order_of, windows_needed, windows_of
from anchoreval.training.recipes import MixCard, mix_of
from anchoreval.training.store import open_store

Ints = NDArray[np.int64]
#: Windows of one step: one on each of as many ranks, of which the slowest sets the pace.
RANKS = 8
_STEPS = 64  # that the slowest of a step is counted over
_TOKENS = 1 << 26  # that lengths are drawn for, so that rare long sources have their share
_SHORTEST = 16  # tokens of a drawn document
_NO_BACKWARD = "no backward on a CPU"
_CPU_SLICES = 8
_DEFAULT_LENGTHS = {"cpu": [4096, 8192], "cuda": [8192, 32768, 65536, 131072]}
_WARM = {"cpu": 1, "cuda": 2}
_HEAD = f"{'what':30}{'kernel':>12}{'seconds':>10}{'TFLOP/s':>9}{'of full':>9}{'limit s':>9}{'reached':>9}"


@dataclass(frozen=True, slots=True)
class Mix:
    """Windows of one length: their documents in tokens, and densities, the share of full causal attention that stays.

    `windows` are the first ones, to be timed. `mean` is the density over all counted windows; `unsorted` and `balanced`
    are those of the densest of each step's windows, in the order of the data and in that of training.packing.order_of.
    """

    name: str
    about: str
    length: int
    windows: tuple[tuple[int, ...], ...]
    mean: float
    unsorted: float
    balanced: float

    def density(self, window: int) -> float:
        """Return the share of full causal attention over the length that a timed window has."""
        return sum(tokens**2 for tokens in self.windows[window]) / self.length**2


def mix_of_length(name: str, data: Path | None, length: int, timed: int) -> Mix:
    """Return the windows of a mix of the cards, or of the documents of a store."""
    if data is not None:
        lengths, name, about = open_store(data).lengths, data.name, f"the documents of {data}"
    else:
        card = mix_of(name)
        lengths, about = drawn(card, length), card.about
    count = max(timed, windows_needed(_STEPS, RANKS))
    windows = windows_of(lengths, 0, length, seed=0, count=count, epochs=None)
    costs = windows.costs(0)[: count // RANKS * RANKS]
    worst = [float(costs[order].reshape(-1, RANKS).max(1).mean()) for order in (slice(None), order_of(costs, RANKS, 0))]
    pieces = tuple(tuple(stop - first for _, first, stop in windows.pieces(at)) for at in range(timed))
    return Mix(name, about, length, pieces, *(value / length**2 for value in (float(costs.mean()), *worst)))


def drawn(card: MixCard, length: int) -> Ints:
    """Return tokens of documents of each source, log-normal, until the source has its share; the same every time."""
    if not card.documents:
        return np.full(1, length, np.int64)
    rng = np.random.default_rng(0)
    parts = []
    for source in card.documents.values():
        wanted, mu = source.share * _TOKENS, np.log(source.mean) - source.sigma**2 / 2
        kept: list[Ints] = []
        while sum(int(part.sum()) for part in kept) < wanted:
            sizes = np.exp(mu + source.sigma * rng.standard_normal(4096)).astype(np.int64).clip(_SHORTEST)
            kept.append(sizes[(sizes >= card.under) | (rng.random(sizes.size) < card.keep)])
        sizes = np.concatenate(kept)
        parts.append(sizes[: int(np.searchsorted(sizes.cumsum(), wanted)) + 1])
    return np.concatenate(parts)


@dataclass
class Figure:
    """One row: median seconds, and what they mean; or why there are none.

    `tokens` are those that were fed, `pairs` the query-key pairs that the mask leaves. `ratio` is to the fastest full
    attention (or full layer), `limit` in seconds, `reached` its share. `absent` is a kernel that this machine lacks.
    """

    shape: str
    length: int
    what: str
    kernel: str
    tokens: int
    pairs: int = 0
    seconds: float | None = None
    tflops: float | None = None
    ratio: float | None = None
    limit: float | None = None
    reached: float | None = None
    absent: str | None = None
    failed: str | None = None
    facts: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """Return the row of the table."""
        start = f"{self.what:30}{self.kernel:>12}"
        if self.seconds is None:
            return f"{start}  {self.absent or f'failed: {self.failed}'}"

        def shown(value: float | None, form: str, width: int = 9) -> str:
            return f"{'-' if value is None else format(value, form):>{width}}"

        return (
            start
            + shown(self.seconds, ".4g", 10)
            + shown(self.tflops, ".3g")
            + shown(self.ratio, ".3f")
            + shown(self.limit, ".4g")
            + shown(self.reached, ".0%")
        )


def report_training(
    shapes: Sequence[str],
    lengths: Sequence[int] | None,
    mix: str,
    data: Path | None,
    windows: int,
    slices: int | None,
    no_layer: bool,
    rate: int,
    device: str,
    repeats: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Return all figures and the facts of the machine as JSON; `say` takes each row of the table as it is measured."""
    found = open_bench(device, repeats).device
    kind = "cpu" if found.type == "cpu" else "cuda"
    place = Place(found, slices or (_CPU_SLICES if kind == "cpu" else 1))
    for shape in shapes:
        if shape not in FORMS:
            raise UnknownName("shape", shape, FORMS)
        if FORMS[shape].key_heads % place.slices or FORMS[shape].inner % place.slices:
            raise AnchorEvalError(f"--slices {place.slices}: {shape} has {FORMS[shape].key_heads} key heads to divide")
    chosen = list(lengths or _DEFAULT_LENGTHS[kind])
    flags = f"--shapes {','.join(shapes)} --lengths {','.join(map(str, chosen))}"
    flags += f" --mix {mix}" if data is None else " --data STORE"
    flags += f" --windows {windows} --slices {place.slices}{' --no-layer' if no_layer else ''} --rate {rate}"
    flags += f" --device {device} --repeats {repeats}"
    facts: dict[str, Any] = {"command": f"anchoreval bench train-attention {flags}"}
    facts |= machine(place.device) | {"processor": processor() if kind == "cpu" else None}
    dtype = str(place.dtype).removeprefix("torch.")
    clock = f"CPU seconds of {facts['threads']} threads" if kind == "cpu" else "seconds"
    say(f"{facts['processor'] or facts['device_name']}; torch {facts['versions']['torch']}; {dtype}; {clock}")
    figures: list[Figure] = []
    notes: list[dict[str, Any]] = []
    for length in chosen:
        drawn = mix_of_length(mix, data, length, windows)
        for shape in shapes:
            of = f"1/{place.slices} of a layer" if place.slices > 1 else "a layer"
            count = sum(map(len, drawn.windows)) / windows
            say(f"\n{shape}, {of}, {length:,} tokens, {drawn.name}: {drawn.about}; {count:.1f} documents a window")
            say(_HEAD)
            table = _Table(place, FORMS[shape], drawn, repeats, _WARM[kind])
            rows = table.attention()
            rows += [] if no_layer else table.layers(rows)
            for row in rows:
                say(row.line())
            figures += rows
            notes.append(table.notes(rows, rate))
            for line in notes[-1].pop("lines"):
                say(line)
    return facts | {"mix": mix if data is None else data.name, "figures": [asdict(f) for f in figures], "notes": notes}


class _Table:
    """The rows of one shape at one length."""

    def __init__(self, place: Place, form: Form, mix: Mix, repeats: int, warm: int) -> None:
        self._place, self._form, self._mix = place, form, mix
        self._repeats, self._warm = repeats, warm
        self._by_window: list[Figure] = []  # of both variants
        densities = [mix.density(at) for at in range(len(mix.windows))]
        self._typical = densities.index(sorted(densities)[(len(densities) - 1) // 2])
        self._worst = densities.index(max(densities))

    def _figure(self, what: str, kernel: str, lengths: Sequence[int]) -> Figure:
        pairs = sum(tokens * (tokens + 1) // 2 for tokens in lengths)
        return Figure(self._form.name, self._mix.length, what, kernel, sum(lengths), pairs)

    def attention(self) -> list[Figure]:
        """Return full kernels, both variants over the timed windows, FlexAttention, and the dense mask."""
        device, length, typical = self._place.device, self._mix.length, self._mix.windows[self._typical]
        name = kernels.documents_kernel(device)
        longest = max(length, *(sum(tokens) + len(tokens) for tokens in self._mix.windows))
        inputs = self._place.inputs(self._form, longest)
        works = {f"full {kernel}": work for kernel, work in kernels.full_kernels(inputs, length).items()}
        full = [self._figure("full", key.removeprefix("full "), [length]) for key in works]
        for at, documents in enumerate(self._mix.windows):
            for what, lengths in _variants(documents).items():
                kernel = kernels.by_documents(lengths, device)
                works[f"{what} {at}"] = kernels.both_ways(inputs, sum(lengths), kernel)
        if length <= kernels.DENSE:
            works["dense"] = kernels.dense(inputs, typical)
        if device.type != "cpu":
            for pattern in _variants((1,)):
                works[f"flex {pattern}"], works[f"mask {pattern}"] = kernels.flex(inputs, typical, pattern)
        times = self._timed(works)
        for row in full:
            times.put(row, f"full {row.kernel}")
        rows = full + self._masked(name, times)
        for pattern, what in (("intra-doc", "flex intra-doc"), ("anchor", "flex, one shared anchor")):
            row = self._figure(what, "flex", typical)
            if device.type == "cpu":
                row.absent = _NO_BACKWARD
            else:
                times.put(row, f"flex {pattern}")
                row.facts["mask_seconds"] = times.seconds.get(f"mask {pattern}", 0.0)
            rows.append(row)
        if length <= kernels.DENSE:
            rows.append(times.put(self._figure("dense mask, median window", "sdpa", typical), "dense"))
        return self._related(rows, name)

    def _masked(self, name: str, times: _Times) -> list[Figure]:
        """Return mean and worst of both variants over the timed windows."""
        rows = []
        for what in _variants((1,)):
            each = []
            for at, documents in enumerate(self._mix.windows):
                each.append(times.put(self._figure(what, name, _variants(documents)[what]), f"{what} {at}"))
            mean = Figure(self._form.name, self._mix.length, f"{what}, mean of {len(each)}", name, 0)
            mean.tokens = round(statistics.fmean(row.tokens for row in each))
            mean.pairs = round(statistics.fmean(row.pairs for row in each))
            self._by_window += each
            mean.failed = next((row.failed for row in each if row.failed), None)
            if mean.failed is None:
                mean.seconds = statistics.fmean(row.seconds or 0.0 for row in each)
            worst = each[self._worst]
            worst.what = f"{what}, densest of {len(each)}"
            rows += [mean, worst]
        return rows

    def _related(self, rows: list[Figure], name: str) -> list[Figure]:
        """Fill in what seconds mean: operations, ratio to the fastest full kernel, limit, and share of it reached."""
        fastest = fastest_full(rows)
        one = next((row for row in rows if (row.what, row.kernel) == ("full", name)), None)
        for row in {id(row): row for row in (*rows, *self._by_window)}.values():
            if row.seconds is None:
                continue
            row.tflops = 14e-12 * kernels.HEAD * self._form.heads / self._place.slices * row.pairs / row.seconds
            row.ratio = row.seconds / fastest.seconds if fastest and fastest.seconds else None
            if row.kernel == name and one is not None and one.seconds and row is not one:
                row.limit = one.seconds * row.pairs / one.pairs
                row.reached = row.limit / row.seconds
        return rows

    def layers(self, attention: Sequence[Figure]) -> list[Figure]:
        """Return the whole layer over the median window: full by the fastest kernel, then both variants."""
        fastest = fastest_full(attention)
        if fastest is None:
            return []
        length, typical = self._mix.length, self._mix.windows[self._typical]
        layer = kernels.Layer(self._place, self._form, 2 * length)
        cases = {"full": ([length], fastest.kernel)}
        cases |= {
            what: (list(lengths), kernels.documents_kernel(self._place.device))
            for what, lengths in _variants(typical).items()
        }
        works: dict[str, Work] = {}
        rows = {}
        for checkpointed in (False, True):
            for what, (lengths, kernel) in cases.items():
                key = f"layer, {what}{', checkpointed' if checkpointed else ''}"
                full = kernel if what == "full" else None
                works[key] = layer.work(lengths, full, checkpointed)
                rows[key] = self._figure(key, kernel, lengths)
        times = self._timed(works)
        for key, row in rows.items():
            times.put(row, key)
            against = rows[f"layer, full{', checkpointed' if key.endswith('checkpointed') else ''}"].seconds
            if row.seconds and against:
                row.ratio = row.seconds / against
        return list(rows.values())

    def _timed(self, works: dict[str, Work]) -> _Times:
        """Return median seconds: every row once, then again, so that a busy machine slows all of them alike."""
        times, spent = _Times({}, {}, {}), dict[str, list[float]]()
        device = self._place.device
        clock: Callable[[], float] = time.process_time if device.type == "cpu" else partial(now, device)
        for turn in range(self._warm + self._repeats):
            for key in [*works]:
                began = clock()
                try:
                    works[key]()
                    seconds = clock() - began
                except Exception as error:  # the result of a row: absent for a full kernel that torch does not find
                    text = (str(error).strip().splitlines() or [""])[0][:160]
                    missing = key.startswith("full ") and "memory" not in type(error).__name__.lower()
                    (times.absent if missing else times.failed)[key] = f"{type(error).__name__}: {text}"
                    del works[key]
                    continue
                if turn >= self._warm:
                    spent.setdefault(key, []).append(seconds)
        times.seconds.update({key: statistics.median(spent[key]) for key in works})
        return times

    def notes(self, rows: Sequence[Figure], rate: int) -> dict[str, Any]:
        """Return what the rows say in sentences (`lines`), and the numbers in them."""
        mix, by_what = self._mix, {row.what: row for row in rows}
        tied = [by_what[f"{what}, mean of {len(mix.windows)}"] for what in _variants((1,))]
        fastest = fastest_full(rows)
        made: dict[str, Any] = {"shape": self._form.name, "length": mix.length, "fastest": fastest and fastest.kernel}
        lines = []
        if fastest and tied[0].seconds and tied[1].seconds and tied[0].ratio:
            made |= {"anchor_to_intra_doc": tied[1].seconds / tied[0].seconds, "saved": 1 - tied[0].ratio}
            more = tied[1].tokens / tied[0].tokens - 1
            lines.append(
                f"{made['saved']:.0%} less time than full attention ({fastest.kernel}), for any document mask; anchor "
                f"takes {made['anchor_to_intra_doc']:.3f} times intra-doc, its copies are {more:.2%} more tokens"
            )
        if reached := sorted(row.reached for row in self._by_window if row.reached):
            made |= {"least_reached": reached[0], "most_reached": reached[-1]}
            lines.append(f"of the density limit single windows reach {reached[0]:.0%} to {reached[-1]:.0%}")
        for row in rows:
            if (mask := row.facts.get("mask_seconds")) is not None and row.seconds:
                lines.append(f"{row.what}: the block mask takes {mask:.3g} s more where each step builds its own")
        made |= {"density": mix.mean, "worst_unsorted": mix.unsorted, "worst_balanced": mix.balanced}
        lines.append(
            f"density, counted over 512 windows: mean {mix.mean:.3f}; densest of 8 in a step {mix.unsorted:.3f} in the "
            f"order of the data, {mix.balanced:.3f} balanced"
        )
        # The paper's unit, counted: operations of the whole model, forward and backward, at a rate.
        shape, length = self._form.shape(), mix.length
        linear, full = shape.linear(length), shape.products(np.array([length]))
        words = {"full": 1.0, "masked": mix.mean, "densest of 8": mix.unsorted, "balanced": mix.balanced}
        days = {what: (linear + full * share) / length / rate * 1e-12 * 1e9 / 86400 for what, share in words.items()}
        each = ", ".join(f"{value:.2f} {what}" for what, value in days.items())
        lines.append(f"days per billion tokens at {rate:,} TFLOP/s, counted over the whole model: {each}")
        return made | {"days_per_billion_tokens": days, "lines": lines}


@dataclass
class _Times:
    """Median seconds by row; why others have none."""

    seconds: dict[str, float]
    absent: dict[str, str]
    failed: dict[str, str]

    def put(self, row: Figure, key: str) -> Figure:
        """Fill in the seconds of a row, or why there are none."""
        row.seconds, row.failed = self.seconds.get(key), self.failed.get(key)
        row.absent = self.absent.get(key)
        return row


def _variants(documents: Sequence[int]) -> dict[str, list[int]]:
    """Return what each variant's kernel is cut into: copies of the anchor make each document one token longer."""
    return {"intra-doc": list(documents), "anchor": [tokens + 1 for tokens in documents]}


def fastest_full(rows: Sequence[Figure]) -> Figure | None:
    """Return the fastest full kernel that ran, None without any."""
    timed = [row for row in rows if row.what == "full" and row.seconds]
    return min(timed, key=lambda row: row.seconds or 0.0, default=None)
