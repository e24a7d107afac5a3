"""Load a checkpoint as a model: from safetensors, complete, run once, and with its own code only if that is allowed.

A peft adapter is loaded on top of the weights of its folder. transformers could load both at once, but then it reports
which weights of the adapter are missing and nothing about the model: layers that are in no file would be drawn at
random without a word.

Weights of a checkpoint that the loaded architecture has no place for are harmless by a rule, or refused. transformers
leaves them out of the computation with a table on stderr. Here each is of one of these kinds:

  * `ignored`: weights that the architecture itself names as not its own (`_keys_to_ignore_on_load_unexpected`: the
    layers of DeepSeek-V3 and GLM-4.5 that predict further tokens); a whole decoder layer among them is still refused;
  * `buffers`: tensors that older versions saved and the model makes anew: rotary frequencies (their error is reported),
    `position_ids`, the triangular masks of GPT-2, GPT-NeoX and GPT-J;
  * `other inputs`: towers and projectors of images, sound and video, which a prompt of text does not reach;
  * `refused`: everything else, for instance biases of a "llamafied" model or layers beyond num_hidden_layers.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, cache_utils
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from anchoreval.arms.configuration import layer_kinds, rope_types, stated
from anchoreval.arms.entering import looked_at, summary
from anchoreval.arms.flex_hf import prefilling
from anchoreval.arms.patterns import Block
from anchoreval.arms.precision import frequency_buffers
from anchoreval.backends.hf.growth import GROWING_ROPE, Growth
from anchoreval.backends.hf.network import InSdpa, LowerRight, extend
from anchoreval.errors import ModelError
from anchoreval.model.checkpoint import ADAPTER, Checkpoint
from anchoreval.schema import Json
from anchoreval.tokenizer import TextTokenizer

_FREQUENCIES = re.compile(r"(^|\.)inv_freq$")
_POSITIONS = re.compile(r"(^|\.)position_ids$")
_MASKS = re.compile(r"(^|\.)(attn|attention)\.(bias|masked_bias|causal_mask)$")
_LAYER = re.compile(r"^(.*\blayers\.\d+)\.")
#: Parts that only a layer that predicts further tokens has.
_PREDICTS = re.compile(r"\.(eh_proj|enorm|hnorm|shared_head|embed_tokens)\.")
_OTHER_INPUTS = re.compile(
    r"(^|\.)(vision_tower|vision_model|vision_encoder|vision_embed_tokens|visual|image_newline|multi_modal_projector|"
    r"mm_projector|audio_tower|audio_model|audio_encoder|embed_vision|embed_audio|vision_projector)(\.|$)"
)
#: Relative: frequencies that were saved in bf16 are off by 2**-9.
_NEAR = 2.0**-8


@dataclass(frozen=True, slots=True)
class Unused:
    """Names of the weights that are left out, by kind; all empty if the architecture uses every weight."""

    ignored: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    other_inputs: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    frequencies_off: float | None = None

    def as_json(self) -> dict[str, Json]:
        """Return, for each kind that occurs, how many weights there are and the names of the first ones.

        `frequencies_off` is the relative error of stored rotary frequencies against the model's, if it is more than
        that of a rounding to bf16.
        """
        kinds = {
            "ignored by the architecture": self.ignored,
            "buffers made anew": self.buffers,
            "of other inputs than text": self.other_inputs,
            "allowed": self.refused,
        }
        counts = {kind: {"weights": len(names), "first": list(names[:8])} for kind, names in kinds.items() if names}
        return counts | ({} if self.frequencies_off is None else {"frequencies_off": self.frequencies_off})

    def refusal(self, folder: Path, architecture: str) -> str:
        """Return one line that names the first weights and the way out."""
        count, more = len(self.refused), ", ..." if len(self.refused) > 2 else ""
        return (
            f"{folder} has {count} weight{'s' if count > 1 else ''} that {architecture} has no place for "
            f"({', '.join(self.refused[:2])}{more}): config.json names another architecture or too few layers; "
            "--backend-args unused_weights=allow computes without them"
        )


def unused_weights(model: Any, checkpoint: Checkpoint, unexpected: Collection[str]) -> Unused:
    """Return the weights that are left out; `unexpected` is from transformers' report, which omits ignored weights."""
    stored = dict(shapes_of(checkpoint))
    # stored weights that the architecture says are not its own, and that it has no place for
    patterns = [*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()), r"rotary_emb\.inv_freq"]
    ignore, prefix = re.compile("|".join(f"({pattern})" for pattern in patterns)), f"{model.base_model_prefix}."
    places = set(model.state_dict())
    places |= {name.removeprefix(prefix) for name in places} | {f"{prefix}{name}" for name in places}
    ignored = {name for name in stored if name not in places and (ignore.search(name) or _POSITIONS.search(name))}

    # plain decoder layers among them are refused: patterns of transformers go by number alone
    layers: dict[str, set[str]] = {}
    for name in ignored:
        if (match := _LAYER.match(name)) and not _FREQUENCIES.search(name):
            layers.setdefault(match[1], set()).add(name)
    whole = [names for names in layers.values() if any("proj" in name for name in names)]
    decoders = {name for names in whole if not any(_PREDICTS.search(each) for each in names) for name in names}

    left = {*unexpected, *ignored} - decoders
    buffers = {name for name in left if _is_buffer(name, stored.get(name, (0,)))}
    named = ignored - decoders - buffers
    others = {name for name in left - buffers - named if _OTHER_INPUTS.search(name)}
    refused = {*unexpected, *decoders} - named - buffers - others
    kinds = [tuple(sorted(names)) for names in (named, buffers, others, refused)]
    frequencies = {name for name in buffers if _FREQUENCIES.search(name)}
    off = _frequencies_off(model, checkpoint, frequencies) if frequencies else None
    return Unused(kinds[0], kinds[1], kinds[2], kinds[3], off)


