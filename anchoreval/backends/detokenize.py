"""Turn token ids into text one token at a time, with stop strings; exact for characters that span tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_CONTEXT_TOKENS = 6  # enough for the longest UTF-8 character in byte tokens, and for a leading-space rule
_INCOMPLETE = "\ufffd"  # what a decoder prints for bytes that do not make a character yet


class Decodes(Protocol):
    """Turns token ids into text, without special tokens."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of `ids`."""
        ...


class TextStream:
    """The text that follows a prompt. It grows by `push` and is cut at the first stop string.

    The last tokens of the prompt are decoded along, so that a decoder that drops the space before the first word of a
    text does not drop it here. Text is released once the decoder prints no incomplete character; the two offsets are
    the scheme of vLLM's `detokenizer_utils.detokenize_incrementally`. `prompt_end` is the text of those last tokens of
    the prompt.
    """

    def __init__(self, decoder: Decodes, prompt_ids: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._ids = list(prompt_ids[-_CONTEXT_TOKENS:])
        self._settled = 0  # tokens before this one are no longer needed to decode
        self._read = len(self._ids)  # tokens before this one are in `text`
        self._stop = tuple(text for text in stop if text)
        self._longest = max(map(len, self._stop), default=0)
        self.prompt_end = decoder.decode(list(self._ids))
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> bool:
        """Add a token. Return True as soon as a stop string is complete; `text` is final then."""
        self._ids.append(token)
        self._release(final=False)
        return self.stopped

    def finish(self) -> str:
        """Return the whole text; an incomplete last character is printed as the decoder prints it."""
        if not self.stopped:
            self._release(final=True)
        return self.text

    def _release(self, final: bool) -> None:
        before = self._decoder.decode(self._ids[self._settled : self._read])
        now = self._decoder.decode(self._ids[self._settled :])
        if len(now) <= len(before) or (now.endswith(_INCOMPLETE) and not final):
            return
        seen = len(self.text)
        self.text += now[len(before) :]
        self._settled, self._read = self._read, len(self._ids)
        self._cut(max(0, seen - self._longest + 1))

    def _cut(self, start: int) -> None:
        stops = [at for at in (self.text.find(stop, start) for stop in self._stop) if at >= 0]
        if stops:
            self.text, self.stopped = self.text[: min(stops)], True
