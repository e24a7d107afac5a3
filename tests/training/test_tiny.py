"""The recipe of anchor-tiny: what it reads, what carries loss, and that a resumed run is the same run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from anchoreval.errors import RunError
from anchoreval.training.tiny import examples as tiny_data
from anchoreval.training.tiny import tokenizer as tiny_tokenizer
from anchoreval.training.tiny import train as tiny


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer.build()


def test_the_tokenizer_is_the_one_of_the_embedded_model(tokenizer: Tokenizer) -> None:
    shipped = Tokenizer.from_file(str(Path(__file__).parents[2] / "models" / "anchor-tiny" / "tokenizer.json"))
    assert tokenizer.get_vocab() == shipped.get_vocab()


def test_digits_and_the_letters_of_names_are_single_tokens(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("is: 8090293. VAR XQZ").tokens
    assert [token for token in tokens if token.isdigit()] == list("8090293")
    assert tokens[-3:] == ["X", "Q", "Z"]


def answers(example: tiny_data.Example, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(
        [i for i, w in zip(example.ids, example.weights, strict=True) if w >= 1], skip_special_tokens=False
    )


def test_only_repeats_carry_loss_in_copy_examples(tokenizer: Tokenizer) -> None:
    example = tiny_data.copy_example(random.Random(1), tokenizer, 192)
    bigrams = [tuple(example.ids[at - 1 : at + 1]) for at in range(1, 192)]
    judged = [bigram for bigram, weight in zip(bigrams, example.weights[1:], strict=True) if weight]
    assert judged and all(bigrams.index(bigram) < 191 - bigrams[::-1].index(bigram) for bigram in judged)


def test_only_answers_carry_full_loss_in_recall_and_needle_examples(tokenizer: Tokenizer) -> None:
    for maker in (tiny_data.recall_example, tiny_data.needles_example):
        example = maker(random.Random(3), tokenizer, 384)
        text = tokenizer.decode(example.ids)
        values = [
            value.strip(" .\n") for value in answers(example, tokenizer).split(tiny_tokenizer.EOS) if value.strip()
        ]
        assert len(example.ids) <= 384 and values
        assert all(text.count(value) >= 2 for value in values if len(value) > 6)


def test_ruler_examples_are_the_products_own_prompts_with_their_answers(tokenizer: Tokenizer) -> None:
    for seed in range(12):
        example = tiny_data.ruler_example(random.Random(seed), tokenizer, 640)
        assert len(example.ids) <= 640
        assert answers(example, tokenizer).endswith(tiny_tokenizer.EOS)


def test_no_training_prompt_comes_from_the_seed_of_the_evaluation(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    seeds: list[int] = []
    recipe = tiny_data.Recipe
    monkeypatch.setattr(tiny_data, "Recipe", lambda **fields: seeds.append(fields["seed"]) or recipe(**fields))
    for seed in range(8):
        tiny_data.ruler_example(random.Random(seed), tokenizer, 512)
    assert len(set(seeds)) == 8 and min(seeds) >= tiny_data.TRAINING_SEED


def test_the_tokens_that_decide_an_answer_weigh_more(tokenizer: Tokenizer) -> None:
    space = tokenizer.get_vocab()["\u0120"]
    example = tiny_data.Example([5, space, 9, 8, space, 7, 6], [0.02, 1.0, 1.0, 1.0, 1.0, 1.0, 0.02])
    assert tiny_data.emphasised(example, space, 6.0) == [0.02, 6.0, 6.0, 1.0, 1.0, 6.0, 0.02]


def test_each_head_of_the_first_layer_starts_by_looking_back_its_own_distance() -> None:
    model = tiny.new_model(512).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attention_HLL = model(torch.randint(3, 512, (1, 300)), output_attentions=True).attentions[0][0]
    for head in range(4):
        assert attention_HLL[head].diagonal(-(head + 1))[50:].mean() > 0.9


STAGES = (
    tiny.Stage("copy", 2, 32, {"copy": 1.0}, tokens=64),
    tiny.Stage("recall", 2, 96, {"recall": 1.0}, tokens=192, first=6.0),
)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> pytest.MonkeyPatch:
    """Two short stages, and the tokenizer that is made already."""
    monkeypatch.setattr(tiny_tokenizer, "build", lambda: tokenizer)
    monkeypatch.setattr(tiny, "STAGES", STAGES)
    return monkeypatch


@pytest.mark.half
def test_a_resumed_training_has_the_log_and_the_weights_of_an_unbroken_one(
    tmp_path: Path, short: pytest.MonkeyPatch
) -> None:
    tiny.train(tmp_path / "whole", until=4, every=100)
    told: list[str] = []
    for until in (2, 4, 4):
        tiny.train(tmp_path / "parts", until=until, every=100, tell=told.append)
    for name in ("log.csv", "model/model.safetensors", "model/config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert sum("goes on from step" in line for line in told) == 2
    short.setattr(tiny, "STAGES", STAGES[:1])
    with pytest.raises(RunError, match="holds another training"):
        tiny.train(tmp_path / "parts", until=2, every=100)


def test_a_step_is_the_weighted_loss_clipped_under_adamw(
    tmp_path: Path, short: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    tiny.train(tmp_path, until=2, every=100)
    batches = tiny.Batches(tokenizer, 2)
    model = tiny.new_model(tiny_tokenizer.VOCABULARY).train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(2):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * tiny.rate_at(step)[1]
        tiny.loss_of(model, **batches[step]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    written = LlamaForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(written[name], weight, rtol=2**-8, atol=1e-5)  # stored in bf16


def test_the_learning_rate_warms_up_and_follows_its_stage() -> None:
    assert tiny.rate_at(0)[1] < tiny.rate_at(20)[1] <= 1
    last = sum(stage.steps for stage in tiny.STAGES) - 1
    assert tiny.rate_at(last)[1] < 0.05
    with pytest.raises(IndexError):
        tiny.rate_at(last + 1)
