"""What each command does once its flags are parsed; heavy imports happen inside the functions."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from anchoreval.cli.console import note, say
from anchoreval.cli.progress import shown
from anchoreval.errors import AnchorEvalError, LengthError
from anchoreval.schema import Progress

if TYPE_CHECKING:
    from anchoreval.prompt import Template
    from anchoreval.runs.loop import Plan
    from anchoreval.schema import Sample
    from anchoreval.texts.sources import Sources
    from anchoreval.tokenizer import TextTokenizer


def version() -> str:
    """The installed version."""
    return metadata.version("anchoreval")


def records(total: int) -> AbstractContextManager[Progress]:
    """Progress over the records of a run, which the same command goes on with."""
    return shown(total, "records", "the same command goes on where it was")


def windows(total: int) -> AbstractContextManager[Progress]:
    """Progress over the windows of `nll`."""
    return shown(total, "windows", "nothing is kept of it: give the same command again")


def prompts(total: int) -> AbstractContextManager[Progress]:
    """Progress over prompts."""
    return shown(total, "prompts")


def run(options: argparse.Namespace) -> int:
    """`anchoreval run`: the table on stdout, the board's place on stderr."""
    from anchoreval.cli.options import chosen_settings, engine_options, template_args
    from anchoreval.records.run import tell_changed
    from anchoreval.reports.board import run_table
    from anchoreval.reports.readable import draw, load_runs
    from anchoreval.reports.viewer.beside import renew
    from anchoreval.runs.evaluate import evaluate
    from anchoreval.runs.resume import nothing_scored, unanswered
    from anchoreval.runs.rounds import words

    result = evaluate(
        options.model,
        options.tasks,
        lengths=options.lengths,
        rope=options.rope,
        limit=options.limit,
        output=options.output,
        dtype=options.dtype,
        kernel=options.kernel,
        backend=options.backend,
        tokenizer=options.tokenizer,
        template=options.template,
        template_args=template_args(options),
        anchor=options.anchor,
        haystack=options.haystack,
        data_dir=options.data_dir,
        wordlists=options.wordlists,
        seed=options.seed,
        max_length=options.max_length,
        document_tokens=options.document_tokens,
        placebo=options.placebo,
        until=options.until,
        context=not options.no_context,
        settings=chosen_settings(options),
        ray=options.ray,
        workers=options.workers,
        options=engine_options(options),
        same_environment=options.same_environment,
        rehash=options.rehash,
        watch=records,
        tell=note,
    )
    try:
        say("\n".join([run_table(result), *words(result.header)]))
    finally:  # also where stdout is lost
        tell_changed(result, note)
        renew(result, note)
        note(f"records: {result.path}")
        runs = [run for run in load_runs([options.output], note) if run.path != result.path]
        csv, html = draw(sorted([*runs, result], key=lambda run: run.path), options.output, [result.path], note)
        note(f"board: {html}\ncsv: {csv}")
    if why := nothing_scored(result) or unanswered(result):
        note(f"anchoreval: {why}")
        return 1
    return 0


def steps(total: int) -> AbstractContextManager[Progress]:
    """Progress over prompts and records."""
    return shown(total, "prompts and records")


def measurements(total: int) -> AbstractContextManager[Progress]:
    """Progress over the levels and texts of `probe`."""
    return shown(total, "levels on texts", "nothing is kept of it: give the same command again")


def _sources(options: argparse.Namespace) -> Sources:
    """The sources that the flags ask for; without --haystack those of the model card whose tokenizer is used."""
    from anchoreval.cards import load_models
    from anchoreval.texts.sources import Sources

    card = load_models().get(options.tokenizer)
    haystack = options.haystack or (card.haystack if card else "published")
    return Sources(options.data_dir, haystack, options.wordlists, context=not options.no_context)


def _plan(options: argparse.Namespace, tasks: str, limit: int | None) -> Plan:
    """The plan of prompts alone, for the commands that need no model."""
    from anchoreval.cards import select_tasks, with_settings
    from anchoreval.cli.options import chosen_settings, template_args
    from anchoreval.runs.loop import Plan, sized

    chosen, single = select_tasks(tasks)
    settings = chosen_settings(options) if hasattr(options, "prompting") else {}
    chosen = sized(with_settings(chosen, settings))
    lengths = tuple(options.lengths) if getattr(options, "lengths", None) else None
    template: Template = getattr(options, "template", "base")
    given, sources = template_args(options), _sources(options)
    return Plan(tuple(chosen), lengths, (), limit, options.seed, template, sources, single, template_args=given)


