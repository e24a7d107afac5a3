"""Find the number of positions that a server has for a prompt and its answer, wherever it states it.

It is not a condition of a run: a server that does not state it is used all the same, and what it states may change from
one start to the next.
"""

from __future__ import annotations

from collections.abc import Iterator

from anchoreval.backends.openai.http import Link
from anchoreval.backends.openai.message import count_of, names_of, rows_of
from anchoreval.schema import Json

#: Names in a row of a list of models, those of what is loaded before those of what the model could have.
_IN_ROW = (
    ("max_model_len",),  # vLLM, SGLang
    ("meta", "n_ctx"),  # llama.cpp; its n_ctx_train is the model's, not the server's
    ("loaded_context_length",),  # LM Studio
    ("top_provider", "context_length"),  # OpenRouter
    ("context_length",),  # OpenRouter, Ollama's running models
    ("context_window",),  # Groq
    ("max_context_length",),  # LM Studio, Mistral
    ("max_total_tokens",),
)
#: Addresses beside /v1 of which one says the window of the one model that is served.
_BESIDE = (
    ("/props", ("default_generation_settings", "n_ctx")),  # llama.cpp
    ("/info", ("max_total_tokens",)),  # TGI
    ("/get_server_info", ("context_length",)),  # SGLang
    ("/get_model_info", ("context_length",)),
)


def stated_window(link: Link, model: str) -> int | None:
    """Return the number of positions for a prompt and its answer; None if the server does not state it."""
    return next(_stated(link, model), None)


def _stated(link: Link, model: str) -> Iterator[int]:
    root = link.address.removesuffix("/v1")
    yield from _in_row(link.aside(f"{link.address}/models"), model)
    for path, place in _BESIDE:
        yield from _numbers(link.aside(f"{root}{path}"), place)
    yield from _in_row(link.aside(f"{root}/api/v0/models"), model)
    running = link.aside(f"{root}/api/ps")
    yield from _in_row(running, model)
    if isinstance(running, dict) and "models" in running:  # no other server than Ollama is posted what it may not know
        yield from _parameter(link.aside(f"{root}/api/show", {"model": model}))


def _in_row(said: Json, model: str) -> Iterator[int]:
    """Yield the counts in the model's row of a list of models."""
    for row in rows_of(said) or ():
        if model in names_of(row):
            yield from _numbers(row, *_IN_ROW)


def _numbers(said: Json, *places: tuple[str, ...]) -> Iterator[int]:
    """Yield the counts that stand at `places`, each a path of keys."""
    for place in places:
        value = said
        for key in place:
            value = value.get(key) if isinstance(value, dict) else None
        if (count := count_of(value)) is not None:
            yield count


def _parameter(said: Json) -> Iterator[int]:
    """Yield the `num_ctx` of a Modelfile, a line of its parameters."""
    parameters = said.get("parameters") if isinstance(said, dict) else None
    for line in parameters.splitlines() if isinstance(parameters, str) else ():
        name, _, value = line.partition(" ")
        if name == "num_ctx" and value.strip().isdecimal() and len(value.strip()) < 12:
            yield int(value)
