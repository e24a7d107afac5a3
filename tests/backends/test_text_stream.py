from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import save_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from anchoreval.backends.answering import TextStream

TEXT = "naïve 🦜 emoji, 漢字 and e\u0301 \ufffd end"


@pytest.fixture
def by_bytes(tmp_path: Path) -> Tokenizer:
    return save_tokenizer(tmp_path)


@pytest.fixture
def by_words() -> Tokenizer:
    """Like Llama 2: the decoder drops the space before the first word of a text."""
    words = ["<unk>", "▁the", "▁answer", "▁is", "▁Paris", ":", "."]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def stream_of(tokenizer: Tokenizer, ids: list[int], prompt: list[int], stop: tuple[str, ...] = ()) -> TextStream:
    stream = TextStream(tokenizer, prompt, stop)
    for token in ids:
        if stream.push(token):
            break
    return stream


def test_text_is_the_same_as_decoding_everything_at_once(by_bytes: Tokenizer) -> None:
    ids = by_bytes.encode(TEXT).ids
    assert stream_of(by_bytes, ids, by_bytes.encode("before ").ids).finish() == TEXT


def test_no_broken_character_is_ever_shown_before_the_end(by_bytes: Tokenizer) -> None:
    stream = TextStream(by_bytes, [])
    for token in by_bytes.encode("a🦜b").ids:
        stream.push(token)
        assert stream.text in ("", "a", "a🦜", "a🦜b")
    assert stream.text == "a🦜b"


def test_an_answer_cut_inside_a_character_ends_as_the_decoder_prints_it(by_bytes: Tokenizer) -> None:
    ids = by_bytes.encode("a🦜").ids[:-1]
    assert stream_of(by_bytes, ids, []).finish() == by_bytes.decode(ids)


def test_the_space_between_prompt_and_answer_is_kept(by_words: Tokenizer) -> None:
    prompt, answer = [1, 2, 3], [4, 6]
    assert by_words.decode(answer).startswith("Paris")
    assert stream_of(by_words, answer, prompt).finish().startswith(" Paris")


@pytest.mark.parametrize("stop", [("🦜",), ("moji", "🦜 e"), ("nothing", " 🦜")])
def test_text_ends_before_the_first_stop_string(by_bytes: Tokenizer, stop: tuple[str, ...]) -> None:
    stream = stream_of(by_bytes, by_bytes.encode(TEXT).ids, [], stop)
    assert stream.stopped
    assert stream.finish() == TEXT[: min(TEXT.find(s) for s in stop if s in TEXT)]


def test_a_stop_string_is_seen_across_tokens_and_only_in_the_answer(by_bytes: Tokenizer) -> None:
    stream = stream_of(by_bytes, by_bytes.encode("x\n\ny").ids, by_bytes.encode("\n").ids, ("\n\n",))
    assert (stream.stopped, stream.finish()) == (True, "x")
