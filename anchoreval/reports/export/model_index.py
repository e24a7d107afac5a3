"""Runs as the `model-index` of a model card on the Hub: a YAML file for each arm, to be put into the card's metadata.

huggingface_hub makes it, its `model_index_to_eval_results` reads it, and its `metadata_update` adds it to a card.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from anchoreval.files import write_whole
from anchoreval.records.run import Run
from anchoreval.reports.export.every_eval_ever import model_of
from anchoreval.reports.export.lm_eval import arms_of, folder_name, paired_only, task_name
from anchoreval.stats import cells


def write_model_index(runs: Sequence[Run], output: Path) -> list[Path]:
    """Write a file for every run and arm, with the mean of every task and length x 100; return the files."""
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import ModelCardData

    written = []
    for run in runs:
        for arm, records in arms_of(run).items():
            results = [
                EvalResult(
                    task_type="text-generation",
                    dataset_type=cell.task.partition("/")[0],
                    dataset_name=cell.task,
                    dataset_config=task_name(cell.task, cell.length),
                    metric_type="score",
                    metric_value=round(100 * cell.mean, 4),
                    metric_name=f"score x 100 under RoPE arm {arm}, {cell.scored} samples",
                    metric_args={"arm": arm, "length": cell.length, "samples": cell.scored},
                    source_name=None,
                )
                for cell in cells([record for rows in records.values() for record in rows])
                if cell.mean is not None
            ]
            if results:
                card: Any = ModelCardData(model_name=model_of(run)[1], eval_results=results)
                text = yaml.safe_dump(paired_only(card.to_dict()), sort_keys=False, allow_unicode=True)
                path = output / folder_name(f"{run.model}__{arm}__{run.name}") / "model-index.yml"
                written.append(write_whole(path, [text]))
    return written
