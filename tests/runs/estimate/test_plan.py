"""A plan of a run: its tokens and passes are those of the backend, its operations those that torch counts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import cli, process
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

from anchoreval.arms.arm import Arm, parse_arms
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.backends.hf.batches import Limits
from anchoreval.backends.hf.load import StockNetwork
from anchoreval.cards import find_model
from anchoreval.cli.plan import page
from anchoreval.errors import AnchorEvalError
from anchoreval.model import Model
from anchoreval.prompt import to_request
from anchoreval.runs.estimate.cost import GPUS, parse_gpus, shape_of
from anchoreval.runs.estimate.dry import Counted, DryArm, Pass
from anchoreval.runs.estimate.estimate import RunPlan, half_width, plan_run
from anchoreval.runs.prompts import Prompts, Spec
from anchoreval.schema import Request
from anchoreval.tokenizer import load_tokenizer

TINY = Path(find_model("anchor-tiny")[1].checkpoint)
REPOSITORY = Path(__file__).parents[3]


def requests(task: str, length: int, count: int) -> list[Request]:
    spec = Spec.of(task, lengths=(length,), limit=count, haystack="generated")
    tokenizer = load_tokenizer(TINY)
    samples = Prompts(spec, Model.of_tokenizer(tokenizer)).samples(spec.tasks[0], length, count)
    return [to_request(sample, tokenizer, spec.tasks[0].reference, 8192) for sample in samples]


def dry(arm: Arm, limits: Limits, groups: list[list[Request]]) -> Counted:
    counting, counted = DryArm(limits, arm.arrangement, False), Counted()
    for group in groups:
        counted.add(counting.count(group, group, 1))
    return counted


@pytest.mark.parametrize(
    ("name", "task"),
    [("native", "ruler/niah_single_2"), ("anchor/native", "ruler/qa_1"), ("native+reset", "ruler/qa_1")],
)
def test_the_passes_of_the_plan_are_those_that_the_backend_makes(
    name: str, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Counter[Pass] = Counter()
    real = StockNetwork.logits

    def watched(self: StockNetwork, ids: Any, cache: Any, at: Any, keep: int) -> Any:
        made[Pass(*ids.shape, at[1].shape[1], keep)] += 1
        return real(self, ids, cache, at, keep)

    groups = [requests(task, 640, 6), requests(task, 512, 3)]
    arm = parse_arms(name, "float32", "sdpa")[0]
    backend = HfBackend.open(str(TINY), dtype="float32", chunk_tokens=128, batch_tokens=4096)
    with backend.under(arm):
        monkeypatch.setattr(StockNetwork, "logits", watched)
        for group in groups:
            list(backend.answer(group))
        kept = backend.documents.prefilled_tokens
    monkeypatch.undo()
    backend.close()
    counted = dry(arm, Limits(128, 4096), groups)

    def prefill(passes: Mapping[Pass, float]) -> dict[Pass, float]:
        return {one: times for one, times in passes.items() if one.queries > 1}

    assert prefill(counted.passes) == prefill(made)
    assert (kept > 0) is ("anchor" in name)
    steps = [sum(times for one, times in passes.items() if one.queries == 1) for passes in (counted.passes, made)]
    assert steps[0] >= steps[1]  # answers may end before their budget


def test_the_tokens_of_shared_prefixes_are_counted_once() -> None:
    one = requests("ruler/niah_single_1", 512, 1)[0]
    again = [one, one, one]
    counted = dry(parse_arms("native", "float32", "sdpa")[0], Limits(64, 4096), [again])
    shared = (len(one.token_ids) - 1) // 64 * 64
    assert counted.reused_tokens == 2 * shared
    assert counted.prefilled_tokens == 3 * len(one.token_ids) - 2 * shared


@pytest.mark.parametrize("sizes", [{}, {"num_key_value_heads": 4, "tie_word_embeddings": True}])
def test_operations_and_parameters_are_those_that_torch_counts(tmp_path: Path, sizes: dict[str, Any]) -> None:
    config = LlamaConfig(
        **{
            "vocab_size": 300, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": False, **sizes,
        }
    )  # fmt: skip
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()  # its products are counted
    config.save_pretrained(tmp_path)
    shape = shape_of(tmp_path, "float32")
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    assert shape.weight_bytes == 4 * shape.parameters
    cache = DynamicCache(config=config)
    network = StockNetwork(model, torch.device("cpu"))
    with torch.inference_mode():
        network.logits(torch.zeros(2, 24, dtype=torch.long), cache, where(2, 24, 0), 1)
        with FlopCounterMode(display=False) as counter:
            network.logits(torch.zeros(2, 8, dtype=torch.long), cache, where(2, 8, 24), 3)
    assert shape.operations(Pass(2, 8, 32, 3)) == counter.get_total_flops()
    assert shape.token_bytes * 2 * 32 == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def where(rows: int, queries: int, at: int) -> tuple[torch.Tensor, torch.Tensor]:
    positions = torch.arange(at, at + queries).expand(rows, queries)
    return positions, torch.ones(rows, at + queries, dtype=torch.bool)


def planned(asked: Spec, folder: Path, exact: bool = False) -> RunPlan:
    prompts = Prompts(asked, Model.of_tokenizer(load_tokenizer(TINY)))
    return plan_run(prompts, prompts.cells(), shape_of(TINY, "float32"), GPU, Limits(128, 4096), folder, exact)


GPU = parse_gpus("H100")


def test_a_plan_of_few_prompts_is_that_of_all_within_its_interval(tmp_path: Path) -> None:
    arms = parse_arms("fp32,bf16,anchor/fp32", "float32", "sdpa")
    asked = Spec.of("ruler/qa_1,ruler/fwe", lengths=(512,), arms=arms, limit=160, haystack="generated")
    few, whole = planned(asked, tmp_path / "runs"), planned(asked, tmp_path / "runs", exact=True)
    for some, every in zip(few.cells, whole.cells, strict=True):
        assert (some.made, some.asked, every.made) == (64, 160, 160) and every.error.error == 0
        assert some.error.error > 0 and some.prompts == every.prompts == 160
        assert abs(some.prompt_tokens - every.prompt_tokens) <= half_width([some.error])
    for part, all_ in zip(few.arms, whole.arms, strict=True):
        near = half_width(part.errors) / float(part.seconds or 0) + 0.03  # 160 prompts share more than the first 64
        assert part.seconds == pytest.approx(all_.seconds, rel=near)
        assert part.computed_tokens == pytest.approx(all_.computed_tokens, rel=near)
        assert not any(error.error for error in all_.errors)
    assert few.arms[0].seconds == few.arms[1].seconds != few.arms[2].seconds
    assert few.prompt_seconds > 0 and few.record_seconds > 0 and not list(tmp_path.iterdir())


def test_a_page_says_what_was_scaled_and_adds_the_hours_of_prompts_and_records(tmp_path: Path) -> None:
    arms = parse_arms("fp32", "float32", "sdpa")
    asked = Spec.of("ruler/niah_single_1", lengths=(512,), arms=arms, limit=70, haystack="generated")
    few = replace(planned(asked, tmp_path), prompt_seconds=7000.0, record_seconds=200.0)
    lines = page(few, "hf").splitlines()
    assert next(line.split()[3:] for line in lines if line.startswith("prompts and")) == ["2.0", "h"]
    assert next(line.split() for line in lines if line.startswith("all") and line.endswith("h")) == ["all", "2.0", "h"]
    assert "made the first 64 of 70 prompts" in lines[-3] and "--exact" in lines[-2]
    assert "made the first" not in page(planned(replace(asked, limit=64), tmp_path), "hf")


@pytest.mark.parametrize("text", ["8xH2000", "xH200", "0xH200", "H200x8", "", "-1xH200"])
def test_gpus_that_are_not_known_are_an_error_that_names_the_known_ones(text: str) -> None:
    with pytest.raises(AnchorEvalError, match="8xH200") as caught:
        parse_gpus(text)
    assert all(name in str(caught.value) for name in GPUS)


def test_eight_gpus_take_an_eighth_of_the_time() -> None:
    shape, passes = shape_of(TINY, "float32"), {Pass(1, 512, 512, 1): 10}
    one, eight = parse_gpus("h200"), parse_gpus("8xH200")
    assert one.count == 1 and eight.seconds(shape, passes) == pytest.approx(one.seconds(shape, passes) / 8)


def test_the_page_says_prompts_tokens_time_and_memory_and_what_does_not_fit(tmp_path: Path) -> None:
    grown = tmp_path / "grown"
    shutil.copytree(TINY, grown, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((grown / "config.json").read_text()) | {
        "num_hidden_layers": 60,
        "hidden_size": 16384,
        "intermediate_size": 32768,
    }
    (grown / "config.json").write_text(json.dumps(config))
    asked = ["--tasks", "ruler/vt", "--lengths", "512", "--limit", "2", "--haystack", "generated"]
    done = cli("plan", "--model", str(grown), *asked, "--arms", "fp32,anchor/fp32", "--gpus", "2xH100")
    assert done.returncode == 0, done.stderr
    made = requests("ruler/vt", 512, 2)
    assert f"{sum(len(one.token_ids) for one in made):,}" in done.stdout and "anchor/fp32" in done.stdout
    assert done.stdout.count("does not fit one device") == 2 and "not measured" in done.stdout


@pytest.mark.parametrize("backend", ["fake", "openai", "vllm"])
def test_a_plan_is_of_whatever_a_run_of_the_same_options_computes(backend: str, tmp_path: Path) -> None:
    asked = ["--tasks", "ruler/vt", "--lengths", "512", "--limit", "2", "--haystack", "generated"]
    asked += ["--arms", "bf16", "fp32", "--placebo", "--output", str(tmp_path / "runs"), "--backend", backend]
    served = ["--tokenizer", "anchor-tiny", "--base-url", "http://127.0.0.1:9/v1"] if backend == "openai" else []
    done = cli("plan", "--model", "anchor-tiny", *asked, *served)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows if row and row[0].startswith(("bf16", "fp32"))] == ["bf16", "fp32", "bf16~placebo"]
    assert f"time: not estimated; computed tokens are those of backend hf, {backend} is not measured" in done.stdout
    assert ("at once" in done.stdout) and ("parameters in float32" in done.stdout) is (backend == "vllm")
    assert not (tmp_path / "runs").exists()


def test_what_a_run_refuses_its_plan_refuses_too() -> None:
    done = cli("plan", "--model", "anchor-tiny", "--tasks", "ruler/vt", "--until", "1pt@95%", "--gpus", "H100")
    assert done.returncode == 2 and "--arms takes two or more" in done.stderr


PEAK = """
import pathlib, resource, sys
from anchoreval.cli.parser import main
code = main(sys.argv[1:])
own = pathlib.Path("/proc/self/status")  # ru_maxrss begins with what the process held that started this one
kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if own.is_file():
    kilobytes = next(int(line.split()[1]) for line in own.read_text().splitlines() if line.startswith("VmHWM"))
