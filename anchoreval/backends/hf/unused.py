"""Sort weights of a checkpoint that the loaded architecture has no place for: harmless by a rule, or refused.

transformers leaves them out of the computation with a table on stderr. Here each is of one of these kinds:

  * `ignored`: weights that the architecture itself names as not its own (`_keys_to_ignore_on_load_unexpected`: the
    layers of DeepSeek-V3 and GLM-4.5 that predict further tokens); a whole decoder layer among them is still refused;
  * `buffers`: tensors that older versions saved and the model makes anew: rotary frequencies (their error is reported),
    `position_ids`, the triangular masks of GPT-2, GPT-NeoX and GPT-J;
  * `other inputs`: towers and projectors of images, sound and video, which a prompt of text does not reach;
  * `refused`: everything else, for instance biases of a "llamafied" model or layers beyond num_hidden_layers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from anchoreval.arms.precision import frequency_buffers
from anchoreval.model.checkpoint import Checkpoint
from anchoreval.schema import Json

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
