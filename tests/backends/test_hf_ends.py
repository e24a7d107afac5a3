"""Further tokens that end an answer, as LongBench's samsum has them, against transformers' generate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from checkpoints import EOS, prompts, request

from anchoreval.backends.fake import FakeBackend, Numbers
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.schema import Request

NEW_TOKENS = 10


def stock(backend: HfBackend, asked: Request) -> list[int]:
    """THUDM/LongBench 2e00731 LongBench/pred.py on samsum: min_length, and a list of tokens that end."""
    ids = torch.tensor([asked.token_ids])
    made = backend.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=asked.max_new_tokens,
        num_beams=1,
        do_sample=False,
        min_length=ids.shape[1] + 1,
        eos_token_id=[EOS, *asked.end_ids],
        pad_token_id=EOS,
    )
    return [int(token) for token in made[0, ids.shape[1] :]]


def test_an_end_token_ends_an_answer_as_in_upstreams_generate_and_never_is_its_first(llama: Path) -> None:
    backend = HfBackend.open(str(llama), chunk_tokens=32, batch_tokens=2_048, rows=8)
    plain = [request(str(i), ids, NEW_TOKENS) for i, ids in enumerate(prompts(8, 5, 60))]
    free = {output.sample_id: output.token_ids for output in backend.answer(plain)}
    ended, first = 0, 0
    for place in (0, 3):
        asked = [replace(one, end_ids=(free[one.sample_id][place],), min_new_tokens=1) for one in plain]
        for output in backend.answer(asked):
            one = asked[int(output.sample_id)]
            assert list(output.token_ids) == stock(backend, one)
            assert output.token_ids[0] not in {EOS, *one.end_ids}
            ended += output.token_ids[-1] in one.end_ids and output.finish == "stop"
            first += free[one.sample_id][0] in one.end_ids
    assert ended and first, "an end token was met, and one was kept from being the first"
    backend.close()


def test_the_fake_backend_ends_there_too() -> None:
    asked = replace(request("0", (1, 5, 6), NEW_TOKENS, reference=(7, 8, 9)), end_ids=(8,), min_new_tokens=1)
    (output,) = FakeBackend("echo-reference", Numbers()).answer([asked])
    assert output.token_ids == (7, 8) and output.finish == "stop"
