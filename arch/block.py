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

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from arch.canon import (
    POINTS,
    CanonCall,
    CanonLayer,
    CanonState,
    TwoStageChannel,
    TwoStageMixer,
    init_canon_state,
)
from arch.channels.no_channel import NoChannel
from arch.layers.dropout import dropout, maybe_split_key
from arch.layers.norms import Norm, NormConfig
from arch.links import Links, call_mixer
from arch.mixers.attention import Attention, AttentionState
from arch.mixers.bidirectional import Bidirectional
from arch.part import Channel, Memory, Mixer
from arch.sequence import SequenceInfo
from arch.sharding import constrain
from arch.weighted_sum import AuxMetrics
from errors import ConfigError
from settings.types import PositiveInt, Probability, config

BranchOutput = TypeVar("BranchOutput")  # What a branch returns besides its vectors.


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
    links: Links | None  # None if no mixer of the stack is linked.


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
        before = cfg.wiring != "branch_norm"  # Whether a norm is not behind the branch alone.
        behind = cfg.wiring in ("sandwich", "branch_norm")

        def make_norm(exists: bool) -> Norm | None:
            return Norm(D, norm) if exists else None

        has_channel, has_cross = not self.is_mixer_only, cross is not None
        has_channel_norm = has_channel and (cfg.wiring != "parallel" or cfg.norms == 2)
        self.norm_mixer = make_norm(before and not skip_norm)
        self.norm_post_mixer = make_norm(behind)
        self.norm_channel = make_norm(before and has_channel_norm)
        self.norm_post_channel = make_norm(behind and has_channel)
        self.cross = cross
        self.norm_cross = make_norm(before and has_cross)
        self.norm_post_cross = make_norm(behind and has_cross)
        self.canon = nnx.Dict(canon)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        *,
        links: Links | None = None,
        state: BlockState | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> BlockOutput:
        """Runs the block.

        Args:
            x: the residual stream.
            seq: the structure of the rows.
            links: what the layers of the stack tell each other; None for a block by itself.
            state: the decoding state; None outside decoding.
            memory: an encoder's output and its structure, for cross-attention; a state keeps its
                keys and values, so later calls with that state need no memory.
            key: the key of dropout and jitter; None means neither.
        """
        keys, aux = maybe_split_key(key, 6), AuxMetrics()
        prev = BlockState(None) if state is None else state
        convs = CanonCall(self.canon, seq, prev.canon)

        def mix(x: Array) -> tuple[Array, tuple[Links | None, PyTree]]:
            (x,) = convs("A", (x,))
            if "B" in self.canon:
                assert isinstance(self.mixer, TwoStageMixer)
                inner = convs("B", self.mixer.project(x))
                y, *extra = self.mixer.finish(inner, x, seq, links, state=prev.mixer, key=keys[0])
            else:
                y, *extra = call_mixer(self.mixer, x, seq, links, state=prev.mixer, key=keys[0])
            return y, (extra[0], extra[1])

        def attend(x: Array) -> tuple[Array, AttentionState | None]:
            return self.cross(x, seq, state=prev.cross, memory=memory, key=keys[1])

        def feed_forward(x: Array) -> tuple[Array, AuxMetrics]:
            (x,) = convs("C", (x,))
            if "D" not in self.canon:
                return self.channel(x, seq, key=keys[2])
            assert isinstance(self.channel, TwoStageChannel)
            inner = convs("D", self.channel.project(x))
            return self.channel.finish(inner, x, seq, key=keys[2])

        cross_state = None
        if self.cfg.wiring == "parallel":
            normed = self.norm_mixer(x)
            y, mixed = mix(normed)
            if not self.is_mixer_only:
                normed = normed if self.norm_channel is None else self.norm_channel(x)
                z, aux = feed_forward(normed)
                y = y + z
            x = x + dropout(y, self.cfg.dropout, keys[3])
        else:
            branch = self._residual_branch
            x, mixed = branch(x, mix, self.norm_mixer, self.norm_post_mixer, keys[3])
            if self.cross is not None:
                norms = self.norm_cross, self.norm_post_cross
                x, cross_state = branch(x, attend, *norms, keys[4])
            if not self.is_mixer_only:
                norms = self.norm_channel, self.norm_post_channel
                x, aux = branch(x, feed_forward, *norms, keys[5])
        links, mixer_state = mixed
        new_state = None
        if state is not None:
            new_state = BlockState(mixer_state, cross_state, convs.next_state())
        return BlockOutput(constrain(x), aux, new_state, links)

    def init_state(
        self, batch_size: int, max_length: int, source_length: int, dtype: jnp.dtype
    ) -> BlockState:
        """Returns an empty state for decoding `batch_size` rows of at most `max_length` tokens."""
        cross = (
            None if self.cross is None else self.cross.init_state(batch_size, source_length, dtype)
        )
        mixer = self.mixer.init_state(batch_size, max_length, dtype)
        return BlockState(mixer, cross, init_canon_state(self.canon, batch_size, dtype))

    def _residual_branch(
        self,
        x: Array,
        branch: Callable[[Array], tuple[Array, BranchOutput]],
        norm: Norm | None,
        post_norm: Norm | None,
        key: Array | None,
    ) -> tuple[Array, BranchOutput]:
        """Adds a branch to `x` by the wiring; returns the sum and the branch's second output."""
        post = self.cfg.wiring == "post"
        normed = x if post or norm is None else norm(x)
        y, extra = branch(normed)
        y = y if post_norm is None else post_norm(y)
        x = (normed if self.cfg.wiring == "residual_post_norm" else x) + dropout(
            y, self.cfg.dropout, key
        )
        return norm(x) if post else x, extra

    @staticmethod
    def params(D: int, cfg: BlockConfig, norm: NormConfig, channel: str, cross: bool) -> int:
        """Returns the number of parameters of the block's norms, without those of its parts."""
        branches = 1 + (channel != "none") + cross
        num_norms = branches * (2 if cfg.wiring == "sandwich" else 1)
        if cfg.wiring == "parallel":
            num_norms = min(num_norms, cfg.norms)
        return num_norms * Norm.params(D, norm)
