"""A task of our cards at one length as a task of lm-eval: the prompts of `anchoreval run`, judged by the same scorer.

A document is a sample as JSON, so that our models see its segments; other models see its text.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from anchoreval.cards import Task, load_tasks
from anchoreval.errors import AnchorEvalError
from anchoreval.lm_eval_plugin.arguments import BadArgument, prompt_arguments, settings
from anchoreval.model import Model
from anchoreval.runs.prompts import Prompts
from anchoreval.runs.spec import Spec
from anchoreval.schema import Choice, ChoiceScore, Json, Sample, Segment
from anchoreval.suites.scorers import SCORERS, with_choices

_log = logging.getLogger("lm_eval.anchoreval")
#: The key of a document that says it is a sample of ours.
OURS = "anchoreval_sample"


class Documents(Sequence[dict[str, Any]]):
    """Samples as documents, made when they are looked at: `--limit` costs what it says. `about` says of what."""

    def __init__(self, samples: Iterator[Sample], count: int, about: Mapping[str, Json]) -> None:
        self._samples, self._count, self.about = samples, count, about
        self._made: list[dict[str, Any]] = []

    @property
    def features(self) -> dict[str, None]:
        """The keys of a document."""
        return dict.fromkeys(self[0])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        index = index + self._count if index < 0 else index
        if not 0 <= index < self._count:
            raise IndexError(index)
        missing = index + 1 - len(self._made)
        self._made += map(document_of, itertools.islice(self._samples, max(0, missing)))
        return self._made[index]


class AnchorTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval is not analysed
    """One cell of ours. `config["metadata"]["anchoreval"]` names its task and length."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._documents = documents(config["metadata"])
        first = self._documents[0]
        kind: dict[str, Any] = {"output_type": "multiple_choice"}
        if not first["choices"]:
            kind = {"output_type": "generate_until", "generation_kwargs": _generation(first)}
        metric = {"metric": "score", "aggregation": "mean", "higher_is_better": True}
        kept = {key: value for key, value in config.items() if key != "class"}
        kept["metadata"] = {**config["metadata"], "anchoreval": self._documents.about}
        made = {"test_split": "test", "metric_list": [metric], "process_results": score, "target_delimiter": ""}
        super().__init__(config=kept | made | kind)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """The documents, which need no download."""
        self.dataset = {"test": self._documents}

    def doc_iterator(
        self, *, rank: int = 0, limit: int | None = None, world_size: int = 1, samples: list[int] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Documents with their place in the order of asking; no more of them are made than are asked for."""
        if samples and not all(0 <= index < len(self._documents) for index in samples):
            raise BadArgument(f"--samples: {self.config.task} has samples 0 to {len(self._documents) - 1}")
        chosen = samples or range(min(int(limit or len(self._documents)), len(self._documents)))
        yield from itertools.islice(((i, self._documents[at]) for i, at in enumerate(chosen)), rank, None, world_size)

    def build_all_requests(self, **asked: Any) -> None:
        """The requests of all documents; a cache of requests, which knows neither tokenizer nor length, is refused."""
        if asked.get("cache_requests"):
            raise BadArgument(f"--cache_requests mixes up the prompts of models and lengths: leave it out with {TASKS}")
        if self.OUTPUT_TYPE == "generate_until" and self.config.generation_kwargs != _generation(self._documents[0]):
            raise BadArgument(f"--gen_kwargs would change the answers of {TASKS}: leave it out")
        super().build_all_requests(**asked)

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int = 0, *_: Any, **asked: Any) -> str:
        """The prompt as `anchoreval run` sends it; whatever would change it is refused."""
        changes = {
            "--num_fewshot": num_fewshot,
            "--system_instruction": asked.get("system_instruction"),
            "--apply_chat_template": asked.get("apply_chat_template"),
        }
        if given := [flag for flag, value in changes.items() if value]:
            hint = "template=chat in --model_args or --metadata makes chat prompts"
            raise BadArgument(f"{given[0]} would change the prompts of {TASKS}: leave it out; {hint}")
        return self.doc_to_text(doc)

    def doc_to_text(self, doc: Mapping[str, Any], _: Any = None) -> str:
        """The whole prompt."""
        return "".join(segment["text"] for segment in doc["segments"])

    def doc_to_target(self, doc: Mapping[str, Any], _: Any = None) -> str:
        """The references, for the log."""
        return ", ".join(doc["references"])

    def construct_requests(self, doc: dict[str, Any], ctx: str, **given: Any) -> list[Instance] | Instance:
        """One request, or one per choice."""
        meant = {"doc": doc, "metadata": given["metadata"]}
        if not doc["choices"]:
            return Instance(request_type="generate_until", arguments=(ctx, _generation(doc)), idx=0, **meant)
        pairs = [(ctx + choice["before"], choice["text"]) for choice in doc["choices"]]
        return [Instance(request_type="loglikelihood", arguments=pair, idx=i, **meant) for i, pair in enumerate(pairs)]


TASKS = "tasks of anchoreval"


def documents(metadata: Mapping[str, Any]) -> Documents:
    """The documents of the cell that `metadata` names, made with the tokenizer of the model that it names."""
    about, asked = metadata["anchoreval"], prompt_arguments(metadata)
    found = card_of(about["task"])
    model = model_of(metadata)
    haystack = asked.haystack or model.card.haystack
    if asked.haystack is None and haystack != "published":
        _log.warning("haystack %s, as the model's card says: not comparable with published scores", haystack)
    spec = Spec.of(
        found.address,
        settings=settings(metadata, found.settings),
        lengths=(about["length"],),
        limit=about.get("limit"),
        seed=asked.seed,
        template=asked.template or model.card.template,
        template_args=asked.template_args or {},
        anchor=asked.anchor,
        haystack=haystack,
        data_dir=asked.data_dir,
        wordlists=asked.wordlists,
        context=not asked.no_context,
    )
    prompts, task = Prompts(spec, model), spec.tasks[0]
    (cell,) = prompts.cells()
    said = {
        **about, "card": task.model_dump(mode="json", exclude_defaults=True), "seed": spec.seed,
        "template": spec.template, "sources": spec.sources.describe(), "comparable": not prompts.incomparable([cell]),
        "tokenizer_sha256": model.tokenizer.sha256, **prompts.wording,
    }  # fmt: skip
    made = Documents(cell.samples, cell.asked, said)
    if made[0]["then"]:
        raise AnchorEvalError(f"{task.address} asks in two steps, which lm-eval cannot: anchoreval run does")
    return made


def model_of(metadata: Mapping[str, Any]) -> Model:
    """The model, with the tokenizer that lengths are counted with."""
    place = metadata.get("tokenizer") or metadata.get("pretrained")
    if not place:
        raise BadArgument("lengths are in tokens of a model: name it, --metadata pretrained=MODEL or tokenizer=PATH")
    model, tokenizer = str(metadata.get("pretrained") or place), metadata.get("tokenizer")
    return Model.of(model, tokenizer and str(tokenizer), int(metadata.get("max_length") or 0))


@cache
def card_of(address: str) -> Task:
    """The task of that address."""
    return load_tasks()[0][address]


def document_of(sample: Sample) -> dict[str, Any]:
    """A sample as JSON."""
    return {OURS: sample.id, **asdict(sample)}


def sample_of(doc: Any) -> Sample | None:
    """The sample that a document is; None for documents of other tasks."""
    if not isinstance(doc, dict) or OURS not in doc:
        return None
    told = {key: value for key, value in doc.items() if key != OURS}
    told |= {"segments": tuple(Segment(**segment) for segment in doc["segments"])}
    told |= {"choices": tuple(Choice(**choice) for choice in doc["choices"])}
    return Sample(**told | {name: tuple(doc[name]) for name in ("references", "stop", "then")})


def score(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """What our scorer says of a document's answer; nothing where it gives no score."""
    scores = tuple(ChoiceScore(*result) for result in results) if doc["choices"] else ()
    text = "" if scores else results[0]
    judged = SCORERS[card_of(doc["task"]).scorer](text, tuple(doc["references"]), with_choices(doc["facts"], scores))
    return {} if judged.value is None else {"score": judged.value}


def _generation(doc: Mapping[str, Any]) -> dict[str, Any]:
    most = doc["max_new_tokens"]
    return {"do_sample": False, "temperature": 0.0, "max_gen_toks": most, "until": list(doc["stop"])}
