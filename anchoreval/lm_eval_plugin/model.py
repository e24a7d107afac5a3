"""Our backends as models of lm-eval: they compute what its `hf` model computes, under an arm.

Texts become tokens by lm-eval's rules (`HFLM.tok_encode`, `tok_batch_encode` and `TemplateLM._encode_pair` of 0.4.13),
and are cut on the left if they are too long, as lm-eval does. Choices after the same context are computed together,
contexts share common prefixes, and logits are computed only where they are needed and reduced in float32. Documents of
our own tasks are sent as `anchoreval run` sends them, with their segments. Weights are loaded when the first answer is
asked for, after all prompts are made.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import metadata
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.models.utils import resolve_max_length as stated_by
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from anchoreval.arms.arm import Arm
from anchoreval.backends import BACKENDS, Backend, open_backend, opener_of
from anchoreval.errors import ModelError
from anchoreval.lm_eval_plugin import ENGINES
from anchoreval.lm_eval_plugin.arguments import BadArgument, model_arguments, prompt_arguments
from anchoreval.lm_eval_plugin.tasks import card_of, sample_of
from anchoreval.model import Model
from anchoreval.prompt import cut_documents, require_no_anchor, to_request
from anchoreval.runs.prompts import room_of
from anchoreval.schema import ChoiceScore, Continuation, Json, Output, Request, Sample
from anchoreval.tokenizer.chat_template import Renderer, TurnRefused
from anchoreval.tokenizer.check import PROBES

MAX_NEW_TOKENS = 256  # HFLM.max_gen_toks
#: The device that lm-eval's command line passes on without --device; its `hf` model then takes what the machine has.
DEFAULT_DEVICE = "cuda:0"
#: Decoding options that a request may have besides length and stop strings: they do not change a greedy answer.
_WITHOUT_EFFECT = frozenset({"do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p"})
_CACHED_BY = "anchoreval"  # the key under which a cache of answers holds the fingerprint of model, arm and engine
_log = logging.getLogger("lm_eval.anchoreval")


class AnchorEvalLM(TemplateLM):  # type: ignore[misc]  # lm-eval is not analysed
    """A backend under one arm; `model_args` are those of `ModelArguments`."""

    engine = ENGINES["anchoreval"]

    def __init__(self, **given: Any) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise BadArgument("models of anchoreval run in one process: start it without accelerate or torchrun")
        opener_of(self.engine)  # MissingExtra before any task is loaded
        self.asked = model_arguments(given, self.engine)
        if str(given.get("batch_size", 1)) != "1":
            _log.info("--batch_size is not used: batches are sized by batch_tokens and rows of --model_args")
        asked = self.asked
        self._model = Model.of(asked.pretrained, asked.tokenizer, asked.max_length or 0)
        self._texts = self._model.tokenizer
        self.arm: Arm = asked.as_arm(asked.dtype or self._model.card.dtype).settled(self.engine)
        self._anchor = prompt_arguments(given).anchor
        if self._anchor == "none":
            require_no_anchor(self.arm)
        self.tokenizer = self._load_tokenizer()
        self._applied: dict[str, Json] = {}
        self._cut = self._told = 0

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Any:
        """Return the model; raise BadArgument for an option that is given twice, such as the device."""
        given = {name: value for name, value in (additional_config or {}).items() if value is not None}
        more = {name: value for name, value in given.items() if (name, value) != ("device", DEFAULT_DEVICE)}
        if twice := sorted(set(arg_dict) & set(more)):
            raise BadArgument(f"{twice[0]} is given twice, in --model_args and as --{twice[0]}")
        return cls(**arg_dict, **more)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that is put before a text without context."""
        asked = (self.asked.prefix_token_id, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return int(next(token for token in asked if token is not None))

    @cached_property
    def max_length(self) -> int:
        """The number of positions that prompts of lm-eval's own tasks are cut to, by the rule of its `hf` model."""
        from transformers import AutoConfig

        folder, own_code = self._model.folder, bool(self.asked.trust_remote_code)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=own_code)
        return self.asked.max_length or int(stated_by(config, self.tokenizer))

    @property
    def tokenizer_name(self) -> str:
        """A unique name of the tokenizer; lm-eval's caches of chat prompts distinguish tokenizers by it."""
        return f"{self.tokenizer.name_or_path.replace('/', '__')}-{self._texts.sha256[:16]}"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the text that the model's chat template makes; system turns are dropped if it refuses them."""
        kind = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        try:
            return self._renderer.text(chat_history, kind)
        except TurnRefused:
            others = [turn for turn in chat_history if turn["role"] != "system"]
            if len(others) == len(chat_history):
                raise
            _log.warning("the chat template refuses a system turn, which is left out")
            return self._renderer.text(others, kind)

    @cached_property
    def _renderer(self) -> Renderer:
        """The model's chat template, rendered as its tokenizer would."""
        if not self.tokenizer.chat_template:
            raise ModelError(f"{self.asked.pretrained} has no chat template: leave out --apply_chat_template")
        special = {name: str(text) for name, text in self.tokenizer.special_tokens_map.items()}
        return Renderer(self.tokenizer.get_chat_template(), special)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return token ids, with the tokenizer's special tokens unless an argument says otherwise.

        A text that begins with the prefix token gets no second one.
        """
        special = self.asked.add_bos_token if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            special = False
        return list(self.tokenizer.encode(string, **({} if special is None else {"add_special_tokens": special})))

    def _prompt_ids(self, text: str) -> list[int]:
        """Return the token ids of a prompt to be answered; a prompt that begins with BOS gets no second one."""
        doubled = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        special = False if doubled else self.asked.add_bos_token
        return list(self.tokenizer.encode(text, **({} if special is None else {"add_special_tokens": special})))

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Return (log-probability, is the greedy answer) of every continuation, in order."""
        samples = [sample_of(request.doc) for request in requests]
        others = [at for at, sample in enumerate(samples) if sample is None]
        theirs = super().loglikelihood([requests[at] for at in others], disable_tqdm=disable_tqdm) if others else []
        scores = dict(zip(others, theirs, strict=True))
        groups: dict[str, list[int]] = {}
        for at, sample in enumerate(samples):
            if sample is not None:
                groups.setdefault(sample.id, []).append(at)
        ours = {sample.id: sample for sample in samples if sample is not None}
        asked = [self._own(sample) for sample in ours.values()]
        for output in self._answers(asked, "choices", disable_tqdm):
            for at in groups[output.sample_id]:
                scores[at] = tuple(output.choices[int(requests[at].idx)])
                self.cache_hook.add_partial("loglikelihood", requests[at].args, scores[at])
        return [scores[at] for at in range(len(requests))]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Return (log-probability, is greedy) per (texts, context, continuation); equal contexts are one request."""
        groups: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
        for at, (texts, context, continuation) in enumerate(requests):
            if not continuation or not context or len(continuation) > self.max_length:
                sizes = f"{len(context)} tokens of context and {len(continuation)} of continuation"
                raise ModelError(f"{str(texts)[-80:]!r}: {sizes} cannot be scored within {self.max_length} positions")
            kept = (*context, *continuation)[-(self.max_length + 1) :]
            self._cut += len(kept) < len(context) + len(continuation)
            choices = groups.setdefault(kept[: -len(continuation)], {})
            choices.setdefault(tuple(continuation), []).append(at)
        asked = [
            self._plain(str(number), ids, 0, choices=tuple(Continuation(choice, len(choice)) for choice in choices))
            for number, (ids, choices) in enumerate(groups.items())
        ]
        self._tell_cut()
        scores: dict[int, ChoiceScore] = {}
        members = [list(choices.values()) for choices in groups.values()]
        for output in self._answers(asked, "choices", disable_tqdm):
            for score, places in zip(output.choices, members[int(output.sample_id)], strict=True):
                for at in places:
                    scores[at] = score
                    if requests[at][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[at][0], tuple(score))
        return [tuple(scores[at]) for at in range(len(requests))]  # type: ignore[misc]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of every text; each token counts once, in windows of `max_length` positions."""
        totals = []
        for request in tqdm(requests, disable=disable_tqdm, desc="texts"):
            (text,) = request.args
            ids = self.tok_encode(text)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            totals.append(sum(logprob for logprob, _ in self._loglikelihood_tokens(pairs, disable_tqdm=True)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the greedy answers, cut at the first stop string."""
        asked, stops = [], []
        for number, request in enumerate(requests):
            sample = sample_of(request.doc)
            sent, stop = self._answered(request) if sample is None else (self._own(sample), None)
            asked.append(replace(sent, sample_id=str(number)))
            stops.append(stop)
        self._tell_cut()
        answers: dict[int, str] = {}
        for output in self._answers(asked, "answers", disable_tqdm):
            at, text = int(output.sample_id), output.text
            if (stop := stops[at]) is not None:  # as lm-eval's `hf` model decodes the new tokens
                text = self.tokenizer.decode(list(output.token_ids), skip_special_tokens=True)
                text = str(postprocess_generated_text(text, stop, None))
            answers[at] = text
            self.cache_hook.add_partial("generate_until", requests[at].args, answers[at])
        return [answers[at] for at in range(len(requests))]

    def get_model_info(self) -> dict[str, Json]:
        """Return the model's entry in the results file: the arm as asked and as applied, and the backend."""
        described = self._backend.describe()
        ours: dict[str, Json] = {
            "version": metadata.version("anchoreval"), "arm": {"asked": self.arm.asked(), "applied": self._applied},
            "fingerprint": self._fingerprint, "backend": described, "document_tokens": self.asked.document_tokens,
            "cut_on_the_left": self._cut,
        }  # fmt: skip
        theirs = {"num_parameters": "parameters", "dtype": "dtype", "sha": "weights_sha256"}
        return {"anchoreval": ours} | {f"model_{name}": described.get(key) for name, key in theirs.items()}

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Keep answers in a cache; raise BadArgument if the cache has answers of another model, arm or engine.

        lm-eval's cache keys are prompts only, so a cache would return the answers of one model for another.
        """
        kept = cache_hook.dbdict
        if kept is not None:
            if len(kept) and kept.get(_CACHED_BY) != self._fingerprint:
                raise BadArgument("--use_cache: the answers there are of another model, arm or engine: another path")
            kept[_CACHED_BY] = self._fingerprint
        super().set_cache_hook(cache_hook)

    @cached_property
    def _backend(self) -> Backend:
        given: dict[str, Any] = {"dtype": self._model.card.dtype}
        if "max_model_len" in BACKENDS[self.engine].takes:  # of the longest prompt with its answer, lm-eval's or ours
            given["max_model_len"] = max(self.max_length, self._model.window or 0)
        return open_backend(self.engine, self._model.checkpoint, **given | self.asked.engine())

    @cached_property
    def _fingerprint(self) -> str:
        """The SHA-256 over everything that an answer to a prompt depends on."""
        asked = self.asked
        texts = (asked.max_length, asked.add_bos_token, asked.prefix_token_id, asked.document_tokens)
        versions = self._backend.describe()["versions"]  # a cache does not record which versions computed its answers
        identity = [self._backend.fingerprint, versions, self.arm.fingerprint(), self._texts.sha256, *texts]
        identity += [] if self._anchor == "auto" else [f"anchor {self._anchor}"]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def _load_tokenizer(self) -> Any:
        """Return the tokenizer of `anchoreval run` as an object of transformers, for lm-eval's prompts.

        If transformers' own class ignores rules of tokenizer.json, use the class that reads all of them. Raise
        ModelError if the tokens still differ.
        """
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        folder, reading = self._model.tokenizer_folder, self._texts.reading
        if reading is not None and reading.differs:
            _log.warning(reading.words)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, **self._texts.special_tokens)
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=bool(self.asked.trust_remote_code))
        for text in PROBES:
            if list(tokenizer.encode(text, add_special_tokens=False)) != self._texts.encode(text):
                what = f"transformers' {type(tokenizer).__name__} reads other tokens than tokenizer.json holds"
                raise ModelError(f"{folder}: {what}: lm-eval's tasks and ours would get different ones")
        return tokenizer

    def _own(self, sample: Sample) -> Request:
        """Return a sample of our tasks as `anchoreval run` sends it, without its reference: lm-eval cannot use it."""
        task = card_of(sample.task)
        room = None if task.length_of == "natural" else room_of(task, self._model.window)
        request = to_request(replace(sample, references=()), self._texts, task.reference, room, anchor=self._anchor)
        tokens = self.asked.document_tokens
        return request if tokens is None else cut_documents(request, tokens)

    def _plain(self, name: str, ids: Sequence[int], new_tokens: int, **more: Any) -> Request:
        """Return a request of token ids without documents."""
        anchors = {self.tokenizer.bos_token_id, self._texts.bos and self._texts.bos[1]} - {None}
        first = -1 if ids[0] in (anchors or {self.tokenizer.eos_token_id}) else 0
        return Request(name, tuple(ids), (first, *[0] * (len(ids) - 1)), ("query",), new_tokens, **more)

    def _answered(self, request: Instance) -> tuple[Request, list[str]]:
        """Return an lm-eval request for an answer as our Request, and its stop strings."""
        text, decoding = request.args
        given: Mapping[str, Any] = normalize_gen_kwargs(decoding, MAX_NEW_TOKENS)
        changed = sorted(set(given) - _WITHOUT_EFFECT - {"until", "max_gen_toks"})
        if given.get("do_sample") or float(given.get("temperature") or 0) > 0:
            changed = ["do_sample"]
        if changed:
            raise BadArgument(f"{request.task_name}: {changed[0]}: answers are greedy, by the most likely token alone")
        eos = self.tokenizer.decode([self.eot_token_id], skip_special_tokens=False)
        stop = handle_stop_sequences(list(given["until"]), eos=eos)
        most, ids = given["max_gen_toks"], self._prompt_ids(text)
        if not 0 < most < self.max_length:
            raise BadArgument(f"{request.task_name}: {most} new tokens, the model has {self.max_length} positions")
        kept = ids[-(self.max_length - most) :]
        self._cut += len(kept) < len(ids)
        return self._plain("", kept, most, stop=tuple(string for string in stop if string)), stop

    def _tell_cut(self) -> None:
        if self._cut > self._told:
            _log.warning("%d prompts are cut on the left to %d positions", self._cut - self._told, self.max_length)
        self._told = self._cut

    def _answers(self, requests: Sequence[Request], what: str, quiet: bool) -> Iterator[Output]:
        """Yield every output as it comes; raise ModelError after the last if requests have no answer."""
        if not requests:
            return
        if not self.arm.stock:
            without = sum("document" not in request.roles and "line" not in request.roles for request in requests)
            if without:
                _log.warning("arm %s: %d of %d prompts have no documents", self.arm.name, without, len(requests))
        failed: list[Output] = []
        backend = self._backend
        with backend.under(self.arm) as applied, tqdm(total=len(requests), disable=quiet, desc=what) as progress:
            self._applied = dict(applied)
            for output in backend.answer(requests):
                progress.update()
                if output.finish == "error" and output.lost != "unclosed":  # lm-eval scores an unclosed answer's text
                    failed.append(output)
                else:
                    yield output
        if failed:
            raise ModelError(f"{len(failed)} of {len(requests)} requests have no answer: {failed[0].why}")


class AnchorEvalVllm(AnchorEvalLM):
    """The vLLM backend under one arm; `model_args` may hold its options (`tensor_parallel_size`, ...) too."""

    engine = ENGINES["anchoreval-vllm"]
