"""`anchoreval compare`: compute differences of arms, models or settings, with a verdict in words per task and length.

Arms of one run are compared with a baseline arm, or the arms of further runs with those of the first; two models are
compared in the same way as two arms. Differences are paired sample by sample, over the same prompts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from anchoreval.errors import RunError, UnknownName
from anchoreval.files import write_whole
from anchoreval.records.header import Header
from anchoreval.records.run import Run, find_runs, load_run, tell_changed
from anchoreval.schema import Json
from anchoreval.stats import Cells, Compared, Contrast, Place, Scores, Subject, Trained, labels, variant_names
from anchoreval.stats.seeds import contrast_over_seeds, missing_seeds

TABLE, BODY = "compare.csv", "compare.json"
TOKENIZER = "different tokenizer"
Subjects = Mapping[Subject, Cells]
SCHEMA = 1


def compare(
    runs: Sequence[Run | str | Path] | Run | str | Path,
    *,
    baseline: str | None = None,
    margin: float = 1.0,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Contrast]:
    """Return one contrast for each arm and its baseline; `margin` is in points of 100.

    One run: its arms against `baseline` (default: the first arm). A folder of several runs: each run by itself. Several
    runs: the arms of each against the arms of the same name in the first, or all against the arm `baseline` of the
    first; then those of `compare_seeds`. `tell` takes notices of runs that changed after they finished; the contrasts
    carry them too.

    Raise RunError, with the count and the reason, if the prompts differ or no sample is shared; raise UnknownName for
    an unknown baseline.
    """
    given = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    if len(given) == 1:
        return [contrast for run in _loaded(given[0], tell) for contrast in _within(run, baseline, margin / 100)]
    single = []
    for run in given:
        loaded = _loaded(run, tell)
        if len(loaded) > 1:
            raise RunError(f"{run}: {len(loaded)} runs lie here, the first {loaded[0].path}: name one run folder")
        single += loaded
    named = Counter(run.name for run in single)
    first, *others = [(run, run.subjects(str(run.path) if named[run.name] > 1 else "")) for run in single]
    names = labels(subject for _, subjects in (first, *others) for subject in subjects)
    contrasts = [contrast for other in others for contrast in _across(other, first, names, baseline, margin / 100)]
    return contrasts + compare_seeds(single, margin / 100)


def compare_seeds(runs: Sequence[Run], margin: float = 0.01) -> list[Contrast]:
    """Return a contrast of every trained variant with the first, over seeds; none unless both have several in common.

    A variant is what models are that differ in the seed of their training alone, at one step. Arms of the same name are
    compared, seed by seed, and a note says which seeds one of the two lacks.
    """
    variants: dict[Trained, dict[int, Run]] = {}
    for run in runs:
        if (trained := run.header.trained) is not None:
            variants.setdefault(replace(trained, seed=0), {}).setdefault(trained.seed, run)
    names = variant_names(variants)
    contrasts: list[Contrast] = []
    for variant, ours in list(variants.items())[1:]:
        first, theirs = next(iter(variants.items()))
        common = sorted(ours.keys() & theirs.keys())
        lacking = missing_seeds({names[variant]: ours, names[first]: theirs})
        for arms in _same_arms(ours[common[0]].arms, theirs[common[0]].arms) if len(common) > 1 else ():
            by_seed = {seed: both for seed in common if (both := _of_arms((ours[seed], theirs[seed]), arms, margin))}
            if len(by_seed) > 1:
                said, base = (f"{arm} ({names[each]})" for arm, each in zip(arms, (variant, first), strict=True))
                contrasts.append(contrast_over_seeds(said, base, by_seed, [lacking] if lacking else []))
    return contrasts


def _same_arms(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of arms of the same name, or the only arms of both."""
    same = [(arm, arm) for arm in ours if arm in theirs]
    return same or ([(ours[0], theirs[0])] if len(ours) == len(theirs) == 1 else [])


