"""Tables and rotations of the levels, against arithmetic written out in fp64 with a rounding at each site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="VLLM ABSENT: nothing was computed by vLLM (make test-vllm)")

from engines import ROWS, TYPES, checkpoint

from anchoreval.arms.precision import TORCH
from anchoreval.arms.rope import DIGITS, LEVELS, RopeLevel, parse_level
from anchoreval.errors import UnsupportedArm

pytestmark = pytest.mark.filterwarnings("ignore")

NAMED = [name for name in LEVELS if name != "native"]
Make = Callable[..., Any]
CONFIGURED: dict[str, Any] = {}  # the configuration that `rotary` made a module under last


@pytest.fixture(scope="module")
def rotary(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`rotary("llama3", "bf16", "float32")`: the module that vLLM makes for that type, level and model dtype."""
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers.rotary_embedding import get_rope
    from vllm.utils.torch_utils import set_default_torch_dtype

    from anchoreval.vllm_plugin import rope

    folders = {kind: checkpoint(tmp_path_factory.mktemp(kind), rope=kind) for kind in TYPES}

    def make(kind: str, level: str, dtype: str = "float32", more: dict[str, Any] | None = None, **asked: Any) -> Any:
        asked = {"rope": level, **asked}
        args = EngineArgs(str(folders[kind]), dtype=dtype, max_model_len=1024, additional_config={"anchoreval": asked})
        config = CONFIGURED["config"] = args.create_engine_config()
        rope.forget()
        torch_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
        with set_current_vllm_config(config), set_default_torch_dtype(torch_dtype):
            parameters = {**config.model_config.hf_config.rope_parameters, **(more or {})}
            return get_rope(32, max_position=ROWS, rope_parameters=parameters)

    return make


def inverse_frequencies(stock: Any) -> torch.Tensor:
    """Those of a stock module, called as its own class calls them; fp32 [head_dim / 2]."""
    argument = stock.scaling_factor if hasattr(stock, "beta_fast") else stock.base
    return stock._compute_inv_freq(argument) / getattr(stock, "scaling_factors", [1.0])[0]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("level", [*NAMED, "rope:inv_freq=bf16,angle=fp64,table=fp16"])
def test_a_table_is_cos_and_sin_of_the_rounded_angle(rotary: Make, kind: str, level: str) -> None:
    sites = parse_level(level)
    stock, made = rotary(kind, "native"), rotary(kind, level)
    inv_freq = inverse_frequencies(stock).to(TORCH[sites.inv_freq]).to(TORCH[sites.angle]).double()
    positions = torch.arange(made.level_table.shape[0]).to(TORCH[sites.angle]).double()
    angle = (positions[:, None] * inv_freq).to(TORCH[sites.angle]).double()
    magnitude = getattr(stock, "mscale", 1.0)
    expected = torch.cat((angle.cos(), angle.sin()), -1) * magnitude
    # cos, then the magnitude, are rounded in the angle's dtype and once more in the table's, each time by at
    # most 2**-digits of a value of at most `magnitude`; cos itself is good to one rounding more
    tolerance = magnitude * (3 * 2.0 ** -DIGITS[sites.angle] + 2.0 ** -DIGITS[sites.table])
    assert made.level_table.dtype is TORCH[sites.table]
    assert float((made.level_table.double() - expected).abs().max()) <= tolerance
    assert made.level_table.shape[0] >= stock.cos_sin_cache.shape[0]


def rotated(x: torch.Tensor, table: torch.Tensor, level: RopeLevel, dtype: torch.dtype) -> torch.Tensor:
    """One rounding to `rotate` after each operation, done in fp64; then the product's, then the model's dtype."""
    site = TORCH[level.rotate]

    def to_site(value: torch.Tensor) -> torch.Tensor:
        return value.to(site).double()

    cos, sin = to_site(table)[:, None, :].chunk(2, -1)
    one, two = to_site(x).view(len(x), -1, 32).chunk(2, -1)
    first = to_site(to_site(one * cos) - to_site(two * sin))
    second = to_site(to_site(two * cos) + to_site(one * sin))
    out = torch.cat((first, second), -1).view(x.shape).to(site)
    product = dtype if level.product == "model" else TORCH[level.product]
    return out.to(product).to(dtype)


