"""The family as tables, sentences and a picture, from what was measured and nothing else. Seeds are the unit."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from plan import ALL, CONTROL, CORE, LONG, MORE, Arm, Job, Sizes, jobs

from anchoreval.records.run import find_runs, load_run
from anchoreval.reports.plots import Axis, Curve, Drawing, Point, chart, even, sheet
from anchoreval.stats import per_token
from anchoreval.stats.seeds import SeedRow, Seeds, Values, seed_differences, seed_rows

MOST_SEEDS = 100
BASE = "before training"
Place = tuple[str, int, str]  # arm, steps, level of the evaluation


@dataclass(frozen=True)
class Answers:
    """What one model at one level said: nats per token and right or wrong of each answer, by (length, sample)."""

    nats: Mapping[tuple[int, str], float]
    right: Mapping[tuple[int, str], float]


@dataclass
class Found:
    """Everything that lies in a folder of results. `ruler`, `losses` are of seed 0; `operations` sum a training's."""

    sizes: Sizes
    needles: dict[tuple[Place, int], Answers] = field(default_factory=dict)
    ruler: dict[Place, dict[int, list[float]]] = field(default_factory=dict)
    losses: dict[tuple[str, int], list[dict[str, str]]] = field(default_factory=dict)
    first_token: dict[tuple[str, int, int], float] = field(default_factory=dict)
    seconds: dict[tuple[str, int, int], float] = field(default_factory=dict)
    operations: dict[tuple[str, int, int], float] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """The length of the declared question."""
        return max(self.sizes.lengths)

    def seeds(self, arm: str, steps: int) -> list[int]:
        """Return the seeds of which a model of an arm was measured."""
        return sorted(seed for (place, seed) in self.needles if place[:2] == (arm, steps) and place[2] == rope_of(arm))

    def values(self, arm: str, steps: int, length: int, what: str = "nats", level: str | None = None) -> Values:
        """Return seed -> sample -> value of an arm's models, by default at the level of their training."""
        place = (arm, steps, level or rope_of(arm))
        return {
            seed: {sample: value for (at, sample), value in getattr(one, what).items() if at == length}
            for (where, seed), one in self.needles.items()
            if where == place
        }

    def mean(self, arm: str, steps: int, length: int, what: str = "nats", level: str | None = None) -> float | None:
        """Return the mean over seeds of the means over samples."""
        values = self.values(arm, steps, length, what, level)
        return fmean(fmean(own.values()) for own in values.values()) if values else None

    def minus(self, arm: str, baseline: str, length: int, steps: int, of_baseline: int | None = None) -> Seeds:
        """Return the paired difference of two arms in nats per token."""
        return seed_differences(self.values(arm, steps, length), self.values(baseline, of_baseline or steps, length))


def rope_of(arm: str) -> str:
    """Return the level of the training of an arm."""
    return next((one.rope for one in ALL if one.name == arm), "fp32")


def read(results: Path, sizes: Sizes) -> Found:
    """Return what was measured so far; a model counts once all of its answers are there."""
    found = Found(sizes)
    if (results / "base" / "measured.json").is_file():
        _read_model(found, results / "base", (BASE, 0), 0)
    for job in dict.fromkeys(replace(job, extras=False) for job in jobs(sizes, MOST_SEEDS)):
        place = results / f"seed{job.seed}" / job.name
        if (place / "measured.json").is_file():
            _read_model(found, place, (job.arm.name, job.steps), job.seed)
            _read_tables(found, place, job)
    return found


def _read_model(found: Found, place: Path, arm: tuple[str, int], seed: int) -> None:
    measured = json.loads((place / "measured.json").read_text("utf-8"))
    found.first_token[(*arm, seed)] = measured["first_token_share"]
    for path in find_runs([place]):
        run = load_run(path)
        if not run.header.get("finished"):
            continue
        at: Place = (*arm, str(run.header["arms"][0]["name"]))
        if run.tasks == ("needles/needles",):
            rows = [((record.length, record.sample_id), record) for record in run.records]
            nats = {key: value for key, record in rows if (value := per_token(record)) is not None}
            right = {key: record.score for key, record in rows if record.score is not None}
            found.needles[at, seed] = Answers(nats, right)
        else:
            scores = found.ruler.setdefault(at, {})
            for record in run.records:
                scores.setdefault(record.length, []).append(record.score or 0.0)


