"""A training on stock Trainer: what stands at its end, what a kill costs, what is torn, refused and stopped."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from tiny_training import LENGTH, STEPS, run, training, write_base, write_store
from torch import Tensor

from anchoreval.errors import AnchorEvalError, LengthError, RunError, UnsupportedArm
from anchoreval.training import collate, documents
from anchoreval.training.checkpoints import CARD, checkpoints, rope_for, torn
from anchoreval.training.loop import TrainingWindows
from anchoreval.training.recipes import Hyper, differing
from anchoreval.training.store import open_store, shape_of
from anchoreval.training.variants import NO_TARGET, VARIANTS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    write_base(folder / "base")
    write_store(folder / "store")
    return folder


@pytest.fixture(scope="module")
def unbroken(place: Path) -> Path:
    return run(place, training(), "unbroken")


def content(folder: Path) -> dict[str, bytes]:
    """What has to be the same after a resume: the log, and the weights and states of all checkpoints."""
    names = ("log.csv", "checkpoint-*/model.safetensors", "checkpoint-*/optimizer.pt", "model.safetensors")
    return {str(path.relative_to(folder)): path.read_bytes() for name in names for path in folder.glob(name)}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_folder_is_a_model_that_stock_transformers_reads(place: Path, unbroken: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(unbroken).eval()
    before = transformers.AutoModelForCausalLM.from_pretrained(place / "base")
    assert model.config._attn_implementation == "sdpa" and model.config.use_cache
    assert any(not torch.equal(one, other) for one, other in zip(model.parameters(), before.parameters(), strict=True))
    config = json.loads((unbroken / "config.json").read_text())
    assert config["max_position_embeddings"] == 128 and "factor" not in config["rope_parameters"]
    assert (unbroken / "tokenizer.json").read_bytes() == (place / "base" / "tokenizer.json").read_bytes()
    assert model.generate(torch.tensor([[0, 5, 6]]), max_new_tokens=3, do_sample=False).shape == (1, 6)


def test_the_card_says_what_was_trained_and_how(place: Path, unbroken: Path) -> None:
    card = json.loads((unbroken / CARD).read_text())
    store = open_store(place / "store")
    asked = {
        "variant": "anchor",
        "rope": "bf16",
        "seed": 0,
        "step": STEPS,
        "length": LENGTH,
        "anchor": 0,
        "theta": None,
    }
    assert {key: card[key] for key in asked} == asked and card["policy"] == "float32"
    assert card["data_sha256"] == store.facts["sha256"] and len(card["base_sha256"]) == 64
    assert card["rope_detected"] == "fp32"  # of the stock code in this host, which was not trained
    assert card["rope_applied"]["level"] == "bf16" and card["rope_applied"]["at_kernel"]["q"]["bits"] == "bf16"


def test_the_log_counts_what_each_step_was_fed(place: Path, unbroken: Path) -> None:
    windows = TrainingWindows(open_store(place / "store"), training())
    shape = shape_of(json.loads((place / "base" / "config.json").read_text()))
    assert shape is not None and [int(row["step"]) for row in rows(unbroken)] == list(range(1, STEPS + 1))
    for number, row in enumerate(rows(unbroken), 1):
        fed = windows.step(number)
        lengths = [length for each in fed for length in each.lengths]
        pairs = sum(length * (length + 1) // 2 for length in lengths)
        assert int(row["tokens"]) == sum(lengths) and int(row["documents"]) == len(lengths)
        assert int(row["targets"]) == sum(int((each.labels != NO_TARGET).sum()) for each in fed)
        assert int(row["operations"]) == 6 * shape.weights * sum(lengths) + 12 * 2 * 32 * pairs
        assert 0 < float(row["density"]) < 1 and float(row["loss"]) > 0


def test_every_variant_trains_and_has_the_same_targets(place: Path) -> None:
    targets = {}
    for name in VARIANTS:
        asked = training(name, steps=1)
        folder = run(place, asked, "variants")
        windows = TrainingWindows(open_store(place / "store"), asked)
        targets[name] = [label for row in windows.step(1) for label in row.labels.tolist() if label != NO_TARGET]
        assert float(rows(folder)[0]["loss"]) < 10
    assert targets["full"] == targets["intra-doc"] == targets["intra-doc-reset"] == targets["anchor"]


@pytest.mark.parametrize("torn_file", ["trainer_state.json", "optimizer.pt", "model.safetensors", "all"])
def test_a_resumed_training_is_the_unbroken_one_and_torn_checkpoints_are_named(
    place: Path, unbroken: Path, tmp_path: Path, torn_file: str
) -> None:
    for name in ("base", "store"):
        (tmp_path / name).symlink_to(place / name)
    shutil.copytree(unbroken, folder := tmp_path / "out" / unbroken.name)
    shutil.rmtree(folder / "checkpoint-6")
    for path in folder.glob("*"):
        if path.is_file() and path.name not in ("training.json", "log.csv"):
            path.unlink()
    newest, told = folder / "checkpoint-4", list[str]()
    if torn_file == "all":
        shutil.rmtree(newest)
        newest.mkdir()
    else:
        whole = (newest / torn_file).read_bytes()
        (newest / torn_file).write_bytes(whole[: len(whole) // 2])
    assert torn(newest) and torn(folder / "checkpoint-2") is None
    run(tmp_path, training(), tell=told.append)
    assert f"{newest} is torn" in told[0] and "goes on from step 2 of 6" in told[1]
    assert content(folder) == content(unbroken)


def test_the_same_command_over_a_finished_training_trains_nothing(place: Path, unbroken: Path) -> None:
    (unbroken / "model.safetensors").unlink()
    told = list[str]()
    run(place, training(), "unbroken", told.append)
    assert told[-1] == "anchor-bf16-0: all 6 steps are done" and (unbroken / "model.safetensors").is_file()


def test_more_steps_go_on_where_fewer_ended(place: Path, unbroken: Path) -> None:
    run(place, training(steps=4), "grown")
    grown = run(place, training(), "grown")
    assert content(grown) == content(unbroken)


def test_a_save_that_fails_is_one_line_and_the_checkpoint_before_stands(
    place: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = transformers.trainer_callback.TrainerState.save_to_json

    def full(state: Any, path: str) -> None:
        if state.global_step == 4:
            Path(path).write_text('{"ep')
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(state, path)

    monkeypatch.setattr(transformers.trainer_callback.TrainerState, "save_to_json", full)
    with pytest.raises(RunError, match=r"checkpoint-4: .*No space left on device; checkpoint-2 is whole") as error:
        run(place, training(), "full")
    assert error.value.while_running == "after 4 of 6 steps" and not (place / "full" / unbroken.name / "model").exists()
    folder = place / "full" / unbroken.name
    assert [step for step, _ in checkpoints(folder)] == [2]
    monkeypatch.undo()
    assert content(run(place, training(), "full")) == content(unbroken)


@pytest.mark.parametrize(("step", "what"), [(3, "the loss is nan"), (4, "a weight is not finite")])
def test_a_loss_that_is_not_finite_stops_with_its_step_and_keeps_the_last_checkpoint(
    place: Path, monkeypatch: pytest.MonkeyPatch, step: int, what: str
) -> None:
    from anchoreval.training import loss

    stock, calls = loss._sum, [0]

    # one check before, then two windows a step, each computed again in the backward pass
    def breaking(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
        calls[0] += 1
        return stock(model, hidden, targets) * (float("nan") if calls[0] > 4 * step - 3 else 1.0)

    monkeypatch.setattr(loss, "_sum", breaking)
    with pytest.raises(RunError, match=rf"step {step}: {what}: stopped before it was saved"):
        run(place, training(), f"broken{step}")
    assert [number for number, _ in checkpoints(place / f"broken{step}" / "anchor-bf16-0")] == [2]


def test_a_folder_of_another_training_is_refused_with_what_differs(place: Path, unbroken: Path) -> None:
    for change, message in (
        ({"hyper": Hyper(lr=1e-3)}, r"lr 0\.01 there, 0\.001 asked"),
        ({"length": 32}, "length 64 there, 32 asked"),
        ({"document_start": "none", "variant": "full"}, None),
    ):
        if message:
            with pytest.raises(RunError, match=message):
                run(place, training(**change), "unbroken")
    write_store(place / "another-store", seed=1)
    write_base(place / "another-base", hidden_size=48)
    for name, hashed in (("store", "data_sha256"), ("base", "base_sha256")):
        (place / name).rename(place / "kept")
        (place / f"another-{name}").rename(place / name)
        try:
            with pytest.raises(RunError, match=f"holds another training.*{hashed}"):
                run(place, training(), "unbroken")
        finally:
            shutil.rmtree(place / name)
            (place / "kept").rename(place / name)
    assert differing(training(seed=1).identity(), training().identity()) == ["seed 0 there, 1 asked"]


def test_what_a_step_is_made_of_is_checked_first(place: Path) -> None:
    with pytest.raises(LengthError, match="--batch-tokens 100 is no multiple of --length 64"):
        run(place, training(batch_tokens=100), "refused")
    with pytest.raises(UnsupportedArm, match="native is fp32 under autocast"):
        run(place, training(rope="native"), "refused")
    with pytest.raises(AnchorEvalError, match="anchor needs the anchor"):
        run(place, training(document_start="none"), "refused")


def config(**rope: object) -> Any:
    return transformers.LlamaConfig(max_position_embeddings=4096, rope_parameters={"rope_theta": 1e4, **rope})


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | {
    "original_max_position_embeddings": 4096
}


def test_rope_is_plain_with_a_stated_theta_where_the_length_grows() -> None:
    assert rope_for(config(rope_type="default"), 4096, None, None) == {"rope_type": "default", "rope_theta": 1e4}
    assert rope_for(config(rope_type="default"), 65536, 5e6, None)["rope_theta"] == 5e6
    with pytest.raises(LengthError, match="64K 5e"):
        rope_for(config(rope_type="default"), 65536, None, None)
    with pytest.raises(UnsupportedArm, match="--rope-type keep"):
        rope_for(config(**LLAMA3), 4096, None, None)
    assert rope_for(config(**LLAMA3), 65536, None, "keep")["factor"] == 8.0
    assert "factor" not in rope_for(config(**LLAMA3), 65536, 5e6, "default")
    with pytest.raises(UnsupportedArm, match="follow the longest position"):
        rope_for(config(rope_type="dynamic", factor=2.0), 4096, None, "keep")


def test_a_users_own_loop_and_own_trainer_learn_the_same(place: Path, tmp_path: Path) -> None:
    base, texts = place / "base", [[[5, 6, 7, 8], [9, 10, 11]], [[12, 13, 14, 15, 16]]]
    found = []
    for own in ("loop", "trainer"):
        model = transformers.AutoModelForCausalLM.from_pretrained(base).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with documents(model, "anchor", rope="bf16"):
            if own == "loop":
                for row in texts:
                    model(**collate([row], "anchor", anchor_id=0)).loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
            else:
                arguments = transformers.TrainingArguments(
                    output_dir=str(tmp_path), per_device_train_batch_size=1, max_steps=2, use_cpu=True,
                    save_strategy="no",
                    remove_unused_columns=False, max_grad_norm=0, lr_scheduler_type="constant", disable_tqdm=True,
                    train_sampling_strategy="sequential",
                )  # fmt: skip
                dataset: Any = [{"documents": row} for row in texts]
                transformers.Trainer(
                    model,
                    arguments,
                    lambda rows: collate(rows, "anchor", anchor_id=0),
                    dataset,
                    optimizers=(optimizer, None),
                ).train()
        found.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    assert torch.allclose(*found, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_trls_sft_trainer_learns_what_a_loop_learns(place: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="TRL ABSENT: its trainer was not tried (pip install --no-deps trl)")
    texts = [[[5, 6, 7, 8], [9, 10, 11]], [[12, 13, 14, 15, 16]]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "base")
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=1, max_steps=2, use_cpu=True, bf16=False,
        save_strategy="no", remove_unused_columns=False, max_grad_norm=0, lr_scheduler_type="constant",
        gradient_checkpointing=False, disable_tqdm=True, train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    found = []
    for own in ("loop", "trl"):
        model = transformers.AutoModelForCausalLM.from_pretrained(place / "base").train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with documents(model, "anchor", rope="bf16"):
            if own == "trl":
                trl.SFTTrainer(
                    model,
                    arguments,
                    lambda rows: collate(rows, "anchor", anchor_id=0),
                    datasets.Dataset.from_list([{"documents": row} for row in texts]),
                    processing_class=tokenizer,
                    optimizers=(optimizer, None),
                ).train()
            for row in texts if own == "loop" else []:
                model(**collate([row], "anchor", anchor_id=0)).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        found.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    assert torch.allclose(*found, rtol=0, atol=1e-6)


def test_the_trained_forward_on_one_document_is_that_of_the_stock_model(unbroken: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(unbroken).eval()
    batch = collate([[list(range(3, 40))]], "anchor", 0)
    ids, at = batch["input_ids"], batch["position_ids"]
    with torch.no_grad():
        with documents(model, "anchor", "fp32"):
            trained = model(**batch).logits
        assert torch.equal(trained, model(ids, position_ids=at).logits)


@pytest.mark.long
def test_a_kill_at_any_moment_costs_the_steps_since_the_last_checkpoint(
    place: Path, tmp_path: Path, unbroken: Path
) -> None:
    for case in range(10):
        (tmp_path / str(case)).mkdir()
        for name in ("base", "store"):
            (tmp_path / str(case) / name).symlink_to(place / name)
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), str(tmp_path)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for case in range(10):
        assert content(tmp_path / str(case) / "out" / unbroken.name) == content(unbroken), case
    told = (tmp_path / "told.txt").read_text().splitlines()
    # Six were killed inside the save of step 4; a kill at any moment may meet it too, on a machine that is as fast.
    assert sum("checkpoint-4 is torn" in line for line in told) >= 6
    assert sum("goes on from step 2" in line for line in told) >= 6
