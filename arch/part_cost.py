"""The cost of one part: parameters, FLOPs per token by term in two counts, and state bytes.

*Model* FLOPs are those that the mathematics needs. They use causality and do not depend on chunks,
padding, rematerialization or kernels. Budgets and scaling laws use them. *Executed* FLOPs are those
that the hardware runs. Utilization uses them. A multiply-add counts as 2. All FLOPs are those of
the forward pass; training costs three times as many (arXiv:2203.15556, appendix F).
"""

import dataclasses
from typing import Literal

from arch.sequence import View


@dataclasses.dataclass(frozen=True)
class TermFlops:
    """FLOPs per token of one term of a part.

    `elementwise` marks operations that are not matrix products. `batched` marks products that are
    not a plain product with a weight: `model.remat=dots` computes them again in the backward pass.
    `groups` marks those of them that multiply groups of tokens with a weight each, and says whether
    the groups have equal or ragged sizes.
    """

    model: float
    executed: float
    elementwise: bool = False
    batched: bool = False
    groups: Literal["", "equal", "ragged"] = ""

    def plus(self, other: "TermFlops") -> "TermFlops":
        """Returns the sum of both terms, with the flags of this one."""
        return dataclasses.replace(
            self, model=self.model + other.model, executed=self.executed + other.executed
        )

    def times(self, factor: float) -> "TermFlops":
        """Returns this term with both counts multiplied by `factor`."""
        return dataclasses.replace(self, model=factor * self.model, executed=factor * self.executed)


@dataclasses.dataclass(frozen=True)
class PartCost:
    """The cost of one use of a part; `active_params` counts the parameters that one token uses."""

    params: int
    active_params: int
    terms: dict[str, TermFlops]
    state_bytes: int = 0

    def repeated(self, uses: int) -> "PartCost":
        """Returns the cost of `uses` equal parts, each with parameters and a state of its own."""
        terms = {name: flops.times(uses) for name, flops in self.terms.items()}
        return PartCost(
            uses * self.params, uses * self.active_params, terms, uses * self.state_bytes
        )


@dataclasses.dataclass(frozen=True)
class CostContext:
    """The conditions under which a part is used, on which its cost depends."""

    length: int  # Tokens per row (T).
    view: View = "causal"
    # Prefix tokens under the view "prefix", encoder tokens for cross-attention.
    source_length: int = 0
    itemsize: int = 4  # Bytes per number.

    def mean_keys_per_query(self, window: int = 0) -> float:
        """Returns the mean number of visible tokens: T from both sides, (T + 1) / 2 if causal."""
        T, prefix = self.length, min(self.source_length, self.length)
        if not T:
            return 0.0
        if self.view == "bidirectional":
            reach = min(window // 2, T) if window else T
            return 1 + 2 * sum_of_minima(T, reach) / T
        if self.view == "prefix" and prefix > 1:
            reach = window or T
            ahead = sum_of_minima(prefix, reach - 1)
            return (sum_of_minima(T + 1, reach) + ahead) / T
        return (T + 1) / 2 if not 0 < window < T else window * (2 * T - window + 1) / (2 * T)


def sum_of_minima(n: int, limit: int) -> int:
    """Returns the sum of min(i, limit) over i = 0, ..., n - 1."""
    low = min(n, limit + 1)
    return low * (low - 1) // 2 + (n - low) * limit
