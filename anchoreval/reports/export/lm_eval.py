"""Runs in the files of lm-evaluation-harness 0.4.13: one folder per arm, with results_*.json and samples_*.jsonl.

Each arm is a model, each (task, length) a task. Schema: lm_eval/result_schema.py and loggers/evaluation_tracker.py of
that release. Facts that the schema has no field for are under the one key `anchoreval` of a results file. An unpaired
surrogate, which UTF-8 cannot encode, is spelled out as ⟨U+D800⟩. Records hold no prompts: `arg_0` is null, and
`prompt_hash` is the SHA-256 of the prompt, as in lm-eval.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from anchoreval.errors import RunError
from anchoreval.files import write_json_lines, write_whole
from anchoreval.records.header import HEADER
from anchoreval.records.run import Run
from anchoreval.reports.table import fields_of
from anchoreval.schema import NATURAL, Json, Record
from anchoreval.stats import Compared, counted, per_token, scores_of

FOLDER_BYTES = 200
SCORE, LOGPROB = "score", "logprob_per_token"
_UNPAIRED = re.compile("[\ud800-\udfff]")
_UNSAFE = re.compile(r'["<>:/|\\?*\[\]\x00-\x1f\x7f]+')  # lm_eval.utils.sanitize_model_name, and control characters


def write_lm_eval(runs: Sequence[Run], output: Path) -> list[Path]:
    """Write the results file of every run and arm, with samples beside it, and return the results files.

    The same runs give the same bytes. Raise RunError if two runs would be one file, if an arm holds a sample twice, or
    if a file cannot be written.
    """
    run_of: dict[Path, Path] = {}
    for run in runs:
        for arm, cells in arms_of(run).items():
            path = output / folder_name(f"{run.model}__{arm}") / f"results_{stamp(run)}.json"
            if path in run_of:
                path = path.parent.with_name(folder_name(f"{path.parent.name}__{run.name}")) / path.name
            if path in run_of:
                raise RunError(f"{run.path} and {run_of[path]} are the same run: name one of them")
            run_of[path] = run.path
            _write_arm(run, arm, cells, path)
    return list(run_of)


def _write_arm(run: Run, arm: str, cells: Mapping[str, list[Record]], path: Path) -> None:
    hashes = {}
    for task, records in cells.items():
        rows = [sample_row(run, record) for record in records]
        hashes[task] = _sha256("".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows))
        write_json_lines(path.with_name(f"samples_{task}_{stamp(run)}.jsonl"), rows, allow_nan=False)
    results = paired_only(results_of(run, arm, cells, path.parent.name)) | {"task_hashes": hashes}
    write_whole(path, [json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)])


def arms_of(run: Run) -> dict[str, dict[str, list[Record]]]:
    """Return arm -> lm-eval's name of the task -> its records by index; arms and tasks in the header's order."""
    scores_of(run.records)  # raises RunError if an arm holds a sample twice
    order = {task: number for number, task in enumerate(run.header.tasks)}

    def place(record: Record) -> tuple[int, str, int, int]:
        return order.get(record.task, len(order)), record.task, record.length, record.index

    arms: dict[str, dict[str, list[Record]]] = {arm: {} for arm in run.arms}
    for record in sorted(run.records, key=place):
        task_records = arms[record.arm].setdefault(task_name(record.task, record.length), [])
        if task_records and place(task_records[0])[:3] != place(record)[:3]:
            name = task_name(record.task, record.length)
            raise RunError(f"{run.path}: two tasks are {name} once made safe for a file name")
        task_records.append(record)
    return {arm: tasks for arm, tasks in arms.items() if tasks}


def task_name(task: str, length: int) -> str:
    """Return `ruler_niah_single_1_4096`, or the task alone if its prompts have no set length."""
    return re.sub(r"[^A-Za-z0-9_]", "_", task if length == NATURAL else f"{task}_{length}")


def folder_name(name: str) -> str:
    """Return the name as lm-eval makes it safe for a path; a name that is too long is cut and ends in a hash."""
    safe = _UNSAFE.sub("__", _spelled(name))
    if len(safe.encode("utf-8")) <= FOLDER_BYTES:
        return safe
    return f"{safe.encode('utf-8')[: FOLDER_BYTES - 18].decode('utf-8', 'ignore')}__{_sha256(safe)[:16]}"


def stamp(run: Run) -> str:
    """Return when the run finished, or else was created, as in lm-eval's file names: UTC, `-` for `:`."""
    return time_of(run, "finished", "created").replace(tzinfo=None).isoformat(timespec="microseconds").replace(":", "-")