def _tokenizer(name: str) -> TextTokenizer:
    """The tokenizer of a model card, a folder, a tokenizer.json or a hub id."""
    from anchoreval.cards import find_model
    from anchoreval.model import folder_of
    from anchoreval.tokenizer import load_tokenizer

    if Path(name).expanduser().exists():
        return load_tokenizer(name)
    return load_tokenizer(folder_of(find_model(name)[1].checkpoint, weights=False))


def samples(options: argparse.Namespace) -> int:
    """`anchoreval samples`: one JSON line per sample; the file appears when it is whole."""
    from anchoreval.files import write_whole
    from anchoreval.runs.loop import make_cells

    tokenizer = _tokenizer(options.tokenizer)
    made = make_cells(_plan(options, options.tasks, options.limit), tokenizer, None)
    for row in made.unmakeable:
        note(f"left out: {row['why']}")
    write_whole(options.output, (_sample_line(sample) for cell in made.cells for sample in cell.samples))
    return 0


def _sample_line(sample: Sample) -> str:
    row = {"id": sample.id, "task": sample.task, "length": sample.length, "prompt": sample.prompt}
    row |= {"references": list(sample.references), "facts": dict(sample.facts)}
    return f"{json.dumps(row, ensure_ascii=False)}\n"


def tasks(_: argparse.Namespace) -> int:
    """`anchoreval tasks`: sets with their size, then tasks."""
    from anchoreval.cards import load_tasks

    known, sets = load_tasks()
    for name, members in sets.items():
        say(f"{name:24} {len(members)} tasks")
    for task in known.values():
        args = " ".join(f"{key}={value}" for key, value in task.args.items())
        say(f"{task.address:24} {task.scorer:10} {task.max_new_tokens:4} new tokens  {args}")
    return 0


def models(_: argparse.Namespace) -> int:
    """`anchoreval models`: the cards."""
    from anchoreval.cards import load_models

    for name, card in load_models().items():
        say(f"{name:24} {card.about}")
    return 0


def show(options: argparse.Namespace) -> int:
    """`anchoreval show`: one prompt, made again from its id."""
    from anchoreval.runs.loop import samples_of

    address, at, rest = options.sample.partition("@")
    length, mark, index = rest.partition("#")
    if not (at and mark and length.isdigit() and index.isdigit()):
        raise AnchorEvalError(f"{options.sample!r} is no sample id: SUITE/TASK@LENGTH#INDEX, e.g. ruler/qa_1@4096#3")
    plan = _plan(options, address, int(index) + 1)
    if address not in plan.single:
        raise AnchorEvalError(f"{address!r} is a set of tasks: name one of them")
    if int(index) >= plan.tasks[0].samples:
        raise LengthError(f"{address} has samples 0 to {plan.tasks[0].samples - 1}")
    made = samples_of(plan.tasks[0], int(length), int(index) + 1, plan, _tokenizer(options.tokenizer))
    sample = list(made)[-1]
    say(sample.prompt)
    note(f"\nid: {sample.id}\nreferences: {json.dumps(sample.references)}\nfacts: {json.dumps(dict(sample.facts))}")
    return 0


def score(options: argparse.Namespace) -> int:
    """`anchoreval score`: exit code 1 when a score on disk is not the one that its output earns."""
    from anchoreval.records.rescore import rescored
    from anchoreval.records.run import find_runs, load_run, tell_changed
    from anchoreval.reports.board import run_table

    differing = 0
    for path in find_runs(options.runs):
        result = load_run(path)
        tell_changed(result, note)
        for record, value in rescored(result):
            differing += 1
            note(f"{path}: {record.sample_id} {record.arm}: on disk {record.score}, scored again {value}")
        say(run_table(result))
    note(f"{differing} scores differ")
    return 1 if differing else 0


def verify(options: argparse.Namespace) -> int:
    """`anchoreval verify`: differences and a summary of each run on stdout, notices on stderr."""
    from anchoreval.runs.verify.records import main

    return main(options, say, note, steps)


def board(options: argparse.Namespace) -> int:
    """`anchoreval board`: where the page and its CSV were written."""
    from anchoreval.records.run import find_runs, tell_changed
    from anchoreval.reports.board.declared import write_leaderboard
    from anchoreval.reports.readable import draw, load_runs
    from anchoreval.reports.viewer.beside import supply

    if options.definition:
        supply(find_runs(options.runs), note)
        folder, workers = options.output or options.runs[0], os.cpu_count() or 1
        csv, html = write_leaderboard(options.runs, options.definition, folder, workers, note)
        say(f"{html}\n{csv}")
        return 0
    runs = load_runs(options.runs, note)
    for run in runs:
        tell_changed(run, note)
    supply([run.path for run in runs], note)
    csv, html = draw(runs, options.output or options.runs[0], options.runs, note)
    say(f"{html}\n{csv}")
    return 0


