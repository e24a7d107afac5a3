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
from typing import Any

PRINTABLE = frozenset(map(chr, range(0x21, 0x7F)))

LOCAL_NORMALIZERS = frozenset(
    {
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Lowercase",
        "StripAccents",
        "BertNormalizer",
        "Nmt",
        "Prepend",
        "Precompiled",
    }
)
SPACE_SPLITTERS = frozenset({"Whitespace", "WhitespaceSplit", "BertPreTokenizer", "Metaspace"})
HARMLESS_SPLITTERS = frozenset({"Digits", "Punctuation"})

_CONTRACTIONS = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}
_PLAIN = {
    r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\p{L}+",
    r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r"\p{N}", r"\p{N}+", r"\p{N}{1,3}",
    r"[0-9]", r"[0-9]+", r"\d", r"\d+", r"[0-9][0-9][0-9]", r"\d{1,3}",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", r" ?[\p{P}\p{S}]+[\r\n]*", r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+", r"[一-龥぀-ゟ゠-ヿ]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
}  # fmt: skip
_CAPITALS = {r"[A-Z](?=[A-Z])", r"(?<=[A-Z])[A-Z]"}
_BLANK = {r"\s+(?!\S)", r"\s+", r"\s*[\r\n]+", r"\s*[\r\n]", r"\s*[\r\n]+(?!\S)", r"[\r\n]"}
_GROUPED = {r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"(?i:[sdmt]|ll|ve|re)", r"'(?i:[sdmt]|ll|ve|re)"}
SAFE_ALTERNATIVES = frozenset(_CONTRACTIONS | _PLAIN | _CAPITALS | _BLANK | _GROUPED)


def cut_after(definition: Mapping[str, Any]) -> frozenset[str]:
    """Return the characters after which a single space is a safe cut; an empty set if nothing can be proved.

    `definition` is the parsed tokenizer.json.
    """
    model = definition["model"]
    marker = _space_marker(definition)
    if marker is None or model.get("dropout") or not _added_tokens_are_whole(definition.get("added_tokens") or ()):
        return frozenset()
    splits = [_splits_at_space(part) for part in _parts(definition.get("pre_tokenizer"), "pretokenizers")]
    if any(verdict is None for verdict in splits):
        return frozenset()
    after = PRINTABLE - _last_characters(definition.get("added_tokens") or ())
    if any(splits):
        return after
    if model.get("type", "BPE") != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return frozenset()
    if marker not in model["vocab"]:
        return frozenset()
    return after - _joined_to_space(model["vocab"], marker)


def _parts(stage: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    """Return the stages of a Sequence in order; a lone stage is a list of one, no stage an empty list."""
    if stage is None:
        return []
    if stage["type"] == "Sequence":
        return [part for each in stage[inner] for part in _parts(each, inner)]
    return [stage]


def _space_marker(definition: Mapping[str, Any]) -> str | None:
    """Return what a space looks like in the vocabulary; None if a normalizer is not known to be local."""
    marker = " "
    for part in _parts(definition.get("normalizer"), "normalizers"):
        if part["type"] == "Replace":
            pattern = part["pattern"]
            if pattern == {"String": " "} and len(part["content"]) == 1:
                marker = part["content"]
            elif not _only_space_runs(pattern):
                return None
        elif part["type"] not in LOCAL_NORMALIZERS:
            return None
    for part in _parts(definition.get("pre_tokenizer"), "pretokenizers"):
        if part["type"] == "ByteLevel":
            marker = "Ġ"
        elif part["type"] == "Metaspace":
            marker = part["replacement"]
    return marker


def _only_space_runs(pattern: Mapping[str, str]) -> bool:
    """Return whether a replacement touches nothing but runs of two or more spaces."""
    return pattern.get("Regex") == " {2,}"


def _splits_at_space(part: Mapping[str, Any]) -> bool | None:
    """Return True if no word reaches over a single space, False if the stage does not split there, None if unknown."""
    kind = part["type"]
    if kind == "ByteLevel":
        return bool(part.get("use_regex", True))
    if kind == "Metaspace":
        return bool(part.get("split", True))
    if kind in SPACE_SPLITTERS:
        return True
    if kind in HARMLESS_SPLITTERS:
        return False
    if kind == "Split":
        return _split_verdict(part)
    return None


def _split_verdict(part: Mapping[str, Any]) -> bool | None:
    """Return the verdict of `_splits_at_space` for a Split stage.

    Known are a set of safe alternatives, isolated or removed, and a lone space, merged or isolated.
    """
    pattern, behavior = part["pattern"], part["behavior"]
    if pattern.get("String") == " ":
        return behavior in {"MergedWithNext", "Isolated"} or None
    alternatives = _alternatives(pattern.get("Regex", "\x00"))
    if not alternatives <= SAFE_ALTERNATIVES:
        return None
    covers_text = any(r"\p{L}" in each or "A-Z" in each or r"\p{Ll}" in each for each in alternatives)
    if behavior == "Isolated":
        return covers_text and r"\s+" in alternatives
    if behavior == "Removed" and part.get("invert"):
        return covers_text and r"\s+" in alternatives
    return None


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


def _joined_to_space(vocabulary: Iterable[str], marker: str) -> frozenset[str]:
    """Return the characters that some token joins with a space after them."""
    pairs = re.compile(f"([^{re.escape(marker)}])(?={re.escape(marker)})")
    return frozenset(char for token in vocabulary if marker in token[1:] for char in pairs.findall(token))


def _last_characters(added: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the last characters of added tokens: the text after an added token is normalized by itself."""
    return frozenset(token["content"][-1:] for token in added)


def _added_tokens_are_whole(added: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether no added token can swallow the space of a cut, by stripping it or by holding a space inside."""
    for token in added:
        text = token["content"]
        stripped = text.strip(" ")
        if token["lstrip"] and stripped[:1] in PRINTABLE:
            return False
        if token["rstrip"] and stripped[-1:] in PRINTABLE:
            return False
        if " " in stripped or (stripped and stripped != text):
            return False
    return True
