from __future__ import annotations

import io
from pathlib import Path

from bench.samples import bench_samples, cpu_seconds, peak_megabytes
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from anchoreval.cards import Task
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer


def task(name: str, generator: str, args: dict[str, object], budget: int) -> Task:
    return Task(
        suite="ruler", name=name, version=1, generator=generator, args=args, max_new_tokens=budget,
        samples=500,
        scorer="match_all", reference="comma", lengths=(4096,),
    )  # fmt: skip


def test_every_cell_is_timed_and_one_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    tasks = [
        task("niah_single_1", "ruler_niah", {"haystack": "noise"}, 128),
        task("niah_single_2", "ruler_niah", {"haystack": "essay"}, 128),
    ]
    out = io.StringIO()
    sources = Sources(cache=tmp_path, offline=True)
    rows = bench_samples(tasks, [2048], 4, TextTokenizer(inner), sources, out)
    assert [(row.samples, bool(row.why)) for row in rows] == [(4, False), (0, True)]
    assert 0.8 < rows[0].fill <= 1 and rows[0].cpu_seconds >= 0
    assert "PaulGrahamEssays.json is missing" in out.getvalue()
    assert "CPU s" in out.getvalue().splitlines()[-1] and "MB" in out.getvalue().splitlines()[-1]


def test_the_figures_are_those_of_the_process() -> None:
    assert cpu_seconds() > 0.01
    assert 20 < peak_megabytes() < 1_000_000
