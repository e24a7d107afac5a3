"""General prompts, choices and budgets against lm-eval's own instances, made by its API from the same rows.

The comparison goes past this package's loading: lm-eval's TaskManager makes each task, `datasets.load_dataset` is what
reads the rows, and `build_all_requests` makes the instances, as `simple_evaluate` does.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from general_files import TASKS, write_folder

from anchoreval.cards import Task, load_tasks
from anchoreval.errors import CardError, ModelError, SourceError
from anchoreval.prompt import to_request
from anchoreval.schema import NATURAL, Sample, Wrap
from anchoreval.suites import Recipe, generators
from anchoreval.suites.general.generate import split
from anchoreval.suites.general.rows import HUB, sha256_of_rows
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer, load_tokenizer

pytest.importorskip("lm_eval", reason="LM-EVAL ABSENT: pip install 'anchoreval[lm-eval]'; no general task was made")

TINY = Path(__file__).parents[3] / "models" / "anchor-tiny"
CARDS = {name.partition("/")[2]: task for name, task in load_tasks()[0].items() if task.suite == "general"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("general"))


@pytest.fixture(scope="module")
def tiny() -> TextTokenizer:
    return load_tokenizer(TINY)


def samples(
    task: Task, folder: Path, tokenizer: TextTokenizer, count: int | None = None, **changes: Any
) -> list[Sample]:
    count = count or TASKS[task.name][1][HUB[task.args["folder"]].asked]
    fields: dict[str, Any] = {
        "task": task.address, "length": NATURAL, "max_new_tokens": task.max_new_tokens, "count": count, "seed": 42,
        "tokenizer": tokenizer, "sources": Sources(folder, offline=True), "args": task.args,
    }  # fmt: skip
    return list(generators()["lm_eval"](Recipe(**fields | changes)))


def rows_of(folder: Path, name: str) -> Any:
    import datasets

    files = {path.stem: str(path) for path in (folder / "general" / name).glob("*.jsonl")}
    loaded = {key: [json.loads(line) for line in Path(path).read_text().splitlines()] for key, path in files.items()}
    loaded.setdefault("train", next(iter(loaded.values())))  # lm-eval looks at it also where it takes nothing of it
    return datasets.DatasetDict({key: datasets.Dataset.from_list(rows) for key, rows in loaded.items()})


def upstream(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """lm-eval's task with its instances built, examples and seed set as `simple_evaluate(num_fewshot=...)` does."""
    import lm_eval.tasks

    card = CARDS[name]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows_of(folder, name))
    path = Path(lm_eval.tasks.__file__).parent / card.args["folder"]
    manager = lm_eval.tasks.TaskManager(include_path=str(path), include_defaults=False)
    task = manager.load([name])["tasks"][name]
    if task.get_config("num_fewshot") != 0 or "shots" in card.args:
        task.set_config(key="num_fewshot", value=card.args.get("shots", 0))
    task.set_fewshot_seed(seed=1234)  # simple_evaluate's default
    task.build_all_requests(limit=None, rank=0, world_size=1)
    return task


def by_row(task: Any) -> list[list[Any]]:
    """Its instances, those of a row together, in order of their choices."""
    rows: dict[int, list[Any]] = {}
    for instance in task.instances:
        rows.setdefault(instance.doc_id, []).append(instance)
    return [sorted(each, key=lambda one: int(one.idx)) for _, each in sorted(rows.items())]


class Pairs:
    """lm-eval's way from two texts to tokens, over a tokenizer of this package."""

    def __new__(cls, tokenizer: TextTokenizer) -> Any:
        from lm_eval.api.model import TemplateLM

        class Lm(TemplateLM):
            backend = "causal"
            eot_token_id = 0

            def tok_encode(self, string: str, **_: Any) -> list[int]:
                return tokenizer.encode(string)

            def _loglikelihood_tokens(self, requests: Any, **_: Any) -> Any: ...

            def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any: ...

            def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any: ...

        return Lm()