def _of_arms(runs: tuple[Run, Run], arms: tuple[str, str], margin: float) -> Contrast | None:
    """Return the contrast of an arm of each run; None if one lacks it or no sample is in both."""
    known = [run.subjects(str(run.path)) for run in runs]
    of = [{subject.arm: subject for subject in subjects} for subjects in known]
    if any(arm not in by_arm for arm, by_arm in zip(arms, of, strict=True)):
        return None
    both: Subjects = known[0] | known[1]
    if len({run.header.tokenizer.get("sha256") for run in runs}) > 1:
        both = _silent(both)
    contrast = Compared(both, margin).contrast(of[0][arms[0]], of[1][arms[1]])
    return contrast if contrast.pooled.difference.pairs or contrast.pooled.difference.logprob_pairs else None


def _silent(subjects: Subjects) -> dict[Subject, dict[Place, Scores]]:
    """Return the subjects without log-probabilities, which two tokenizers do not share."""
    return {arm: {place: scores.silent() for place, scores in cells.items()} for arm, cells in subjects.items()}


def _loaded(run: Run | str | Path, tell: Callable[[str], None]) -> list[Run]:
    loaded = [run] if isinstance(run, Run) else [load_run(path) for path in find_runs([Path(run)])]
    for loaded_run in loaded:
        tell_changed(loaded_run, tell)
    return loaded


def _changed(*runs: Run) -> tuple[str, ...]:
    return tuple(f"{run.path}: {run.changed}" for run in runs if run.changed)


def _within(run: Run, baseline: str | None, margin: float) -> list[Contrast]:
    subjects = run.subjects()
    known = {subject.arm: subject for subject in subjects}
    if not known:
        raise RunError(f"{run.path}: the run holds no records yet")
    base = baseline or next(iter(known))
    if base not in known:
        raise UnknownName("arm", base, known)
    if len(known) < 2:
        raise RunError(f"{run.path}: the run has one arm, {base}: name a second run to compare it with")
    against = Compared(subjects, margin).against(known[base])
    return [replace(contrast, notes=(*_changed(run), *contrast.notes)) for contrast in against]


def _across(
    own: tuple[Run, Subjects], first: tuple[Run, Subjects], names: Mapping[Subject, str], baseline: str | None,
    margin: float,
) -> Iterator[Contrast]:  # fmt: skip
    (run, ours), (other, theirs) = own, first
    notes = [*_other_prompts(run, other), *_judged_otherwise(run.header, other.header)]
    if run.header.tokenizer.get("sha256") != other.header.tokenizer.get("sha256"):
        ours, theirs = _silent(ours), _silent(theirs)
        notes.append("log-probabilities per token are not compared: the tokenizers differ")
    known = {subject.arm: subject for subject in theirs}
    if baseline is not None and baseline not in known:
        raise UnknownName(f"arm of {other.path}", baseline, known)
    compared = Compared({**ours, **theirs}, margin, names)
    for arm, base in _partners({subject.arm: subject for subject in ours}, known, baseline):
        contrast = compared.contrast(arm, base)
        all_notes = [*_changed(run, other), *contrast.notes, *notes]
        if arm.arm == base.arm and arm.outside != base.outside:
            two = f"it is from another {arm.facet('outside')}, and {base.facet('outside')}"
            all_notes.append(f"{arm.arm} is not one arm: {two}")
        yield replace(contrast, prompts=tuple(run.header.other_prompts(other.header)), notes=tuple(all_notes))


def _partners(
    ours: Mapping[str, Subject], theirs: Mapping[str, Subject], baseline: str | None
) -> list[tuple[Subject, Subject]]:
    """Return pairs (arm, baseline arm): one baseline for all, arms of the same name, or the only arm of each run."""
    if baseline is not None:
        return [(subject, theirs[baseline]) for subject in ours.values()]
    same = [(ours[arm], theirs[base]) for arm, base in _same_arms(list(ours), list(theirs))]
    if not same:
        arm_names = f"{', '.join(ours)} against {', '.join(theirs)}"
        raise RunError(f"the runs have no arm in common ({arm_names}): name one of the first run's with --baseline")
    return same


