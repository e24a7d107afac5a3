"""`anchoreval export`: write runs as files for other tools: CSV and Parquet here, other formats beside it.

Times in names and files come from the header, so that the same runs give the same bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from anchoreval.errors import MissingExtra, RunError
from anchoreval.files import write_whole
from anchoreval.records.run import Run
from anchoreval.reports.export.every_eval_ever import write_every_eval_ever
from anchoreval.reports.export.lm_eval import paired_only, write_lm_eval
from anchoreval.reports.export.model_index import write_model_index
from anchoreval.reports.page import relative
from anchoreval.reports.table import fields_of, inert
from anchoreval.schema import OUTCOMES
from anchoreval.stats import Compared, cells, per_token, single_depth

FORMATS = ("lm-eval", "every-eval-ever", "model-index", "csv", "parquet")
#: What a table needs.
PACKAGES = {"csv": ("pandas",), "parquet": ("pandas", "pyarrow")}
INSTALL = "pip install 'anchoreval[export]'"
WHOLE = 1 << 40  # characters: a text in a table is never cut
TEXT, NUMBER, COUNT = "string", "Float64", "Int64"
RUN = {"run": TEXT, "path": TEXT, "model": TEXT, "weights_sha256": TEXT}
RECORD_COLUMNS = {
    **RUN, "arm": TEXT, "task": TEXT, "length": COUNT, "index": COUNT, "sample_id": TEXT, "depth": NUMBER,
    "score": NUMBER, "why": TEXT, "reference_logprob": NUMBER, "reference_tokens": COUNT, "logprob_per_token": NUMBER,
    "output": TEXT, "output_tokens": COUNT, "finish": TEXT, "outcome": TEXT, "references": TEXT, "prompt_tokens": COUNT,
    "prompt_sha256": TEXT, "seconds": NUMBER, "facts": TEXT, "key": TEXT,
}  # fmt: skip
CELL_COLUMNS: dict[str, str] = {
    **RUN, "arm": TEXT, "task": TEXT, "length": COUNT, "asked": COUNT, "scored": COUNT, "mean": NUMBER,
    "low": NUMBER, "high": NUMBER, "method": TEXT, "logprob": NUMBER, "as_wrong": NUMBER,
    **dict.fromkeys(OUTCOMES, COUNT),
}  # fmt: skip
DIFFERENCE_COLUMNS = {
    **RUN, "arm": TEXT, "baseline": TEXT, "scope": TEXT, "task": TEXT, "length": COUNT, "pairs": COUNT,
    "left_out": COUNT, "lost": TEXT, "same_outputs": COUNT, "sources": COUNT, "margin": NUMBER, "mean_arm": NUMBER,
    "mean_baseline": NUMBER, "difference": NUMBER, "low": NUMBER, "high": NUMBER, "interval": TEXT,
    "discordant": COUNT, "p": NUMBER, "p_holm": NUMBER, "detectable": NUMBER, "verdict": TEXT, "says": TEXT,
    "logprob": NUMBER, "logprob_low": NUMBER, "logprob_high": NUMBER, "logprob_p": NUMBER, "logprob_p_holm": NUMBER,
    "logprob_says": TEXT, "floor_discordant": NUMBER, "floor_difference": NUMBER, "floor_logprob_spread": NUMBER,
    "floor_outputs": NUMBER,
}  # fmt: skip
Row = dict[str, Any]


def export(runs: Sequence[Run], form: str, output: Path) -> list[Path]:
    """Write `runs` in one of FORMATS under `output` and return the files; raise RunError if there are no records."""
    if not any(run.records for run in runs):
        raise RunError(f"{runs[0].path}: no records yet: wait for the run, or start it again")
    writers = {"lm-eval": write_lm_eval, "every-eval-ever": write_every_eval_ever, "model-index": write_model_index}
    if form in writers:
        return writers[form](runs, output)
    records = [row for run in runs for row in record_rows(run, output)]
    cells = [row for run in runs for row in cell_rows(run, output)]
    differences = [row for run in runs for row in difference_rows(run, output)]
    return [
        _write_table(records, RECORD_COLUMNS, output / f"records.{form}"),
        _write_table(cells, CELL_COLUMNS, output / f"cells.{form}"),
        _write_table(differences, DIFFERENCE_COLUMNS, output / f"differences.{form}"),
    ]


def need(*packages: str) -> None:
    """Raise MissingExtra if a package cannot be imported."""
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            raise MissingExtra(f"the export needs {error.name or package}: {INSTALL}") from error


def record_rows(run: Run, output: Path) -> Iterator[Row]:
    """Yield one row per record in RECORD_COLUMNS.

    Scores are 0..1, log-probabilities are in nats, references and facts are JSON.
    """
    run_columns = _of(run, output)
    for record in run.records:
        fields = {name: getattr(record, name) for name in RECORD_COLUMNS if hasattr(record, name)}
        yield {
            **run_columns,
            **fields,
            "depth": single_depth(record.facts),
            "logprob_per_token": per_token(record),
            "references": json.dumps(record.references, ensure_ascii=False),
            "facts": json.dumps(record.facts, ensure_ascii=False, sort_keys=True),
        }


def cell_rows(run: Run, output: Path) -> Iterator[Row]:
    """Yield one row per (task, length, arm) in CELL_COLUMNS; means and 95% intervals are 0..1."""
    run_columns = _of(run, output)
    for cell in cells(run.records):
        counts = {outcome: cell.outcomes.get(outcome, 0) for outcome in OUTCOMES}
        yield run_columns | {name: getattr(cell, name) for name in CELL_COLUMNS if hasattr(cell, name)} | counts


def difference_rows(run: Run, output: Path) -> Iterator[Row]:
    """Yield one row per difference of an arm to the first, with its verdict, in DIFFERENCE_COLUMNS.

    The values are those of `anchoreval compare`, under the names of compare.csv: points of 100 and nats.
    """
    run_columns = _of(run, output)
    for against in Compared(run.subjects()).against():
        for row in against.rows:
            yield run_columns | {
                name: value for name, value in fields_of(against, row).items() if name in DIFFERENCE_COLUMNS
            }


def _of(run: Run, output: Path) -> Row:
    """Return the columns that identify the run; `path` is relative to the folder of the tables."""
    sha256 = run.header.model.get("sha256")
    weights = None if sha256 is None else str(sha256)
    return {"run": run.name, "path": relative(run.path, output), "model": run.model, "weights_sha256": weights}


def _write_table(rows: Sequence[Row], columns: dict[str, str], path: Path) -> Path:
    """Write the rows as CSV, with text inert in a spreadsheet, or as Parquet, with only lone surrogates spelled out."""
    import pandas

    safe = _inert if path.suffix == ".csv" else paired_only
    frame = pandas.DataFrame(
        {
            name: pandas.array([safe(row[name]) if kind == TEXT else row[name] for row in rows], dtype=kind)
            for name, kind in columns.items()
        }
    )
    if path.suffix == ".csv":
        return write_whole(path, [frame.to_csv(index=False, lineterminator="\n")])
    file = io.BytesIO()
    frame.to_parquet(file, engine="pyarrow", index=False)
    return write_whole(path, [file.getvalue()])


def _inert(text: str | None) -> str | None:
    return None if text is None else inert(text, WHOLE)