def _read_tables(found: Found, place: Path, job: Job) -> None:
    key = (job.arm.name, job.steps, job.seed)
    found.operations[key] = sum(float(line["operations"]) for line in _lines(place / "log.csv"))
    found.seconds[key] = sum(float(line["seconds"]) for line in _lines(place / "speed.csv"))
    if (place / "nll.csv").is_file():
        found.losses[key[:2]] = _lines(place / "nll.csv")


def _lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# Contrasts


def floor(found: Found, length: int, steps: int) -> Seeds:
    """Return intra-doc-reset minus intra-doc at fp32: one function in exact arithmetic."""
    return found.minus("intra-doc-reset-fp32", "intra-doc-fp32", length, steps)


def control(found: Found, length: int) -> Seeds:
    """Return the same under bf16-angle, where positions are rounded."""
    names = [arm.name for arm in reversed(CONTROL)]
    return found.minus(names[0], names[1], length, found.sizes.equal_tokens)


def interaction(found: Found, length: int, steps: int) -> Seeds:
    """Return (anchor - intra-doc) at bf16 minus the same at fp32."""
    at_bf16 = found.minus("anchor-bf16", "intra-doc-bf16", length, steps)
    return at_bf16.minus(found.minus("anchor-fp32", "intra-doc-fp32", length, steps))


def declared(found: Found, steps: int) -> dict[str, SeedRow]:
    """Return the declared contrasts at the longest length by name: control, floor, interaction."""
    length, rows = found.longest, dict[str, SeedRow]()
    if steps == found.sizes.equal_tokens:
        rows |= _rows({"control": control(found, length)})
    none, effect = floor(found, length, steps), interaction(found, length, steps)
    rows |= _rows({"floor": none})
    return rows | _rows({"interaction": effect}, none, {"interaction": effect.plus(none)})


def from_baseline(found: Found, steps: int, arms: Sequence[Arm]) -> dict[str, SeedRow]:
    """Return arm -> its difference from intra-doc at fp32 at the longest length, Holm's correction over the arms.

    An arm that does not go on is taken as it is: `full` costs as much in the fewer steps.
    """
    differences = {
        arm.name: found.minus(arm.name, "intra-doc-fp32", found.longest, _steps(found, arm, steps), steps)
        for arm in arms
        if arm.name not in ("intra-doc-fp32", "intra-doc-reset-fp32")
    }
    return _rows(differences, floor(found, found.longest, steps))


def _steps(found: Found, arm: Arm, steps: int) -> int:
    return steps if arm.goes_on else found.sizes.equal_tokens


def _rows(
    differences: Mapping[str, Seeds], none: Seeds | None = None, beyond: Mapping[str, Seeds] | None = None
) -> dict[str, SeedRow]:
    there = {name: one for name, one in differences.items() if one.by_seed}
    return {row.name: row for row in seed_rows(there, floor=none if none and none.by_seed else None, beyond=beyond)}


# Words and tables


def told(seeds: Seeds) -> str:
    """Return `+0.1200 [-0.0300, +0.2700]`; without an interval the mean alone."""
    if seeds.mean is None:
        return "–"
    low, high = seeds.interval
    ends = f" [{low:+.4f}, {high:+.4f}]" if low is not None and high is not None else ""
    return f"{seeds.mean:+.4f}{ends}"


def says(row: SeedRow) -> str:
    """Return the verdict; of what cannot be told, the smallest difference that would have been shown."""
    if len(row.seeds.by_seed) < 2:
        return "one seed: no interval"
    p = "" if row.p_holm is None else f", p = {row.p_holm:.2g}"
    least = row.detectable
    seen = "" if row.says != "cannot tell" or least is None else f", {least:.2g} would be told four times in five"
    return f"{row.says}{p}{seen}"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def arms_table(found: Found, steps: int, arms: Sequence[Arm]) -> str:
    """Return a row per arm: what it answers at each length, its difference from intra-doc at fp32 at the longest."""
    rows, lengths = [], found.sizes.lengths
    against = from_baseline(found, steps, arms)
    if found.seeds(BASE, 0):
        cells = [_cell(found, BASE, 0, length) for length in lengths]
        rows.append([f"*{BASE}*", "", "0", *cells, "", ""])
    for arm in arms:
        own = _steps(found, arm, steps)
        if seeds := found.seeds(arm.name, own):
            row = against.get(arm.name)
            more = [told(row.seeds), says(row)] if row else ["0", "the baseline"]
            if arm.name == "intra-doc-reset-fp32":
                more = [told(floor(found, found.longest, steps)), "the floor"]
            cells = [_cell(found, arm.name, own, length) for length in lengths]
            rows.append([f"`{arm.variant}` {arm.rope}", str(len(seeds)), str(own), *cells, *more])
    head = ["trained with", "seeds", "steps", *(f"{length:,}" for length in lengths)]
    return grid([*head, f"minus `intra-doc` fp32 at {found.longest:,}", "verdict"], rows)


