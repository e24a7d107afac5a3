"""A task of our cards at one length as a task of lm-eval, with the prompts and the scorer of `anchoreval run`.

A document of lm-eval is a sample as JSON. Our models use its segments; other models see its text.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from anchoreval.cards import Task
from anchoreval.errors import AnchorEvalError
from anchoreval.lm_eval_plugin.arguments import BadArgument, prompt_arguments, settings
from anchoreval.model import Model
from anchoreval.runs.prompts import Prompts, Spec
from anchoreval.schema import Choice, ChoiceScore, Json, Sample, Segment
from anchoreval.suites import scorer_of, with_choices
from anchoreval.suites.outside import known_tasks, named

_log = logging.getLogger("lm_eval.anchoreval")
#: The key that marks a document as one of our samples; its value is the sample id.
OURS = "anchoreval_sample"


class Documents(Sequence[dict[str, Any]]):
    """Samples as documents, each made when it is first used, so that `--limit` saves time. `about` describes them."""

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
        for sample in itertools.islice(self._samples, max(0, index + 1 - len(self._made))):
            self._made.append({OURS: sample.id, **asdict(sample)})
        return self._made[index]


class AnchorTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval is not analysed
    """One of our tasks at one length; `config["metadata"]["anchoreval"]` names both."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._documents = documents(config["metadata"])
        first, kind = self._documents[0], dict[str, Any](output_type="multiple_choice")
        if not first["choices"]:
            kind = {"output_type": "generate_until", "generation_kwargs": _generation(first)}
        metric = {"metric": "score", "aggregation": "mean", "higher_is_better": True}
        kept = {key: value for key, value in config.items() if key != "class"}
        kept["metadata"] = {**config["metadata"], "anchoreval": self._documents.about}
        fixed = {"test_split": "test", "metric_list": [metric], "process_results": score, "target_delimiter": ""}
        super().__init__(config=kept | fixed | kind)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Set the data set to our documents; nothing is downloaded."""
        self.dataset = {"test": self._documents}

    def doc_iterator(
        self, *, rank: int = 0, limit: int | None = None, world_size: int = 1, samples: list[int] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Yield documents with their position among those asked for; no other document is made."""
        if samples and not all(0 <= index < len(self._documents) for index in samples):
            raise BadArgument(f"--samples: {self.config.task} has samples 0 to {len(self._documents) - 1}")
        chosen = samples or range(min(int(limit or len(self._documents)), len(self._documents)))
        yield from itertools.islice(((i, self._documents[at]) for i, at in enumerate(chosen)), rank, None, world_size)

    def build_all_requests(self, **asked: Any) -> None:
        """Build the requests of all documents.

        Raise BadArgument for a cache of requests, whose keys hold neither tokenizer nor length, and for `--gen_kwargs`.
        """
        if asked.get("cache_requests"):
            raise BadArgument(f"--cache_requests mixes up the prompts of models and lengths: leave it out with {TASKS}")
        if self.OUTPUT_TYPE == "generate_until" and self.config.generation_kwargs != _generation(self._documents[0]):
            raise BadArgument(f"--gen_kwargs would change the answers of {TASKS}: leave it out")
        super().build_all_requests(**asked)

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int = 0, *_: Any, **asked: Any) -> str:
        """Return the prompt as `anchoreval run` sends it; raise BadArgument for an option that would change it."""
        changes = {"num_fewshot": num_fewshot} | asked
        flags = ("num_fewshot", "system_instruction", "apply_chat_template")
        if given := [f"--{flag}" for flag in flags if changes.get(flag)]:
            hint = "template=chat in --model_args or --metadata makes chat prompts"
            raise BadArgument(f"{given[0]} would change the prompts of {TASKS}: leave it out; {hint}")
        return self.doc_to_text(doc)

    def doc_to_text(self, doc: Mapping[str, Any], _: Any = None) -> str:
        """Return the whole prompt."""
        return "".join(segment["text"] for segment in doc["segments"])

    def doc_to_target(self, doc: Mapping[str, Any], _: Any = None) -> str:
        """Return the references as one text, for the log."""
        return ", ".join(doc["references"])

    def construct_requests(self, doc: dict[str, Any], ctx: str, **given: Any) -> list[Instance] | Instance:
        """Return one request, or one per choice."""
        both = {"doc": doc, "metadata": given["metadata"]}
        if not doc["choices"]:
            return Instance(request_type="generate_until", arguments=(ctx, _generation(doc)), idx=0, **both)
        pairs = [(ctx + choice["before"], choice["text"]) for choice in doc["choices"]]
        return [Instance(request_type="loglikelihood", arguments=pair, idx=i, **both) for i, pair in enumerate(pairs)]