def view(options: argparse.Namespace) -> int:
    """`anchoreval view`: where each index.html was written, and the address that serves them."""
    from anchoreval.cli.view import main

    return main(options, say, note, prompts)


def probe(options: argparse.Namespace) -> int:
    """`anchoreval probe`: the reading on stdout, the places of probe.csv and probe.html on stderr."""
    from anchoreval.diagnostics.probe import probe as measure
    from anchoreval.diagnostics.probe import write_probe
    from anchoreval.diagnostics.probe.reading import reading

    names: tuple[str, ...] = ("shift", "levels", "text", "texts", "queries", "dtype", "device", "kernel", "seed")
    names += ("trust_remote_code", "max_length", "random_init", "curve_length", "copy", "anchor")
    asked = {name: getattr(options, name) for name in names}
    kept = options.output / "probe.jsonl"
    study = measure(options.model, options.lengths, kept=kept, tell=note, watch=measurements, **asked)
    csv, html = write_probe(study, options.output)
    say(reading(study))
    note(f"probe: {html}\ncsv: {csv}")
    return 0


def nll(options: argparse.Namespace) -> int:
    """`anchoreval nll`: the table on stdout, the places of nll.csv and nll.json on stderr."""
    from anchoreval.diagnostics.nll.measure import main

    return main(options, say, note, windows)


def plan(options: argparse.Namespace) -> int:
    """`anchoreval plan`: the page on stdout, what cannot be made on stderr."""
    from anchoreval.cli.plan import main

    return main(options, say, note, prompts)


def doctor(options: argparse.Namespace) -> int:
    """`anchoreval doctor`: one page, or JSON."""
    from anchoreval.diagnostics.doctor.page import main

    return main(options, say)


def export(options: argparse.Namespace) -> int:
    """`anchoreval export`: the place of every table or results file."""
    from anchoreval.reports.export.tables import main

    return main(options, say, note)


def compare(options: argparse.Namespace) -> int:
    """`anchoreval compare`: a table for each arm and its baseline."""
    from anchoreval.reports.compare.contrasts import main

    return main(options, say, note)


def longbench(options: argparse.Namespace) -> int:
    """`anchoreval longbench`: the averages of each run."""
    from anchoreval.reports.averages.longbench import main

    return main(options, say, note)


def general(options: argparse.Namespace) -> int:
    """`anchoreval general`: every metric of lm-eval, and what was lost, of each run."""
    from anchoreval.reports.averages.general import main

    return main(options, say, note)


def data(options: argparse.Namespace) -> int:
    """`anchoreval data fetch|check`."""
    from anchoreval.cli.data import main

    return main(options, say, note)


def bench(options: argparse.Namespace) -> int:
    """`anchoreval bench samples|memory|board|anchor|gpu|prefill|lm-eval|engines|sequential`."""
    if options.kind == "engines":
        from anchoreval.bench.engines import report_engines

        say(report_engines(options.length, options.prompts, options.questions))
        return 0
    if options.kind == "lm-eval":
        from anchoreval.bench.lm_eval import report_lm_eval

        say(report_lm_eval(options.length, options.questions, options.memory_length))
        return 0
    if options.kind == "gpu":
        from anchoreval.bench.gpu import main

        return main(options, say, note)
    if options.kind == "prefill":
        from anchoreval.bench.prefill import main as measure_prefill

        return measure_prefill(options, say, note)
    if options.kind == "board":
        from anchoreval.bench.board import report_board

        say(report_board(options.runs, options.records))
        return 0
    if options.kind == "sequential":
        from anchoreval.bench.until import report_sequential

        say(report_sequential())
        return 0
    if options.kind == "anchor":
        from anchoreval.bench.anchor import report_anchor

        say(report_anchor())
        return 0
    if options.kind == "memory":
        from anchoreval.bench.memory import report_memory

        say(report_memory(options.length))
        return 0
    from anchoreval.bench.samples import bench_samples
    from anchoreval.cards import select_tasks

    chosen, _ = select_tasks(options.tasks)
    bench_samples(chosen, options.lengths, options.limit, _tokenizer(options.tokenizer), _sources(options), sys.stdout)
    return 0
