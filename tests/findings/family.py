"""docs/variants.md, and its part of docs/findings.md: the measured family of examples/family."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import report
from plan import Sizes

from findings.evidence import REPOSITORY

RESULTS = REPOSITORY / "leaderboards" / "results" / "family"
PLACE = "leaderboards/results/family"
#: arXiv 2411.13476, Table 5, LLaMA-2-7B, RULER: means over lengths of the differences of its rows, three data sets.
PAPER = {"full-fp32": ("`full`", "+3.3 to +3.8"), "intra-doc-fp32": ("`intra-doc`", "+1.8 to +2.6")}
ASKED = f"""# Trained variants

`make findings` makes this page from the records in [{PLACE}](../{PLACE}), and a test compares every character.
`make variants` measures: anchor-tiny (3.7 million parameters) is extended from 2,048 to 8,192 tokens on
generated text, in a float32 host in which training rounds RoPE alone, under every attention variant of
[training](training.md#variants) and a level of RoPE. Variants of a seed have the same weights, documents and order.
What was written down before the first step ([family.json](../{PLACE}/family.json)):

> """
HOW = """
A number is the mean log-probability of the right answer's tokens, in nats (in brackets: answers whose every token was
the most likely one), on {documents} held-out documents of each length with eight needles and six questions each
(`examples/family/needles.py`), at the RoPE level of the training. Intervals are of 95%, over seeds; Holm's correction
is over the arms of a table. Short lengths stand in every table, for there full attention pays. A seed draws documents
and their order from one store of two million tokens; two seeds have about one document in seven in common.

"""
NOT_SHOWN = """## What was not shown

- **A sink.** {sink} The paper's hypothesis is about models whose first token takes much of the attention; a model
  without that can miss the effect.
- **BF16 as it is trained.** The host is float32: weights, activations and sums do not round. Here BF16 is RoPE alone.
- **A floor at bf16.** `intra-doc-reset` was trained at fp32 and bf16-angle alone; two trainings at bf16 that differ by
  rounding may lie further apart than the floor, which is of fp32.
- **Size.** 3.7 million parameters, {tokens:,} tokens of training and 8,192 tokens of context, where the paper trains 7
  billion parameters on 1 to 2 billion tokens to 64K and 128K.
- **Other numbers.** One learning rate, constant, without warm-up; one length distribution for most arms, and generated
  text, on which the loss is that of answers and 3% of the other tokens.
- **Inference under a mask.** All models are evaluated with full causal attention, as in the paper.
- **Equal time on another machine.** Operations are counted; the seconds of the last table were taken on one processor
  with other work beside it.
- **No difference.** "Cannot tell" is not "no difference": beside it stands what would have been shown.
"""


@cache
def found(folder: Path = RESULTS) -> report.Found | None:
    """What is committed, None without a model of it."""
    if not (folder / "family.json").is_file():
        return None
    return report.read(folder, Sizes())


def page(folder: Path = RESULTS) -> str:
    """docs/variants.md."""
    family = found(folder)
    if family is None:
        return ASKED.split("What was written")[0] + "\nNothing is committed yet.\n"
    asked = json.loads((folder / "family.json").read_text("utf-8"))["question"]
    sentences = report.sentences(family)
    parts = [f"{ASKED}{asked}\n{HOW.format(documents=family.sizes.questions // 6)}"]
    parts.append(f"## In {_count(len(sentences))} sentences\n\n")
    parts += [f"{at}. {text}\n" for at, text in enumerate(sentences, 1)]
    parts.append(f"\n![Differences from intra-doc at fp32, by length](../{PLACE}/family.svg)\n\n")
    parts += [f"## {title}\n\n{text}\n\n" for title, text in report.tables(family) if text]
    parts.append(f"## Against the paper\n\n{against(family)}\n\n")
    parts.append(NOT_SHOWN.format(sink=_sink(family), tokens=family.sizes.equal_tokens * max(family.sizes.lengths)))
    return "".join(parts).rstrip() + "\n"


def section(folder: Path = RESULTS) -> str:
    """The part of docs/findings.md; empty without a model."""
    family = found(folder)
    if family is None:
        return ""
    said = [text for text in report.sentences(family) if text.startswith(("The control", "The floor", "The question"))]
    lines = "".join(f"- {text}\n" for text in said)
    return f"## Trained variants of anchor-tiny\n\n{lines}\n[Tables, picture, what was not shown](variants.md).\n"


def against(family: report.Found) -> str:
    """The signs of the paper's differences beside the signs here."""
    steps, parts = family.sizes.equal_tokens, []
    for baseline, (name, points) in PAPER.items():
        seeds = family.minus("anchor-fp32", baseline, family.longest, steps)
        if seeds.mean is not None:
            parts.append(
                f"`anchor` minus {name}: {points} points of RULER there (Table 5, LLaMA-2-7B, means over lengths), "
                f"{report.told(seeds)} nats per token here at {family.longest:,} tokens, equal tokens."
            )
    reset = report.floor(family, family.longest, steps)
    if reset.mean is not None:
        parts.append(
            f"`intra-doc-reset` minus `intra-doc`: +0.3 to +1.1 points there, {report.told(reset)} nats here, where "
            "both are one function but for rounding."
        )
    return "\n".join(f"- {part}" for part in parts)


def _sink(family: report.Found) -> str:
    before = family.first_token.get((report.BASE, 0, 0))
    after = [value for (arm, *_), value in family.first_token.items() if arm != report.BASE]
    if before is None or not after:
        return "anchor-tiny has no strong first-token sink."
    return (
        f"anchor-tiny has no strong one: over {family.sizes.first_token_tokens:,} tokens of prose the first token gets "
        f"{100 * before:.1f}% of the attention (mean over queries, heads and layers), and {100 * min(after):.1f} to "
        f"{100 * max(after):.1f}% after training."
    )


def _count(number: int) -> str:
    return ("no", "one", "two", "three", "four", "five")[number]
