"""Texts to a store of tokens: every form that is read, what is left out and counted, what is refused."""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anchoreval.errors import AnchorEvalError, ModelError, RunError, SourceError
from anchoreval.tokenizer import TextTokenizer, load_tokenizer
from anchoreval.training.reading import documents_in
from anchoreval.training.store import (
    Shape,
    Store,
    anchor_of,
    lines,
    open_store,
    pack,
    packed,
    require_same_tokenizer,
    shape_of,
)

BOS, EOS = 0, 1
TEXTS = ["One of the numbers is: 17.", "A long road, and a short one.", "The road is long."]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return load_tokenizer(Path(__file__).parents[2] / "models" / "anchor-tiny")


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ids_of(store: Store) -> list[list[int]]:
    return [store.piece(at, 0, int(row["length"])).ids.tolist() for at, row in enumerate(store.rows)]


def test_every_document_stands_in_the_store_once_with_its_end_token(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    data = jsonl(tmp_path / "a.jsonl", *({"text": text, "source": f"s{at % 2}"} for at, text in enumerate(TEXTS)))
    store = pack([data], tokenizer, tmp_path / "store")
    assert ids_of(store) == [[*tokenizer.encode(text), EOS] for text in TEXTS] and store.anchor == BOS
    assert [source["name"] for source in store.facts["sources"]] == ["s0", "s1"]
    assert store.piece(1, 2, 5).ids.tolist() == ids_of(store)[1][2:5]
    assert store.tags[1].tolist() == tokenizer.encode("s1")
    assert not list(tmp_path.glob("*.part"))


def test_all_forms_of_the_same_texts_are_the_same_data(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    datasets, pandas = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    rows = [{"text": text} for text in TEXTS]
    (tmp_path / "folder").mkdir()
    for at, text in enumerate(TEXTS):
        (tmp_path / "folder" / f"{at}.txt").write_text(text)
    pandas.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    ids = [tokenizer.encode(text) for text in TEXTS]
    ends = np.cumsum([len(each) for each in ids]).tolist()
    source = [{"start": end - len(each), "end": end} for end, each in zip(ends, ids, strict=True)]
    packed_rows = jsonl(
        tmp_path / "packed.jsonl", {"input_ids": [token for each in ids for token in each], "source": source}
    )
    places = [jsonl(tmp_path / "a.jsonl", *rows), str(tmp_path / "folder"), str(tmp_path / "a.parquet")]
    places += [str(tmp_path / "a.jsonl.gz"), str(tmp_path / "saved"), packed_rows]
    stores = [pack([place], tokenizer, tmp_path / f"store{at}") for at, place in enumerate(places)]
    assert len({store.facts["sha256"] for store in stores}) == 1


def test_the_text_of_a_special_token_is_text_and_an_anchor_in_front_of_packed_ids_is_taken_off(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    assert tokenizer.bos is not None
    data = jsonl(tmp_path / "a.jsonl", {"text": f"He wrote {tokenizer.bos[0]} here."}, {"input_ids": [BOS, 7, 8]})
    store = pack([data], tokenizer, tmp_path / "store")
    assert BOS not in ids_of(store)[0] and ids_of(store)[1] == [7, 8, EOS]
    with pytest.raises(SourceError, match="the anchor token 0 stands inside 1 of 2 documents"):
        inside = jsonl(tmp_path / "b.jsonl", {"input_ids": [5, BOS, 6]}, {"text": "Fine text."})
        pack([inside], tokenizer, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_tokenizer_whose_anchor_is_its_end_token_closes_no_document(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    eos = TextTokenizer(tokenizer._inner, {"eos_token": tokenizer.eos[0]} if tokenizer.eos else {})
    store = pack([jsonl(tmp_path / "a.jsonl", {"text": TEXTS[0]})], eos, tmp_path / "store")
    assert store.anchor == EOS and ids_of(store) == [tokenizer.encode(TEXTS[0])]
    with pytest.raises(ModelError, match="neither BOS nor EOS"):
        anchor_of(TextTokenizer(tokenizer._inner, {}))
    with pytest.raises(ModelError, match=r"'two words' is \d+ tokens"):
        anchor_of(tokenizer, "two words")


def test_short_documents_are_left_out_and_counted(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    data = jsonl(tmp_path / "a.jsonl", {"text": ""}, {"text": TEXTS[0]}, {"input_ids": []})
    store = pack([data], tokenizer, tmp_path / "store")
    assert len(store.rows) == 1 and store.facts["left_out"]["shorter than 2 tokens"] == 2
    with pytest.raises(SourceError, match=r"no document of two or more tokens \(1 shorter than 2 tokens\)"):
        pack([jsonl(tmp_path / "b.jsonl", {"text": ""})], tokenizer, tmp_path / "none")


def test_a_loss_is_wanted_on_the_tokens_that_begin_inside_its_spans(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    text = TEXTS[0]
    first = text.index("17")
    data = jsonl(tmp_path / "a.jsonl", {"text": text, "loss": [[first, first + 2]]}, {"text": TEXTS[1]})
    store = pack([data], tokenizer, tmp_path / "store")
    piece, other = store.piece(0, 0, int(store.lengths[0])), store.piece(1, 0, int(store.lengths[1]))
    assert piece.wanted is not None and tokenizer.decode(piece.ids[piece.wanted].tolist()).strip() == "17"
    assert other.wanted is not None and other.wanted[:-1].all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": 1}\n', r":1: no 'text' and no input_ids; it has text \(--text-key"),
        ('{"text": "a b"}\n[1]\n', ":2: not a record: each line is one JSON object"),
        ('{"text": "a b"}\n{"text": \n', ":2 is not JSON"),
        ('{"text": "\\ud800 x"}\n', ":1: text holds half a character"),
        ('{"input_ids": [1, 2], "source": [{"end": 5}]}\n', ":1: source: an end that is not between 0 and 2"),
        ('{"input_ids": [1, 99999999]}\n', "a token id 99999999 in text, the tokenizer has"),
        ('{"input_ids": [1, "x"]}\n', ":1: input_ids holds what is no token id"),
        ('{"text": "abc", "loss": [[2, 9]]}\n', ":1: loss: spans of characters"),
    ],
)
def test_a_wrong_row_is_one_line_with_its_place(
    tmp_path: Path, tokenizer: TextTokenizer, content: str, message: str
) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(SourceError, match=message):
        pack([str(tmp_path / "a.jsonl")], tokenizer, tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


def test_places_that_hold_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe")
    for place, message in (("a.bin", "not read here"), ("empty", "no file of training text"), ("latin.txt", "UTF-8")):
        with pytest.raises(SourceError, match=message):
            list(documents_in([str(tmp_path / place)]))


@pytest.mark.parametrize("harm", ["cut", "changed"])
def test_a_compressed_file_that_is_not_whole_is_not_taken_for_a_shorter_one(tmp_path: Path, harm: str) -> None:
    lines = "".join(json.dumps({"text": f"{number} {number * number}"}) + "\n" for number in range(5000))
    packed, path = gzip.compress(lines.encode()), tmp_path / "a.jsonl.gz"
    middle = len(packed) // 2
    path.write_bytes(packed[:middle] if harm == "cut" else packed[:middle] + b"\xff" * 64 + packed[middle + 64 :])
    with pytest.raises(SourceError, match=r"a\.jsonl\.gz(:\d+)?( is not JSON|: )"):
        list(documents_in([str(path)]))


def test_a_store_is_whole_or_said_not_to_be(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    data = jsonl(tmp_path / "a.jsonl", *({"text": text} for text in TEXTS))
    folder = tmp_path / "store"
    with pytest.raises(RunError, match=r"no store of tokens \(no store.json\)"):
        open_store(folder)
    pack([data], tokenizer, folder)
    with pytest.raises(RunError, match="is not empty"):
        pack([data], tokenizer, folder)
    content = (folder / "tokens.bin").read_bytes()
    (folder / "tokens.bin").write_bytes(content[:-2])
    with pytest.raises(RunError, match=r"not those that store\.json speaks of"):
        open_store(folder)
    (folder / "tokens.bin").write_bytes(content)
    other = TextTokenizer(tokenizer._plain, {})
    with pytest.raises(AnchorEvalError, match="tokens of another tokenizer"):
        require_same_tokenizer(open_store(folder), other)
    (folder / "store.json").write_text("{}")
    with pytest.raises(RunError, match="pack the data again"):
        open_store(folder)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "a.jsonl", *({"text": " ".join(TEXTS) * 20} for _ in range(200)))
    command = [sys.executable, "-m", "anchoreval", "data", "pack", "--data", data, "--tokenizer", "anchor-tiny"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "store")],
        capture_output=True,
        text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, 1 << 15)),
        check=False,
    )
    assert done.returncode == 1 and "cannot write" in done.stderr.splitlines()[-1], done.stderr
    assert not list(tmp_path.glob("store*"))


def test_statistics_say_beforehand_whether_masks_pay(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    rows = [{"text": TEXTS[at % 3] * (20 + at % 7)} for at in range(200)]
    store = pack([jsonl(tmp_path / "a.jsonl", *rows)], tokenizer, tmp_path / "store")
    model = json.loads((Path(__file__).parents[2] / "models" / "anchor-tiny" / "config.json").read_text())
    shape = shape_of(model)
    assert shape is not None and shape_of({}) is None
    windows = [packed(store, length, shape) for length in (4096, 8192)]
    assert windows[0].density > windows[1].density > 0 and windows[0].step and windows[0].step < windows[0].attention
    text = "\n".join(lines(store, shape))
    assert text.startswith("200 documents") and "windows of   4,096" in text and "of the step" in text


def test_operations_are_those_of_the_formula_on_three_layouts() -> None:
    shape = Shape(layers=2, attention=64, weights=1000)
    for lengths in ([8], [3, 5], [2, 2, 4]):
        pairs = sum(sum(range(1, length + 1)) for length in lengths)
        assert shape.products(np.array(lengths)) == 3 * 2 * 2 * 64 * 2 * pairs  # 3 passes, 2 products of 2 operations
        assert shape.linear(8) == 3 * 2 * 1000 * 8
