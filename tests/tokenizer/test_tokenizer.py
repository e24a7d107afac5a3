from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from anchoreval.cards import find_model
from anchoreval.errors import ModelError
from anchoreval.tokenizer import TextTokenizer, child, load_tokenizer
from anchoreval.tokenizer.check import ORDINARY
from anchoreval.tokenizer.cuts import PRINTABLE, cut_after
from anchoreval.tokenizer.files import complete, config_of, special_tokens


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


TINY = Path(find_model("anchor-tiny")[1].checkpoint)
TINY_SHA256 = "1eb5602809cb01a819acc311f71ccc1dad931226afe21e8e2d57fe0bf0e738b5"


def changed(place: Path, config: dict[str, Any], **files: Any) -> Path:
    """A copy of the embedded checkpoint's tokenizer with another configuration, and files beside it."""
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(TINY / name, place)
    told = json.loads((TINY / "tokenizer_config.json").read_text("utf-8")) | config
    (place / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in told.items() if v != "absent"}))
    for name, content in files.items():
        (place / f"{name}.json").write_text(json.dumps(content))
    return place


def token(text: str, **flags: bool) -> dict[str, Any]:
    given = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {"content": text, **given, **flags}


FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
FILES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a token of the configuration": (FAST | {"added_tokens_decoder": {"4096": token("<|turn|>")}}, {}),
    "an EOS defined there": (
        FAST | {"eos_token": "<|turn|>", "added_tokens_decoder": {"4096": token("<|turn|>")}}, {},
    ),
    "other flags, and tokens out of order": (
        {
            "added_tokens_decoder": {
                "4097": token("boat", special=False, normalized=True), "2": token("<|pad|>", rstrip=True),
                "4096": token("<|turn|>", lstrip=True),
            }
        },
        {},
    ),
    "added_tokens.json": (
        {"additional_special_tokens": ["<a>", "<b>"]}, {"added_tokens": {"<b>": 4097, "<c>": 4096}},
    ),
    "an older map wins": ({"eos_token": "<|eos|>"}, {"special_tokens_map": {"eos_token": "<|pad|>"}}),
    "an older map is not read beside a decoder": (
        {"added_tokens_decoder": {"0": token("<|bos|>")}}, {"special_tokens_map": {"eos_token": "<|pad|>"}},
    ),
    "a new token in the map": (
        {"bos_token": "absent", "eos_token": "absent"},
        {"special_tokens_map": {
            "bos_token": token("<|bos|>", rstrip=True), "eos_token": "<|new|>", "additional_special_tokens": ["<q>"],
        }},
    ),
    "tokens of this model": ({"extra_special_tokens": {"image_token": "<img>"}, "video_token": "<vid>"}, {}),
    "split special tokens": ({"split_special_tokens": True}, {}),
    "flags that do nothing with tokenizer.json": ({"add_bos_token": False, "add_eos_token": True}, {}),
    "no BOS": ({"bos_token": None}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_tokens_beside_tokenizer_json_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    config, files = FILES[case]
    place = changed(tmp_path, config, **files)
    inner, told = Tokenizer.from_file(str(place / "tokenizer.json")), config_of(place)
    complete(inner, told)
    own, theirs = TextTokenizer(inner, told), PreTrainedTokenizerFast.from_pretrained(place)
    added = inner.get_added_tokens_decoder()
    assert {i: repr(t) for i, t in added.items()} == {i: repr(t) for i, t in theirs.added_tokens_decoder.items()}
    assert special_tokens(told) == theirs.special_tokens_map
    text = "".join(f"a {t.content}  b{t.content}c\n" for t in added.values()) + ORDINARY
    assert own.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert own.decode(own.encode(text)) == theirs.decode(own.encode(text), skip_special_tokens=True)
    ends = [end and end[1] for end in (own.bos, own.eos)]
    assert ends == [theirs.bos_token_id, theirs.eos_token_id]


def test_the_definition_moves_only_where_tokens_are_added(tmp_path: Path) -> None:
    plain = changed(tmp_path, {"added_tokens_decoder": {"0": token("<|bos|>")}, "add_bos_token": False})
    assert load_tokenizer(plain).sha256 == load_tokenizer(TINY).sha256 == TINY_SHA256
    more = changed(tmp_path, {"added_tokens_decoder": {"4096": token("<|turn|>")}})
    assert load_tokenizer(more).sha256 != TINY_SHA256


def test_a_class_that_loses_blanks_does_not_change_what_is_read(tmp_path: Path) -> None:
    place = changed(tmp_path, {"tokenizer_class": "LlamaTokenizerFast", "backend": "absent"})
    tokenizer = load_tokenizer(place)
    assert tokenizer.reading is not None
    if tokenizer.reading.differs:  # transformers 5.23 reads it as we do
        assert "loses" in tokenizer.reading.words
    assert tokenizer.decode(tokenizer.encode(ORDINARY)) == ORDINARY
    assert tokenizer.sha256 == load_tokenizer(TINY).sha256


def test_other_tokens_than_transformers_reads_are_refused_with_their_place(tmp_path: Path) -> None:
    place = changed(tmp_path, {"tokenizer_class": "GPT2TokenizerFast", "backend": "absent", "add_prefix_space": True})
    with pytest.raises(ModelError, match=r"'The quick brown ' is \['The'.*there; where tokenizer.json is right, set"):
        load_tokenizer(place)


def test_the_comparison_is_kept_and_made_again_for_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(child, "_kept", {})
    asked = []
    monkeypatch.setattr(child, "answer_of", lambda job: asked.append(job) or {"error": "not tried"})
    (tmp_path / "model").mkdir()
    place = changed(tmp_path / "model", {})
    for kept in (child._kept, {}):  # from this process, then from the disk
        monkeypatch.setattr(child, "_kept", kept)
        assert load_tokenizer(place).reading.words == load_tokenizer(place).reading.words
    assert len(asked) == 1
    changed(place, {"clean_up_tokenization_spaces": True})
    load_tokenizer(place)
    assert len(asked) == 2


def test_several_chat_templates_have_a_default_or_are_an_error(tmp_path: Path) -> None:
    place = changed(
        tmp_path, {"chat_template": [{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}]}
    )
    assert TextTokenizer(Tokenizer(models.BPE()), config_of(place)).chat_template == "D"
    (place / "additional_chat_templates").mkdir()
    (place / "additional_chat_templates" / "tool_use.jinja").write_text("T")
    with pytest.raises(ModelError, match="none is called default: tool_use"):
        _ = TextTokenizer(Tokenizer(models.BPE()), config_of(place)).chat_template
    (place / "chat_template.jinja").write_text("J")
    assert TextTokenizer(Tokenizer(models.BPE()), config_of(place)).chat_template == "J"


def test_entries_of_no_known_form_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a special token stands as text or as an object with its content, not as 5"):
        load_tokenizer(changed(tmp_path, {"bos_token": 5}))
    several = TextTokenizer(Tokenizer(models.BPE()), {"chat_template": [{"nme": "default", "template": "D"}]}, "M")
    with pytest.raises(ModelError, match="M: chat_template: several are a list of objects"):
        _ = several.chat_template


def test_blanks_are_cleaned_up_where_transformers_does_so(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    words = ["is", "n't", "it", ",", "so", "?"]
    vocab = {word: i for i, word in enumerate(words)}
    for model, text in ((models.WordLevel(vocab), "isn't it, so?"), (models.BPE(vocab, []), "is n't it , so ?")):
        inner = Tokenizer(model)
        inner.save(str(tmp_path / "tokenizer.json"))
        own = TextTokenizer(inner, {"clean_up_tokenization_spaces": True})
        theirs = PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=True)
        assert own.decode(list(range(6))) == theirs.decode(list(range(6))) == text


def test_rare_text_alone_is_no_error_and_names_of_a_class_are_found(tmp_path: Path) -> None:
    inner = Tokenizer(models.BPE())
    digits, pieces = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([digits, pieces])
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator(["£ 5 and a  b   1999, the cat sat on the mat"] * 3, trainer)
    inner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tokenizer = load_tokenizer(tmp_path)
    assert "GPT2Tokenizer reads rare text otherwise" in tokenizer.reading.words
    assert tokenizer.bos == tokenizer.eos == ("<|endoftext|>", 0)
    assert TextTokenizer(Tokenizer.from_file(str(tmp_path / "tokenizer.json"))).bos is None


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer_config.json", {"bos_token": "\ud800"}),
        ("tokenizer_config.json", {"bos_token": {"content": "x", "lstrip": "no"}}),
        ("tokenizer_config.json", {"extra_special_tokens": [{"content": "x", "lstrip": 5}]}),
        ("tokenizer_config.json", {"image_token": "\udfff"}),
        ("special_tokens_map.json", {"bos_token": {"content": "x", "lstrip": "no"}}),
        ("tokenizer.json", {"post_processor": {"type": "TemplateProcessing", "single": [], "special_tokens": {}}}),
        ("tokenizer.json", {"model": {"type": "BPE"}}),
    ],
)
def test_odd_values_in_the_files_of_a_tokenizer_are_one_line(
    file: str, change: dict[str, object], tmp_path: Path
) -> None:
    folder = shutil.copytree(TINY, tmp_path / "model")
    content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    if "post_processor" in change:  # names a token that is not there: the library panics
        change = {"post_processor": content["post_processor"] | {"special_tokens": {}}}
    (folder / file).write_text(json.dumps(content | change))
    with pytest.raises(ModelError) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_a_text_on_which_the_library_panics_is_one_line() -> None:
    inner = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    slow = Regex(r"([a-z ]+)*\d{50}")  # retries without end on plain words
    inner.pre_tokenizer = pre_tokenizers.Split(slow, "isolated")
    tokenizer = TextTokenizer(inner, name="theirs")
    for work in (tokenizer.count, tokenizer.encode, tokenizer.spans):
        with pytest.raises(ModelError, match=r"the tokenizer of theirs cannot read a text: Onig"):
            work("the quick brown fox jumps over the lazy dog " * 4)


def test_a_tokenizer_of_which_a_process_of_its_own_dies_is_not_read_here(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(child, "answer_of", lambda job: {"error": f"more than {job['megabytes']} MB", "died": True})
    monkeypatch.setattr(child, "_kept", {})
    with pytest.raises(ModelError, match="its tokenizer cannot read a page of text: more than 4096 MB"):
        load_tokenizer(folder)
