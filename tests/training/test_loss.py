"""The loss in chunks of rows against the stock loss: value and gradients in float64, and models it does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor

from anchoreval.arms.precision import _fp32_means
from anchoreval.errors import ModelError
from anchoreval.training import collate, documents, loss
from anchoreval.training.loss import chunked_loss, require_stock_loss
from anchoreval.training.variants import NO_TARGET

EXACT = "rope:angle=fp64,table=fp64,rotate=fp64,product=model"
ROWS = [[[5, 6, 7, 8, 9], [10, 11, 12]], [[13, 14, 15, 16]]]


def computed(model: Any, chunked: bool, **named: Any) -> tuple[Tensor, Tensor]:
    batch = collate(ROWS, "anchor", 1) | named
    with _fp32_means(torch.float64), documents(model, "anchor", EXACT):
        if chunked:
            with chunked_loss(model):
                value = model(**batch).loss
                value.backward()
        else:
            value = model(**batch, use_cache=False).loss
            value.backward()
    gradient = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
    model.zero_grad()
    return value.detach(), gradient


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3-local", "cohere", "cohere2", "granite", "olmo2", "phi3"])
@pytest.mark.parametrize("items", [None, 17])
def test_chunks_give_the_stock_loss_and_its_gradients(
    monkeypatch: pytest.MonkeyPatch, name: str, items: int | None
) -> None:
    monkeypatch.setattr(loss, "rows_of", lambda _: 3)
    model = tiny_models.build(name, torch.float64)
    named = {} if items is None else {"num_items_in_batch": items}
    own, stock = computed(model, True, **named), computed(model, False, **named)
    for one, other in zip(own, stock, strict=True):
        assert (one - other).abs().max() <= 1e-12 * other.abs().max()


def test_rows_without_a_target_are_never_multiplied_by_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, stock = [0], loss._sum

    def counted(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
        rows[0] += len(targets)
        return stock(model, hidden, targets)

    monkeypatch.setattr(loss, "_sum", counted)
    model, batch = tiny_models.build("llama"), collate(ROWS, "anchor", 1)
    with torch.no_grad(), documents(model, "anchor", "fp32"), chunked_loss(model):
        model(**batch)
    assert rows[0] == int((batch["labels"] != NO_TARGET).sum()) == 9


def test_a_model_that_does_more_behind_its_head_is_refused() -> None:
    require_stock_loss(tiny_models.build("llama"))
    capped = tiny_models.build("gemma2")
    capped.config.final_logit_softcapping = 0.5
    with pytest.raises(ModelError, match="the logits of Gemma2ForCausalLM are not those of its head"):
        require_stock_loss(capped)


def test_the_models_own_forward_is_back_after_the_block() -> None:
    model = tiny_models.build("llama")
    with chunked_loss(model), pytest.raises(ModelError, match="a forward of its own"), chunked_loss(model):
        pass
    assert "forward" not in model.__dict__


def test_a_chunk_is_a_quarter_gigabyte_of_logits_at_most() -> None:
    assert loss.rows_of(128_256) * 128_256 * 4 <= 1 << 28 and loss.rows_of(1 << 30) == 64
