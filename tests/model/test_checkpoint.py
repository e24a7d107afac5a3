"""What belongs to a checkpoint: weights, an adapter on top of them, code of its own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from anchoreval.backends import open_backend
from anchoreval.errors import ModelError
from anchoreval.model import checkpoint
from anchoreval.model.checkpoint import find_checkpoint, folder_of

TINY = Path(__file__).parents[2] / "models" / "anchor-tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def with_adapter(folder: Path, seed: int = 0) -> Path:
    """The folder with a LoRA adapter of random weights beside its own."""
    peft = pytest.importorskip("peft", reason="PEFT ABSENT: no adapter was loaded (pip install peft)")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    kind = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(TINY), kind).save_pretrained(folder)
    return folder


def test_an_adapter_is_part_of_the_weights_and_named(folder: Path) -> None:
    plain = find_checkpoint(str(folder))
    with_adapter(folder)
    found = find_checkpoint(str(folder), adapters=True)
    assert found.weights_sha256 != plain.weights_sha256 and plain.adapter is None
    assert found.sha256.keys() - plain.sha256.keys() == {"adapter_config.json", "adapter_model.safetensors"}
    assert found.adapter is not None and (found.adapter["type"], found.adapter["rank"]) == ("LORA", 2)
    with_adapter(folder, seed=1)
    assert find_checkpoint(str(folder), adapters=True).weights_sha256 != found.weights_sha256


def test_the_adapter_that_is_hashed_is_the_one_that_is_loaded(folder: Path) -> None:
    stock = open_backend("hf", str(folder), dtype="float32")
    names = set(dict(stock.model.named_parameters()))  # type: ignore[attr-defined]
    stock.close()
    with_adapter(folder)
    backend = open_backend("hf", str(folder), dtype="float32")
    more = set(dict(backend.model.named_parameters())) - names  # type: ignore[attr-defined]
    assert any("lora_A" in name for name in more)
    assert (
        backend.describe()["adapter"]["type"] == "LORA"
        and "adapter_model.safetensors" in backend.describe()["files_sha256"]
    )
    backend.close()


def test_an_adapter_computes_what_it_computes_merged_into_the_model(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with_adapter(folder)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32), folder)
    backend = open_backend("hf", str(folder), dtype="float32")
    ids = torch.tensor([[0, 5, 9, 40, 7]])
    with torch.inference_mode():
        ours = backend.model(ids).logits  # type: ignore[attr-defined]
        theirs = merged.merge_and_unload().eval()(ids).logits
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    backend.close()


@pytest.mark.parametrize("file", ["model.safetensors", "adapter_model.safetensors"])
def test_weights_that_are_missing_are_named_beside_an_adapter_too(folder: Path, file: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(with_adapter(folder) / file)
    del weights[next(name for name in weights if "layers.0" in name)]
    save_file(weights, folder / file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights|weights of its adapter do not fit"):
        open_backend("hf", str(folder), dtype="float32")


@pytest.mark.parametrize(
    ("without", "says"),
    [("config.json", "is an adapter of .*merge it"), ("adapter_model.safetensors", "no adapter_model.safetensors")],
)
def test_an_adapter_that_cannot_be_loaded_as_it_lies_there_is_refused(folder: Path, without: str, says: str) -> None:
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "some/base"})
    )
    (folder / "adapter_model.safetensors").write_bytes(b"")
    (folder / without).unlink()
    with pytest.raises(ModelError, match=says) as caught:
        find_checkpoint(str(folder), adapters=True)
    assert "\n" not in str(caught.value)


def test_an_adapter_is_refused_where_it_would_be_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="only backend hf loads"):
        find_checkpoint(str(folder))
    monkeypatch.setattr(checkpoint, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install peft"):
        find_checkpoint(str(folder), adapters=True)


def test_code_that_is_allowed_to_run_is_part_of_the_weights(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "own.py").write_text("one = 1")
    assert "own.py" not in find_checkpoint(str(folder), code=True).sha256
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "own.Model"}}))
    before = find_checkpoint(str(folder), code=True)
    (folder / "own.py").write_text("one = 2")
    assert find_checkpoint(str(folder), code=True).weights_sha256 != before.weights_sha256
    assert "own.py" in before.sha256 and "own.py" not in find_checkpoint(str(folder)).sha256


def test_code_of_another_repository_is_part_of_the_weights_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "theirs.py").write_text("one = 1")
    config = json.loads((folder / "config.json").read_text())
    mapped = {"auto_map": {"AutoModelForCausalLM": "owner/name--theirs.Model"}}
    (folder / "config.json").write_text(json.dumps(config | mapped))
    monkeypatch.setattr(checkpoint, "_download", lambda model, weights: tmp_path / "other")
    assert "owner/name--theirs.py" in find_checkpoint(str(folder), code=True).sha256


def test_the_weights_of_a_plain_checkpoint_are_those_of_its_configuration_and_shards() -> None:
    assert list(find_checkpoint(str(TINY)).sha256) == ["config.json", "model.safetensors"]


BESIDE = "model-00001-of-00001.safetensors"


def sharded(folder: Path, names: object) -> Path:
    """The folder with an index that names shards."""
    (folder / "model.safetensors").rename(folder / BESIDE)
    (folder / "model.safetensors.index.json").write_text(json.dumps(names))
    return folder


@pytest.mark.parametrize(
    "name",
    ["../other/model.safetensors", "/etc/passwd", "/x/a.safetensors", "sub/a.safetensors", "..\\a.safetensors",
     "pytorch_model.bin", "a.safetensors/../b.bin", ".safetensors", "a\0.safetensors", "a\n.safetensors", 5, None,
     ["a"]],
)  # fmt: skip
def test_a_shard_is_a_plain_name_of_safetensors(name: object, folder: Path) -> None:
    (folder.parent / "other").mkdir()
    shutil.copy(folder / "model.safetensors", folder.parent / "other")
    sharded(folder, {"weight_map": {"a": BESIDE, "b": name}})
    with pytest.raises(ModelError, match=r"weight_map: .* is no plain name of a .safetensors file beside it") as caught:
        find_checkpoint(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("index", [[], {}, 5, {"weight_map": []}, {"weight_map": {}}, {"weight_map": None}])
def test_an_index_of_another_kind_is_named(index: object, folder: Path) -> None:
    with pytest.raises(ModelError, match=r"model.safetensors.index.json"):
        find_checkpoint(str(sharded(folder, index)))


def test_shards_beside_their_index_are_part_of_the_weights(folder: Path) -> None:
    found = find_checkpoint(str(sharded(folder, {"weight_map": {"a": BESIDE}})))
    assert list(found.sha256) == ["config.json", "model.safetensors.index.json", BESIDE]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "own.py"]
)
def test_a_link_out_of_a_checkpoint_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    if not (folder / name).exists():
        (folder / name).write_text("x")
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(ModelError, match=f"{name} is a link out of its folder"):
        find_checkpoint(str(folder))


def test_links_within_a_checkpoint_and_to_the_blobs_of_the_hub_are_followed(folder: Path, tmp_path: Path) -> None:
    plain = find_checkpoint(str(folder)).sha256
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    (folder / "model.safetensors").symlink_to("weights.safetensors")
    (tmp_path / "link").symlink_to(folder)
    assert find_checkpoint(str(tmp_path / "link")).sha256 == plain
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink():
            shutil.copy(path, blobs / f"blob-{path.name}")
            name = "model.safetensors" if path.name == "weights.safetensors" else path.name
            (snapshot / name).symlink_to(Path("../../blobs") / f"blob-{path.name}")
    assert find_checkpoint(str(snapshot)).sha256 == plain
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(folder / "config.json")
    with pytest.raises(ModelError, match="link out of its folder"):
        find_checkpoint(str(snapshot))


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, '{"transformers_weights": "other.safetensors"}'])
def test_a_configuration_that_is_none_or_names_other_weights_is_one_line(content: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config.json") as caught:
        find_checkpoint(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../..", "/etc", "a", "a/b/c", "https://host/a", "there/here"])
def test_code_is_taken_from_a_repository_of_the_hub_and_from_no_folder(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": f"{name}--theirs.Model"}}))
    with pytest.raises(ModelError, match="is no repository of the hub"):
        find_checkpoint(str(folder), code=True)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"])
def test_a_damaged_file_of_a_tokenizer_is_named(name: str, folder: Path) -> None:
    from anchoreval.tokenizer import load_tokenizer

    for content in (b"\xff\xfe", b"[" * 100_000):
        if name.endswith(".jinja") and content[:1] == b"[":
            continue
        (folder / name).write_bytes(content)
        with pytest.raises(ModelError, match=name):
            load_tokenizer(folder)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", "[" * 100_000, "config.json cannot be read"),
        ("config.json", "[1]", "config.json is no object"),
        (
            "config.json",
            '{"num_hidden_layers": 1000000000}',
            "config.json: num_hidden_layers: expected a number from 0",
        ),
        ("config.json", '{"max_position_embeddings": 1e30}', "config.json: max_position_embeddings: expected a number"),
        ("config.json", '{"text_config": {"max_position_embeddings": "x"}}', "text_config > max_position_embeddings"),
        ("config.json", '{"eos_token_id": {"a": 1}}', "config.json: eos_token_id: expected a whole number"),
        ("config.json", '{"auto_map": "x"}', "config.json: auto_map: expected an object"),
        ("generation_config.json", '{"eos_token_id": ["x"]}', "generation_config.json: eos_token_id"),
    ],
)
def test_a_configuration_that_no_model_has_is_refused_where_its_folder_is_found(
    folder: Path, name: str, content: str, says: str
) -> None:
    (folder / name).write_text(content)
    with pytest.raises(ModelError, match=says) as caught:
        folder_of(str(folder), weights=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "link to nothing", "device"])
def test_a_file_of_a_checkpoint_that_is_none_is_named(folder: Path, name: str, kind: str) -> None:
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to("nowhere" if kind == "link to nothing" else "/dev/zero")
    with pytest.raises(ModelError, match=rf"{name} is (no file|a link out of its folder)"):
        folder_of(str(folder), weights=False)


def test_whatever_the_library_raises_over_a_configuration_is_one_line(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "x"}))
    with pytest.raises(ModelError, match=r"cannot be loaded: .*hidden_size") as caught:
        open_backend("hf", str(folder))
    assert "\n" not in str(caught.value)