def shapes_of(checkpoint: Checkpoint) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor of the checkpoint's files."""
    for file in checkpoint.sha256:
        if file.endswith(".safetensors"):
            with safe_open(checkpoint.folder / file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - no dictionary
                    yield name, tuple(opened.get_slice(name).get_shape())


def _is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether this is not a weight but a buffer that older versions saved beside the weights."""
    if _FREQUENCIES.search(name) or _POSITIONS.search(name):
        return True
    square = len(shape) >= 2 and shape[-1] == shape[-2] and not any(size > 1 for size in shape[:-2])
    return bool(_MASKS.search(name)) and (square or shape in ((), (1,)))


def _frequencies_off(model: Any, checkpoint: Checkpoint, names: set[str]) -> float | None:
    """Return the largest relative error of stored frequencies against the nearest of the model's, None up to _NEAR."""
    buffers = [buffer.double().cpu() for module in model.modules() for buffer in frequency_buffers(module).values()]
    errors = [0.0]
    for file in checkpoint.sha256:
        if not file.endswith(".safetensors"):
            continue
        with safe_open(checkpoint.folder / file, framework="pt") as opened:
            for name in names & set(opened.keys()):
                stored = opened.get_tensor(name).double()
                near = [float(((stored - b) / b).abs().max()) for b in buffers if b.shape == stored.shape]
                errors.append(min(near, default=float("inf")))
    return None if max(errors) <= _NEAR else max(errors)


DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_ALIGNED_BYTES = 64
#: Activations of one pass over a prompt, in bytes, and what its length is a multiple of.
_PASS_BYTES_CPU, _PASS_BYTES, _PASS_STEP = 1 << 28, 1 << 31, 512
_MASK_ROWS = 512  # queries that one mask is made for
#: The kernel if the user names none: STOCK, or WHOLE (eager) if STOCK drops part of the model.
DEFAULT, STOCK, WHOLE = "default", "sdpa", "eager"
_NO_KERNEL = "does not support an attention implementation"
#: Cache layers that keys and values are kept for; a DummyLayer (5.23 on) belongs to a layer that shares them.
_KEPT = (DynamicLayer, DynamicSlidingWindowLayer, *filter(None, [getattr(cache_utils, "DummyLayer", None)]))
#: The blocks of a prompt and its attention pattern.
Seen = tuple[Sequence[Block], str]


class StockNetwork:
    """A transformers model behind the few calls that this package makes."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.kernel_why: str | None = None  # why the kernel is not STOCK, although nobody asked for another
        self.unused = Unused()
        self.entering: dict[str, Any] = summary({})  # q and k as they enter the attention kernels, as loaded
        #: The number format of the weights, as the user writes it, and the rows of the embedding.
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.vocabulary = int(model.get_input_embeddings().num_embeddings)
        self.layers = count_layers(model.config)
        #: What the layers attend to: `full_attention`, `sliding_attention`, or other kinds that the config names.
        self.kinds = set(layer_kinds(model.config))
        if stated(model.config, "attention_chunk_size"):
            self.kinds.add("chunked_attention")
        self.whole_prompts = bool(rope_types(model.config) & GROWING_ROPE)
        self.growth = Growth(model) if self.whole_prompts else None
        self.alone = self.whole_prompts  # probe.py sets it for models that are wrong beside padding
        self.apart = False  # probe.py sets it for models that are wrong where rows lie in several stores
        self.few_passes = False  # whether prompts come in as few passes as memory allows; the backend sets it
        #: Whether the model reads more from a mask than who sees whom: ALiBi counts its columns (falcon).
        self.reads_mask = bool(getattr(model.config, "alibi", False))
        self._plain = self.kinds == {"full_attention"} and not self.reads_mask

    @property
    def kernel(self) -> str:
        """The attention implementation in use."""
        return str(self.model.config._attn_implementation)

    @property
    def pass_tokens(self) -> int | None:
        """How many tokens of a prompt one pass takes; None if prompts come in chunks, as any mask would be large."""
        if not self._plain or self.kernel != STOCK or self.whole_prompts:
            return None
        text = self.model.config.get_text_config(decoder=True)
        inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        each = (max(3 * inner, 4 * text.hidden_size) + 4 * text.hidden_size) * self.model.dtype.itemsize
        budget = _PASS_BYTES_CPU if self.device.type == "cpu" else _PASS_BYTES
        return int(max(_PASS_STEP, budget // each // _PASS_STEP * _PASS_STEP))

    @property
    def joint(self) -> bool:
        """Whether rows in several stores can be one pass: where nothing but torch's SDPA reads the mask."""
        sdpa = self._plain and self.kernel == STOCK and self.device.type in ("cpu", "cuda")
        return sdpa and self.few_passes and not self.apart and not self.alone

    def logits(self, ids_BQ: Tensor, cache: Cache, at: tuple[Tensor, Tensor], keep: int) -> Tensor:
        """Return the logits `BkV` of the last `keep` tokens; `at` is (position ids `BQ`, mask `BC`).

        For tokens behind others, which see all before them, the model gets a LowerRight. On a CPU the floats that SDPA
        would make of a mask in every layer are then made once, which saves an eighth of the time of a long prompt and
        leaves the bits of a chunk as they are. This holds only if every layer sees all that came before.
        """
        (position_BQ, mask_BC), queries = at, ids_BQ.shape[1]
        behind = not isinstance(mask_BC, InSdpa) and 1 < queries < mask_BC.shape[1]
        if behind and self._plain and self.kernel == STOCK and (self.device.type == "cpu" or self.few_passes):
            step = _MASK_ROWS if self.few_passes else queries
            mask_BC = LowerRight.of(queries, mask_BC.shape[1], self.device, step)
        result = self.model(
            input_ids=ids_BQ,
            past_key_values=cache,
            position_ids=position_BQ,
            attention_mask=mask_BC,
            logits_to_keep=keep,
            use_cache=True,
        )
        logits_BkV: Tensor = result.logits
        return logits_BkV

    def masked_logits(self, ids_1N: Tensor, cache: Cache, at: tuple[Tensor, Tensor], seen: Seen) -> Tensor:
        """Return the logits `11V` after a whole prompt in one pass of FlexAttention; `seen` is (blocks, pattern)."""
        with prefilling(self.model, *seen):
            return self.logits(ids_1N, cache, at, keep=1)

    def one_token(self) -> None:
        """Run one token: not id 0, which may be padding, and not at position 0, where nothing is rotated."""
        extend(self, DynamicCache(config=self.model.config), [7 % self.vocabulary], [7], 0)

    def restart(self) -> None:
        """Reset frequencies that grew with an earlier prompt: `dynamic_rope_update` resets them at position 0."""
        extend(self, DynamicCache(config=self.model.config), [0], [0], 0)


def load(
    checkpoint: Checkpoint, dtype: str, device: str, kernel: str, trust_remote_code: bool, unused: str = "refuse"
) -> StockNetwork:
    """Return the model on its device, after a run on one token, so that what cannot work fails here.

    `kernel` is a name of transformers, or DEFAULT: STOCK if it exists and computes all of the model's attention, else
    WHOLE. `unused` says what happens to weights that the architecture has no place for: "refuse" or "allow". Raise
    ModelError if loading fails, or if a kernel asked for by name leaves out a part of the model's attention.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: one of auto, {', '.join(DTYPES)}")
    if unused not in ("refuse", "allow"):
        raise ModelError(f"unused_weights={unused!r}: refuse or allow")
    place = _device(device)
    config = json.loads((checkpoint.folder / "config.json").read_text("utf-8")) if not trust_remote_code else {}
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
        text = "runs code of its own: read it, then allow it with trust_remote_code"
        raise ModelError(f"{checkpoint.folder}: model type {config.get('model_type')!r} {text}")
    first, why = (STOCK if kernel == DEFAULT else kernel), None
    try:
        with contextlib.nullcontext(checkpoint.folder) if checkpoint.adapter is None else _bare(checkpoint) as folder:
            try:
                model, loaded = _read(folder, dtype, first, trust_remote_code)
            except ValueError as error:
                if kernel != DEFAULT or _NO_KERNEL not in str(error):
                    raise
                why = f"this architecture has no kernel {STOCK!r}"
                model, loaded = _read(folder, dtype, WHOLE, trust_remote_code)
        network = StockNetwork(model.to(place).eval(), place)
        for weight in network.model.parameters():  # mapped files put them anywhere, and MKL's bits follow
            if weight.device.type == "cpu" and weight.data_ptr() % _ALIGNED_BYTES:
                weight.data = weight.data.clone()
        network.kernel_why = _whole_attention(network, kernel, checkpoint.folder) or why
    except ModelError:
        raise
    except Exception as error:  # transformers and modelling code may raise anything over a stranger's files
        said, named = str(error) or type(error).__name__, "" if kernel == DEFAULT else f" with kernel {kernel!r}"
        text = f"cannot be loaded{named}: {' '.join(said.split())[:300]}"
        if _NO_KERNEL in said:
            text = f"this architecture has no attention kernel {kernel!r}: leave out --kernel, or name eager"
        raise ModelError(f"{checkpoint.folder}{':' if _NO_KERNEL in said else ''} {text}") from error
    if missing := sorted(loaded["missing_keys"]):
        raise ModelError(f"{checkpoint.folder} lacks {len(missing)} weights that the model has: {missing[0]}, ...")
    network.unused = unused_weights(network.model, checkpoint, loaded["unexpected_keys"])
    if network.unused.refused and unused == "refuse":
        raise ModelError(network.unused.refusal(checkpoint.folder, type(network.model).__name__))
    if checkpoint.adapter is not None:
        _attach(network.model, checkpoint.folder)
    return network


def _read(folder: Path, dtype: str, kernel: str, trust_remote_code: bool) -> tuple[Any, dict[str, Any]]:
    """Return the model of a folder, and transformers' report of what was loaded."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    count_layers(config)
    with _quiet():
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES.get(dtype, "auto"),
            attn_implementation=kernel,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    if not type(model).__module__.startswith("transformers."):
        _make_buffers(model)
    return model, loaded


@contextlib.contextmanager
def _bare(checkpoint: Checkpoint) -> Iterator[Path]:
    """Yield a folder with links to the files of a checkpoint, without its adapter, for the length of the block."""
    with tempfile.TemporaryDirectory() as beside:
        folder = Path(beside) / checkpoint.folder.resolve().name
        folder.mkdir()
        for path in checkpoint.folder.resolve().iterdir():
            if path.name != ADAPTER:
                (folder / path.name).symlink_to(path)
        yield folder


def _attach(model: Any, folder: Path) -> None:
    """Load the folder's adapter into its model; raise ModelError if a part of it is missing."""
    try:
        with _quiet():
            result = model.load_adapter(str(folder))
    except (ValueError, OSError, ImportError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(f"{folder}: its adapter cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    if lacking := sorted([*result.missing_keys, *result.unexpected_keys]):
        raise ModelError(f"{folder}: {len(lacking)} weights of its adapter do not fit: {lacking[0]}, ...")
    model.to(model.device).eval()


def _make_buffers(model: Any) -> None:
    """Give a model of the checkpoint's own code the buffers that its constructor makes and that are not saved.

    transformers 5 builds models without memory and then fills such buffers only in modules that it knows: the rotary
    frequencies of InternLM 2's code would be whatever lay in memory.
    """
    with no_init_weights():
        buffers = dict(type(model)(model.config).named_non_persistent_buffers())
    for name, buffer in model.named_non_persistent_buffers():
        buffer.data = buffers[name].to(buffer.device)


@torch.inference_mode()
def _whole_attention(network: StockNetwork, kernel: str, folder: Path) -> str | None:
    """Run the model once; if its kernel leaves out a part of the attention, switch to WHOLE and return why.

    Raise ModelError if that kernel was asked for by name.
    """
    dropped, entered = looked_at(network.model, network.one_token)
    parts, network.entering = dropped.get(network.kernel), summary(entered)
    if network.kernel == WHOLE and network.model.config.model_type == "falcon" and network.reads_mask:
        text = "adds this model's ALiBi twice (transformers puts it into the mask too)"
        raise ModelError(f"{folder}: kernel {WHOLE} {text}: leave out --kernel, or name {STOCK}")
    if not parts:
        return None
    why = f"{network.kernel} leaves out this model's {' and '.join(parts)}"
    if kernel != DEFAULT:
        raise ModelError(f"{folder}: kernel {why}: leave out --kernel, or name eager or fused")
    network.model.set_attn_implementation(WHOLE)
    network.one_token()
    return why


def eos_ids(model: Any, tokenizer: TextTokenizer) -> frozenset[int]:
    """Return every id that ends an answer: from generation config, model config and the tokenizer's end token."""
    end_ids = {tokenizer.eos[1]} if tokenizer.eos else set()
    for config in (getattr(model, "generation_config", None), model.config):
        ids = getattr(config, "eos_token_id", None)
        end_ids.update([ids] if isinstance(ids, int) else ids or [])
    return frozenset(end_ids)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"unknown device {name!r}: one of auto, cpu, cuda, cuda:0, ...") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {name!r}: this machine has no CUDA device; use cpu or auto")
    return device


def count_layers(config: Any) -> int:
    """Return the number of cache layers; raise ModelError for models that keep more than keys and values."""
    layers = DynamicCache(config=config).layers
    other = {type(layer).__name__ for layer in layers if type(layer) not in _KEPT}
    if other or not layers:
        kinds = ", ".join(sorted(other)) or "no layers"
        raise ModelError(f"model type {config.model_type!r} keeps state this backend cannot batch: {kinds}")
    return len(layers)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the library's progress bars inside the block."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
