"""How a part states its cost: parameters, FLOPs per token by term in two ledgers, state bytes.

*Model* FLOPs are what the mathematics needs (causality used; independent of chunks, padding, remat
and kernels): budgets and scaling laws use them. *Executed* FLOPs are what runs: utilisation uses
them. A multiply-add counts 2. All are forward; training is three times that (arXiv:2203.15556, F).
"""

import dataclasses

from arch.sequence import View


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOPs per token of one term; `elementwise` ones are no matrix products and cost otherwise.
    `batched` ones are no plain products with a weight: `model.remat=dots` computes them again."""

    model: float
    executed: float
    elementwise: bool = False
    batched: bool = False

    def plus(self, other: "Work") -> "Work":
        total = self.model + other.model, self.executed + other.executed
        return dataclasses.replace(self, model=total[0], executed=total[1])

    def times(self, share: float) -> "Work":
        return dataclasses.replace(self, model=share * self.model, executed=share * self.executed)


@dataclasses.dataclass(frozen=True)
class Bill:
    """What one use of a part costs; `active` are the parameters that one token meets."""

    params: int
    active: int
    work: dict[str, Work]
    state_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a part is used: T tokens a row, which view, tokens before them, bytes of a number."""

    length: int
    view: View = "causal"
    source: int = 0  # prefix tokens under "prefix", encoder tokens for cross-attention
    itemsize: int = 4

    def keys(self, window: int = 0) -> float:
        """Mean number of tokens that a token sees: T both sides, (T + 1) / 2 causal."""
        T, W, P = self.length, window, min(self.source, self.length)
        if not T:
            return 0.0
        if self.view == "both":
            reach = min(W // 2, T) if W else T
            return sum(min(i, reach) + 1 + min(T - 1 - i, reach) for i in range(T)) / T
        if self.view == "prefix" and P > 1:
            reach = W or T
            ahead = (min(P - 1 - i, reach - 1) for i in range(P))
            return sum(min(i + 1, reach) for i in range(T)) / T + sum(ahead) / T
        return (T + 1) / 2 if not 0 < W < T else W * (2 * T - W + 1) / (2 * T)
