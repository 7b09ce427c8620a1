"""The cost of mixers with a matrix memory, by what they read of their settings.

The recurrence has K Kv numbers of state in each of H heads. Its chunked form computes products
inside chunks of Q tokens, which model FLOPs do not count.
"""

import math
from typing import Literal, Protocol

from arch.part_cost import CostContext, PartCost, TermFlops
from ops.recurrent.channel_decay import halvings


class MemoryConfig(Protocol):
    """What the base of mixers with a matrix memory reads of their settings."""

    @property
    def norm_eps(self) -> float:
        """The number added to the mean square in the output norm."""

    def head_shape(self, D: int) -> tuple[int, int, int]:
        """Returns H, K and Kv in a model of width D."""


class LinearAttentionConfig(MemoryConfig, Protocol):
    """What mixers with the operation of gated linear attention read of their settings."""

    @property
    def chunk_size(self) -> int:
        """The largest number of tokens in a chunk."""

    @property
    def implementation(self) -> Literal["auto", "reference", "xla"]:
        """The implementation of the operation."""


def memory_cost(
    D: int,
    shape: tuple[int, int, int],
    context: CostContext,
    *,
    matrices: int,
    vectors: int,
    terms: dict[str, TermFlops],
    convs: tuple[int, int] = (0, 0),
) -> PartCost:
    """Returns the cost of a mixer with a matrix memory, which every token uses completely.

    Args:
        D: width of the model.
        shape: H, K and Kv.
        context: the conditions of use.
        matrices: parameters that multiply the input, without the convolutions.
        vectors: all other parameters but those of convolutions and `w_out`.
        terms: the FLOPs of the recurrence (see `memory_terms`).
        convs: channels and width of the convolutions.
    """
    (H, K, Kv), (channels, width) = shape, convs
    out, conv = H * Kv * D, width * channels
    parts = {"in": TermFlops(2.0 * matrices, 2.0 * matrices)}
    if channels:
        parts["conv"] = TermFlops(2.0 * conv, 2.0 * conv, elementwise=True)
    parts["out"] = TermFlops(2.0 * out, 2.0 * out)
    params = matrices + conv + vectors + out
    state = 4 * H * K * Kv + context.itemsize * max(width - 1, 0) * channels
    return PartCost(params, params, parts | terms, state)


def memory_terms(
    shape: tuple[int, int, int],
    model: float,
    context: CostContext,
    *,
    implementation: str,
    chunk_size: int,
    by_channel: bool,
    steps: int = 1,
    solves: bool = True,
) -> dict[str, TermFlops]:
    """Returns the FLOPs of the recurrence: `model` K Kv in each head, and those of its chunks.

    Args:
        shape: H, K and Kv.
        model: model FLOPs for each number of the state.
        context: the length of the rows.
        implementation: "reference", or another name for the chunked form.
        chunk_size: largest number of steps in a chunk.
        by_channel: whether each channel of a key has its own decay.
        steps: steps of each token.
        solves: whether the delta rule erases, so that a triangular system is solved.
    """
    H, K, Kv = shape
    core = model * H * K * Kv
    if implementation == "reference":
        return {"core": TermFlops(core, core, elementwise=True)}
    Q = max(min(chunk_size, steps * context.length), 1)
    halved = halvings(Q)
    decayed = (2.0 + 2.0 * solves) * Q * K * (halved if by_channel else 1)
    sums = 2.0 * Q * K * (halved + 2) * by_channel
    chunked = steps * H * ((4.0 + 2.0 * solves) * K * Kv + decayed + sums + 2.0 * Q * Kv)
    terms = {"core": TermFlops(core, chunked, batched=True)}
    if solves:
        # The inverse is built from blocks whose size doubles.
        doublings = max(math.ceil(math.log2(Q)) - 1, 0)
        solve = steps * H * (2.0 * Q * (K + Kv) + 4.0 * Q**2 * doublings)
        terms["solve"] = TermFlops(0.0, solve, batched=True)
    return terms


def linear_attention_terms(
    D: int, cfg: LinearAttentionConfig, context: CostContext, *, by_channel: bool
) -> dict[str, TermFlops]:
    """Returns the FLOPs of the recurrence: 5 K Kv a head to decay, to write and to read."""
    return memory_terms(
        *(cfg.head_shape(D), 5.0, context),
        implementation=cfg.implementation,
        chunk_size=cfg.chunk_size,
        by_channel=by_channel,
        solves=False,
    )
