"""Which runs the probe makes and compares, and the rows that come of them.

For each text and length the model runs once under the oracle (level `fp64`, first shift), then under every
level at both shifts. A model stored in bf16 or fp16 is then turned into float32 in place, which changes no
weight, and everything is done again with the rungs' roundings made explicit: there they are the only roundings
to 16 bits. In float32 every rung also runs layer by layer on the oracle's hidden states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anchoreval.attention.inspect_hf import inspect_rope, selftest
from anchoreval.attention.measures import BY_HEAD, Difference
from anchoreval.attention.probe import Recording, compare, query_rows, record
from anchoreval.attention.rope import LEVELS, RopeLevel, parse_level
from anchoreval.backends.checkpoint import find_checkpoint
from anchoreval.backends.hf_load import DEFAULT, load
from anchoreval.cards import find_model
from anchoreval.data import prose
from anchoreval.errors import LengthError, ModelError, SourceError
from anchoreval.probe.sheet import ALL, RANDOM, Against, Mode, Row, Setting, Study
from anchoreval.progress import Progress, Watch, unwatched, work
from anchoreval.prompt import Anchor, anchor_token
from anchoreval.tokenizer import TextTokenizer, load_tokenizer

MAX = "max_position_embeddings"
ORACLE = LEVELS["fp64"]
#: What `all` means: the oracle is in every study anyway, and fp16 tables alone are close to fp16.
LADDER = ("native", "fp32-qk", "fp32", "bf16-table", "bf16", "bf16-angle", "fp16")
MODES: tuple[Mode, Mode] = ("end-to-end", "one-layer")
TEXTS = 2
#: Tokens of all texts of one length, where the number of texts is left open: two of 512, one of 1024 and above.
TEXT_TOKENS = 1024
#: First shifts of the curve of D against the shift, the second staying what it is: the paper's, thinned out.
SWEEP = (0, 8, 15, 17, 20, 100, 1000)
SWEEP_LENGTH = 256
#: Keys listed one by one; the rest in bins that double.
SINGLE_KEYS = 4


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user asks for."""

    lengths: tuple[int, ...]
    shift: tuple[int, int]
    levels: str
    texts: int | None
    queries: int
    seed: int
    random_init: bool = False

    def count(self, length: int) -> int:
        """Texts of this length."""
        return self.texts or max(1, min(TEXTS, TEXT_TOKENS // length))


@dataclass(frozen=True, slots=True)
class Rung:
    """A level as asked and as it is applied in the model at hand."""

    name: str
    level: RopeLevel


#: Parameters up to which the series of random weights, the green line of the paper's Figure 1, is always there.
RANDOM_UP_TO = 100_000_000


Rows = dict[tuple[Setting, str, str, str], list[dict[str, float]]]


def investigate(
    model: str,
    settings: Settings,
    file: Path | None,
    dtype: str,
    device: str,
    kernel: str,
    trust_remote_code: bool,
    max_length: int | None,
    tell: Callable[[str], None],
    watch: Watch = unwatched,
    anchor: Anchor = "auto",
) -> Study:
    """The study; `tell` takes a line per model dtype and length, `watch` a level on a text as the unit of work."""
    rungs = parse_rungs(settings.levels)
    name, card = find_model(model)
    checkpoint = find_checkpoint(card.checkpoint)
    tokenizer = load_tokenizer(checkpoint.folder)
    texts = {n: read_texts(file, tokenizer, n, settings.count(n), settings.seed, anchor) for n in settings.lengths}
    stock = DEFAULT if kernel in ("auto", "fused") else kernel
    with work(watch, 0, f"opening {name}"):
        network = load(checkpoint, dtype, device, stock, trust_remote_code).model
    report = inspect_rope(network)
    if not report.has_rope:
        raise ModelError(f"{model} has no RoPE: there is nothing to probe")
    check = selftest(network)
    if not (check["native_equals_stock"] and check["restored"]):
        raise ModelError(f"{model}: the untouched level does not reproduce this model's own logits")
    rows: Rows = {}
    stored = report.model_dtype
    randomised = settings.random_init or network.num_parameters() <= RANDOM_UP_TO
    computations = tuple(dict.fromkeys((stored, "fp32")))
    with work(watch, (randomised + len(rungs) * len(computations)) * sum(map(len, texts.values()))) as progress:
        asked = (texts, settings, rows, tell, progress)
        if randomised:
            _measure(random_weights(network, settings.seed), stored, [Rung(RANDOM, LEVELS["native"])], *asked)
        for computed in computations:
            if computed != stored:
                network = network.to(torch.float32)
            exact = report.detected if check["explicit_equals_stock"] and not report.damaged else None
            applied = [Rung(r.name, isolated(r.level, stored, report.detected, computed, exact)) for r in rungs]
            _measure(network, computed, applied, *asked)
    facts = {
        "stored": stored,
        "detected": report.detected,
        "damaged": [f"{d.name} ({d.dtype}, {d.max_relative_error:.2g})" for d in report.damaged],
        "text": file.name if file else f"generated prose, seed {settings.seed}",
        "anchor": anchor_token(tokenizer)[0] if anchor == "auto" else None,
        "weights_sha256": checkpoint.weights_sha256,
        "layers": len({row[1] for row in rows if row[1] != ALL}),
        "heads": len({row[2] for row in rows if row[2] != ALL}),
        "scale": "scores carry the model's own scaling",
        "window": max_length or card.max_length or getattr(network.config.get_text_config(), MAX, None),
    }
    return Study(name, tuple(_mean(key, found) for key, found in rows.items()), facts)


def _measure(
    network: Any, computed: str, rungs: Sequence[Rung], texts: dict[int, list[list[int]]], settings: Settings,
    rows: Rows, tell: Callable[[str], None], progress: Progress,
) -> None:  # fmt: skip
    """Adds to `rows` what `rungs` measure in one model, over all texts.

    On shared hidden states in float32 alone, where a rung's roundings are the only ones: a 16-bit model would round
    q and k before the rotation in both runs alike, so it shows the same at the same cost.
    """
    randomised = rungs[0].name == RANDOM
    modes = MODES if computed == "fp32" and not randomised else MODES[:1]
    for length, ids in texts.items():
        about = f"{computed} model{', random weights' if randomised else ''}"
        tell(f"{about}, {length} tokens, {len(ids)} text{'s' if len(ids) > 1 else ''}")
        progress.at(f"{about}, {length:,} tokens")
        for one in ids:
            _Text(network, computed, one, len(ids), settings, rows).measure(rungs, modes, progress)


def random_weights(network: Any, seed: int) -> Any:
    """A model of the same configuration, dtype and device that learnt nothing.

    Matrices are Kaiming uniform with a = sqrt(5), as torch.nn.Linear starts and as the paper says of its random
    model; vectors (norms, biases) are what the architecture starts with.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = type(network)._from_config(network.config, dtype=network.dtype)
        with torch.no_grad():
            for weight in made.parameters():
                if weight.ndim > 1:
                    torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    return made.to(network.device).eval()


def parse_rungs(levels: str) -> list[Rung]:
    """The levels that the user names, `all` is LADDER; levels with explicit sites are split at blanks."""
    if levels.strip() == ALL:
        return [Rung(name, LEVELS[name]) for name in LADDER]
    parts = levels.replace(";", " ").split() if "rope:" in levels else levels.replace(",", " ").split()
    return [Rung(name, parse_level(name)) for name in dict.fromkeys(parts)]


def isolated(level: RopeLevel, stored: str, detected: str | None, computed: str, exact: str | None = None) -> RopeLevel:
    """`level` with every rounding that the stored dtype would bring, made explicit for the float32 copy.

    `native` becomes what was detected; where nothing was, it stays the float32 copy's own code. In the model
    as stored a level is itself, and `native` is `exact`, the level that equals it bit for bit, if any.
    """
    if computed == stored:
        return parse_level(exact) if level.native and exact else level
    if level.native:
        return isolated(parse_level(detected), stored, None, computed) if detected else level
    return replace(level, product=stored) if level.product == "model" else level


def read_texts(
    file: Path | None, tokenizer: TextTokenizer, length: int, count: int, seed: int, anchor: Anchor = "auto"
) -> list[list[int]]:
    """`count` texts of `length` token ids, the anchor token first unless `anchor` is none; of a file, one part after
    the other.
    """
    front = [anchor_token(tokenizer)[1]] if anchor == "auto" else []
    taken = length - len(front)
    if file is None:
        return [[*front, *_prose(tokenizer, taken, seed + at)] for at in range(count)]
    try:
        ids = tokenizer.encode(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read {file} as UTF-8 text: {error}") from error
    parts = [ids[at : at + taken] for at in range(0, len(ids) - taken + 1, taken)][:count]
    if not parts:
        raise LengthError(f"{file} has {len(ids)} tokens, fewer than a text of {length} needs")
    return [[*front, *part] for part in parts]


def _prose(tokenizer: TextTokenizer, tokens: int, seed: int) -> list[int]:
    """Generated prose of exactly so many tokens."""
    source, text, ids = prose.sentences(seed), "", list[int]()
    while len(ids) < tokens:
        text += " ".join(islice(source, max(8, tokens // 8))) + " "
        ids = tokenizer.encode(text)
    return ids[:tokens]


class _Text:
    """All runs over one text; what they measure is added to `rows`."""

    def __init__(self, model: Any, dtype: str, ids: list[int], count: int, settings: Settings, rows: Rows) -> None:
        self.model, self.dtype, self.ids, self.count, self.rows = model, dtype, ids, count, rows
        self.settings, self.positions = settings, query_rows(len(ids), settings.queries)

    def measure(self, rungs: Sequence[Rung], modes: Sequence[Mode], progress: Progress) -> None:
        """Every rung against the oracle and against itself shifted, in these modes."""
        shift, other = self.settings.shift
        oracle = self._run(ORACLE, shift, keep_inputs=True)
        done: dict[tuple[RopeLevel, Mode], Rung] = {}
        for rung in rungs:
            for mode in modes:
                same = done.setdefault((rung.level, mode), rung)
                if same is not rung:
                    self._copy(same, rung, mode)
                    continue
                shared = oracle if mode == "one-layer" else None
                first = self._run(rung.level, shift, shared=shared)
                self._add(rung, mode, "oracle", (shift, shift), _differences(first, oracle))
                second = self._run(rung.level, other, shared=shared)
                self._add(rung, mode, "shift", (shift, other), _differences(first, second))
                for start in self._sweep():
                    run = self._run(rung.level, start, shared=shared)
                    self._add(rung, mode, "shift", (start, other), _differences(run, second), keys=False)
            progress(1)

    def _sweep(self) -> list[int]:
        """Further first shifts, at one length."""
        shift, other = self.settings.shift
        at = min(self.settings.lengths, key=lambda n: abs(math.log(n / SWEEP_LENGTH)))
        return [s for s in SWEEP if s not in (shift, other)] if len(self.ids) == at else []

    def _run(self, level: RopeLevel, shift: int, **named: Any) -> Recording:
        return record(self.model, level, self.ids, shift=shift, rows=self.positions, **named)

    def _setting(self, rung: Rung, mode: Mode, against: Against, shifts: tuple[int, int]) -> Setting:
        place = (len(self.ids), *shifts, self.count, len(self.positions))
        return Setting(self.dtype, mode, against, rung.name, str(rung.level), *place)

    def _copy(self, same: Rung, rung: Rung, mode: Mode) -> None:
        """Rows of a rung that is the same computation under another name."""
        name, length = str(same.level), len(self.ids)
        for (setting, *place), found in list(self.rows.items()):
            is_it = (setting.dtype, setting.mode, setting.level) == (self.dtype, mode, same.name)
            if is_it and setting.length == length and setting.applied == name:
                layer, head, key = place
                self.rows[replace(setting, level=rung.name), layer, head, key] = found

    def _add(
        self, rung: Rung, mode: Mode, against: Against, shifts: tuple[int, int], layers: list[Difference],
        keys: bool = True,
    ) -> None:  # fmt: skip
        setting = self._setting(rung, mode, against, shifts)
        for (layer, head, key), values in _values(layers, keys):
            self.rows.setdefault((setting, layer, head, key), []).append(values)


def _differences(one: Recording, other: Recording) -> list[Difference]:
    return [compare(one.layers[at], other.layers[at]) for at in sorted(one.layers)]


def _values(layers: list[Difference], keys: bool) -> Iterator[tuple[tuple[str, str, str], dict[str, float]]]:
    """(layer, head, key) with its measures: all together, then (with `keys`) single keys and single heads."""
    by_head = {name: torch.stack([getattr(layer, name) for layer in layers]) for name in BY_HEAD}
    summed = ("D", "D_logit")
    yield (ALL, ALL, ALL), {n: float(v.sum() if n in summed else v.mean()) for n, v in by_head.items()}
    if not keys:
        return
    weight = torch.stack([layer.key_weight for layer in layers]).sum(0)
    logit = torch.stack([layer.key_logit for layer in layers]).sum(0)
    for low, high in bins(len(weight)):
        name = str(low) if high == low + 1 else f"{low}-{high - 1}"
        yield (ALL, ALL, name), {"key_logit": _part(logit, low, high), "key_weight": _part(weight, low, high)}
    for layer, head in ((i, j) for i in range(len(layers)) for j in range(by_head["D"].shape[1])):
        yield (str(layer), str(head), ALL), {name: float(v[layer, head]) for name, v in by_head.items()}


def _part(values: Tensor, low: int, high: int) -> float:
    return float(values[low:high].mean())


def bins(length: int) -> Iterator[tuple[int, int]]:
    """(low, high) of the first keys one by one, then of bins that double, up to `length`."""
    yield from ((at, at + 1) for at in range(min(SINGLE_KEYS, length)))
    low = SINGLE_KEYS
    while low < length:
        yield low, min(2 * low, length)
        low *= 2


def _mean(place: tuple[Setting, str, str, str], found: list[dict[str, float]]) -> Row:
    values = {name: math.fsum(one[name] for one in found) / len(found) for name in found[0]}
    return Row(*place, values=values)
