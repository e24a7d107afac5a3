"""`anchoreval doctor`: a checkpoint's RoPE precision, trained length and usable arms, measured on the loaded model."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchoreval.arms.configuration import positions_of, rope_types, ropes_of, stated
from anchoreval.errors import ModelError

if TYPE_CHECKING:
    from anchoreval.cards import ModelCard
    from anchoreval.prompt import Anchor
    from anchoreval.schema import Json
    from anchoreval.tokenizer import TextTokenizer

SINK_TOKENS = 512
ORIGINAL = "original_max_position_embeddings"
#: Scalings that some models are trained with and that users also put on models that were never trained with them.
SCALED_AFTERWARDS = frozenset({"yarn", "linear", "dynamic"})
Facts = dict[str, Any]
_ENGINE = (
    "versions", "device", "dtype", "model_type", "parameters", "weights_sha256", "kernel", "kernel_why",
    "unused_weights",
)  # fmt: skip


def examine(
    model: str,
    max_length: int | None = None,
    dtype: str | None = None,
    device: str = "auto",
    *,
    kernel: str = "default",
    trust_remote_code: bool = False,
    anchor: Anchor = "auto",
) -> Facts:
    """Return all facts of a checkpoint as JSON values; `anchor="none"` measures what a run without the anchor sees.

    Raise AnchorEvalError if the checkpoint cannot be loaded.
    """
    from anchoreval.backends import open_backend
    from anchoreval.backends.hf.load import StockNetwork
    from anchoreval.diagnostics.doctor import checks
    from anchoreval.model import Model

    opened = Model.of(model)
    card, tokenizer = opened.card, opened.tokenizer
    loading: dict[str, Any] = {"device": device, "kernel": kernel, "trust_remote_code": trust_remote_code}
    backend: Any = open_backend("hf", opened.checkpoint, dtype=dtype or card.dtype, **loading)
    try:
        network, described = backend.model, backend.describe()
        rope, config = described["rope"], network.config.get_text_config(decoder=True)
        ids = prose_ids(tokenizer, min(SINK_TOKENS, described["max_length"] or SINK_TOKENS), anchor)
        stock = StockNetwork(network, next(network.parameters()).device)
        return {
            "name": opened.name,
            "path": str(Path(card.checkpoint)),
            "length": trained_length(opened.config, card, max_length),
            "anchor": anchor_facts(tokenizer, anchor),
            "engine": {key: described[key] for key in _ENGINE},
            "rope": {**rope, "parameters": getattr(config, "rope_parameters", None) if rope["has_rope"] else None},
            "selftest": described["rope_selftest"],
            "inv_freq_error_after_cast": checks.after_cast(network),
            "detected_by_dtype": checks.detected_levels(network) if rope["has_rope"] else {},
            "resolved": checks.resolved(network, checks.CEILING),
            "resolved_ceiling": checks.CEILING,
            "resolved_radians": {"fine": checks.FINE, "coarse": checks.COARSE},
            "sink": {"tokens": len(ids), **checks.sinks(stock, ids), "even": _even(len(ids))},
            "layers": checks.layer_kinds(network.config),
            "arms": checks.allowed_arms(backend, anchor),
        }
    finally:
        backend.close()


def _even(length: int) -> float:
    """Return the first token's share of attention if every query in the second half attended to all keys evenly."""
    rows = range(length // 2, length)
    return sum(1 / (row + 1) for row in rows) / len(rows)


def prose_ids(tokenizer: TextTokenizer, length: int, anchor: Anchor = "auto") -> list[int]:
    """Return `length` token ids: the anchor token, unless `anchor` is none, and generated prose."""
    from anchoreval.prompt import anchor_token
    from anchoreval.texts.prose import sentences

    front = [anchor_token(tokenizer)[1]] if anchor == "auto" else []
    ids, text, source = list[int](), "", sentences(0)
    while len(ids) < length - len(front):
        text = " ".join([text, *(next(source) for _ in range(32))]).strip()
        ids = tokenizer.encode(text)
    return [*front, *ids[: length - len(front)]]


def trained_length(config: Mapping[str, Json], card: ModelCard, asked: int | None) -> Facts:
    """Return the `trained` length in tokens and its `source`; never max_position_embeddings times a factor.

    The first of these that is stated counts: the user's --max-length, the model card, the configuration. From the
    configuration it is max_position_embeddings; but under a scaling that is also switched on without training
    (SCALED_AFTERWARDS) it is original_max_position_embeddings if stated. `meaning` explains the two numbers in words.
    """
    groups, kinds = ropes_of(config), rope_types(config)
    positions = positions_of(config) or stated(config, "n_positions")
    originals = [stated(config, ORIGINAL), *(group.get(ORIGINAL) for group in groups)]
    original = next((tokens for tokens in originals if tokens), None)
    afterwards = original is not None and bool(kinds & SCALED_AFTERWARDS)
    sources = {
        "--max-length": asked,
        "the model card": card.max_length,
        ORIGINAL: original if afterwards else None,
        "max_position_embeddings": positions,
    }
    trained, source = next(((value, name) for name, value in sources.items() if value), (None, None))
    factor = next((group["factor"] for group in groups if group.get("factor")), None)
    scaled, meaning = "/".join(sorted(kinds - {"default"})), None
    if afterwards:
        meaning = (
            f"original {original:,} is what was trained before {scaled} scaling, which may be switched on without "
            f"training; if {positions:,} was trained too, say so with --max-length"
        )
    elif original is not None:
        start = f"original {original:,} is what {scaled or 'its'} scaling starts from"
        meaning = f"{start}; {positions:,} is where it was trained to"
    return {
        "trained": trained, "source": source, "stated": positions, "original": original, "factor": factor,
        "meaning": meaning,
    }  # fmt: skip


def anchor_facts(tokenizer: TextTokenizer, anchor: Anchor = "auto") -> Facts:
    """Return the anchor token, and how often tokenizer and chat template put it in front by themselves.

    Under `none` no token is the anchor (`id` is None).
    """
    from anchoreval.prompt import anchor_token

    if anchor == "none":
        front = len(tokenizer.front)
        return {"text": None, "id": None, "kind": None, "from_tokenizer": front, "from_tokenizer_and_template": None}
    text, number = anchor_token(tokenizer)
    kind = "BOS" if tokenizer.bos else "EOS"
    alone = _leading(tokenizer.encode("x", special_tokens=True), number)
    opening = _opening(tokenizer)
    both = None if opening is None else _leading(tokenizer.encode(f"{opening}x", special_tokens=True), number)
    return {"text": text, "id": number, "kind": kind, "from_tokenizer": alone, "from_tokenizer_and_template": both}


def _opening(tokenizer: TextTokenizer) -> str | None:
    """Return the chat template's text before the user's turn, with its own BOS, or None without a usable template."""
    from anchoreval.prompt import rendered

    try:
        return rendered(tokenizer).opening
    except ModelError:
        return None


def _leading(ids: list[int], anchor: int) -> int:
    return next((at for at, token in enumerate(ids) if token != anchor), len(ids))


def page(facts: Facts) -> str:
    """Return the facts as one page of text."""
    engine, length, rope = facts["engine"], facts["length"], facts["rope"]
    versions = f"transformers {engine['versions']['transformers']}, torch {engine['versions']['torch']}"
    lines = [
        f"{facts['name']}: {engine['model_type']}, {engine['parameters']:,} parameters, {engine['dtype']}",
        f"computed by  {versions}",
        *_listed("kernel", f"{engine['kernel']}: {engine['kernel_why']}" if engine["kernel_why"] else engine["kernel"]),
        f"trained at   {length['trained']} tokens, from {length['source']}; stated: {length['stated']} positions",
    ]
    if length["meaning"]:
        lines += _listed("", length["meaning"])
    if length["factor"]:
        lines.append(f"             factor {length['factor']} is not multiplied in; some engines do")
    layers, sink = facts["layers"], facts["sink"]
    kinds = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in layers["kinds"].items())
    window = f", window {layers['sliding_window']} tokens" if layers["sliding_window"] else ""
    without = f", no RoPE in layers {layers['without_rope']}" if layers["without_rope"] else ""
    lines += [_anchor_line(facts["anchor"]), f"layers       {kinds}{window}{without}", ""]
    if rope["has_rope"]:
        lines += _rope_lines(facts)
    else:
        lines.append("RoPE         none found: positions are not rotated; only `native` runs")
    if sink["by_layer"] is None:
        lines += ["", *_listed("first token", f"share of attention not measured: {sink['why']}")]
    else:
        shares = " ".join(f"{share:.0%}" for share in sink["by_layer"])
        lines += ["", f"first token  share of attention by layer: {shares}"]
        lines.append(f"             {sink['tokens']} tokens of prose, later half; even: {sink['even']:.1%}")
    return "\n".join([*lines, "", *_arm_lines(facts["arms"])])


