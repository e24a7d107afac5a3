"""Find where a text may be cut so that the token counts of its parts add up, proved from the tokenizer's definition.

A cut stands before a single space that has a printable ASCII character on both sides. It is safe if no token can reach
across it and nothing left of it changes what happens right of it. The proof looks at every stage: the normalizer (it
must work character by character), the pre-tokenizer (a space may only be the first character of a match, or part of a
run of white space) or, if nothing splits at spaces, the vocabulary (no token may join a space with the character before
it), and the added tokens. A stage that is not known here proves nothing: then there are no cuts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PRINTABLE = frozenset(map(chr, range(0x21, 0x7F)))

LOCAL_NORMALIZERS = frozenset(
    ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer", "Nmt", "Prepend", "Precompiled")
)
SPACE_SPLITTERS = frozenset({"Whitespace", "WhitespaceSplit", "BertPreTokenizer", "Metaspace"})
HARMLESS_SPLITTERS = frozenset({"Digits", "Punctuation"})
#: Alternatives of a regular expression that match a single space only as their first character, or in white space.
SAFE_ALTERNATIVES = frozenset(Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").split("\n")) - {""}


def cut_after(definition: Mapping[str, Any]) -> frozenset[str]:
    """Return the characters after which a single space is a safe cut; an empty set if nothing can be proved.

    `definition` is the parsed tokenizer.json.
    """
    model, added = definition["model"], definition.get("added_tokens") or ()
    normalizers = _parts(definition.get("normalizer"), "normalizers")
    splitters = _parts(definition.get("pre_tokenizer"), "pretokenizers")
    marker = _space_marker(normalizers, splitters)
    splits = [_splits_at_space(part) for part in splitters]
    if marker is None or None in splits or model.get("dropout") or any(map(_takes_spaces, added)):
        return frozenset()
    after = PRINTABLE - {token["content"][-1:] for token in added}  # the text after one is normalized by itself
    if any(splits):
        return after
    if model.get("type", "BPE") != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return frozenset()
    if marker not in model["vocab"]:
        return frozenset()
    joined = re.compile(f"([^{re.escape(marker)}])(?={re.escape(marker)})")  # with a space after it, in some token
    return after - {char for token in model["vocab"] if marker in token[1:] for char in joined.findall(token)}


def _parts(stage: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    """Return the stages of a Sequence in order; a lone stage is a list of one, no stage an empty list."""
    if stage is None:
        return []
    if stage["type"] == "Sequence":
        return [part for each in stage[inner] for part in _parts(each, inner)]
    return [stage]


def _space_marker(normalizers: Iterable[Mapping[str, Any]], splitters: Iterable[Mapping[str, Any]]) -> str | None:
    """Return what a space looks like in the vocabulary; None if a normalizer is not known to be local."""
    marker = " "
    for part in normalizers:
        if part["type"] == "Replace":
            pattern = part["pattern"]
            if pattern == {"String": " "} and len(part["content"]) == 1:
                marker = part["content"]
            elif pattern.get("Regex") != " {2,}":  # that one touches nothing but runs of two or more spaces
                return None
        elif part["type"] not in LOCAL_NORMALIZERS:
            return None
    for part in splitters:
        if part["type"] == "ByteLevel":
            marker = "Ġ"
        elif part["type"] == "Metaspace":
            marker = part["replacement"]
    return marker


def _splits_at_space(part: Mapping[str, Any]) -> bool | None:
    """Return True if no word reaches over a single space, False if the stage does not split there, None if unknown.

    Of Split stages, a set of safe alternatives is known, isolated or removed, and a lone space, merged or isolated.
    """
    kind = part["type"]
    if kind == "ByteLevel":
        return bool(part.get("use_regex", True))
    if kind == "Metaspace":
        return bool(part.get("split", True))
    if kind in SPACE_SPLITTERS or kind in HARMLESS_SPLITTERS:
        return kind in SPACE_SPLITTERS
    if kind != "Split":
        return None
    pattern, behavior = part["pattern"], part["behavior"]
    if pattern.get("String") == " ":
        return behavior in {"MergedWithNext", "Isolated"} or None
    alternatives = _alternatives(pattern.get("Regex", "\x00"))
    if not alternatives <= SAFE_ALTERNATIVES or not (
        behavior == "Isolated" or (behavior == "Removed" and part.get("invert"))
    ):
        return None
    covers_text = any(r"\p{L}" in each or "A-Z" in each or r"\p{Ll}" in each for each in alternatives)
    return covers_text and r"\s+" in alternatives


def _alternatives(regex: str) -> set[str]:
    """Return the alternatives of a regular expression that stand outside every bracket."""
    out, depth, bracket, start, at = set(), 0, False, 0, 0
    while at < len(regex):
        char = regex[at]
        if char == "\\":
            at += 1
        elif bracket:
            bracket = char != "]"
        elif char == "[":
            bracket = True
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif char == "|" and depth == 0:
            out.add(regex[start:at])
            start = at + 1
        at += 1
    return out | {regex[start:]}


def _takes_spaces(token: Mapping[str, Any]) -> bool:
    """Return whether an added token can swallow the space of a cut, by stripping it or by holding a space inside."""
    text, stripped = token["content"], token["content"].strip(" ")
    strips = (token["lstrip"] and stripped[:1] in PRINTABLE) or (token["rstrip"] and stripped[-1:] in PRINTABLE)
    return bool(strips or " " in stripped or (stripped and stripped != text))
