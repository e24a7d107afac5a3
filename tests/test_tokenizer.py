from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from anchoreval.errors import ModelError
from anchoreval.token_cuts import PRINTABLE, cut_after
from anchoreval.tokenizer import TextTokenizer, load_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with a tokenizer that truncates, pads and adds a BOS token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(["the cat sat on the mat"] * 3, trainer)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    place = tmp_path_factory.mktemp("checkpoint")
    tokenizer.save(str(place / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": "{{ messages }}"}
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    return place


def test_counts_spans_and_ids_agree_and_nothing_is_truncated_or_padded(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    text = "the cat sat on the mat"
    spans = tokenizer.spans(text)
    assert tokenizer.count(text) == len(spans) == len(tokenizer.encode(text)) > 4
    assert spans[-1][1] == len(text)
    assert tokenizer._inner.decode(tokenizer.encode(text)).replace("Ġ", "").replace(" ", "") == text.replace(" ", "")


def test_special_tokens_and_the_chat_template_come_from_the_configuration(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos, tokenizer.eos) == (("<s>", 0), ("</s>", 1))
    assert tokenizer.chat_template == "{{ messages }}"
    (folder / "chat_template.jinja").write_text("{{ 1 }}")
    assert load_tokenizer(folder).chat_template == "{{ 1 }}"


def test_a_tokenizer_without_named_special_tokens_has_none(folder: Path) -> None:
    bare = TextTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")))
    assert (bare.bos, bare.eos, bare.chat_template) == (None, None, None)
    assert bare.sha256 == load_tokenizer(folder).sha256


def test_a_folder_without_a_tokenizer_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        load_tokenizer(tmp_path)


def definition(pre_tokenizer: object, added: tuple[dict[str, object], ...] = (), **model: object) -> dict[str, object]:
    return {
        "model": {"type": "BPE", "vocab": {"Ġ": 0}, **model},
        "pre_tokenizer": pre_tokenizer,
        "added_tokens": added,
    }


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(regex: str) -> dict[str, object]:
    stages = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "use_regex": False},
    ]
    return {"type": "Sequence", "pretokenizers": stages}


def test_llama_3_splits_at_every_single_space() -> None:
    assert cut_after(definition(split(LLAMA_3))) == PRINTABLE


@pytest.mark.parametrize(
    "why, given",
    [
        ("an unknown rule", definition(split(LLAMA_3 + r"|\p{L}+ \p{L}+"))),
        ("an unknown stage", definition({"type": "UnicodeScripts"})),
        ("dropout", definition({"type": "ByteLevel"}, dropout=0.1)),
        (
            "a normalizer that is not local",
            definition({"type": "ByteLevel"}) | {"normalizer": {"type": "Strip"}},
        ),
        ("no white-space rule", definition(split(r"\p{L}+|\p{N}+"), vocab={})),
    ],
)
def test_nothing_is_cut_where_nothing_is_proved(why: str, given: dict[str, object]) -> None:
    assert cut_after(given) == frozenset(), why


def test_an_added_token_that_swallows_spaces_forbids_cuts() -> None:
    token = {"content": "mask", "lstrip": False, "rstrip": False}
    assert cut_after(definition({"type": "ByteLevel"}, (token,))) == PRINTABLE - {"k"}
    for change in ({"lstrip": True}, {"rstrip": True}, {"content": "a b"}, {"content": " mask"}):
        assert cut_after(definition({"type": "ByteLevel"}, ({**token, **change},))) == frozenset()


def test_without_a_split_at_spaces_the_vocabulary_decides() -> None:
    normalizer = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    vocab = {"▁": 0, "▁the": 1, "▁▁": 2, ":▁": 3, "▁of▁the": 4}
    assert cut_after({**definition(None, vocab=vocab), "normalizer": normalizer}) == PRINTABLE - {":", "f"}
