"""BABILong's prompts against upstream's own, samples made to a length, and the published ones as they are."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from babilong_files import QUESTIONS, STORIES, babi_text, published_rows, write_babi, write_published

from anchoreval.cards import load_tasks
from anchoreval.errors import LengthError, SourceError
from anchoreval.schema import Sample, Wrap
from anchoreval.suites import Recipe, generators, scorers
from anchoreval.suites.babilong.generate import labels, opening, prompt_of
from anchoreval.suites.babilong.published import REVISION, name_at, names
from anchoreval.suites.babilong.stories import parse, stories
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "babilong.json").read_text("utf-8"))
TASKS = load_tasks()[0]
CHAT = Wrap("<user>", "</user>\n<model>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(write_babi(tmp_path_factory.mktemp("babilong")), {"0k": 20, "1k": 300})


@pytest.fixture
def sources(folder: Path) -> Sources:
    return Sources(folder, haystack="generated", cache=folder / "none", offline=True)


def samples(
    address: str, length: int, count: int, tokenizer: TextTokenizer, sources: Sources, **changes: Any
) -> list[Sample]:
    task = TASKS[address]
    recipe = Recipe(task.address, length, task.max_new_tokens, count, task.args, tokenizer, sources, **changes)
    return list(generators()[task.generator](recipe))


def context(sample: Sample) -> str:
    (text,) = (segment.text for segment in sample.segments if segment.role == "document")
    return text


@pytest.mark.parametrize("data", QUESTIONS)
def test_the_prompt_of_every_task_is_upstreams_to_the_character(data: Any) -> None:
    text = "".join(segment.text for segment in prompt_of(data, GOLDEN["context"], GOLDEN["question"], Wrap()))
    expected = GOLDEN["prompts"][data]
    assert len(text) == expected["characters"], text
    assert hashlib.sha256(text.encode()).hexdigest() == expected["sha256"], text


def test_a_story_is_read_as_upstream_reads_it() -> None:
    lines = [
        "1 Mary moved to the attic.", "2 John went there.", "3 Where is Mary? \tattic\t1",
        "4 Mary left.", "5 Where is John? \tcellar\t2 4", "1 Bill slept.", "2 Who slept? \tBill\t1",
    ]  # fmt: skip
    first, second, third = parse("\n".join(lines), "x")
    assert first.facts == ("Mary moved to the attic.", "John went there.") and first.supporting == (0,)
    assert second.facts == (*first.facts, "Mary left.") and second.supporting == (1, 2), "no earlier question"
    assert (second.question, second.answer) == ("Where is John? ", "cellar")
    assert third.facts == ("Bill slept.",) and third.supporting == (0,)
    assert (first.number, second.number, third.number) == (1, 1, 2)


def test_a_file_that_is_not_babis_names_its_line() -> None:
    with pytest.raises(SourceError, match=r"some\.txt:2: not a line of bAbI"):
        list(parse("1 Mary left.\nOnce upon a time\n", "some.txt"))


@pytest.mark.parametrize("data", ["qa1", "qa8", "qa19"])
def test_facts_stand_whole_and_in_order_between_sentences_where_the_sample_says(
    data: str, tokenizer: TextTokenizer, sources: Sources
) -> None:
    known = stories(sources, data)
    for sample in samples(f"babilong/{data}", 1500, 6, tokenizer, sources):
        story, text = known[sample.facts["story"]], f"{context(sample)} "
        starts, start = [], 0
        for fact in story.facts:
            start = text.index(fact, start)
            assert (start == 0 or text[start - 1] == " ") and text[start + len(fact)] == " "
            starts.append(start)
            start += len(fact)
        needed = [starts[at] for at in story.supporting]
        assert sample.facts["depths"] == [round(start / (len(text) - 1), 4) for start in needed]
        opening = sample.segments[0].text
        assert sample.facts["token_positions"] == [tokenizer.count(opening + text[:start]) for start in needed]
        assert sample.references == (story.answer,) and sample.facts["question"] == story.question
        assert sample.facts["labels"] == labels(data)
        left = re.sub("|".join(map(re.escape, story.facts)), "", text)
        sentences = re.split(r"(?<=[.!]) +", left.strip())
        assert all(tokenizer.count(f" {each}") >= 10 for each in sentences[:-1])


def test_where_the_facts_stand_is_drawn_over_the_whole_context(tokenizer: TextTokenizer, sources: Sources) -> None:
    found = samples("babilong/qa1", 1500, STORIES, tokenizer, sources)
    firsts = [context(sample).index("went back") / len(context(sample)) for sample in found]
    depths = [depth for sample in found for depth in sample.facts["depths"]]
    assert min(firsts) < 0.1 and max(depths) > 0.9 and len(set(depths)) > STORIES // 2


@pytest.mark.parametrize("kind", ["byte-level", "llama-2", "wordpiece", "crossing"])
def test_every_sample_fills_its_length(kind: str, kinds: dict[str, TextTokenizer], sources: Sources) -> None:
    for data, length, wrap in (("qa1", 1024, Wrap()), ("qa3", 2047, CHAT), ("qa20", 4096, Wrap())):
        for sample in samples(f"babilong/{data}", length, 3, kinds[kind], sources, wrap=wrap):
            tokens = kinds[kind].count(sample.prompt) + 20
            assert 0.99 * length <= tokens <= length and tokens == sample.facts["tokens"]


def test_a_sample_is_the_same_however_many_are_asked_for_and_under_either_metric(
    tokenizer: TextTokenizer, sources: Sources
) -> None:
    five = samples("babilong/qa2", 1024, 5, tokenizer, sources)
    assert samples("babilong/qa2", 1024, 2, tokenizer, sources) == five[:2]
    assert len({sample.prompt for sample in five}) == 5
    other = samples("babilong_corrected/qa2", 1024, 5, tokenizer, sources)
    assert [sample.prompt for sample in other] == [sample.prompt for sample in five]
    assert samples("babilong/qa2", 1024, 1, tokenizer, sources, seed=7)[0].prompt != five[0].prompt


def test_stories_that_do_not_fit_are_left_out_and_a_length_without_any_names_the_smallest(
    tokenizer: TextTokenizer, sources: Sources, tmp_path: Path
) -> None:
    with pytest.raises(LengthError, match=r"babilong/qa1 cannot be made at 300 tokens: the smallest is \d+") as caught:
        samples("babilong/qa1", 300, 1, tokenizer, sources)
    smallest = caught.value.smallest
    assert smallest and samples("babilong/qa1", smallest, 1, tokenizer, sources)
    mixed = tmp_path / "en-10k"
    mixed.mkdir()
    long = babi_text("qa1", 4, 60)
    (mixed / "qa1_single-supporting-fact_train.txt").write_text(long + babi_text("qa1", 4, 3))
    own = Sources(tmp_path, haystack="generated", cache=tmp_path, offline=True)
    assert {sample.facts["facts"] for sample in samples("babilong/qa1", 640, 4, tokenizer, own)} == {3, 6}
    with pytest.raises(LengthError, match=r"babilong/qa1 cannot be made at 640 tokens: the smallest is \d+"):
        samples("babilong/qa1", 640, 5, tokenizer, own)
    assert {sample.facts["facts"] for sample in samples("babilong/qa1", 4096, 8, tokenizer, own)} == {3, 6, 60, 120}
    with pytest.raises(SourceError, match=r"babilong/qa1: 9 stories were asked for, there are 8: --limit"):
        samples("babilong/qa1", 4096, 9, tokenizer, own)


def test_a_chat_template_goes_around_the_prompt(tokenizer: TextTokenizer, sources: Sources) -> None:
    (sample,) = samples("babilong/qa1", 1024, 1, tokenizer, sources, wrap=CHAT)
    assert sample.prompt.startswith(f"<user>{opening('qa1')}")
    assert sample.prompt.endswith("</context>\n\nQuestion: Where is Mary?</user>\n<model>")


@pytest.mark.parametrize("zipped", [False, True])
def test_the_zip_is_read_as_its_unpacked_files_are_and_both_are_noted(
    zipped: bool, tmp_path: Path, tokenizer: TextTokenizer, sources: Sources
) -> None:
    own = Sources(write_babi(tmp_path / "x", zipped), haystack="generated", cache=tmp_path, offline=True)
    assert samples("babilong/qa7", 1024, 3, tokenizer, own) == samples("babilong/qa7", 1024, 3, tokenizer, sources)
    said = own.describe()
    if zipped:
        assert str(said["babilong/tasks_1-20_v1-2.zip"]).startswith("not the published file: sha256")
    else:
        assert str(said["babilong"]).startswith("unpinned files, 1:")
    assert not own.published


def test_published_haystacks_take_their_sentences_from_books(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    own = write_babi(tmp_path)
    sources = Sources(own, cache=tmp_path, offline=True)
    with pytest.raises(SourceError, match=r"no background for BABILong .*/pg19.*--data-dir, or use --haystack gen"):
        samples("babilong/qa1", 1024, 1, tokenizer, sources)
    (own / "pg19").mkdir()
    for book in range(2):
        lines = [
            f"In chapter {n} of book {book} the old ship sailed slowly past the harbour again." for n in range(400)
        ]
        (own / "pg19" / f"{book}.txt").write_text("\n".join(lines), encoding="utf-8")
    found = samples("babilong/qa1", 1500, 8, tokenizer, sources)
    sentences = [re.findall(r"In chapter (\d+) of book (\d)", context(sample)) for sample in found]
    assert {book for each in sentences for _, book in each} == {"0", "1"} and len({each[0] for each in sentences}) > 4
    assert all(0.99 * 1500 <= sample.facts["tokens"] <= 1500 for sample in found)
    assert str(sources.describe()["pg19"]).startswith("unpinned files, 2:") and not sources.published


def test_missing_stories_name_the_file_the_command_and_the_flag(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    sources = Sources(tmp_path, haystack="generated", cache=tmp_path, offline=True)
    expected = r"qa5_three-arg-relations_train\.txt is missing .*anchoreval data fetch babilong.*--data-dir"
    with pytest.raises(SourceError, match=expected):
        samples("babilong/qa5", 1024, 1, tokenizer, sources)
    (tmp_path / "tasks_1-20_v1-2.zip").write_bytes(b"not a zip")
    with pytest.raises(SourceError, match=r"tasks_1-20_v1-2\.zip cannot be read"):
        samples("babilong/qa5", 1024, 1, tokenizer, sources)


def test_published_samples_are_taken_as_they_are_and_counted_in_tokens_of_the_model(
    kinds: dict[str, TextTokenizer], sources: Sources
) -> None:
    for data in ("qa1", "qa7"):
        rows = published_rows(data, 300)
        (one, *_) = found = samples(f"babilong_published/{data}", 1990, 3, kinds["llama-2"], sources)
        assert [context(sample) for sample in found] == [row["input"].strip() for row in rows]
        assert [sample.references for sample in found] == [(row["target"],) for row in rows]
        assert one.facts["published_length"] == "1k"
        assert one.facts["tokens"] == kinds["llama-2"].count(one.prompt) + 20
        other = samples(f"babilong_published/{data}", 1990, 3, kinds["byte-level"], sources)
        assert other[0].prompt == one.prompt and other[0].facts["tokens"] != one.facts["tokens"]


def test_the_longest_published_length_that_promises_no_more_is_read() -> None:
    lengths = {512: "0k", 999: "0k", 1000: "1k", 1024: "1k", 4096: "4k", 131_072: "128k"}
    assert {length: name_at("qa1", length) for length in lengths} == lengths
    assert name_at("qa6", 20_000_000) == "1M" and name_at("qa5", 20_000_000) == "10M"
    assert {name_at(f"qa{n}", 131_072) for n in range(11, 21)} == {"0k"}
    assert len(names("qa1")) == 13 and len(names("qa10")) == 12


def test_a_length_that_does_not_hold_a_published_sample_names_the_one_that_does(
    tokenizer: TextTokenizer, sources: Sources
) -> None:
    with pytest.raises(
        LengthError, match=r"published/qa1 cannot be made at 1024 tokens: the smallest is \d+"
    ) as caught:
        samples("babilong_published/qa1", 1024, 3, tokenizer, sources)
    smallest = caught.value.smallest
    assert smallest and len(samples("babilong_published/qa1", smallest, 3, tokenizer, sources)) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{]", r"0k\.json is not JSON"),
        ('[{"input": "x", "target": "y"}]', r"0k\.json: sample 0: 'question' is not a str"),
        ('["x"]', r"0k\.json: sample 0: 'input' is not a str"),
        ('{"data": 1}', r"0k\.json: sample 0: 'input' is not a str"),
        ("[]", r"has 0 samples, 1 were asked for"),
    ],
)
def test_a_published_file_of_another_form_is_refused(
    content: str, message: str, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    (tmp_path / "qa1").mkdir()
    (tmp_path / "qa1" / "0k.json").write_text(content)
    with pytest.raises(SourceError, match=message):
        samples("babilong_published/qa1", 900, 1, tokenizer, Sources(tmp_path, cache=tmp_path, offline=True))


def test_published_samples_may_stand_one_in_a_line_and_a_missing_file_names_its_address(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    (tmp_path / "qa1").mkdir()
    (tmp_path / "qa1" / "0k.json").write_text("\n".join(map(json.dumps, published_rows("qa1", 30))))
    sources = Sources(tmp_path, cache=tmp_path, offline=True)
    assert len(samples("babilong_published/qa1", 900, 3, tokenizer, sources)) == 3
    with pytest.raises(SourceError, match=r"qa2/0k\.json of BABILong is missing .*RMT-team/babilong.*--data-dir"):
        samples("babilong_published/qa2", 900, 3, tokenizer, sources)


def test_published_samples_that_lie_nowhere_are_the_hubs_at_the_pinned_revision(
    tmp_path: Path, tokenizer: TextTokenizer, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="DATASETS ABSENT: pip install datasets; no hub was played")
    asked: list[tuple[Any, ...]] = []

    def hub(path: str, name: str, split: str, revision: str) -> Any:
        asked.append((path, name, split, revision))
        return datasets.Dataset.from_list(published_rows(split, 300))

    monkeypatch.setattr("datasets.load_dataset", hub)
    remote = Sources(tmp_path, cache=tmp_path)
    found = samples("babilong_published/qa1", 1990, 3, tokenizer, remote)
    assert found == samples("babilong_published/qa1", 1990, 3, tokenizer, sources)
    assert asked == [("RMT-team/babilong", "1k", "qa1", REVISION)]
    said = remote.files()["babilong/qa1/1k.json"]
    assert (said["dataset"], said["revision"], said["published"]) == ("RMT-team/babilong", REVISION, True)
    with pytest.raises(SourceError, match="has 3 samples, 4 were asked for: --limit 3"):
        samples("babilong_published/qa1", 1990, 4, tokenizer, remote)

    def dead(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("datasets.load_dataset", dead)
    with pytest.raises(SourceError, match=r"from the hub: ConnectionError: no route\), published at") as caught:
        samples("babilong_published/qa1", 1990, 3, tokenizer, Sources(tmp_path, cache=tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suite", ["babilong", "babilong_corrected", "babilong_published"])
def test_references_score_one_but_for_none_under_the_official_metric(
    suite: str, tokenizer: TextTokenizer, sources: Sources
) -> None:
    for data in QUESTIONS:
        address = f"{suite}/{data}"
        scorer = scorers()[TASKS[address].scorer]
        for sample in samples(address, 900, 3 if suite == "babilong_published" else 1, tokenizer, sources):
            excepted = sample.references == ("none",) and suite != "babilong_corrected"
            assert scorer(sample.references[0], sample.references, sample.facts).value == (0.0 if excepted else 1.0)
            assert scorer("", sample.references, sample.facts).value == 0.0