@pytest.mark.parametrize("name", TASKS)
def test_texts_are_those_of_lm_evals_own_instances(
    name: str, folder: Path, tiny: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, theirs = samples(CARDS[name], folder, tiny), by_row(upstream(name, folder, monkeypatch))
    assert len(made) == len(theirs) > 5
    for sample, instances in zip(made, theirs, strict=True):
        if instances[0].request_type == "generate_until":
            context, decoding = instances[0].args
            assert sample.prompt == context and not sample.choices
            assert sample.stop == tuple(decoding["until"])
            assert sample.max_new_tokens == decoding.get("max_gen_toks", 256)  # HFLM.max_gen_toks
            assert not decoding.get("do_sample")
        else:
            said = [(sample.prompt + choice.before, choice.text) for choice in sample.choices]
            assert said == [instance.args for instance in instances]
            assert sample.max_new_tokens == 0 and not sample.stop


@pytest.mark.parametrize("kind", ["byte-level", "llama-2", "metaspace", "wordpiece"])
def test_tokens_are_those_that_lm_eval_scores(
    kind: str, kinds: dict[str, TextTokenizer], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = kinds[kind]
    monkeypatch.setattr(TextTokenizer, "bos", ("<anchor>", 10**6))
    pairs = Pairs(tokenizer)
    for name in ("hellaswag", "winogrande", "mmlu_anatomy", "truthfulqa_mc2", "lambada_openai", "piqa", "gsm8k"):
        made = samples(CARDS[name], folder, tokenizer)
        for sample, instances in zip(made, by_row(upstream(name, folder, monkeypatch)), strict=True):
            request = to_request(sample, tokenizer, CARDS[name].reference, None)
            if not request.choices:
                assert list(request.token_ids[1:]) == tokenizer.encode(instances[0].args[0])
                continue
            for choice, instance in zip(request.choices, instances, strict=True):
                context, continuation = pairs._encode_pair(*instance.args)
                whole = [*request.token_ids[1:], *choice.token_ids]
                assert whole == context + continuation and choice.counted == len(continuation)


def test_every_card_is_a_task_of_lm_eval_with_its_metric_its_data_set_and_its_splits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All 93: what a card and the table of the hub say is what lm-eval's definition says."""
    from anchoreval.suites.general import harness as lm_eval_tasks

    asked: list[tuple[str, Any]] = []

    def rows(path: str, name: str | None = None, **kwargs: Any) -> Any:
        asked.append((path, kwargs.get("revision")))
        return rows_of(folder, next(name for name in TASKS if CARDS[name].args["folder"] == card.args["folder"]))

    monkeypatch.setattr("datasets.load_dataset", rows)
    assert len(CARDS) == 93
    for card in CARDS.values():
        hub, shots = HUB[card.args["folder"]], card.args.get("shots", 0)
        task = lm_eval_tasks.load(
            card.args["task"], card.args["folder"], shots, dataset_kwargs={"revision": hub.revision}
        )
        assert asked[-1] == (hub.dataset, hub.revision) == (task.DATASET_PATH, hub.revision)
        assert (task.config.test_split or task.config.validation_split) == hub.asked
        if hub.examples and shots:
            assert (task.config.fewshot_split or task.config.training_split) == hub.examples
        assert (card.args["metric"], card.args.get("filter", "none")) in lm_eval_tasks.metrics(task)
        assert card.args["task"] == card.name and card.length_of == "natural"


def test_the_rows_of_the_hub_are_asked_at_the_pinned_revision_and_recorded(
    tmp_path: Path, folder: Path, tiny: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def hub(path: str, name: str | None = None, **kwargs: Any) -> Any:
        asked.append({"path": path, "name": name, **kwargs})
        return rows_of(folder, "arc_easy")

    local, remote = Sources(folder, offline=True), Sources(tmp_path, cache=tmp_path)
    own = samples(CARDS["arc_easy"], folder, tiny, sources=local)
    monkeypatch.setattr("datasets.load_dataset", hub)
    theirs = samples(CARDS["arc_easy"], folder, tiny, sources=remote)
    assert theirs == own
    pin = HUB["arc"].revision
    assert asked == [{"path": "allenai/ai2_arc", "name": "ARC-Easy", "revision": pin}]
    here, there = local.files()["general/arc_easy/test"], remote.files()["general/arc_easy/test"]
    assert there["revision"] == pin and there["dataset"] == "allenai/ai2_arc" and there["published"] is True
    assert "revision" not in here and here["published"] is False and here["sha256"] == there["sha256"]
    assert here["sha256"] == sha256_of_rows(rows_of(folder, "arc_easy")["test"])
    assert remote.describe()["general"].startswith("published files, 1: ") and remote.published
    assert local.describe()["general"].startswith("unpinned files, 1: ") and not local.published


def test_a_data_set_that_nobody_has_is_an_error_that_says_where_to_put_it(
    tmp_path: Path, tiny: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = r"^general/piqa: its rows are neither in general/piqa \(looked in .*with --data-dir$"
    with pytest.raises(SourceError, match=said.replace(r".*", r".*\(offline\).*")):
        samples(CARDS["piqa"], tmp_path, tiny, sources=Sources(tmp_path, cache=tmp_path, offline=True))

    def dead(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("datasets.load_dataset", dead)
    with pytest.raises(SourceError, match=said.replace(r".*", r".*ConnectionError: no route\).*")) as caught:
        samples(CARDS["piqa"], tmp_path, tiny, sources=Sources(tmp_path, cache=tmp_path))
    assert "\n" not in str(caught.value)


def test_a_task_without_a_pinned_revision_is_not_taken_from_the_hub(tmp_path: Path, tiny: TextTokenizer) -> None:
    args = {"task": "sciq", "folder": "sciq", "metric": "acc"}
    with pytest.raises(CardError, match=r"no revision is pinned for lm-eval's folder 'sciq'.*--data-dir"):
        samples(CARDS["piqa"], tmp_path, tiny, 1, sources=Sources(tmp_path, cache=tmp_path), args=args)


@pytest.mark.parametrize(
    ("args", "most", "message"),
    [
        ({"metric": "f1"}, 0, r"reports acc,none, acc_norm,none, not f1,none"),
        ({"metric": "acc", "filter": "strict"}, 0, r"not acc,strict"),
        ({"task": "piqa_nowhere"}, 0, r"lm-eval has no task 'piqa_nowhere' in its folder 'piqa'"),
        ({}, 5, r"generates 0 tokens, the card says max_new_tokens: 5"),
        ({"shots": "many"}, 0, r"shots: 'many' is not a whole number"),
        ({"metric": 3}, 0, r"metric: 3 is not text"),
    ],
)
def test_a_card_that_does_not_fit_lm_evals_task_is_an_error(
    args: dict[str, Any], most: int, message: str, folder: Path, tiny: TextTokenizer
) -> None:
    if "task" in args:
        (folder / "general" / args["task"]).mkdir(exist_ok=True)
    with pytest.raises(CardError, match=message):
        samples(CARDS["piqa"], folder, tiny, 2, args=CARDS["piqa"].args | args, max_new_tokens=most)


def test_prompts_go_without_a_chat_template(folder: Path, tiny: TextTokenizer) -> None:
    with pytest.raises(ModelError, match=r"general/piqa is sent without a chat template.*--template base"):
        samples(CARDS["piqa"], folder, tiny, 1, wrap=Wrap("<user>", "<end>"))


def test_more_rows_than_there_are_names_the_number_that_there_is(folder: Path, tiny: TextTokenizer) -> None:
    with pytest.raises(SourceError, match=r"12 rows are there, 13 were asked for: --limit 12, or the whole split"):
        samples(CARDS["piqa"], folder, tiny, 13)


def broken(name: str, change: dict[str, Any] | None) -> bytes:
    row = TASKS[name][0](random.Random(1), 0)
    return (json.dumps(row | (change or {})) + "\n").encode()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("piqa", None, r"validation\.jsonl is missing: put the rows of that split there"),
        ("piqa", b"", r"not the rows that lm-eval's piqa expects"),
        ("piqa", b'{"goal": 1\n', r"validation\.jsonl:1 is not JSON"),
        ("piqa", b"[" * 100_000 + b"\n", r"validation\.jsonl:1 is not JSON"),
        ("piqa", b"[1]\n", r"validation\.jsonl:1: not a record"),
        ("piqa", b"\n", r"not the rows that lm-eval's piqa expects"),
        ("piqa", b"\n{}\n", r"validation\.jsonl:2: not a record: it has no key"),
        ("piqa", b"\xff\xfe\n", r"validation\.jsonl:1 is not JSON"),
        ("piqa", b"\x89PNG\r\n\x1a\n\x00", r"validation\.jsonl:1 is not JSON"),
        ("piqa", b'{"other": 1}\n', r"not the rows that lm-eval's piqa expects"),
        ("piqa", {"sol1": None, "label": None}, r"validation\.jsonl:2: label, sol1 is not in every line, or null"),
        ("piqa", {"another": 1}, r"validation\.jsonl:2: another is not in every line, or null"),
        ("piqa", {"label": "one"}, r"not the rows that lm-eval's piqa expects"),
        ("piqa", {"label": 7}, r"row 1 is not as lm-eval expects it"),
        ("piqa", {"label": -1}, r"row 1 is not as lm-eval expects it: ValueError: the right one is '-1', of 2 choices"),
        ("piqa", {"label": -101}, r"row 1 is not as lm-eval expects it"),
        ("piqa", {"goal": "\ud800"}, r"validation\.jsonl:2 holds half a character"),
        ("hellaswag", {"endings": []}, r"row 1 is not as lm-eval expects it"),
        ("hellaswag", {"label": ""}, r"not the rows"),
        ("mmlu_anatomy", {"answer": 4}, r"row 1 is not as lm-eval expects it"),
        ("mmlu_anatomy", {"choices": "none"}, r"not the rows"),
        ("mmlu_anatomy", {"choices": ["one"]}, r"row 1 is not as lm-eval expects it"),
        ("winogrande", {"answer": "3"}, r"row 1 is not as lm-eval expects it"),
        ("winogrande", {"sentence": "no blank"}, r"row 1 is not as lm-eval expects it"),
        ("arc_easy", {"answerKey": "Z"}, r"row 1 is not as lm-eval expects it"),
        ("truthfulqa_mc2", {"mc2_targets": {"choices": [], "labels": []}}, r"row 1 is not as lm-eval"),
        ("lambada_openai", {"text": ""}, r"row 1 has no text"),
        ("gsm8k", {"answer": 7}, r"not the rows"),
    ],
)
def test_hostile_rows_are_one_line_that_names_them(
    name: str, content: bytes | dict[str, Any] | None, message: str, tmp_path: Path, tiny: TextTokenizer
) -> None:
    place = tmp_path / "general" / name
    place.mkdir(parents=True)
    args = {key: value for key, value in CARDS[name].args.items() if key != "shots"}
    card = CARDS[name].model_copy(update={"args": args})
    if content is not None:
        whole = content if isinstance(content, bytes) else broken(name, None) + broken(name, content)
        (place / f"{HUB[card.args['folder']].asked}.jsonl").write_bytes(whole)
    with pytest.raises(SourceError, match=message) as caught:
        samples(card, tmp_path, tiny, 2)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_what_all_contexts_begin_with_is_the_prompt_and_nothing_is_lost() -> None:
    rng = random.Random(4)
    for _ in range(300):
        contexts = ["".join(rng.choice("ab \n") for _ in range(rng.randrange(9))) for _ in range(rng.randrange(1, 4))]
        start = "".join(rng.choice("xy \n") for _ in range(rng.randrange(6)))
        pairs = [(start + context, f" {index}") for index, context in enumerate(contexts)]
        prompt, choices = split(pairs)
        assert [(prompt + choice.before, choice.text) for choice in choices] == pairs
        if len(set(contexts)) > 1:
            before = {choice.before[:1] for choice in choices}
            assert before <= {" ", "\n", ""} or not prompt


def test_examples_follow_from_the_row_alone(folder: Path, tiny: TextTokenizer) -> None:
    for name in ("hellaswag", "gsm8k", "winogrande"):
        assert samples(CARDS[name], folder, tiny)[:4] == samples(CARDS[name], folder, tiny, 4)


def test_a_prompt_is_its_examples_and_its_question(folder: Path, tiny: TextTokenizer) -> None:
    for name in ("hellaswag", "mmlu_anatomy", "gsm8k"):
        for sample in samples(CARDS[name], folder, tiny):
            assert [segment.role for segment in sample.segments] == ["preamble", "query"]
            assert sample.segments[1].text not in sample.segments[0].text
