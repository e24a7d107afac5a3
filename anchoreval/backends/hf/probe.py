"""Test whether a loaded model answers as its own single pass does: two short rows of unequal length, decoded at load.

Shapes: k logits of a row, N tokens of a row, V vocabulary.

The backend continues from keys and values in a cache, gives position ids, and puts rows of other lengths beside a row.
Some model types cannot bear that: BART's kind counts positions from the cache, padding included; RWKV and
RecurrentGemma keep state elsewhere. So the two rows go the way that prompts go: one is prefilled in two chunks, one has
a reference, and both are decoded side by side; every logit that chooses a token is compared with those of one stock
pass over the row. If a model is right only without padding, its rows are computed alone; if it is wrong even so, or
fails, it is refused in one line. The cost is ten passes over at most 14 tokens (more if a window of 64 or less is
crossed).

Distances are of a whole row of logits: |got - want| over the spread |want - mean(want)|. Of the types of transformers
5.19 (tiny random models of 2 to 4 layers, on a CPU), the right ones reached at most 9e-5 in float32, 0.007 in float16
and 0.04 in bfloat16; those that are wrong beside padding reached at least 0.08.

`Proofs` holds what levels of RoPE need besides: its kind, the self-test, and what enters the kernels. `native` touches
nothing and needs none of it: what cannot be found out about a model then stands in the header with its reason.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from anchoreval.arms.arm import Arm
from anchoreval.arms.configuration import positions_of
from anchoreval.arms.inspect_hf import BROKEN, inspect_rope, same
from anchoreval.arms.patch_hf import Applied, rotary_modules
from anchoreval.backends.hf.answer import Answering
from anchoreval.backends.hf.batches import LEAST_ROWS, Limits
from anchoreval.backends.hf.cache import KvStore
from anchoreval.backends.hf.decode import Row
from anchoreval.backends.hf.load import StockNetwork
from anchoreval.backends.hf.network import extend
from anchoreval.errors import ModelError, UnsupportedArm
from anchoreval.schema import Json, Request
from anchoreval.tokenizer import TextTokenizer

_TEXT = "The old bridge over the river was made of wood, and every winter the ice carried some of it away. "
_TOKENS, _FEWER, _NEW = 11, 6, 4  # tokens of the two prompts, and of their answers
_SMALL_WINDOW = 64  # windows of at most so many tokens are crossed
_WINDOWS = ("sliding_window", "attention_chunk_size", "keep_window_size", "local_attention", "attention_window_size")
_LEAST_TOLERANCE = 0.03  # float32 alone would allow 1e-6, but products in TF32 and the like are not faults


def settle(network: StockNetwork, tokenizer: TextTokenizer) -> int | None:
    """Find out how the model's rows are computed rightly, set `network.alone`, and return how many positions it has.

    The result is None if its positions have no end. Raise ModelError, with the model type, if neither batches nor rows
    alone give what one pass over a row gives.
    """
    # two prompts of different tokens and lengths, the first longer than a small window
    config = network.model.config.get_text_config(decoder=True)
    stated = (getattr(config, name, None) for name in _WINDOWS)
    first = _TOKENS + min((w for w in stated if isinstance(w, int) and 0 < w <= _SMALL_WINDOW), default=0)
    start = [tokenizer.bos[1]] if tokenizer.bos else []
    ids = [i for i in tokenizer.encode(_TEXT) if i < network.vocabulary] or list(range(network.vocabulary))
    some = list(itertools.islice(itertools.cycle(ids), first + _FEWER))
    prompts = (*start, *some[: first - len(start)]), (*start, *some[first : first + _FEWER - len(start)])

    why = _wrong(network, prompts)
    if why is not None and not network.alone:
        network.alone = True
        why = _wrong(network, prompts)
    network.apart = network.joint and _wrong(network, prompts, joint=True) is not None
    if why is not None:
        raise ModelError(f"model type {network.model.config.model_type!r} cannot be answered by this backend: {why}")
    tables = _Tables(network, len(prompts[0]))
    with torch.inference_mode(), tables:
        _one_pass(network, prompts[0], 1)
    return min(tables.sizes, default=None)


def tolerance(dtype: torch.dtype, layers: int) -> float:
    """Return how far rounding may drive the logits of two ways apart: five standard deviations.

    Every layer rounds what it adds about twelve times, evenly within half a unit in the last place (a standard
    deviation of eps / sqrt(12)); roundings add up as a random walk.
    """
    return max(_LEAST_TOLERANCE, 5 * math.sqrt(layers) * torch.finfo(dtype).eps)


class _Listening(Answering):
    """Answers, and keeps the logits `V` from which each token of a request was chosen."""

    def __init__(self, network: StockNetwork, chunk_tokens: int, joint: bool) -> None:
        limits = Limits(chunk_tokens, 1 << 20, LEAST_ROWS, chunk_tokens if joint else None)
        super().__init__(network, NoText(), frozenset(), limits, lambda: None)
        self.logits_V: dict[str, list[Tensor]] = defaultdict(list)

    def _advance(self, slots: Sequence[Row | None], logits_BV: Tensor) -> Tensor:
        for slot, logits_V in zip(slots, logits_BV, strict=True):
            if slot is not None and slot.going:
                self.logits_V[slot.request.sample_id].append(logits_V.clone())
        return super()._advance(slots, logits_BV)


class NoText:
    """A decoder whose text is always empty, so that nothing ends an answer."""

    def decode(self, ids: list[int]) -> str:
        """Return no text."""
        return ""


def _wrong(network: StockNetwork, prompts: Sequence[tuple[int, ...]], joint: bool = False) -> str | None:
    """Return what is wrong with the answers to the prompts, None if nothing is."""
    try:
        with torch.inference_mode(), nullcontext() if network.growth is None else network.growth.kept():
            far = _farthest(network, prompts, joint)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelError(f"out of memory with two prompts of {len(prompts[0])} tokens at most") from error
    except Exception as error:  # modelling code may raise anything
        return ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))[:300]
    allowed = tolerance(network.model.dtype, network.layers)
    if far <= allowed:
        return None
    fix = "" if network.model.dtype == torch.float32 else "; --dtype float32 tells a fault from rounding"
    return (
        f"answers from a cache are not those of one pass (logits apart by {far:.2g} of their spread, "
        f"not {allowed:.2g}){fix}"
    )


def _farthest(network: StockNetwork, prompts: Sequence[tuple[int, ...]], joint: bool) -> float:
    """Return the largest distance from one pass, over the first token's logits and the median of the following ones."""
    answering = _Listening(network, len(prompts[0]) // 2 + 1, joint)
    reference = prompts[0][-3:]
    asked = [Request(str(i), ids, (), (), _NEW, reference_ids=reference if i else ()) for i, ids in enumerate(prompts)]
    far = 0.0
    for output in answering.outputs(asked):
        if output.lost == "failed":
            raise torch.OutOfMemoryError(output.why)
        chosen_V = answering.logits_V[output.sample_id]
        if not chosen_V:  # the reference has no log-probability that is a number
            continue
        ids = (*prompts[int(output.sample_id)], *output.token_ids[: len(chosen_V) - 1])
        want_kV = _one_pass(network, ids, len(chosen_V))
        each = [_distance(got_V, want_V) for got_V, want_V in zip(chosen_V, want_kV, strict=True)]
        far = max(far, each[0], statistics.median(each[1:] or [0.0]))
    return far


def _distance(got_V: Tensor, want_V: Tensor) -> float:
    """Return |got - want| / |want - mean(want)|; 0 if the model's own logits are not numbers."""
    used = want_V.isfinite()
    if bool(want_V.isnan().any()) or not bool(used.any()):
        return 0.0
    got, want = got_V[used].double(), want_V[used].double()
    spread = (want - want.mean()).norm()
    return float(torch.nan_to_num((got - want).norm() / spread, torch.inf)) if float(spread) > 0 else 0.0


def _one_pass(network: StockNetwork, ids: Sequence[int], keep: int) -> Tensor:
    """Return the logits `kV` at the last tokens of a row, by the model alone, as `generate` calls it."""
    ids_1N = torch.tensor([ids], device=network.device)
    result = network.model(
        input_ids=ids_1N,
        attention_mask=torch.ones_like(ids_1N),
        position_ids=torch.arange(len(ids), device=network.device)[None],
        use_cache=False,
    )
    return cast(Tensor, result.logits[0, -keep:])


class _Tables(TorchFunctionMode):
    """Records the sizes of tables that are looked up by position while the block runs, with offsets subtracted.

    A lookup by position is one whose indices are 0, 1, 2, ... plus a constant. Parameters count whatever their size.
    Other tensors (GPT-J, CTRL) count only if they have the size that the configuration states, because tables of RoPE
    are made as long as they are needed.
    """

    def __init__(self, network: StockNetwork, tokens: int) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self._order_N = torch.arange(tokens, device=network.device)
        self._weights = {id(weight) for weight in network.model.parameters()}
        self._stated = positions_of(network.model.config)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.embedding:
            self._look_up(args[1], args[0], 0)
        elif func in (torch.gather, torch.Tensor.gather) and len(args) == 3:
            self._look_up(args[0], args[2].select(-1, 0), args[1])
        elif func is torch.Tensor.__getitem__:
            self._look_up(args[0], args[1][0] if isinstance(args[1], tuple) else args[1], 0)
        return out

    def _look_up(self, table: Tensor, index: Any, dim: int) -> None:
        if not isinstance(index, Tensor) or index.is_floating_point() or index.numel() != len(self._order_N):
            return
        offset_N = index.flatten() - self._order_N
        if bool((offset_N != offset_N[0]).any()):
            return
        size = table.shape[dim] - int(offset_N[0])
        if id(table) in self._weights or size == self._stated:
            self.sizes.append(size)


_PROOF_TOKENS = 32


@dataclass(eq=False)
class Proofs:
    """What was found out about a loaded model; each finding is made once."""

    network: StockNetwork
    selftest: Callable[[], dict[str, Json]]
    _selftest: dict[str, Json] | None = field(default=None, init=False)
    _inspected: dict[str, Json] | None = field(default=None, init=False)
    _at_kernel: dict[tuple[object, ...], dict[str, Json]] = field(default_factory=dict, init=False)
    _restored: set[tuple[object, ...]] = field(default_factory=set, init=False)

    def tested(self) -> dict[str, Json]:
        """Return the self-test of the rotary patch; if it cannot run it counts as failed, and `why` says so."""
        if self._selftest is None:
            try:
                self._selftest = self.selftest()
            except (UnsupportedArm, *BROKEN) as error:
                self._selftest = {"ok": False, "restored": False, "why": _line(error)}
        return self._selftest

    def inspected(self) -> dict[str, Json]:
        """Return what RoPE the model has; if its rotary modules cannot be described, `why` says so."""
        model = self.network.model
        if self._inspected is not None:
            return self._inspected
        try:
            self._inspected = asdict(inspect_rope(model))
        except (UnsupportedArm, *BROKEN) as error:
            rotary = [
                {"path": path, "kind": type(module).__name__, "rope_types": {}}
                for path, module in rotary_modules(model).items()
            ]
            report: dict[str, Json] = {"has_rope": bool(rotary), "rotary": rotary, "rotating": [], "detected": None}
            self._inspected = report | {"damaged": [], "unchecked": {}, "why": _line(error)}
        return self._inspected

    @torch.inference_mode()
    def at_kernel(self, arm: Arm, state: Applied) -> dict[str, Json]:
        """Return dtype and bits of q and k in the attention kernels under the arm in force, from one short pass.

        Raise UnsupportedArm if a level does not get there: no rotation goes through it, q or k lose what it gives them,
        or the model's code does not take its tables. `native`, for which nothing is refused, was looked at on load.
        """
        if arm.rope.native:
            return self.network.entering
        key = (arm.rope, state.attention, arm.outside)
        if key not in self._at_kernel:
            try:
                self.network.one_token()
                if not state.rotations:
                    text = f"rope: no rotation of this model goes through {state.level}; only `native` runs"
                    raise UnsupportedArm(text)
                state.verify()
                self._at_kernel[key] = state.at_kernel
            except BROKEN as error:
                text = f"rope {arm.rope}: {_line(error)}"
                raise UnsupportedArm(f"arm {arm.name!r}: hf cannot compute {text}") from error
            for counts in (state.tables, state.rotations, state.passes):
                counts.clear()
        return self._at_kernel[key]

    @torch.inference_mode()
    def restored(self, arm: Arm, put_on: Callable[[], AbstractContextManager[Any]]) -> None:
        """Refuse an arm that leaves something behind: stock logits before and after it are compared bit for bit.

        This is done once per arm, on a short prompt and a token after it, which are also run under the arm.
        """
        key = (arm.rope, arm.kernel, arm.outside)
        if key in self._restored:
            return
        before = self._logits()
        try:
            with put_on():
                self._logits()
            after = self._logits()
        except BROKEN as error:
            raise UnsupportedArm(f"arm {arm.name!r}: a short prompt under it: {_line(error)}") from error
        if not same(before, after):
            why = "the stock logits do not come back when it is taken off the model: it leaves something behind"
            raise UnsupportedArm(f"arm {arm.name!r}: {why}")
        self._restored.add(key)

    def _logits(self) -> Tensor:
        """Return the logits [1, tokens + 1, vocabulary] of a prompt and, from its cache, of one more token."""
        cache = KvStore(self.network.layers, 1, _PROOF_TOKENS + 1).row(0, 0, 0)
        ids = [(7 * place + 3) % self.network.vocabulary for place in range(_PROOF_TOKENS + 1)]
        prompt = extend(self.network, cache, ids[:_PROOF_TOKENS], range(_PROOF_TOKENS), 0, keep=_PROOF_TOKENS)
        behind = extend(self.network, cache, ids[_PROOF_TOKENS:], [_PROOF_TOKENS], _PROOF_TOKENS)
        return torch.cat([prompt, behind])


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, UnsupportedArm) else f"{type(error).__name__}: {text}"
