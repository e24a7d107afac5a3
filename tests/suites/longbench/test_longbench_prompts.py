"""LongBench's prompts against a transcription of upstream's pred.py that shares no code with the package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from longbench_files import files, record, write_folder, write_zip

from anchoreval.cards import load_tasks
from anchoreval.errors import LengthError, SourceError
from anchoreval.prompt import to_request
from anchoreval.schema import Sample, Wrap
from anchoreval.suites import Recipe, generators
from anchoreval.suites.longbench.generate import LONGBENCH, MARKS, RECORDS, bucket, prompts
from anchoreval.texts.sources import Published, Sources
from anchoreval.tokenizer import TextTokenizer, load_tokenizer

REPOSITORY = Path(__file__).parents[3]
GOLDEN = REPOSITORY / "tests" / "golden" / "longbench_prompts.json"
UNCUT, CUT = 31500, 150
TINY = REPOSITORY / "models" / "anchor-tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("longbench"))


@pytest.fixture(scope="module")
def tiny() -> TextTokenizer:
    return load_tokenizer(TINY)


@pytest.fixture(scope="module")
def upstream_tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(TINY / "tokenizer.json"), bos_token="<|bos|>", eos_token="<|eos|>"
    )


def samples(
    data: str,
    length: int,
    sources: Sources,
    tokenizer: TextTokenizer,
    edition: str = "v1",
    wrap: Wrap = Wrap(),  # noqa: B008
    count: int = 2,
) -> list[Sample]:
    args = {"data": data, "edition": edition}
    return list(
        generators()["longbench"](Recipe(f"longbench/{data}", length, 32, count, args, tokenizer, sources, wrap))
    )


def pred(
    tokenizer: Any, json_obj: dict[str, Any], dataset: str, max_length: int, build_chat: Callable[[str], str]
) -> str:
    """THUDM/LongBench 2e00731 LongBench/pred.py, lines of get_pred up to the prompt that is tokenised last."""
    prompt = prompts()[dataset].format(**json_obj)
    tokenized_prompt = tokenizer(prompt, truncation=False).input_ids
    if len(tokenized_prompt) > max_length:
        half = int(max_length / 2)
        prompt = tokenizer.decode(tokenized_prompt[:half], skip_special_tokens=True) + tokenizer.decode(
            tokenized_prompt[-half:], skip_special_tokens=True
        )
    if dataset not in ["trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"]:
        prompt = build_chat(prompt)
    return prompt


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_the_prompts_are_the_bytes_of_upstreams_file() -> None:
    text = json.dumps(prompts(), ensure_ascii=False, indent=4)
    assert hashlib.sha256(text.encode()).hexdigest().startswith("56d22ad4f382169c")


@pytest.mark.parametrize("data", prompts())
def test_prompts_are_those_of_upstreams_pred(
    data: str, folder: Path, tiny: TextTokenizer, upstream_tokenizer: Any
) -> None:
    rows, golden = files()[data], json.loads(GOLDEN.read_text())
    for length in (UNCUT, CUT, CUT + 1, 3):
        made = [sample.prompt for sample in samples(data, length, Sources(folder), tiny)]
        assert made == [pred(upstream_tokenizer, row, data, length, str) for row in rows]
        if length in (UNCUT, CUT):
            assert [digest(text) for text in made] == golden[data][str(length)]


@pytest.mark.parametrize("data", ["qasper", "trec"])
@pytest.mark.parametrize("kind", ["llama-2", "metaspace", "wordpiece", "byte-level"])
def test_the_cut_is_upstreams_with_other_tokenizers(
    data: str, kind: str, folder: Path, kinds: dict[str, TextTokenizer]
) -> None:
    from transformers import PreTrainedTokenizerFast

    inner = kinds[kind]._inner
    theirs = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]" if kind == "wordpiece" else "<unk>")
    made = samples(data, CUT, Sources(folder), kinds[kind])
    assert [sample.prompt for sample in made] == [pred(theirs, row, data, CUT, str) for row in files()[data]]
    assert all(sample.facts["cut"] and sample.segments for sample in made)


@pytest.mark.parametrize("data", prompts())
def test_the_chat_template_goes_around_what_is_left_of_fifteen_data_sets(
    data: str, folder: Path, tiny: TextTokenizer, upstream_tokenizer: Any
) -> None:
    made = samples(data, CUT, Sources(folder), tiny, wrap=Wrap("[INST]", "[/INST]"))
    expected = [
        pred(upstream_tokenizer, row, data, CUT, lambda prompt: f"[INST]{prompt}[/INST]") for row in files()[data]
    ]
    assert [sample.prompt for sample in made] == expected


def test_the_prompt_has_exactly_one_anchor_token_and_upstreams_ids(
    folder: Path, tiny: TextTokenizer, upstream_tokenizer: Any
) -> None:
    for data, length in (("qasper", UNCUT), ("samsum", CUT)):
        sample = samples(data, length, Sources(folder), tiny)[0]
        request = to_request(sample, tiny, "first", None)
        assert (
            list(request.token_ids)
            == upstream_tokenizer(pred(upstream_tokenizer, files()[data][0], data, length, str)).input_ids
        )
        assert request.token_ids.count(0) == 1


def test_only_samsum_ends_at_a_line_break_and_not_with_its_first_token(folder: Path, tiny: TextTokenizer) -> None:
    for data in prompts():
        request = to_request(samples(data, UNCUT, Sources(folder), tiny)[0], tiny, "first", None)
        expected = ((tiny.encode("\n")[-1],), 1) if data == "samsum" else ((), 0)
        assert (request.end_ids, request.min_new_tokens) == expected, data


@pytest.mark.parametrize("data", prompts())
def test_contexts_of_several_passages_are_documents_of_their_own(data: str, folder: Path, tiny: TextTokenizer) -> None:
    row = files()[data][0]
    sample = samples(data, UNCUT, Sources(folder), tiny)[0]
    documents = [segment.text for segment in sample.segments if segment.role == "document"]
    assert "".join(documents) == row["context"]
    assert len(documents) == sample.facts["documents"] == (3 if data in MARKS else 1)
    assert all(text.startswith(MARKS.get(data, "")) for text in documents)
    assert sample.references == tuple(row["answers"]) and sample.facts.get("all_classes") == row["all_classes"]


def test_a_document_that_lost_its_middle_is_still_one(folder: Path, tiny: TextTokenizer) -> None:
    roles = [segment.role for segment in samples("qasper", CUT + 150, Sources(folder), tiny)[0].segments]
    assert roles.count("document") == 1 and roles[0] == "preamble" and roles[-1] == "answer_prefix"


def test_without_its_context_a_prompt_is_the_template_around_nothing(folder: Path, tiny: TextTokenizer) -> None:
    for data in prompts():
        row = files()[data][0] | {"context": ""}
        sample = samples(data, UNCUT, Sources(folder, context=False), tiny)[0]
        assert sample.prompt == prompts()[data].format(**row) and sample.facts["context"] == "left out"
        assert "document" not in {segment.role for segment in sample.segments}


def test_questions_on_one_context_share_their_source(tmp_path: Path, tiny: TextTokenizer) -> None:
    one, other = record("qasper", 0), record("qasper", 1)
    rows = [one, other, one | {"input": "Who else?", "_id": "another"}]
    (tmp_path / "qasper.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    first, second, third = samples("qasper", UNCUT, Sources(tmp_path), tiny, count=3)
    assert first.facts["source"] == third.facts["source"] != second.facts["source"]
    bare = samples("qasper", UNCUT, Sources(tmp_path, context=False), tiny, count=1)[0]
    assert bare.facts["source"] == first.facts["source"], "so the control has its clusters"


def test_longbench_e_knows_its_buckets_and_its_borders(folder: Path, tiny: TextTokenizer) -> None:
    made = samples("qasper", UNCUT, Sources(folder), tiny, edition="e", count=3)
    assert [sample.facts["bucket"] for sample in made] == ["0-4k", "4-8k", "8k+"]
    assert [bucket(words) for words in (0, 7999)] == ["0-4k", "4-8k"]


def test_a_zip_gives_what_a_folder_gives_and_both_are_recorded(
    folder: Path, tmp_path: Path, tiny: TextTokenizer
) -> None:
    packed, apart = (
        Sources(write_zip(tmp_path / "in" / "data.zip").parent, cache=tmp_path),
        Sources(folder, cache=tmp_path),
    )
    assert samples("lsht", CUT, packed, tiny) == samples("lsht", CUT, apart, tiny)
    sha256 = hashlib.sha256((tmp_path / "in" / "data.zip").read_bytes()).hexdigest()
    assert packed.describe()["longbench/data.zip"] == f"not the published file: sha256 {sha256}"
    assert "revision" not in packed.files()["longbench/data.zip"], "it is not of the published revision"
    assert apart.describe()["longbench"].startswith("unpinned files, 1: ")
    assert not packed.published and not apart.published


def test_the_revision_of_the_published_archive_is_recorded(
    tmp_path: Path, tiny: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "data.zip")
    own = Published("longbench/data.zip", hashlib.sha256(path.read_bytes()).hexdigest(), revision=LONGBENCH.revision)
    monkeypatch.setattr("anchoreval.suites.longbench.generate.LONGBENCH", own)
    sources = Sources(tmp_path, cache=tmp_path / "none")
    assert len(samples("lsht", CUT, sources, tiny)) == 2 and sources.published
    assert sources.files()["longbench/data.zip"]["revision"] == "5e628be450b7e67fb7ae6e201bd6d8f7056f7672"
    assert all(LONGBENCH.revision in address for address in LONGBENCH.addresses)


def test_cards_have_upstreams_counts_and_budgets() -> None:
    tasks = load_tasks()[0]
    found = {address: task for address, task in tasks.items() if task.suite in ("longbench", "longbench_e")}
    assert len(found) == 34 == len(RECORDS)
    assert sum(task.samples for task in found.values() if task.suite == "longbench") == 4750
    for task in found.values():
        file = task.name + "_e" * (task.suite == "longbench_e")
        assert task.samples == RECORDS[file] and task.args["data"] == task.name
        assert task.max_new_tokens == found[f"longbench/{task.name}"].max_new_tokens
        assert task.scorer == found[f"longbench/{task.name}"].scorer
        assert (task.lengths, task.length_of) == ((3500, 7500, 15500, 31500), "prompt")
    budgets = {task.name: task.max_new_tokens for task in found.values()}
    text = json.dumps({name: budgets[name] for name in prompts()}, ensure_ascii=False, indent=4)
    assert hashlib.sha256(text.encode()).hexdigest().startswith("72966b3c0933e214"), "dataset2maxlen.json"


ONE = json.dumps(record("qasper", 0)).encode() + b"\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"context": "c", "question": "Prompt q", "answer_prefix": "Answer:"}\n' * 2, "formatted mirror"),
        (b"version https://git-lfs.github.com/spec/v1\n" * 2, "git-lfs"),
        (b"[]\n" * 2, "not a record"),
        (b'{"input": "i", "context": 3}\n' * 2, "'context' is not a str"),
        (ONE, "has 1 records of qasper, 2 were asked for and 200 are published: --limit 1"),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_line(
    line: bytes, says: str, tmp_path: Path, tiny: TextTokenizer
) -> None:
    (tmp_path / "qasper.jsonl").write_bytes(line)
    with pytest.raises(SourceError, match=r"qasper\.jsonl") as caught:
        samples("qasper", UNCUT, Sources(tmp_path, cache=tmp_path / "none"), tiny)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_names_the_address_the_command_and_the_flag(tmp_path: Path, tiny: TextTokenizer) -> None:
    (tmp_path / "data.zip").write_bytes(b"cut off")
    with pytest.raises(SourceError, match="cannot be read"):
        samples("qasper", UNCUT, Sources(tmp_path), tiny)
    (tmp_path / "data.zip").unlink()
    with pytest.raises(SourceError) as caught:
        samples("qasper", UNCUT, Sources(tmp_path, cache=tmp_path / "none"), tiny)
    for part in ("qasper.jsonl", "5e628be450b7e67fb7ae6e201bd6d8f7056f7672", "data fetch longbench", "--data-dir"):
        assert part in str(caught.value)


def test_nothing_is_left_of_a_prompt_cut_at_one_token(folder: Path, tiny: TextTokenizer) -> None:
    with pytest.raises(LengthError, match="the smallest is 2"):
        samples("qasper", 1, Sources(folder), tiny)