def _cell(found: Found, arm: str, steps: int, length: int, level: str | None = None) -> str:
    nats, right = (found.mean(arm, steps, length, what, level) for what in ("nats", "right"))
    return "–" if nats is None or right is None else f"{nats:.3f} ({100 * right:.0f}%)"


def declared_table(found: Found) -> str:
    """Return the declared contrasts at every length; the verdict is of the longest."""
    rows, names = [], {"control": "control: reset - intra-doc, bf16-angle", "floor": "floor: reset - intra-doc, fp32"}
    names["interaction"] = "**question: (anchor - intra-doc) bf16 minus the same fp32**"
    for steps in (found.sizes.equal_tokens, found.sizes.equal_time):
        at_longest = declared(found, steps)
        for name, row in at_longest.items():
            cells = [told(_contrast(found, name, length, steps)) for length in found.sizes.lengths]
            verdict = "the floor" if name == "floor" else says(row)
            rows.append([names[name], str(steps), str(len(row.seeds.by_seed)), *cells, verdict])
    lengths = [f"{length:,}" for length in found.sizes.lengths]
    return grid(["nats per token", "steps", "seeds", *lengths, f"verdict at {found.longest:,}"], rows)


def _contrast(found: Found, name: str, length: int, steps: int) -> Seeds:
    of: dict[str, Callable[[], Seeds]] = {
        "control": lambda: control(found, length),
        "floor": lambda: floor(found, length, steps),
        "interaction": lambda: interaction(found, length, steps),
    }
    return of[name]()


def long_table(found: Found) -> str:
    """Return the arms of the text with more long documents."""
    rows = []
    for arm in LONG:
        if found.seeds(arm.name, found.sizes.equal_tokens):
            cells = [_cell(found, arm.name, found.sizes.equal_tokens, length) for length in found.sizes.lengths]
            against = found.minus(arm.name, LONG[0].name, found.longest, found.sizes.equal_tokens)
            rows.append([f"`{arm.variant}` {arm.rope}", *cells, told(against) if arm != LONG[0] else "0"])
    head = ["trained with", *(f"{length:,}" for length in found.sizes.lengths)]
    return grid([*head, f"minus `intra-doc` at {found.longest:,}"], rows) if rows else ""


def levels_table(found: Found) -> str:
    """Return seed 0 at both levels of the evaluation, at the longest length."""
    rows, levels = [], ("fp32", "bf16")
    for arm, steps in found.losses:
        cells = []
        for level in levels:
            values = found.values(arm, steps, found.longest, level=level).get(0)
            cells.append(f"{fmean(values.values()):.4f}" if values else "–")
        if "–" not in cells:
            rows.append([f"`{arm}`", str(steps), *cells])
    return grid(["trained with", "steps", *(f"evaluated at {level}" for level in levels)], rows) if rows else ""


def ruler_table(found: Found) -> str:
    """Return RULER's three tasks with generation, seed 0."""
    lengths = found.sizes.lengths
    rows = [
        [
            f"`{arm}`",
            str(steps),
            *(f"{100 * fmean(scores[length]):.0f}" if length in scores else "–" for length in lengths),
        ]
        for (arm, steps, _), scores in found.ruler.items()
    ]
    return grid(["trained with", "steps", *(f"{length:,}" for length in lengths)], rows) if rows else ""


