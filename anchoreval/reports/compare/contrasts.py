"""`anchoreval compare`: what arms, models or settings differ by, with a verdict in words for every task and length.

Arms of one run against a baseline arm, or the arms of further runs against those of the first. Differences are
paired sample by sample, so runs whose prompts differ are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from anchoreval import stats
from anchoreval.errors import RunError, UnknownName
from anchoreval.files import write_whole
from anchoreval.records.header import Header
from anchoreval.records.run import Run, find_runs, load_run, tell_changed
from anchoreval.schema import Json
from anchoreval.stats import Contrast, Side

TABLE, BODY = "compare.csv", "compare.json"
SCHEMA = 1


def compare(
    runs: Sequence[Run | str | Path] | Run | str | Path,
    *,
    baseline: str | None = None,
    margin: float = 1.0,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Contrast]:
    """One contrast for each arm and its baseline; `margin` is in points of 100.

    One run: its arms against `baseline` (the first arm). A folder of several runs: each by itself. Several runs: the
    arms of each against those of the same name in the first, or all against the arm `baseline` of the first. `tell`
    takes notices of runs that are not what they were when they finished; the contrasts say so too.
    Errors: RunError where the prompts differ, with the count and the reason, or no sample is shared; UnknownName.
    """
    given = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    if len(given) == 1:
        return [contrast for run in _loaded(given[0], tell) for contrast in _within(run, baseline, margin / 100)]
    single = [_only(one, tell) for one in given]
    names = _labels(single)
    return [
        contrast
        for run, name in zip(single[1:], names[1:], strict=True)
        for contrast in _across((run, name), (single[0], names[0]), baseline, margin / 100)
    ]


def _loaded(run: Run | str | Path, tell: Callable[[str], None]) -> list[Run]:
    found = [run] if isinstance(run, Run) else [load_run(path) for path in find_runs([Path(run)])]
    for each in found:
        tell_changed(each, tell)
    return found


def _changed(*runs: Run) -> tuple[str, ...]:
    return tuple(f"{run.path}: {run.changed}" for run in runs if run.changed)


def _only(run: Run | str | Path, tell: Callable[[str], None]) -> Run:
    found = _loaded(run, tell)
    if len(found) > 1:
        raise RunError(f"{run}: {len(found)} runs lie here, the first {found[0].path}: name one run folder")
    return found[0]


def _labels(runs: Sequence[Run]) -> list[str]:
    """The model's name where that tells the runs apart, else the run's."""
    models = [run.model for run in runs]
    ids = [run.name for run in runs]
    return models if len(set(models)) == len(models) else [f"{m}/{i[:8]}" for m, i in zip(models, ids, strict=True)]


def _within(run: Run, baseline: str | None, margin: float) -> list[Contrast]:
    known = run.sides()
    if not known:
        raise RunError(f"{run.path}: the run holds no records yet")
    base = baseline or next(iter(known))
    if base not in known:
        raise UnknownName("arm", base, known)
    if len(known) < 2:
        raise RunError(f"{run.path}: the run has one arm, {base}: name a second run to compare it with")
    against = [stats.contrast(side, known[base], margin) for arm, side in known.items() if arm != base]
    return [replace(contrast, notes=(*_changed(run), *contrast.notes)) for contrast in against]


def _across(run: tuple[Run, str], first: tuple[Run, str], baseline: str | None, margin: float) -> Iterator[Contrast]:
    check_prompts(run[0], first[0])
    one_tokenizer = len({one.header.at("tokenizer", "sha256") for one, _ in (run, first)}) == 1
    prompts = tuple(run[0].header.other_prompts(first[0].header))
    judged = tuple(_judged_otherwise(run[0].header, first[0].header))
    ours, theirs = (one.sides(label) for one, label in (run, first))
    if baseline is not None and baseline not in theirs:
        raise UnknownName(f"arm of {first[0].path}", baseline, theirs)
    for arm, base in _partners(list(ours), list(theirs), baseline):
        pair = _silent(ours[arm], one_tokenizer), _silent(theirs[base], one_tokenizer)
        contrast = stats.contrast(*pair, margin)
        silent = () if one_tokenizer else ("log-probabilities per token are not compared: the tokenizers differ",)
        yield replace(contrast, prompts=prompts, notes=(*_changed(run[0], first[0]), *contrast.notes, *judged, *silent))


def _partners(ours: Sequence[str], theirs: Sequence[str], baseline: str | None) -> list[tuple[str, str]]:
    """(arm, baseline arm): one baseline for all, the same names, or the only arm of each."""
    if baseline is not None:
        return [(arm, baseline) for arm in ours]
    same = [(arm, arm) for arm in ours if arm in theirs]
    if not same and len(ours) == len(theirs) == 1:
        return [(ours[0], theirs[0])]
    if not same:
        said = f"{', '.join(ours)} against {', '.join(theirs)}"
        raise RunError(f"the runs have no arm in common ({said}): name one of the first run's with --baseline")
    return same


def _silent(side: Side, keep: bool) -> Side:
    """The side without log-probabilities, unless they are to be kept."""
    if keep:
        return side
    return replace(side, records={key: replace(one, reference_logprob=None) for key, one in side.records.items()})


def check_prompts(run: Run, first: Run) -> None:
    """RunError when samples of the same id had other prompts in the two runs, or none is in both."""
    ours = {record.sample_id: record.prompt_sha256 for record in run.records}
    theirs = {record.sample_id: record.prompt_sha256 for record in first.records}
    shared = ours.keys() & theirs.keys()
    why = "; ".join(reasons(run.header, first.header)) or "the headers agree: the records were changed"
    if not shared:
        raise RunError(
            f"{first.path} and {run.path} have no sample in common: run both with the same tasks and lengths"
        )
    if differ := sum(ours[key] != theirs[key] for key in shared):
        raise RunError(
            f"{differ} of {len(shared)} samples had other prompts in {run.path} than in {first.path} ({why}): "
            "only runs over the same prompts can be paired"
        )


def reasons(ours: Header, theirs: Header) -> list[str]:
    """What in two headers makes prompts differ, in words."""
    fields = {
        "tokenizer": ("tokenizer", "sha256"),
        "haystack": ("sources", "haystack"),
        "word lists": ("sources", "wordlists"),
        "seed": ("seed",),
        "source files": ("source_files",),
        "limit": ("limit",),
        "version of anchoreval": ("version",),
    }
    pairs = {name: (theirs.at(*keys), ours.at(*keys)) for name, keys in fields.items()}
    pairs["template"] = theirs.form, ours.form
    found = []
    for name, (one, other) in pairs.items():
        if one != other:
            plain = all(isinstance(value, str | int | None) for value in (one, other))
            found.append(f"different {name}" + (f": {str(one)[:16]} and {str(other)[:16]}" if plain else ""))
    return found + _other_tasks(ours, theirs)


def _judged_otherwise(ours: Header, theirs: Header) -> Iterator[str]:
    """What makes answers to the same prompts differ in length or in how they are judged, in words."""
    yield from (f"not the same tasks: {why}" for why in _other_tasks(ours, theirs))
    one, other = theirs.scorers, ours.scorers
    if names := [name for name in one if name in other and one[name] != other[name]]:
        yield f"not judged by the same rule: {', '.join(names)}"


def _other_tasks(ours: Header, theirs: Header) -> list[str]:
    """Tasks of the same name whose cards make other samples."""

    def made(card: Mapping[str, Json]) -> Json:
        return [card.get(key) for key in ("generator", "args", "max_new_tokens", "version", "samples")]

    one, other = ours.cards, theirs.cards
    names = [name for name in one if name in other and made(one[name]) != made(other[name])]
    return [f"different cards of {', '.join(names)}"] if names else []


def write_compare(contrasts: Sequence[Contrast], folder: Path) -> tuple[Path, Path]:
    """compare.csv and compare.json in `folder`, whole; scores in points of 100, log-probabilities in nats per token."""
    from anchoreval.reports.compare.table import csv_of, rows_of

    body = {
        "schema": SCHEMA,
        "unit": "points of 100; log-probabilities in nats per token; intervals 95%",
        "contrasts": [
            {
                "arm": one.arm,
                "baseline": one.baseline,
                "margin": round(100 * one.margin, 9),
                "prompts": list(one.prompts),
                "notes": list(one.notes),
                "rows": rows_of(one),
            }
            for one in contrasts
        ],
    }
    csv = write_whole(folder / TABLE, [csv_of(contrasts)])
    return csv, write_whole(folder / BODY, [json.dumps(body, indent=1, allow_nan=False), "\n"])