def _anchor_line(anchor: Facts) -> str:
    if anchor["id"] is None:
        count = anchor["from_tokenizer"]
        return f"anchor       none, as asked; what the tokenizer itself puts in front ({count} tokens) is left out too"
    line = f"anchor       {anchor['text']!r} ({anchor['kind']}, id {anchor['id']})"
    line += f"; the tokenizer puts {anchor['from_tokenizer']} in front"
    both = anchor["from_tokenizer_and_template"]
    if both is None:
        return f"{line}, no chat template"
    return f"{line}, with its chat template {both}{': TWICE' if both > 1 else ''}"


def _rope_lines(facts: Facts) -> list[str]:
    rope, selftest = facts["rope"], facts["selftest"]
    kinds = ", ".join(f"{m['kind']} {'+'.join(sorted(set(m['rope_types'].values())))}" for m in rope["rotary"])
    given = json.dumps(rope["parameters"], sort_keys=True)
    damaged = "; ".join(f"{b['name']} {b['dtype']}, off by {b['max_relative_error']:.1e}" for b in rope["damaged"])
    levels = ", ".join(f"{dtype}: {level or 'no named level'}" for dtype, level in facts["detected_by_dtype"].items())
    survived = "DAMAGED: " + damaged if damaged else "sound as loaded"
    if unchecked := "; ".join(f"{path} cannot be checked ({why})" for path, why in rope["unchecked"].items()):
        survived = unchecked
    error = facts["inv_freq_error_after_cast"]
    cast = "" if error is None else f"; model.to(torch.bfloat16) would leave it off by {error:.1e}"
    failed = f"FAILED: {selftest['why']}" if "why" in selftest else "FAILED"
    lines = [
        *_listed("RoPE", kinds),
        *_listed("", given if len(given) <= 320 else f"{given[:317]}..."),
        *_listed("inv_freq", f"{survived}{cast}"),
        f"computes     {rope['detected'] or 'no named level'} as loaded; by dtype: {levels}",
        *_listed("self-test", "passed" if selftest["ok"] else failed),
        "angles       off by at most 2^-9 rad (what a BF16 table rounds) up to | by 0.5 rad up to position",
    ]
    groups: dict[tuple[int, int], list[str]] = {}
    for level, last in facts["resolved"].items():
        groups.setdefault((last["fine"], last["coarse"]), []).append(level)
    top = facts["resolved_ceiling"] - 1
    for ends, levels_of in groups.items():
        fine, coarse = (f"{'over ' if end == top else ''}{end:,}" for end in ends)
        lines.append(f"             {fine:>15} | {coarse:>15}   {', '.join(levels_of)}")
    return lines


def _arm_lines(arms: Mapping[str, Facts]) -> list[str]:
    stock = [name for name, arm in arms.items() if arm["allowed"] and arm["kernel"] != "fused"]
    fused = [name for name, arm in arms.items() if arm["allowed"] and arm["kernel"] == "fused"]
    lines = _listed("arms", ", ".join(stock)) + (_listed("with fused", ", ".join(fused)) if fused else [])
    why: dict[str, list[str]] = {}
    for name, arm in arms.items():
        if not arm["allowed"]:
            why.setdefault(arm["why"], []).append(name)
    for reason, names in why.items():
        lines += _listed("not", f"{', '.join(names)}: {reason}")
    return lines


def _listed(head: str, text: str) -> list[str]:
    """Wrap the text to lines of at most 110 characters with `head` in the margin."""
    return textwrap.wrap(text, 110, initial_indent=f"{head:<13}", subsequent_indent=" " * 13, break_long_words=False)
