"""Runs in the files of Every Eval Ever, schema 0.3.0 (github.com/evaleval/every_eval_ever, MIT): a pair for each arm.

    data/COLLECTION/DEVELOPER/MODEL/UUID.json             means of every task and length, with their intervals
    data/COLLECTION/DEVELOPER/MODEL/UUID_samples.jsonl    every scored sample

An arm is no field of the schema: it stands in `model_info.additional_details`. Prompts are not in records, so a
sample's `input.raw` is empty and its metadata hold the SHA-256 of the prompt. A sample without a score cannot be
written; the result of its task says how many there are. The same runs give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anchoreval.files import sha256_of, write_json_lines, write_whole
from anchoreval.records.run import Run
from anchoreval.reports.export.lm_eval import arms_of, card_of, folder_name, paired_only, task_name, time_of
from anchoreval.schema import Json, Record
from anchoreval.stats import Cell, cells, per_token

SCHEMA = "0.3.0"
COLLECTION = "anchoreval"
_AVAILABLE = {"openai": ("externally_managed", "unknown")}


def write_every_eval_ever(runs: Sequence[Run], output: Path) -> list[Path]:
    """Write the two files of every run and arm under `output`; return those of the means."""
    written = []
    for run in runs:
        for arm, records in arms_of(run).items():
            name = str(uuid.UUID(bytes=hashlib.sha256(f"{run.name}/{arm}".encode()).digest()[:16], version=4))
            folder = Path("data", COLLECTION, *map(folder_name, model_of(run)))
            rows = [row for rows in records.values() for row in rows]
            scored = list(_samples(run, arm, rows))
            samples = folder / f"{name}_samples.jsonl"
            write_json_lines(output / samples, scored, allow_nan=False)
            whole = _evaluation(run, arm, rows) | {
                "detailed_evaluation_results": {
                    "format": "jsonl", "file_path": samples.as_posix(), "hash_algorithm": "sha256",
                    "checksum": sha256_of(output / samples), "total_rows": len(scored),
                }
            }  # fmt: skip
            text = json.dumps(paired_only(whole), indent=1, ensure_ascii=False, allow_nan=False)
            written.append(write_whole(output / folder / f"{name}.json", [text + "\n"]))
    return written


def model_of(run: Run) -> tuple[str, str]:
    """Return developer and model: of a hub id its two parts, else `local` and the model's name."""
    path = str(run.header.model.get("path") or "")
    developer, slash, name = path.partition("/")
    hub = slash and developer and name and "/" not in name and not Path(path).exists()
    return (developer, name) if hub else ("local", run.model)


def _evaluation(run: Run, arm: str, records: Sequence[Record]) -> dict[str, Json]:
    engine = str(run.header.backend.get("engine"))
    deployment, availability = _AVAILABLE.get(engine, ("self_deployed", "open_weights"))
    versions: Any = run.header.backend.get("versions") or {}
    developer, model = model_of(run)
    finished = int(time_of(run, "finished", "created").timestamp())
    return {
        "schema_version": SCHEMA,
        "evaluation_id": _evaluation_id(run, arm),
        "evaluation_timestamp": time_of(run, "created").isoformat(),
        "retrieved_timestamp": str(finished),
        "source_metadata": {
            "source_name": "anchoreval", "source_type": "evaluation_run", "source_organization_name": "unknown",
            "evaluator_relationship": "other",
        },
        "eval_library": {"name": "anchoreval", "version": str(run.header.get("version") or "unknown")},
        "model_info": {
            "name": run.model, "id": f"{developer}/{model}", "developer": developer,
            "inference_engine": {"name": engine, "version": str(versions.get(engine, versions.get("transformers")))},
            "additional_details": {
                "deployment_type": deployment, "model_availability": availability, "arm": arm,
                "dtype": str(run.header.model.get("dtype")), "weights_sha256": str(run.header.model.get("sha256")),
            },
        },
        "evaluation_results": [result for cell in cells(records) for result in _results(run, cell, records)],
    }  # fmt: skip


