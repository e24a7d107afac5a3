"""The key for a server, and the removal of the key from what a server says, in whatever form it comes back."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Iterator
from functools import cached_property

from anchoreval.errors import ModelError
from anchoreval.schema import Json

KEYS = ("ANCHOREVAL_API_KEY", "OPENAI_API_KEY")  # the first that is set is sent
_HIDDEN = "***"
_SECRET = 8  # characters: a shorter key (EMPTY, none, x) is no secret, and a word of answers
#: What may stand between two characters of a key that was broken into lines, or written as a string in a string.
#: Runs of backslashes are taken in one way alone, or a long one would be searched without end.
_GAP = r"(?:\s|\\{1,16}+[nrtu]?|[\u00ad\u200b-\u200d\u2060\ufeff]|%0[aAdD]|%20)*"


class Key:
    """A key, possibly empty; `hide` removes it from a text."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __bool__(self) -> bool:
        return bool(self.value)

    def __repr__(self) -> str:
        return f"Key({_HIDDEN!r})" if self else "Key('')"

    @property
    def headers(self) -> dict[str, str]:
        """The headers that carry the key."""
        return {"Authorization": f"Bearer {self.value}"} if self else {}

    @property
    def secret(self) -> bool:
        """Whether the key is long enough to be hidden in all that a server says, and not only in messages."""
        return len(self.value) >= _SECRET

    def hide(self, text: str) -> str:
        """Return the text without the key: plain, broken into lines, escaped for URLs, JSON or HTML, or in base64."""
        if not self:
            return text
        return self._forms.sub(_HIDDEN, text) if self.secret else text.replace(self.value, _HIDDEN)

    def hide_secret(self, text: str) -> str:
        """Return the text of an answer without the key, if the key is too long to be a word of answers."""
        return self.hide(text) if self.secret else text

    def hidden(self, said: Json) -> Json:
        """Return what a server said, each of its strings without the key."""
        return _mapped(said, self.hide) if self.secret else said

    @cached_property
    def _forms(self) -> re.Pattern[str]:
        forms = [_spelled(self.value), *(_GAP.join(map(re.escape, form)) for form in set(_in_base64(self.value)))]
        return re.compile("|".join(forms))


def key_of_environment() -> Key:
    """Return the key of the environment; raise ModelError if an HTTP header cannot hold it."""
    for name in KEYS:
        if key := os.environ.get(name, "").strip():
            if not (key.isascii() and key.isprintable() and " " not in key):
                raise ModelError(f"the key in {name} holds characters that no HTTP header takes")
            return Key(key)
    return Key("")


def _spelled(key: str) -> str:
    """Return a pattern of the key: each character plain or escaped, with anything that breaks lines between them."""
    return _GAP.join(
        rf"(?:{re.escape(letter)}|(?i:%{ord(letter):02x}|\\{{1,16}}+(?:u00|x){ord(letter):02x}"
        rf"|&\#{ord(letter)};|&\#x{ord(letter):x};))"
        for letter in key
    )


def _in_base64(key: str) -> Iterator[str]:
    """Yield the parts of base64 that follow from the key alone, whatever surrounds it, in both alphabets."""
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + key.encode()).decode().rstrip("=")
        inside = whole[-(-before * 8 // 6) : (before + len(key)) * 8 // 6]
        yield inside
        yield inside.translate(str.maketrans("+/", "-_"))


def _mapped(said: Json, change: Callable[[str], str]) -> Json:
    """Return the value with `change` applied to all its strings and keys; its nesting was bounded when it was read."""
    if isinstance(said, str):
        return change(said)
    if isinstance(said, list):
        return [_mapped(each, change) for each in said]
    if isinstance(said, dict):
        return {change(name): _mapped(value, change) for name, value in said.items()}
    return said
