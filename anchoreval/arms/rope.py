"""RoPE precision levels: the dtype at each of five sites, as text that parses and prints back.

Imports no torch, so that arms and `--help` may name levels. The sites, in the order of the computation:

  inv_freq  what the model's own fp32 inverse frequencies are rounded to
  angle     position x inv_freq (both cast to it), and the cos() and sin() of it
  table     what cos and sin are stored in
  rotate    q * cos + rotate_half(q) * sin
  product   what rotated q and k are rounded to before q.k; `model` is the dtype they came in with

A product narrower than the model's dtype is rounded and handed on in the model's dtype. A wider product stays wide up
to q.k, which needs the `fused` attention kernel (anchoreval.arms.kernels).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from anchoreval.errors import UnknownName, UnsupportedArm

EXPLICIT = "rope:"

#: Binary digits of the significand, implicit bit included; the rounding error of a value is at most
#: 2**-digits of it.
DIGITS = {"bf16": 8, "fp16": 11, "fp32": 24, "fp64": 53}

#: The dtypes that each site may have. fp16 positions overflow at 65,504; the model has no frequencies beyond fp32.
ALLOWED: dict[str, tuple[str, ...]] = {
    "inv_freq": ("fp32", "bf16", "fp16"),
    "angle": ("fp64", "fp32", "bf16"),
    "table": ("fp64", "fp32", "bf16", "fp16"),
    "rotate": ("fp64", "fp32", "bf16", "fp16"),
    "product": ("model", "fp64", "fp32", "bf16", "fp16"),
}


@dataclass(frozen=True, slots=True)
class RopeLevel:
    """The dtype at each site. The defaults are the level `fp32`; all empty is `native`, the stock code."""

    inv_freq: str = "fp32"
    angle: str = "fp32"
    table: str = "fp32"
    rotate: str = "fp32"
    product: str = "model"

    @property
    def native(self) -> bool:
        """True if the model's own code is left alone."""
        return not self.angle

    @property
    def sites(self) -> dict[str, str]:
        """Site to dtype name, in the order of the computation; empty for `native`."""
        return {site.name: getattr(self, site.name) for site in fields(self)} if self.angle else {}

    def __str__(self) -> str:
        """Return the name in LEVELS, else `rope:` and the sites that differ from `fp32`; parse_level reads both."""
        for name, level in LEVELS.items():
            if level == self:
                return name
        plain = LEVELS["fp32"].sites
        differing = (f"{site}={dtype}" for site, dtype in self.sites.items() if dtype != plain[site])
        return EXPLICIT + ",".join(differing)


LEVELS: dict[str, RopeLevel] = {
    "native": RopeLevel("", "", "", "", ""),
    "fp64": RopeLevel("fp32", "fp64", "fp64", "fp64", "fp32"),
    "fp32-qk": RopeLevel("fp32", "fp32", "fp32", "fp32", "fp32"),
    "fp32": RopeLevel(),
    "bf16-table": RopeLevel("fp32", "fp32", "bf16", "fp32", "bf16"),
    "bf16": RopeLevel("fp32", "fp32", "bf16", "bf16", "bf16"),
    "bf16-angle": RopeLevel("bf16", "bf16", "bf16", "bf16", "bf16"),
    "fp16-table": RopeLevel("fp32", "fp32", "fp16", "fp32", "fp16"),
    "fp16": RopeLevel("fp32", "fp32", "fp16", "fp16", "fp16"),
}


#: Names of dtypes in torch, as `--dtype` takes them -> the level that rotates in them.
ALIASES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32", "float64": "fp64"}


def parse_level(text: str) -> RopeLevel:
    """Return the level that `text` names, in any case: a key of LEVELS or ALIASES, or `rope:site=dtype,...`.

    Sites that are not named are as in `fp32`. Raise UnknownName for a level, site or dtype that does not exist, and
    UnsupportedArm for a dtype that a site cannot have or for a site given twice.
    """
    text = text.strip()
    text = ALIASES.get(text.lower(), text.lower())
    if not text.startswith(EXPLICIT):
        if text not in LEVELS:
            raise UnknownName("RoPE level", text, LEVELS)
        return LEVELS[text]
    sites: dict[str, str] = {}
    for part in filter(None, text.removeprefix(EXPLICIT).split(",")):
        site, dtype = _parse_site(part)
        if site in sites:
            raise UnsupportedArm(f"rope: the site {site!r} stands twice in {text!r}")
        sites[site] = dtype
    return RopeLevel(**sites)


def _parse_site(part: str) -> tuple[str, str]:
    """Return `table=bf16` as (site, dtype), both checked."""
    site, _, dtype = (word.strip() for word in part.partition("="))
    dtype = ALIASES.get(dtype, dtype)
    if site not in ALLOWED:
        raise UnknownName("RoPE site", site, ALLOWED)
    if dtype not in ALLOWED[site]:
        if dtype not in (*DIGITS, "model"):
            raise UnknownName("RoPE dtype", dtype, ALLOWED[site])
        raise UnsupportedArm(f"rope: the site {site!r} cannot be {dtype}; known: {', '.join(ALLOWED[site])}")
    return site, dtype
