"""The page of all mixers, computed from the code: `python docs/mixers.py` writes mixers.md.

State, FLOPs and views are those that each mixer declares (`cost`, `supported_views`) with its
default settings, so that the page cannot differ from the code.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from arch import MIXERS, ModelConfig  # noqa: E402
from arch.part_cost import CostContext  # noqa: E402

WIDTH, LENGTH = 1024, 2048
HEAD = f"""# Which mixers there are

Each mixer with its default settings, in a model of width {WIDTH:,} with {WIDTH // 64} heads where
it has heads, on rows of {LENGTH:,} tokens. State is what one layer keeps for one row in decoding,
in float32. FLOPs are model FLOPs of the forward pass for each token: in training, and for one token
that follows {LENGTH:,} others. Views are those of the mixer itself; `model.bidirectional` runs a
causal mixer in both directions. `python docs/mixers.py` writes this page.

| mixer | state, KiB | FLOPs a token, millions | FLOPs to decode, millions | views | source |
|---|---|---|---|---|---|
"""
EQUALITIES = """
## What equals what

Tests check each equality (`tests/ops/test_ops_memory.py`), to 1e-12 in float64. The mixer
`gated_deltanet` with `decay=false` and `output_gate=false` is DeltaNet.

| operation | setting | equals |
|---|---|---|
| `delta_rule` | `erase` = `write` = beta for all channels | Kimi Delta Attention |
| `delta_rule` | the same, and one `g` for all channels of a head | Gated DeltaNet |
| `delta_rule` | the same, and `g` = 0 | DeltaNet |
| `delta_rule` | `erase` = 0, `write` = 1 | gated linear attention |
| `delta_rule` | keys of one step, or further steps with gates of 0 | the rule without steps |
| `gla` | k = 1 - exp(g) | HGRN-2 (`hgrn2`) |
| `gla` | g = -slope, by `lightning_slopes` | lightning attention (`lightning`) |
| `gla` | g = 0 | linear attention without a normalizer |
"""
WIRING = """
## What stands around mixers

These settings change any pattern; their parameters, FLOPs and decoding state are billed.

| setting | effect | source |
|---|---|---|
| `model.block.canon=ABCD` | Canon layers, h + conv(h) over `canon_width` tokens: at the input of the mixer (A), on queries, keys and values (B), at the input of the channel (C), on the hidden layer of an MLP and its gate (D) | arXiv:2512.17351 |
| `model.attention.value_residual=true` | values become a v1 + b v with learned a and b, where v1 are the values of the first such layer with the same heads (a = b = 1/2 at first) | arXiv:2410.17897 |
| `causal_lm.mtp_depth=1` | a module predicts the token after the next one from the hidden vectors and the next token's embedding; evaluation and decoding do not run it | arXiv:2412.19437 |
"""  # noqa: E501


def render() -> str:
    """Returns the page as Markdown."""
    return HEAD + "".join(_row(name) for name in MIXERS) + EQUALITIES + WIRING


def _row(name: str) -> str:
    base, mixer = ModelConfig(width=WIDTH), MIXERS[name]
    part = base.part_config(name)
    if part is not None and hasattr(part, "heads"):
        part = type(part)(**{**vars(part), "heads": WIDTH // 64})
    cost = mixer.cost(WIDTH, part, CostContext(LENGTH))
    state, flops = cost.state_bytes / 1024, _millions(mixer, part, LENGTH)
    # The last token's cost is the difference of the sums of two rows.
    decode = LENGTH * flops - (LENGTH - 1) * _millions(mixer, part, LENGTH - 1)
    views = ", ".join(mixer.supported_views(part))
    docstring = sys.modules[mixer.__module__].__doc__ or ""
    sources = re.findall(r"arXiv:\d{4}\.\d{5}", docstring) or ["see its file"]
    path = f"{mixer.__module__.replace('.', '/')}.py"
    cells = (f"`{name}` (`{path}`)", f"{state:,.0f}", f"{flops:.2f}", f"{decode:.2f}", views)
    return f"| {' | '.join(cells)} | {sources[0]} |\n"


def _millions(mixer: type, part: object, length: int) -> float:
    terms = mixer.cost(WIDTH, part, CostContext(length)).terms.values()
    return sum(flops.model for flops in terms) / 1e6


if __name__ == "__main__":
    Path(__file__).with_name("mixers.md").write_text(render(), "utf-8")
