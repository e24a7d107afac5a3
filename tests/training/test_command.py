"""`anchoreval train` and `data pack` as a user meets them: what is written, and every bad input as one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command_line import cli
from tiny_training import WORDS, write_base, write_store

from anchoreval import evaluate, load_run
from anchoreval.cards import load_models
from anchoreval.training.checkpoints import CARD
from anchoreval.training.recipes import anchor_text, load_recipes, recipe_of
from anchoreval.training.tiny.examples import generated

REPOSITORY = Path(__file__).parents[2]
GIVEN = ("--variant", "anchor", "--length", "64", "--rope", "bf16", "--steps", "2", "--batch-tokens", "64")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    write_base(folder / "base")
    write_base(folder / "dynamic", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    write_base(folder / "dropout", attention_dropout=0.1)
    write_store(folder / "store")
    other = json.loads((folder / "base" / "tokenizer.json").read_text())
    other["added_tokens"][-1]["rstrip"] = not other["added_tokens"][-1]["rstrip"]
    write_base(folder / "other")
    (folder / "other" / "tokenizer.json").write_text(json.dumps(other))
    return folder


def command(place: Path, *words: str, given: Sequence[str] = GIVEN, model: str = "base") -> list[str]:
    start = ["train", "--model", str(place / model), "--data", str(place / "store"), "--output", str(place / "out")]
    return [*start, *given, *words]


def test_a_training_says_its_folder_and_the_same_command_again_trains_nothing(place: Path) -> None:
    for _ in range(2):
        done = cli(*command(place, "--save-every", "1"))
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == str(place / "out" / "anchor-bf16-0")
    assert "all 2 steps are done" in done.stderr and (place / "out" / "anchor-bf16-0" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--variant", "anchr"], "did you mean anchor"),
        (["--rope", "native"], "native is fp32 under autocast"),
        (["--rope", "bf17"], "bf16"),
        (["--length", "256", "--batch-tokens", "256"], "--rope-theta is needed: 256 tokens are more than the 128"),
        (["--batch-tokens", "100"], "no multiple of --length 64"),
        (["--document-start", "none"], "anchor needs the anchor in front"),
        (["--data", "/nowhere"], "data pack --data FILE"),
        (["--recipe", "slimpajama-65k"], "slimpajama-64k"),
        (["--report-to", "tensorbord"], "did you mean tensorboard"),
        (["--model", "dynamic"], "follow the longest position"),
        (["--model", "dropout"], "attention_dropout: 0.1"),
        (["--model", "other"], "tokens of another tokenizer"),
    ],
)
def test_bad_input_is_one_line_found_before_any_work(place: Path, words: list[str], says: str) -> None:
    if words[0] == "--model":
        words = ["--model", str(place / words[1])]
    done = cli(*command(place, "--output", str(place / "bad"), *words))
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and says in line and line.startswith("anchoreval: "), done.stderr
    assert not (place / "bad").exists()


def test_what_is_not_given_is_named(place: Path) -> None:
    done = cli(*command(place, given=("--variant", "anchor", "--length", "64")))
    assert done.returncode == 2 and "--rope, --steps, --batch-tokens must be given, or --recipe" in done.stderr


def test_a_list_is_trained_one_process_after_the_other(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anchoreval.cli import train

    started: list[list[str]] = []

    class Done:
        returncode = 0

    monkeypatch.setattr(train.subprocess, "run", lambda words, check: started.append(words) or Done())
    words = ["--variant", "full,anchor", "--rope", "bf16,fp32", "--seeds", "2", "--lr", "1e-4", "--deterministic"]
    assert cli(*command(place, *words)).returncode == 0
    named = [
        (row[row.index("--variant") + 1], row[row.index("--rope") + 1], row[row.index("--seed") + 1]) for row in started
    ]
    assert len(named) == 8 and len(set(named)) == 8 and named[0] == ("full", "bf16", "0")
    assert all(
        "--seeds" not in row and "--deterministic" in row and row[row.index("--lr") + 1] == "0.0001" for row in started
    )
    monkeypatch.setenv("RANK", "0")
    done = cli(*command(place, *words))
    assert done.returncode == 2 and "torchrun trains one of them" in done.stderr


def test_recipes_are_the_papers_numbers_and_say_where_each_stands() -> None:
    recipes = load_recipes()
    own = {"family-cpu", "family-gpu", "variants-cpu"}
    assert set(recipes) == own | {"slimpajama-64k", "slimpajama-128k", "upsampledmix-128k"}
    for name, (length, theta, tokens) in {
        "slimpajama-64k": (65536, 5e6, 524288),
        "slimpajama-128k": (131072, 1e7, 1048576),
        "upsampledmix-128k": (131072, 1e7, 1048576),
    }.items():
        recipe = recipe_of(name)
        assert (recipe.length, recipe.theta, recipe.batch_tokens, recipe.steps) == (
            length,
            {10000: theta},
            tokens,
            2000,
        )
        assert (recipe.hyper.lr, recipe.hyper.beta2, recipe.hyper.clip, recipe.hyper.warmup_steps) == (2e-5, 0.95, 0, 0)
        stated = set(type(recipe).model_fields) - {"about", "source", "model", "corpus_tokens", "places"}
        assert stated == set(recipe.places)


def test_the_anchor_of_qwen_is_not_the_end_of_its_chats() -> None:
    assert anchor_text("qwen2") == "<|endoftext|>" and anchor_text("llama") is None and anchor_text(None) is None


@pytest.mark.parametrize("card", [b'{"lr": NaN}', b'{"lr": 1e999}', b'{"a":' + b"[" * 2000, b"\xff", b"[]"])
def test_a_training_card_that_no_header_can_hold_is_none(tmp_path: Path, card: bytes) -> None:
    model = Path(shutil.copytree(REPOSITORY / "models" / "anchor-tiny", tmp_path / "model"))
    (model / CARD).write_bytes(card)
    asked: dict[str, Any] = {"lengths": [512], "limit": 1, "haystack": "generated", "backend": "fake"}
    run = evaluate(str(model), "ruler/vt", output=tmp_path, **asked)
    assert load_run(run.path).header.model["trained"] is None


def test_public_models_trained_with_anchors_have_cards_and_twins() -> None:
    cards = load_models()
    for size in ("1b", "8b", "20b"):
        trained, twin = cards[f"sailor2-l-{size}"], cards[f"sailor2-{size}"]
        assert (
            trained.checkpoint == f"sail/Sailor2-L-{size.upper()}" and trained.max_length == twin.max_length == 131072
        )


def test_generated_text_is_the_same_again_and_a_loss_is_wanted_on_some_of_it() -> None:
    folder = REPOSITORY / "models" / "anchor-tiny"
    first, again = (list(generated(folder, 3000, 1024, seed=1)) for _ in range(2))
    assert first == again and sum(len(document.ids or ()) for document in first) >= 3000
    wanted = [sum(document.wanted or ()) / len(document.ids or ()) for document in first]
    assert all(0 < share < 0.6 for share in wanted)


def test_a_runs_header_holds_the_card_of_a_trained_model_and_of_no_other(tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    shutil.copytree(REPOSITORY / "models" / "anchor-tiny", trained)
    (trained / CARD).write_text(json.dumps({"variant": "anchor", "rope": "bf16", "seed": 3}))
    asked: dict[str, Any] = {"lengths": [512], "limit": 1, "haystack": "generated", "backend": "fake"}
    for model, card in ((str(trained), {"variant": "anchor", "rope": "bf16", "seed": 3}), ("anchor-tiny", None)):
        run = evaluate(model, "ruler/niah_single_1", arms="fp32", output=tmp_path / "runs", **asked)
        assert run.header.model.get("trained") == card


def test_data_pack_prints_what_the_store_holds(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": " ".join(WORDS * 9)}) + "\n" for _ in range(60)))
    words = ["data", "pack", "--data", str(tmp_path / "a.jsonl"), "--tokenizer", "anchor-tiny"]
    done = cli(*words, "--output", str(tmp_path / "store"), "--upsample", "64:1.0")
    assert done.returncode == 0 and done.stdout.startswith("60 documents") and "windows of   4,096" in done.stdout
    for more, says in ((["--output", str(tmp_path / "store")], "is not empty"), (["--upsample", "x"], "4096:0.1")):
        done = cli(*words, "--output", str(tmp_path / "other"), *more)
        assert done.returncode == 2 and says in done.stderr