TASKS = "tasks of anchoreval"


def documents(metadata: Mapping[str, Any]) -> Documents:
    """Return the documents of the task and length in `metadata`, made with the tokenizer of the model there."""
    about, asked = metadata["anchoreval"], prompt_arguments(metadata)
    card = card_of(about["task"])
    model = model_of(metadata)
    haystack = asked.haystack or model.card.haystack
    if asked.haystack is None and haystack != "published":
        _log.warning("haystack %s, as the model's card says: not comparable with published scores", haystack)
    # a task from outside is named below its card
    address = card.address if card.outside is None else f"{named(card.outside, card.address).place}/{card.name}"
    spec = Spec.of(
        address, settings=settings(metadata, card.settings), lengths=(about["length"],), limit=about.get("limit"),
        seed=asked.seed, template=asked.template or model.card.template, template_args=asked.template_args or {},
        anchor=asked.anchor, haystack=haystack, data_dir=asked.data_dir, wordlists=asked.wordlists,
        context=not asked.no_context,
    )  # fmt: skip
    prompts, task = Prompts(spec, model), spec.tasks[0]
    (cell,) = prompts.cells()
    description = {
        **about, "card": task.model_dump(mode="json", exclude_defaults=True), "seed": spec.seed,
        "template": spec.template, "sources": spec.sources.describe(), "comparable": not prompts.incomparable([cell]),
        "tokenizer_sha256": model.tokenizer.sha256, **prompts.wording,
    }  # fmt: skip
    cell_documents = Documents(cell.samples, cell.asked, description)
    if cell_documents[0]["then"]:
        raise AnchorEvalError(f"{task.address} asks in two steps, which lm-eval cannot: anchoreval run does")
    return cell_documents


def model_of(metadata: Mapping[str, Any]) -> Model:
    """Return the model in `metadata`, with the tokenizer that counts lengths; raise BadArgument if there is none."""
    place = metadata.get("tokenizer") or metadata.get("pretrained")
    if not place:
        raise BadArgument("lengths are in tokens of a model: name it, --metadata pretrained=MODEL or tokenizer=PATH")
    model, tokenizer = str(metadata.get("pretrained") or place), metadata.get("tokenizer")
    return Model.of(model, tokenizer and str(tokenizer), int(metadata.get("max_length") or 0))


def card_of(address: str) -> Task:
    """Return the task of that address, of the package or of a suite from outside that was named."""
    return known_tasks()[0][address]


def sample_of(doc: Any) -> Sample | None:
    """Return the sample of a document; None for a document of another task."""
    if not isinstance(doc, dict) or OURS not in doc:
        return None
    fields = {key: value for key, value in doc.items() if key != OURS}
    fields |= {"segments": tuple(Segment(**segment) for segment in doc["segments"])}
    fields |= {"choices": tuple(Choice(**choice) for choice in doc["choices"])}
    return Sample(**fields | {name: tuple(doc[name]) for name in ("references", "stop", "then")})


def score(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """Return the score of a document's answer by our scorer; an empty dict if it gives no score."""
    scores = tuple(ChoiceScore(*result) for result in results) if doc["choices"] else ()
    text = "" if scores else results[0]
    judged = scorer_of(card_of(doc["task"]))(text, tuple(doc["references"]), with_choices(doc["facts"], scores))
    return {} if judged.value is None else {"score": judged.value}


def _generation(doc: Mapping[str, Any]) -> dict[str, Any]:
    most = doc["max_new_tokens"]
    return {"do_sample": False, "temperature": 0.0, "max_gen_toks": most, "until": list(doc["stop"])}
