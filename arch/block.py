"""A block: a mixer, a channel and optional cross-attention on a residual stream.

The wirings, for a branch f and norms n and n':

pre                 x + f(n(x))                    GPT-2, LLaMA
residual_post_norm  n(x) + f(n(x))                 BLOOM's option (arXiv:2211.05100)
post                n(x + f(x))                    BERT (arXiv:1706.03762)
sandwich            x + n'(f(n(x)))                Gemma-2 (arXiv:2105.13290)
branch_norm         x + n'(f(x))                   OLMo-2 (arXiv:2501.00656)
parallel            x + mixer(n(x)) + channel(n'(x))   GPT-J, Falcon; n' = n if `norms` is 1

In a decoder with an encoder, cross-attention is between mixer and channel (T5, arXiv:1910.10683).
With the channel `none` the block has neither a channel nor its norm. `canon` adds short
convolutions to the inputs f(..) of the branches, and inside them (`arch/canon.py`).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from arch.canon import POINTS, CanonCall, CanonLayer, CanonState, init_canon_state
from arch.channels.no_channel import NoChannel
from arch.cross_layer import LayerContext
from arch.layers.dropout import dropout, maybe_split_key
from arch.layers.norms import Norm, NormConfig
from arch.mixers.attention import Attention, AttentionState
from arch.mixers.combined.bidirectional import Bidirectional
from arch.part import Channel, Memory, Mixer
from arch.sequence import SequenceInfo
from arch.sharding import constrain
from arch.weighted_sum import AuxMetrics
from errors import ConfigError
from settings.types import PositiveInt, Probability, config


@config
class BlockConfig:
    """The residual connections and norms of all blocks."""

    # Positions of the norms relative to the branches and the residual stream.
    wiring: Literal["pre", "residual_post_norm", "post", "sandwich", "branch_norm", "parallel"] = (
        "pre"
    )
    norms: Literal[1, 2] = 2  # Number of norms in a parallel block: shared, or one per branch.
    skip_first_norm: bool = False  # Omit the norm before the first block's mixer (ModernBERT).
    dropout: Probability = 0.0  # Dropout rate of the branches, before the residual addition.
    # Points of Canon layers, letters of ABCD: input of the mixer (A), inside it (B), input of the
    # channel (C), inside it (D); empty: none.
    canon: str = ""
    canon_width: PositiveInt = 4  # Width of the convolutions of Canon layers, in tokens.

    def check(self) -> None:
        """Checks the points of Canon layers.

        Raises:
            ConfigError: if `canon` is not made of different letters of ABCD.
        """
        nearest = "".join(point for point in POINTS if point in self.canon.upper())
        if len(nearest) != len(self.canon) or set(nearest) != set(self.canon):
            raise ConfigError(
                f"block.canon {self.canon!r} must be made of different letters of {POINTS}; "
                f"nearest valid value: {nearest!r}"
            )


class BlockState(NamedTuple):
    """The decoding state of a block."""

    mixer: PyTree  # None where a block has no decoding state.
    cross: AttentionState | None = None
    canon: CanonState | None = None


class BlockOutput(NamedTuple):
    """What a block returns."""

    x: Float[Array, "B T D"]  # The residual stream.
    aux: AuxMetrics  # The report of the channel.
    state: BlockState | None  # None outside decoding.
    layer_context: LayerContext | None  # None if no mixer of the stack reads others.


class Block(nnx.Module):
    """A module `block(x, seq) -> BlockOutput` that adds its branches to the residual stream."""

    def __init__(
        self,
        D: int,
        cfg: BlockConfig,
        norm: NormConfig,
        mixer: Mixer | Bidirectional,
        channel: Channel,
        cross: Attention | None = None,
        skip_norm: bool = False,
        canon: Mapping[str, CanonLayer] = MappingProxyType({}),
    ):
        self.cfg, self.mixer, self.channel = cfg, mixer, channel
        self.is_mixer_only = isinstance(channel, NoChannel)
        norms_stream = cfg.wiring != "branch_norm"
        norms_branch = cfg.wiring in ("sandwich", "branch_norm")

        def make_norm(exists: bool) -> Norm | None:
            return Norm(D, norm) if exists else None

        has_channel, has_cross = not self.is_mixer_only, cross is not None
        has_channel_norm = has_channel and (cfg.wiring != "parallel" or cfg.norms == 2)
        self.norm_mixer = make_norm(norms_stream and not skip_norm)
        self.norm_post_mixer = make_norm(norms_branch)
        self.norm_channel = make_norm(norms_stream and has_channel_norm)
        self.norm_post_channel = make_norm(norms_branch and has_channel)
        self.cross = cross
        self.norm_cross = make_norm(norms_stream and has_cross)
        self.norm_post_cross = make_norm(norms_branch and has_cross)
        self.canon = nnx.Dict(canon)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        *,
        layer_context: LayerContext | None = None,
        state: BlockState | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> BlockOutput:
        """Runs the block.

        Args:
            x: the residual stream.
            seq: the structure of the rows.
            layer_context: what the mixer reads of other layers; None for a block by itself.
            state: the decoding state; None outside decoding.
            memory: an encoder's output and its structure, for cross-attention; a state keeps its
                keys and values, so later calls with that state need no memory.
            key: the key of dropout and jitter; None means neither.
        """
        keys, aux, cross_state = maybe_split_key(key, 6), AuxMetrics(), None
        prev = BlockState(None) if state is None else state
        canon = CanonCall(self.canon, seq, prev.canon)
        is_parallel = self.cfg.wiring == "parallel"

        u, residual = self._branch_input(x, self.norm_mixer)
        y, layer_context, mixer_state = canon.run_mixer(
            self.mixer, u, layer_context, prev.mixer, keys[0]
        )
        if is_parallel and not self.is_mixer_only:
            u = u if self.norm_channel is None else self.norm_channel(x)
            z, aux = canon.run_channel(self.channel, u, keys[2])
            y = y + z
        x = self._add_branch(residual, y, self.norm_mixer, self.norm_post_mixer, keys[3])

        if self.cross is not None:
            u, residual = self._branch_input(x, self.norm_cross)
            y, cross_state = self.cross(u, seq, state=prev.cross, memory=memory, key=keys[1])
            x = self._add_branch(residual, y, self.norm_cross, self.norm_post_cross, keys[4])

        if not is_parallel and not self.is_mixer_only:
            u, residual = self._branch_input(x, self.norm_channel)
            y, aux = canon.run_channel(self.channel, u, keys[2])
            x = self._add_branch(residual, y, self.norm_channel, self.norm_post_channel, keys[5])

        if state is None:
            return BlockOutput(constrain(x), aux, None, layer_context)
        new_state = BlockState(mixer_state, cross_state, canon.next_state())
        return BlockOutput(constrain(x), aux, new_state, layer_context)

    def init_state(
        self, batch_size: int, max_length: int, source_length: int, dtype: jnp.dtype
    ) -> BlockState:
        """Returns an empty state for decoding `batch_size` rows of at most `max_length` tokens."""
        cross = (
            None if self.cross is None else self.cross.init_state(batch_size, source_length, dtype)
        )
        mixer = self.mixer.init_state(batch_size, max_length, dtype)
        return BlockState(mixer, cross, init_canon_state(self.canon, batch_size, dtype))

    def _branch_input(
        self, x: Float[Array, "B T D"], norm: Norm | None
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
        """Returns the input of a branch, and what its output is added to."""
        normed = x if norm is None or self.cfg.wiring == "post" else norm(x)
        return normed, normed if self.cfg.wiring == "residual_post_norm" else x

    def _add_branch(
        self,
        residual: Float[Array, "B T D"],
        y: Float[Array, "B T D"],
        norm: Norm | None,
        post_norm: Norm | None,
        key: Array | None,
    ) -> Float[Array, "B T D"]:
        """Returns the residual stream after a branch with the output `y`."""
        y = y if post_norm is None else post_norm(y)
        x = residual + dropout(y, self.cfg.dropout, key)
        return norm(x) if norm is not None and self.cfg.wiring == "post" else x

    @staticmethod
    def params(D: int, cfg: BlockConfig, norm: NormConfig, channel: str, cross: bool) -> int:
        """Returns the number of parameters of the block's norms, without those of its parts."""
        branches = 1 + (channel != "none") + cross
        num_norms = branches * (2 if cfg.wiring == "sandwich" else 1)
        if cfg.wiring == "parallel":
            num_norms = min(num_norms, cfg.norms)
        return num_norms * Norm.params(D, norm)