def _other_prompts(run: Run, first: Run) -> Iterator[str]:
    """Yield a note on samples that are not paired because the tokenizers, and so the prompts, differ.

    Raise RunError if no sample is in both runs, if none has the same prompt, or if prompts differ for another reason.
    """
    ours = {record.sample_id: record.prompt_sha256 for record in run.records}
    theirs = {record.sample_id: record.prompt_sha256 for record in first.records}
    shared = ours.keys() & theirs.keys()
    if not shared:
        raise RunError(
            f"{first.path} and {run.path} have no sample in common: run both with the same tasks and lengths"
        )
    if not (differ := sum(ours[name] != theirs[name] for name in shared)):
        return
    causes = reasons(run.header, first.header)
    why = "; ".join(causes) or "the headers agree: the records were changed"
    if differ == len(shared) or not any(cause.startswith(TOKENIZER) for cause in causes):
        raise RunError(
            f"{differ} of {len(shared)} samples had other prompts in {run.path} than in {first.path} ({why}): "
            "only runs over the same prompts can be paired"
        )
    yield f"not paired: {differ:,} of {len(shared):,} samples, whose prompts differ ({why})"


def reasons(ours: Header, theirs: Header) -> list[str]:
    """Return, in words, what in two headers makes prompts differ."""
    fields = {
        TOKENIZER.removeprefix("different "): ("tokenizer", "sha256"),
        "haystack": ("sources", "haystack"),
        "word lists": ("sources", "wordlists"),
        "seed": ("seed",),
        "source files": ("source_files",),
        "limit": ("limit",),
        "version of anchoreval": ("version",),
    }
    pairs = {name: (theirs.at(*keys), ours.at(*keys)) for name, keys in fields.items()}
    pairs["template"] = theirs.form, ours.form
    sentences = []
    for name, (one, other) in pairs.items():
        if one != other:
            short = all(isinstance(value, str | int | None) for value in (one, other))
            sentences.append(f"different {name}" + (f": {str(one)[:16]} and {str(other)[:16]}" if short else ""))
    return sentences + _other_tasks(ours, theirs)


def _judged_otherwise(ours: Header, theirs: Header) -> Iterator[str]:
    """Yield, in words, what makes answers to the same prompts differ in length or in how they are judged."""
    yield from (f"not the same tasks: {why}" for why in _other_tasks(ours, theirs))
    one, other = theirs.scorers, ours.scorers
    if names := [name for name in one if name in other and one[name] != other[name]]:
        yield f"not judged by the same rule: {', '.join(names)}"


def _other_tasks(ours: Header, theirs: Header) -> list[str]:
    """Return a sentence on tasks of the same name whose cards make other samples."""

    def made(card: Mapping[str, Json]) -> Json:
        return [card.get(key) for key in ("generator", "args", "max_new_tokens", "version", "samples", "outside")]

    one, other = ours.cards, theirs.cards
    names = [name for name in one if name in other and made(one[name]) != made(other[name])]
    return [f"different cards of {', '.join(names)}"] if names else []


def write_compare(contrasts: Sequence[Contrast], folder: Path) -> tuple[Path, Path]:
    """Write compare.csv and compare.json into `folder` and return their paths.

    Scores are in points of 100, log-probabilities in nats per token.
    """
    from anchoreval.reports.compare.table import csv_of, rows_of

    body = {
        "schema": SCHEMA,
        "unit": "points of 100; log-probabilities in nats per token; intervals 95%",
        "contrasts": [
            {
                "arm": contrast.arm,
                "baseline": contrast.baseline,
                "margin": round(100 * contrast.margin, 9),
                "prompts": list(contrast.prompts),
                "notes": list(contrast.notes),
                "rows": rows_of(contrast),
            }
            for contrast in contrasts
        ],
    }
    csv = write_whole(folder / TABLE, [csv_of(contrasts)])
    return csv, write_whole(folder / BODY, [json.dumps(body, indent=1, allow_nan=False), "\n"])
