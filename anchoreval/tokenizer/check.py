"""Compare a tokenizer with what transformers makes of the same files, once per set of files.

`AutoTokenizer` of transformers 5 builds some classes (LlamaTokenizer, GPT2Tokenizer, Qwen2Tokenizer, ...) anew from the
vocabulary, with rules of its own, and leaves out the rules that stand in tokenizer.json. If both give the same tokens
for the probes, nothing is reported. tokenizer.json is right if transformers' tokens lose characters and its own keep
all (byte-level copies of DeepSeek that name LlamaTokenizer lose every blank). It also holds if only rare text differs
(SmolLM2 names GPT2Tokenizer, which does not know its rule for digits). Any other difference is an error that names its
place.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from anchoreval.errors import ModelError
from anchoreval.tokenizer.child import kept_answer
from anchoreval.tokenizer.files import CONFIG, FILES

if TYPE_CHECKING:
    from anchoreval.tokenizer import TextTokenizer

#: Text such as stands in every prompt: a difference here is an error.
ORDINARY = "\n".join(
    (
        "The quick brown fox isn't here; they're 'quoted', can't, WON'T, I'll, we've. Is it? Yes!",
        "Numbers 7 42 1999 1234567 3.14159 1,000,000 x1y2 0xFF",
        "a  b   c    d\te\t\tf \n\n\n  g\r\nh \n \n i",
        "Straße naïve café Ångström Привет мир ΑΒΓ αβγ",
        "中文和日本語のテキスト 한국어 עברית العربية — “q” ‘r’ … 🙂 ✓",
        "def f(x_1, *args):\n    return {'k': [x_1**2, \"s\"]}  # x != y -> z\n\tfor(i=0;i<n;++i){a[i]+=1;}",
        "https://example.org/a?b=c&d=e#f user@host.tld C:\\dir <b>bold</b> <|x|> [INST] ▁ Ġ ##",
        " leading and trailing ",
    )
)
#: Rare text: if only this differs, the rules of tokenizer.json hold, and the difference is reported.
RARE = "１２３ ٣٤ ½ ² a  7 x   1999 cafe\u0301 ﬁ İstanbul ไทย हिन्दी 👩\u200d👩\u200d👧 🇩🇪 « » \u00a0nb\u200bz\u3000w"
PROBES = (ORDINARY, RARE)
_SECONDS, _MEGABYTES = 60, 4096  # to read the files and two pages of text; the largest vocabularies take 3 s and 1 GB
_MOST = 2000  # special tokens in the second probe
_OF_CONFIG = ("model_type", "tokenizer_class", "model_name", "_name_or_path", "transformers_version", "auto_map")


@dataclass(frozen=True, slots=True)
class Reading:
    """How transformers reads the same files, in `words`, and the special tokens that it names.

    `differs` is true if transformers' tokens differ and are wrong; `words` then say so in one line.
    """

    words: str
    special: Mapping[str, str] = field(default_factory=dict)
    differs: bool = False


def compared(own: TextTokenizer, inner: tokenizers.Tokenizer, file: Path) -> Reading:
    """Return transformers' reading of the folder of a tokenizer.json; raise ModelError if its tokens differ."""
    folder = file.parent
    if not any((folder / name).is_file() for name in (*FILES, "config.json")):
        return Reading("not compared: tokenizer.json stands alone")
    # a text in which every added token stands between words, blanks and line ends
    added = [token.content for _, token in sorted(inner.get_added_tokens_decoder().items())][:_MOST]
    texts = [ORDINARY, "".join(f"a {text} b{text}c\n{text}\n" for text in added), RARE]
    job = {"do": "read", "folder": str(folder), "texts": texts, "seconds": _SECONDS, "megabytes": _MEGABYTES}
    answer = kept_answer(job, _facts(file, texts))
    if "died" in answer:  # this process would die too
        raise ModelError(f"{folder}: its tokenizer cannot read a page of text: {answer['error'][:300]}")
    if "error" in answer:
        return Reading(f"not compared: {answer['error']}")
    answer = answer | {"texts": texts}
    special = {name: text for name, text in answer["special"].items() if inner.token_to_id(text) is not None}
    for at, text in enumerate(texts):
        ids, theirs = own.encode(text), answer["ids"][at]
        if ids != theirs:
            pairs = enumerate(zip(ids, theirs, strict=False))
            first = next((i for i, (a, b) in pairs if a != b), min(len(ids), len(theirs)))
            offsets = inner.encode(text, add_special_tokens=False).offsets
            start = offsets[first][0] if first < len(offsets) else len(text)
            tokens = [inner.id_to_token(number) for number in ids[first : first + 4]]
            others = answer["tokens"][at][first : first + 4]
            where = f"{text[start : start + 16]!r} is {tokens} in tokenizer.json, {others} there"
            return Reading(_judged(own, inner, folder, answer, at, where), special, differs=True)
    return Reading(f"{answer['class']}, the same tokens", special)


def _judged(
    own: TextTokenizer, inner: tokenizers.Tokenizer, folder: Path, answer: Mapping[str, Any], at: int, where: str
) -> str:
    """Return in one line why tokenizer.json is right; raise ModelError if that cannot be told."""
    text = answer["texts"][at]
    decoded = own.decode(own.encode(text), skip_special_tokens=False), answer["decoded"][at]
    ours, theirs = ((Counter(text) - Counter(kept)).total() for kept in decoded)  # characters that are missing
    if theirs - ours > len(text) // 20:  # a seventh of the text is blanks; a normalised letter is no loss
        return (
            f"transformers' {answer['class']} leaves rules of tokenizer.json out and loses {theirs} characters of a "
            "text: tokenizer.json is read as it stands"
        )
    if at == 2 or (at == 1 and _prepends(inner)):
        what = "reads rare text otherwise" if at == 2 else "puts other blanks behind special tokens"
        return f"transformers' {answer['class']} {what}; tokenizer.json is read as it stands: {where}"
    raise ModelError(
        f"{folder}: transformers' {answer['class']} reads other tokens than tokenizer.json holds: {where}; "
        f'where tokenizer.json is right, set "tokenizer_class": "TokenizersBackend" in {CONFIG}'
    )


def _facts(file: Path, texts: Sequence[str]) -> dict[str, Any]:
    """Return, for the cache key, everything that the tokens of the files follow from."""
    folder = file.parent
    facts: dict[str, Any] = {"tokenizer.json": hashlib.sha256(file.read_bytes()).hexdigest(), "texts": list(texts)}
    for name in FILES:
        content = (folder / name).read_text(encoding="utf-8") if (folder / name).is_file() else None
        facts[name] = content
        if name == CONFIG and content is not None:
            facts[name] = {key: value for key, value in json.loads(content).items() if key != "chat_template"}
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        facts["config.json"] = {name: config.get(name) for name in _OF_CONFIG}
    except (OSError, ValueError, AttributeError):
        facts["config.json"] = None
    return facts | {"versions": [metadata.version(name) for name in ("transformers", "tokenizers")]}


def _prepends(inner: tokenizers.Tokenizer) -> bool:
    """Return whether tokenizer.json puts a blank before stretches of text, as sentencepiece does."""
    rules = json.loads(inner.to_str())
    parts = [part for part in (rules["normalizer"], rules["pre_tokenizer"]) if part]
    parts += [inside for part in parts for inside in part.get("normalizers") or part.get("pretokenizers") or ()]
    return any(part["type"] == "Prepend" or part.get("prepend_scheme") in ("always", "first") for part in parts)
