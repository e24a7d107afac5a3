"""Generated training text: RULER-like documents of many lengths, from other seeds than those of any evaluation.

Lengths are drawn so that every octave from 256 tokens up holds about the same number of tokens. A loss is wanted on
answers and on a few other tokens, so that the language is not forgotten.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from anchoreval.training.reading import Document
from anchoreval.training.tiny.ruler import needles_example, ruler_example

SHORTEST, OTHERS = 256, 0.03


def generated(folder: Path, tokens: int, longest: int, seed: int = 0) -> Iterator[Document]:
    """Yield documents of `SHORTEST` to `longest` tokens, together about so many, for the tokenizer in a folder."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rng = random.Random(f"corpus-{seed}")
    while tokens > 0:
        length = _length(rng, longest)
        kind, make = rng.choice((("needles", needles_example), ("ruler", ruler_example)))
        example = make(random.Random(rng.getrandbits(64)), tokenizer, max(length, 500 if kind == "ruler" else 0))
        wanted = [weight >= 1.0 or rng.random() < OTHERS for weight in example.weights]
        tokens -= len(example.ids)
        yield Document(None, example.ids, kind, wanted=tuple(wanted))


def _length(rng: random.Random, longest: int) -> int:
    """Draw a length with density 1 / length^2 between the bounds: the same tokens in each octave."""
    low, high = 1 / longest, 1 / SHORTEST
    return round(1 / rng.uniform(low, high))