@pytest.mark.parametrize(("dtype", "levels"), [("float32", NAMED), ("bfloat16", ["fp32", "bf16-table", "bf16"])])
def test_a_rotation_rounds_at_each_site_and_nowhere_else(rotary: Make, dtype: str, levels: list[str]) -> None:
    rng = torch.Generator().manual_seed(0)
    positions = torch.randint(0, ROWS, (300,), generator=rng)
    model = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    query = torch.randn(300, 4 * 32, generator=rng).to(model)
    key = torch.randn(300, 2 * 32, generator=rng).to(model)
    for level in levels:
        module = rotary("default", level, dtype)
        got = module(positions, query.clone(), key.clone())
        expected = [rotated(x, module.level_table[positions], LEVELS[level], model) for x in (query, key)]
        assert all(map(torch.equal, got, expected)), level


def test_native_leaves_an_object_of_vllms_own_class(rotary: Make) -> None:
    from vllm.model_executor.layers import rotary_embedding

    module = rotary("default", "native")
    assert type(module) is rotary_embedding.RotaryEmbedding
    assert list(dict(module.named_buffers())) == ["cos_sin_cache"]
    assert module.name == "rotary_embedding"


def test_the_operator_keeps_its_name_at_a_level(rotary: Make) -> None:
    module = rotary("default", "fp32")
    assert module.name == "rotary_embedding"  # what custom_ops=["-rotary_embedding"] speaks of
    assert not hasattr(module, "cos_sin_cache")  # nothing can read a table of another level


def test_a_position_without_a_row_raises(rotary: Make) -> None:
    module = rotary("default", "fp32")
    with pytest.raises(IndexError):
        module(torch.tensor([ROWS]), torch.zeros(1, 32), torch.zeros(1, 32))


def test_positions_lengthen_the_table_of_a_level(rotary: Make) -> None:
    longer = rotary("yarn", "fp32", positions=9000).level_table
    assert longer.shape[0] == 9000
    assert torch.equal(longer[:ROWS], rotary("yarn", "fp32").level_table)


@pytest.mark.parametrize(
    ("level", "dtype", "more", "asked", "named"),
    [
        ("fp64", "bfloat16", {}, {}, "fp64 keeps q and k in fp32"),
        ("fp32-qk", "bfloat16", {}, {}, "product=model"),
        ("fp32", "float32", {"mrope_section": [8, 4, 4]}, {}, "MRotaryEmbedding"),
        ("fp32", "float32", {"rope_type": "ntk", "factor": 2.0}, {}, "NTKScalingRotaryEmbedding"),
        ("fp32", "float32", {"rope_type": "dynamic", "alpha": 2.0}, {}, "DynamicNTKAlphaRotaryEmbedding"),
        ("fp32", "float32", {"rope_type": "dynamic", "factor": 2.0}, {"positions": 5000}, "max_model_len=4096"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    rotary: Make, level: str, dtype: str, more: dict[str, Any], asked: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedArm, match=named):
        rotary("default", level, dtype, more, **asked)


def test_says_does_not_judge_what_the_compiler_fuses(rotary: Make) -> None:
    from anchoreval.vllm_plugin.says import said

    stock = rotary("default", "native")  # the default configuration compiles, with custom operators off
    told = said(stock, CONFIGURED["config"], LEVELS["native"])
    assert (told["detected"], told["dispatch"]) == (None, "forward_native")
    assert "compiler chooses" in told["reason"]
    made = rotary("default", "bf16")
    assert said(made, CONFIGURED["config"], LEVELS["bf16"])["detected"] == "bf16"