sys.stderr.write(f"PEAK {kilobytes * 1024}")
sys.exit(code)
"""


@pytest.mark.slow
def test_the_memory_at_once_is_within_a_fifth_of_a_measured_run(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    vocabulary = json.loads((TINY / "config.json").read_text())["vocab_size"]
    config = LlamaConfig(  # few layers with wide heads: a large cache for little computation
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=8, head_dim=256, max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    half = {"eos_token_id": list(range(0, vocabulary, 2))}  # answers end soon
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(half))
    asked = ["--model", str(tmp_path / "model"), "--tasks", "ruler/vt", "--lengths", "512", "--limit", "24"]
    asked += ["--haystack", "generated", "--batch-tokens", "16384"]
    command = [sys.executable, "-c", PEAK, "run", *asked, "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak = int(done.stderr.partition("PEAK ")[2].split()[0])
    said = process("plan", *asked)  # what its process holds counts: the tests hold more
    assert said.returncode == 0, said.stderr
    row = next(line for line in said.stdout.splitlines() if line.startswith("native"))
    planned = float(row.split()[-2].replace(",", "")) * (1 << 20)
    assert 0.8 * peak <= planned <= 1.2 * peak, (planned, peak)
    assert peak > 1 << 30  # most of it is the cache, not the libraries
