"""Tokenizers of several kinds, trained here in a second, and the sources of the reference outputs."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from anchoreval.texts.prose import sentences
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer, load_tokenizer

KINDS = ("byte-level", "llama-2", "metaspace", "wordpiece", "crossing", "unknown")


def corpus() -> list[str]:
    lines = list(islice(sentences(7), 1500))
    lines += [f"One of the special magic numbers for lazy-{index % 7}fox is: {index * 7919}." for index in range(300)]
    return lines + ["VAR ABC = VAR QXZ ", "1. apple 2. pear ... ...", "Don't (stop): 'quoted' \"words\"\n\n\tnow"] * 20


def trained(kind: str) -> Tokenizer:
    """A tokenizer of 700 tokens: "crossing" has tokens of several words, "unknown" a rule of its own."""
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=700, special_tokens=["[UNK]"], show_progress=False)
        tokenizer.train_from_iterator(corpus(), trainer)
        return tokenizer
    tokenizer = Tokenizer(
        models.BPE(unk_token="<unk>", fuse_unk=True) if kind in {"llama-2", "crossing"} else models.BPE()
    )
    alphabet = [] if kind in {"llama-2", "metaspace", "crossing"} else pre_tokenizers.ByteLevel.alphabet()
    if kind == "byte-level":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    elif kind == "unknown":
        odd = pre_tokenizers.Split(Regex(r"\w+ \w+|\W+"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([odd, pre_tokenizers.ByteLevel(False, use_regex=False)])
    elif kind != "crossing":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    lines = corpus()
    if kind == "crossing":
        lines = [line.replace(" ", "▁") for line in lines]
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    if kind in {"llama-2", "crossing"}:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    return tokenizer


@pytest.fixture(scope="session")
def kinds() -> dict[str, TextTokenizer]:
    return {kind: TextTokenizer(trained(kind)) for kind in KINDS}


@pytest.fixture(scope="session")
def tokenizer(kinds: dict[str, TextTokenizer]) -> TextTokenizer:
    return kinds["byte-level"]


@pytest.fixture
def generated(tmp_path: Path) -> Sources:
    return Sources(haystack="generated", cache=tmp_path, offline=True)


@pytest.fixture(scope="session")
def golden_tokenizer(shared: Path) -> TextTokenizer:
    return load_tokenizer(shared / "golden" / "tokenizer")


@pytest.fixture(scope="session")
def golden_sources(shared: Path) -> Sources:
    return Sources(shared / "golden" / "sources", cache=shared / "data", offline=True)