def time_of(run: Run, *keys: str) -> datetime.datetime:
    """Return the first of the header's times that is set, in UTC."""
    key = next((key for key in keys if run.header.get(key)), keys[-1])
    try:
        time = datetime.datetime.fromisoformat(str(run.header.get(key)))
    except ValueError:
        raise RunError(f"{run.path / HEADER}: {key}: {str(run.header.get(key))[:40]!r} is no time") from None
    return (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)).astimezone(datetime.UTC)


def results_of(run: Run, arm: str, cells: Mapping[str, list[Record]], folder: str) -> dict[str, Json]:
    """Return the content of results_*.json except the hashes; scores are 0..1, log-probabilities in nats per token."""
    every = [record for records in cells.values() for record in records]
    return {
        "results": {task: _metrics(task, records) for task, records in cells.items()},
        "group_subtasks": {task: [] for task in cells},
        "configs": {task: _task_config(run, task, records[0]) for task, records in cells.items()},
        "versions": {task: card_of(run, records[0].task).get("version") for task, records in cells.items()},
        "n-shot": {task: _shots(run, records[0]) for task, records in cells.items()},
        "higher_is_better": {task: {SCORE: True, LOGPROB: True} for task in cells},
        "n-samples": {task: _counts(run, records) for task, records in cells.items()},
        "config": _config(run, arm),
        "git_hash": None,
        "date": time_of(run, "created").timestamp(),
        "lm_eval_version": None,
        "max_length": run.header.model.get("window"),
        "model_source": "anchoreval",
        "model_name": f"{run.model}__{arm}",
        "model_name_sanitized": folder,
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": None,
        "chat_template": None,
        "chat_template_sha": None,
        "total_evaluation_time_seconds": str(round(math.fsum(record.seconds for record in every), 4)),
        "anchoreval": _extra(run, arm, cells),
    }


def _metrics(task: str, records: Sequence[Record]) -> dict[str, Json]:
    scores = [record.score for record in records if record.score is not None]
    logprobs = [value for record in records if (value := per_token(record)) is not None]
    metrics: dict[str, Json] = {"name": task, "alias": task, "sample_len": len(records)}
    metrics |= _metric(SCORE, scores)
    return metrics | _metric(LOGPROB, logprobs) if logprobs else metrics


