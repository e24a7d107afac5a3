"""Two processes on gloo against one: the same losses, the level that was asked for, and the policy of FSDP2.

FSDP2 through Trainer needs a GPU (on a CPU accelerate makes it DDP without a word), so `fully_shard` is called here.
"""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_training import run, training, write_base, write_store

from anchoreval.errors import UnsupportedArm
from anchoreval.training import collate, documents
from anchoreval.training.loss import chunked_loss
from anchoreval.training.trainer import fsdp_policy

HERE = Path(__file__).parent
ROWS = [[[5, 6, 7, 8, 9], [10, 11, 12]], [[13, 14, 15, 16]]]
LEVELS = ("bf16", "bf16-table", "fp32")


def sharded(base: str, rank: int, rope: str, policy: Any) -> tuple[float, Any]:
    """The loss of two windows, one per process, under FSDP2, and what the level saw."""
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    model = transformers.AutoModelForCausalLM.from_pretrained(base).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with chunked_loss(model), documents(model, "anchor", rope) as under:
        for layer in model.model.layers:
            fully_shard(layer, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
        batch = collate([ROWS[rank]], "anchor", 0)
        loss = model(**batch, num_items_in_batch=9).loss
        loss.backward()
        total = loss.detach().clone()
        distributed.all_reduce(total)
        under.verify()
        return float(total), under.as_json()


def worker(place: Path) -> None:
    """What each of the two processes does; the first one writes what it saw."""
    seen: dict[str, Any] = {}
    run(place, training(steps=3), "two")
    rank = torch.distributed.get_rank()
    base = str(place / "base")
    for rope in LEVELS:
        seen[rope] = sharded(base, rank, rope, fsdp_policy())
    try:
        sharded(base, rank, "fp32", torch.distributed.fsdp.MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    except UnsupportedArm as error:
        seen["default"] = str(error)
    exact = torch.distributed.fsdp.MixedPrecisionPolicy(cast_forward_inputs=False)
    seen["exact"] = sharded(base, rank, "fp32", exact)
    if rank == 0:
        (place / "seen.json").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have been."""
    folder = tmp_path_factory.mktemp("processes")
    write_base(folder / "base")
    write_store(folder / "store")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code = f"import sys; sys.path[:0] = [{str(HERE)!r}]; import test_processes, pathlib; "
    code += f"test_processes.worker(pathlib.Path({str(folder)!r}))"
    shared = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=280)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], errors
    return folder


def losses(folder: Path) -> list[float]:
    with (folder / "anchor-bf16-0" / "log.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_processes_train_as_one_that_accumulates(place: Path) -> None:
    run(place, training(steps=3), "one")
    one, two = losses(place / "one"), losses(place / "two")
    assert len(one) == len(two) == 3 and max(abs(a - b) for a, b in zip(one, two, strict=True)) <= 1e-5
    card = json.loads((place / "two" / "anchor-bf16-0" / "anchoreval_training.json").read_text())
    assert card["policy"] == "float32, DDP over 2 processes" and card["rope_applied"]["level"] == "bf16"
    assert card["rope_applied"]["at_kernel"]["q"]["bits"] == "bf16"


def test_the_level_under_fsdp2_is_the_one_that_was_asked_for(place: Path) -> None:
    seen = json.loads((place / "seen.json").read_text())
    for rope in LEVELS:
        _, under = seen[rope]
        assert under["level"] == rope and under["rotations"] == 4  # two layers, each computed again
        assert under["at_kernel"]["q"] == {"dtype": "bf16", "bits": "bf16"}


def test_the_policy_of_accelerate_would_round_the_tables_of_fp32(place: Path) -> None:
    assert "a rotation got torch.bfloat16 tables" in json.loads((place / "seen.json").read_text())["default"]


def test_the_loss_in_chunks_under_fsdp2_is_that_of_one_process(place: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "base").train()
    with documents(model, "anchor", "fp32"), torch.no_grad():
        whole = float(model(**collate(ROWS, "anchor", 0)).loss)
    assert json.loads((place / "seen.json").read_text())["exact"][0] == pytest.approx(whole, rel=1e-5)