def _evaluation_id(run: Run, arm: str) -> str:
    return f"{COLLECTION}/{'_'.join(model_of(run))}__{arm}/{int(time_of(run, 'finished', 'created').timestamp())}"


def _results(run: Run, cell: Cell, records: Sequence[Record]) -> Iterator[dict[str, Json]]:
    """Yield the mean score of a cell and the log-probability of its references, where there are any."""
    name = task_name(cell.task, cell.length)
    own = [record for record in records if (record.task, record.length) == (cell.task, cell.length)]
    common: dict[str, Json] = {
        "evaluation_name": name,
        "source_data": {"dataset_name": cell.task, "source_type": "other"},
        "generation_config": {
            "generation_args": {
                "temperature": 0.0, "prompt_template": str(run.header.get("template")),
                **({"max_tokens": most} if (most := card_of(run, cell.task).get("max_new_tokens")) else {}),
            }
        },
    }  # fmt: skip
    scorer: Any = (run.header.get("scorers") or {}).get(cell.task, "score")
    if cell.mean is not None:
        details = {"samples_asked": str(cell.asked), "samples_without_score": str(cell.asked - cell.scored)}
        if reason := run.header.incomparable(own).get(cell.task):
            details["not_comparable_with_published"] = str(reason)
        yield common | {
            "evaluation_result_id": f"{name}/score",
            "metric_config": {
                "metric_id": str(scorer), "metric_name": str(scorer), "metric_unit": "proportion",
                "lower_is_better": False, "score_type": "continuous", "min_score": 0.0, "max_score": 1.0,
            },
            "score_details": {
                "score": cell.mean, "details": details,
                "uncertainty": {
                    "num_samples": cell.scored,
                    **({} if cell.low is None else {"confidence_interval": {
                        "lower": cell.low, "upper": cell.high, "confidence_level": 0.95, "method": str(cell.method),
                    }}),
                },
            },
        }  # fmt: skip
    if (value := cell.logprob) is not None:
        yield common | {
            "evaluation_result_id": f"{name}/logprob",
            "metric_config": {
                "metric_id": "reference_logprob_per_token", "metric_name": "log-probability of the reference",
                "metric_unit": "nats per token", "lower_is_better": False, "score_type": "continuous",
                "min_score": "-Infinity", "max_score": 0.0,
            },
            "score_details": {
                "score": value, "uncertainty": {"num_samples": sum(per_token(record) is not None for record in own)},
            },
        }  # fmt: skip


def _samples(run: Run, arm: str, records: Sequence[Record]) -> Iterator[dict[str, Json]]:
    for record in records:
        if record.score is None:
            continue
        name = task_name(record.task, record.length)
        references = list(record.references)
        whole: dict[str, Json] = paired_only({
            "schema_version": SCHEMA, "evaluation_id": _evaluation_id(run, arm), "model_id": "/".join(model_of(run)),
            "evaluation_name": name, "evaluation_result_id": f"{name}/score", "sample_id": record.sample_id,
            "sample_hash": hashlib.sha256(json.dumps([record.prompt_sha256, references]).encode()).hexdigest(),
            "interaction_type": "single_turn",
            "input": {"raw": "", "reference": references},
            "output": {"raw": [record.output]},
            "answer_attribution": [{
                "turn_idx": 0, "source": "output.raw", "extracted_value": record.output, "extraction_method": "custom",
                "is_terminal": True,
            }],
            "evaluation": {"score": record.score, "is_correct": record.score == 1.0},
            "token_usage": {
                "input_tokens": record.prompt_tokens, "output_tokens": record.output_tokens,
                "total_tokens": record.prompt_tokens + record.output_tokens,
            },
            "metadata": {"arm": arm, "length": str(record.length), "prompt_sha256": record.prompt_sha256},
        })  # fmt: skip
        yield whole