def losses_table(found: Found) -> str:
    """Return the loss by position, seed 0."""
    if not found.losses:
        return ""
    spans = [(line["first"], line["last"]) for line in next(iter(found.losses.values()))]
    rows = [[f"`{arm}`", str(steps), *(f"{float(line['value']):.3f}" for line in lines)]
            for (arm, steps), lines in found.losses.items()]  # fmt: skip
    return grid(["trained with", "steps", *(f"{int(first):,}–{int(last):,}" for first, last in spans)], rows)


def cost_table(found: Found) -> str:
    """Return what a training took, and the first token's share of attention behind it; means over seeds."""
    rows, full = [], _mean(found.operations, "full-fp32", found.sizes.equal_tokens)
    if before := found.first_token.get((BASE, 0, 0)):
        rows.append([f"*{BASE}*", "0", "", "", f"{100 * before:.2f}%"])
    for arm, steps in dict.fromkeys((name, steps) for name, steps, _ in found.operations):
        operations, seconds = (_mean(values, arm, steps) for values in (found.operations, found.seconds))
        share = _mean(found.first_token, arm, steps)
        if None not in (operations, seconds, share):
            relative = f"{operations / full:.2f}" if full and operations else "–"
            rows.append([f"`{arm}`", str(steps), relative, f"{seconds:,.0f}", f"{100 * (share or 0):.2f}%"])
    head = ["trained with", "steps", "operations, of `full`", "seconds", "weight on the first token"]
    return grid(head, rows)


def _mean(values: Mapping[tuple[str, int, int], float], arm: str, steps: int) -> float | None:
    own = [value for (name, at, _), value in values.items() if (name, at) == (arm, steps)]
    return fmean(own) if own else None


# The page


def sentences(found: Found) -> list[str]:
    """Return what is to be said, the control first."""
    tokens, time = found.sizes.equal_tokens, found.sizes.equal_time
    rows, length = declared(found, tokens), found.longest
    said = [_control(found, rows.get("control"))]
    if "floor" in rows:
        row = rows["floor"]
        said.append(
            f"The floor: `intra-doc-reset` minus `intra-doc` at fp32, one function in exact arithmetic, is {_of(row)} "
            f"at {length:,} tokens, equal tokens; of a single seed up to {max(map(abs, row.seeds.values)):.4f}."
        )
    if "interaction" in rows:
        row = rows["interaction"]
        later = declared(found, time).get("interaction")
        more = f"; after {time} steps {_of(later)}: {says(later)}" if later else ""
        said.append(
            f"The question: the gain of `anchor` over `intra-doc` at bf16 minus that at fp32 is {_of(row)} at "
            f"{length:,} tokens, equal tokens: {says(row)}{more}."
        )
    if against := from_baseline(found, tokens, (*CORE, *MORE)):
        each = [f"`{name}` {told(against[name].seeds)} ({says(against[name])})" for name in _named(against)]
        said.append(f"Equal tokens, at {length:,}, minus `intra-doc-fp32`: {'; '.join(each)}.")
    if found.seeds("anchor-fp32", time) and (longer := from_baseline(found, time, CORE)):
        each = [f"`{name}` {told(longer[name].seeds)} ({says(longer[name])})" for name in _named(longer)]
        said.append(
            f"Equal counted operations ({time} masked steps for {tokens} full ones), minus `intra-doc-fp32`: "
            f"{'; '.join(each)}."
        )
    return said


def _named(rows: Mapping[str, SeedRow]) -> Iterator[str]:
    return (name for name in ("full-fp32", "anchor-fp32", "intra-doc-bf16", "anchor-bf16") if name in rows)


def _of(row: SeedRow) -> str:
    count = len(row.seeds.by_seed)
    return f"{told(row.seeds)} nats per token over {count} seed{'s' * (count != 1)}"


def _control(found: Found, row: SeedRow | None) -> str:
    if row is None:
        return "The control was not measured, so nothing here shows that this family can show anything."
    length = found.longest
    start = f"The control: under bf16-angle `intra-doc-reset` minus `intra-doc` is {_of(row)} at {length:,} tokens: "
    if len(row.seeds.by_seed) < 2:
        return f"{start}one seed, no interval, so whether this family can show anything is not known yet."
    if row.says == "higher":
        return f"{start}{says(row)}, so this family can show what rounding of positions does to a training."
    shorter = _rows({f"{each:,}": control(found, each) for each in found.sizes.lengths if each != length})
    higher = {name: one for name, one in shorter.items() if one.says == "higher"}
    seen = [f"{told(one.seeds)} at {name} tokens ({says(one)})" for name, one in higher.items()]
    if not seen:
        return f"{start}{says(row)}. The control does not show, so this family can show nothing about the rest."
    return (
        f"{start}{says(row)}. It is {' and '.join(seen)}, so reset helps at lengths that the base knew, and this "
        f"family can show nothing at {length:,} tokens, the length of the question."
    )


