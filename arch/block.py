"""A block: a mixer, a channel and perhaps cross-attention on a residual stream, in a known wiring.

pre        x + f(n(x))                                   GPT-2, LLaMA
normed     n(x) + f(n(x))                                BLOOM's option (arXiv:2211.05100)
post       n(x + f(x))                                   BERT (arXiv:1706.03762)
sandwich   x + n'(f(n(x)))                               Gemma-2 (arXiv:2105.13290)
parallel   x + mixer(n(x)) + channel(n'(x))              GPT-J, Falcon; n' = n if `norms` is 1

A decoder's block attends to its encoder between mixer and channel (T5, arXiv:1910.10683). The
channel `none` leaves out its norm too.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from flax import nnx
from jaxtyping import Array, Float

from arch.dropout import dropout, split
from arch.norms import Norm, NormConfig
from arch.nothing import Nothing
from arch.sequence import Sequence
from arch.sharding import constrain
from arch.terms import Aux
from schema import Rate, config


@config
class BlockConfig:
    wiring: Literal["pre", "normed", "post", "sandwich", "parallel"] = "pre"
    norms: Literal[1, 2] = 2  # of a parallel block
    bare_first: bool = False  # the first block's mixer has no norm of its own (ModernBERT)
    dropout: Rate = 0.0  # of what is added to the residual stream


class BlockState(NamedTuple):
    """What a block keeps while decoding."""

    mixer: Any
    cross: Any = None


class Block(nnx.Module):
    def __init__(
        self,
        D: int,
        cfg: BlockConfig,
        norm: NormConfig,
        mixer: Any,
        channel: Any,
        cross: Any = None,
        bare: bool = False,
    ):
        self.cfg, self.mixer, self.channel = cfg, mixer, channel
        self.silent = isinstance(channel, Nothing)
        sandwich = cfg.wiring == "sandwich"
        self.norm_mixer = None if bare else Norm(D, norm)
        self.norm_mixed = Norm(D, norm) if sandwich else None
        own = not self.silent and (cfg.wiring != "parallel" or cfg.norms == 2)
        self.norm_channel = Norm(D, norm) if own else None
        self.norm_channelled = Norm(D, norm) if sandwich and not self.silent else None
        self.cross = cross
        self.norm_cross = Norm(D, norm) if cross is not None else None
        self.norm_crossed = Norm(D, norm) if sandwich and cross is not None else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: Sequence,
        *,
        state: BlockState | None = None,
        memory: tuple[Array, Sequence] | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Aux, BlockState | None]:
        """`memory` is an encoder's output; a state that has seen it once keeps it."""
        keys, aux = split(key, 6), Aux()
        old = BlockState(None) if state is None else state
        if self.cfg.wiring == "parallel":
            return self._parallel(x, seq, old, keys)

        def mix(x: Array) -> tuple[Array, Any]:
            return self.mixer(x, seq, state=old.mixer, key=keys[0])

        def attend(x: Array) -> tuple[Array, Any]:
            return self.cross(x, seq, state=old.cross, memory=memory, key=keys[1])

        def think(x: Array) -> tuple[Array, Any]:
            return self.channel(x, seq, key=keys[2])

        x, mixed = self._added(x, mix, self.norm_mixer, self.norm_mixed, keys[3])
        crossed = None
        if self.cross is not None:
            x, crossed = self._added(x, attend, self.norm_cross, self.norm_crossed, keys[4])
        if not self.silent:
            x, aux = self._added(x, think, self.norm_channel, self.norm_channelled, keys[5])
        return constrain(x), aux, None if state is None else BlockState(mixed, crossed)

    def start(self, batch: int, capacity: int, source: int, dtype: Any) -> BlockState:
        cross = None if self.cross is None else self.cross.start(batch, source, dtype)
        return BlockState(self.mixer.start(batch, capacity, dtype), cross)

    def _added(
        self,
        x: Array,
        function: Callable[[Array], tuple[Array, Any]],
        norm: Any,
        after: Any,
        key: Array | None,
    ) -> tuple[Array, Any]:
        """x with what `function` makes of it, and what else that returns."""
        post = self.cfg.wiring == "post"
        normed = x if post or norm is None else norm(x)
        y, out = function(normed)
        y = y if after is None else after(y)
        x = (normed if self.cfg.wiring == "normed" else x) + dropout(y, self.cfg.dropout, key)
        return norm(x) if post else x, out

    def _parallel(
        self, x: Array, seq: Sequence, old: BlockState, keys: tuple
    ) -> tuple[Array, Aux, BlockState | None]:
        normed, aux = self.norm_mixer(x), Aux()
        y, mixed = self.mixer(normed, seq, state=old.mixer, key=keys[0])
        if not self.silent:
            normed = normed if self.norm_channel is None else self.norm_channel(x)
            z, aux = self.channel(normed, seq, key=keys[2])
            y = y + z
        state = None if old.mixer is None else BlockState(mixed)
        return constrain(x + dropout(y, self.cfg.dropout, keys[3])), aux, state

    @staticmethod
    def params(D: int, cfg: BlockConfig, norm: NormConfig, channel: str, cross: bool) -> int:
        """Of the block itself, its parts apart."""
        branches = 1 + (channel != "none") + cross
        count = branches * (2 if cfg.wiring == "sandwich" else 1)
        if cfg.wiring == "parallel":
            count = min(count, cfg.norms)
        return count * Norm.params(D, norm)