def _metric(name: str, values: Sequence[float]) -> dict[str, Json]:
    """Return the mean (null if there is no value) and its standard error ("N/A" if it has none, as in lm-eval)."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else "N/A"
    return {f"{name},none": float(fmean(values)) if values else None, f"{name}_stderr,none": error}


def _task_config(run: Run, task: str, record: Record) -> dict[str, Json]:
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in (SCORE, LOGPROB)]
    card = card_of(run, record.task)
    return {
        "task": task,
        "output_type": _output_type(record),
        "num_fewshot": _shots(run, record),
        "repeats": 1,
        "metric_list": metrics,
        "generation_kwargs": _decoding(run, record.task),
        "metadata": {**card, "task": record.task, "length": record.length},
    }


def _output_type(record: Record) -> str:
    """Return what lm-eval calls the way in which the task is answered."""
    if record.choices:
        return "multiple_choice"
    return "loglikelihood" if record.finish == "scored" else "generate_until"


def _shots(run: Run, record: Record) -> int:
    """Return how many worked examples the task's card puts into a prompt of lm-eval's own tasks; others have none."""
    args = card_of(run, record.task).get("args")
    shots = args.get("shots") if isinstance(args, dict) else None
    return shots if isinstance(shots, int) else 0


def _decoding(run: Run, task: str) -> dict[str, Json]:
    most = card_of(run, task).get("max_new_tokens")
    return {"do_sample": False, "temperature": 0.0} | ({"max_gen_toks": most} if most else {})


def card_of(run: Run, task: str) -> Mapping[str, Json]:
    """Return the task's row of the header's identity, or an empty mapping."""
    return run.header.cards.get(task, {})


def _counts(run: Run, records: Sequence[Record]) -> dict[str, int]:
    """Return how many samples the header asked for in this cell, and how many records there are."""
    place = (records[0].task, records[0].length)
    return {"original": run.header.asked.get(place, len(records)), "effective": len(records)}


def _config(run: Run, arm: str) -> dict[str, Json]:
    model, seed = run.header.model, run.header.get("seed")
    return {
        "model": "anchoreval",
        "model_args": {"pretrained": model.get("path"), "arm": arm},
        "model_num_parameters": model.get("parameters"),
        "model_dtype": model.get("dtype"),
        "model_sha": model.get("sha256"),
        "batch_size": None,
        "batch_sizes": [],
        "device": run.header.backend.get("device"),
        "use_cache": None,
        "limit": run.header.limit,
        "bootstrap_iters": 0,
        "gen_kwargs": None,
        "random_seed": seed,
        "numpy_seed": seed,
        "torch_seed": seed,
        "fewshot_seed": seed,
    }


def _extra(run: Run, arm: str, cells: Mapping[str, list[Record]]) -> dict[str, Json]:
    """Return facts that lm-eval's schema has no field for: the arm as applied, how many scores are null and why, ..."""
    why = {task: Counter(r.why or "no reason given" for r in rows if r.score is None) for task, rows in cells.items()}
    keys = ("run", "version", "created", "finished", "comparable", "template", "document_tokens", "sources")
    return {
        **{key: run.header.get(key) for key in (*keys, "unmakeable")},
        "arm": next((row for row in run.header.arm_rows if row.get("name") == arm), {"name": arm}),
        "tokenizer": run.header.get("tokenizer"),
        "scorers": run.header.get("scorers"),
        "unscored": {task: dict(reasons) for task, reasons in why.items() if reasons},
        "outcomes": {task: counted(rows) for task, rows in cells.items()},
        "form": run.header.form,
        "incomparable": dict(run.header.incomparable(run.records)),
        "environments": [dict(environment) for environment in run.header.environments],
        "differences": _differences(run, arm),
        **({"changed": run.changed} if run.changed else {}),
    }


def _differences(run: Run, arm: str) -> list[dict[str, Json]]:
    """Return the differences of the arm to the run's first, as in `anchoreval compare`; empty for the first."""
    compared = Compared(run.subjects())
    against = [
        compared.contrast(subject, next(iter(compared.subjects)))
        for subject in [*compared.subjects][1:]
        if subject.arm == arm
    ]
    return [fields_of(contrast, row) for contrast in against for row in contrast.rows]


def sample_row(run: Run, record: Record) -> dict[str, Json]:
    """Return one line of samples_*.jsonl; a missing score is null, with the reason in `why`."""
    doc = {
        "id": record.sample_id, "task": record.task, "length": record.length, "index": record.index,
        "references": list(record.references), "facts": dict(record.facts),
    }  # fmt: skip
    doc = paired_only(doc)
    answer = _spelled(record.output)
    references = doc["references"]
    target = references[0] if len(references) == 1 else str(references)
    row = {
        "doc_id": record.index,
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": None, "arg_1": _decoding(run, record.task)}},
        "resps": [[answer]],
        "filtered_resps": [answer],
        "filter": "none",
        "metrics": [SCORE, LOGPROB],
        "doc_hash": _sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": record.prompt_sha256,
        "target_hash": _sha256(target),
        SCORE: record.score,
        LOGPROB: per_token(record),
    }
    kept = (
        "why", "arm", "key", "finish", "outcome", "prompt_tokens", "output_tokens", "reference_logprob",
        "reference_tokens", "seconds",
    )  # fmt: skip
    whole: dict[str, Json] = paired_only(row | {name: getattr(record, name) for name in kept})
    return whole


def paired_only(value: Any) -> Any:
    """Return the JSON value with every unpaired surrogate spelled out, so that UTF-8 can encode it."""
    if isinstance(value, str):
        return _spelled(value)
    if isinstance(value, Mapping):
        return {_spelled(str(key)): paired_only(item) for key, item in value.items()}
    return [paired_only(item) for item in value] if isinstance(value, list | tuple) else value


def unpaired(runs: Sequence[Run]) -> int:
    """Return how many outputs and references hold text that UTF-8 cannot encode."""
    texts = (text for run in runs for record in run.records for text in (record.output, *record.references))
    return sum(_UNPAIRED.search(text) is not None for text in texts)


def _spelled(text: str) -> str:
    return _UNPAIRED.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