def tables(found: Found) -> Iterator[tuple[str, str]]:
    """Yield (title, Markdown) of every table that has something in it."""
    sizes, length = found.sizes, found.longest
    yield "The declared contrasts", declared_table(found)
    yield f"Equal tokens: {sizes.equal_tokens} steps", arms_table(found, sizes.equal_tokens, (*CORE, *MORE))
    yield f"The control, {sizes.equal_tokens} steps", _control_table(found)
    if any(found.seeds(arm.name, sizes.equal_time) for arm in CORE):
        title = f"Equal operations: {sizes.equal_time} steps with a mask, {sizes.equal_tokens} without"
        yield title, arms_table(found, sizes.equal_time, CORE)
    yield "Text with more long documents, seed 0, equal tokens", long_table(found)
    yield f"Both levels of the evaluation, seed 0, {length:,} tokens", levels_table(found)
    yield "RULER (niah_single_2, niah_multikey_1, vt), generated answers, score x 100, seed 0", ruler_table(found)
    yield (
        f"Loss by position on {sizes.nll_texts} texts of {length:,} tokens, nats per token, seed 0",
        losses_table(found),
    )
    yield "What a training took", cost_table(found)


def _control_table(found: Found) -> str:
    rows = [
        [f"`{arm.variant}` {arm.rope}", str(len(seeds)),
         *(_cell(found, arm.name, found.sizes.equal_tokens, length) for length in found.sizes.lengths)]
        for arm in CONTROL
        if (seeds := found.seeds(arm.name, found.sizes.equal_tokens))
    ]  # fmt: skip
    return grid(["trained with", "seeds", *(f"{length:,}" for length in found.sizes.lengths)], rows) if rows else ""


def markdown(found: Found) -> str:
    """Return sentences and tables as text."""
    parts = [f"{at}. {text}\n" for at, text in enumerate(sentences(found), 1)]
    return "\n".join([*parts, *(f"**{title}**\n\n{text}\n" for title, text in tables(found) if text)])


def picture(found: Found) -> str:
    """Return an SVG: differences from intra-doc at fp32 by length, with intervals over seeds."""
    drawings, of = [], {arm.name: arm for arm in CORE if arm.name != "intra-doc-fp32"}
    names = list(of)
    for steps, title in ((found.sizes.equal_tokens, "Equal tokens"), (found.sizes.equal_time, "Equal operations")):
        curves = [Curve(name, at, _points(found, of[name], steps, at)) for at, name in enumerate(names)]
        if any(curve.points for curve in curves):
            note = "y: nats per token of the answers; above 0 the arm answers better."
            drawings.append(Drawing(f"{title}: minus intra-doc at fp32", note, _chart(found, curves, title)))
    notes = ["Bars: 95% interval over seeds. Hollow: it holds 0. intra-doc-reset is the floor."]
    return sheet("anchor-tiny, 2,048 to 8,192 tokens: trained variants", drawings, names, notes)


def _points(found: Found, arm: Arm, steps: int, aside: int) -> tuple[Point, ...]:
    points: list[Point] = []
    for length in found.sizes.lengths:
        seeds = found.minus(arm.name, "intra-doc-fp32", length, _steps(found, arm, steps), steps)
        if seeds.mean is not None:
            low, high = seeds.interval
            x = length * 1.07**aside
            points.append((x, seeds.mean) if low is None or high is None else (x, seeds.mean, low, high))
    return tuple(points)


def _chart(found: Found, curves: Sequence[Curve], label: str) -> str:
    lengths = found.sizes.lengths
    axis = Axis("tokens", tuple((float(at), f"{at:,}") for at in lengths), ends=(lengths[0] / 1.2, lengths[-1] * 1.5))
    return chart(curves, axis, even(curves), label)
