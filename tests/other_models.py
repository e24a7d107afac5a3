"""Copies of the embedded model that differ from it in weights, or in words."""

from __future__ import annotations

import json
from pathlib import Path

TINY = Path(__file__).parents[1] / "models" / "anchor-tiny"


def other_weights(folder: Path) -> None:
    """Negate the first weights of the last output projection, which changes what the model says."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + size])
    start, end = entries[max(name for name in entries if "down_proj" in name)]["data_offsets"]
    for place in range(8 + size + start + 1, 8 + size + end, 2):  # the byte with the sign of a bf16
        content[place] ^= 0x80
    path.write_bytes(content)


def other_words(folder: Path) -> None:
    """Let two tokens of the vocabulary change places."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    one, two = sorted(words, key=words.__getitem__)[-2:]
    words[one], words[two] = words[two], words[one]
    path.write_text(json.dumps(content))
