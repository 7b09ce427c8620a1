"""The interfaces of the two parts of a block: the mixer and the channel.

A **mixer** is the part of a block in which tokens exchange information, such as attention or a
recurrence. A **channel** is the part that processes each token by itself, such as an MLP. Both are
`nnx.Module` classes, listed in the tables `MIXERS` and `CHANNELS` of `arch/config.py`, through
which mypy checks them. They need no base class. The settings of a part, if any, are a `@config`
class that is a section of `ModelConfig` under the same name; `cfg` is None for a part without
settings. `arch/model.py` states the rules for stacked parameters. Two further interfaces are
optional: `CrossLayerMixer` in `arch/cross_layer.py`, and `TwoStagePart` in `arch/canon.py`.
"""

from typing import Protocol, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from arch.part_cost import CostContext, PartCost
from arch.sequence import SequenceInfo, View
from arch.weighted_sum import AuxMetrics

PartConfig = TypeVar("PartConfig", contravariant=True)  # Class of a part's settings.
MixerState = TypeVar("MixerState")  # Class of a mixer's decoding state, a pytree.

Memory = tuple[Float[Array, "B S D"], SequenceInfo]  # An encoder's output and its structure.


class Part(Protocol[PartConfig]):
    """What mixers and channels have in common; `D` is the width of the model."""

    def __init__(self, D: int, cfg: PartConfig, *, key: Array, scale: float = 1.0):
        """Makes the parameters, by `make_param`, `make_matrix` or `make_vector` of `arch/sharding`.

        Args:
            D: the width of the model.
            cfg: the part's settings.
            key: the key of the initial values.
            scale: a factor of the matrix that writes to the residual stream.
        """

    @staticmethod
    def supported_views(cfg: PartConfig) -> dict[View, str]:
        """Returns the views under which the part works, and how it reads them.

        "full" means that it reads what the view shows, "causal" that it reads a prefix in one
        direction only. A mixer without "bidirectional" can be wrapped by
        `arch/mixers/combined/bidirectional.py`.
        """

    @staticmethod
    def tp_dims(D: int, cfg: PartConfig) -> dict[str, int]:
        """Returns the sizes that the mesh axis "model" splits, by setting.

        The size named "num_experts" is split by the axis "expert". Error messages name the setting,
        so a derived size is named by its formula.

        Raises:
            ConfigError: if the part does not fit the width.
        """

    @staticmethod
    def cost(D: int, cfg: PartConfig, context: CostContext) -> PartCost:
        """Returns parameters, FLOPs per token by term, and state bytes of one use of the part.

        Tests compare it with the parameters and the products of the module.
        """


class Mixer(Part[PartConfig], Protocol[PartConfig, MixerState]):
    """A part in which tokens exchange information."""

    def __call__(
        self,
        x: Float[Array, "B T D"],
        seq: SequenceInfo,
        *,
        state: MixerState | None = None,
        memory: Memory | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], MixerState | None]:
        """Computes the branch of the block, without the residual.

        Documents must not mix, and padding must not change other tokens.

        Args:
            x: the tokens.
            seq: their positions, segments and visibility.
            state: the decoding state after the tokens before `x`; None outside decoding.
            memory: an encoder's output, for cross-attention; other mixers ignore it.
            key: the key of dropout; None means no dropout.

        Returns:
            The output, and the decoding state after `x` (None without a state).
        """

    def init_state(self, batch_size: int, max_length: int, dtype: jnp.dtype) -> MixerState:
        """Returns the empty decoding state for rows of at most `max_length` tokens.

        The first axis of each array in it, except scalars, is the batch. `dtype` is that of the
        computation. A recurrence keeps the segment of its last token there, for `seq.resets`.
        """


class Channel(Part[PartConfig], Protocol[PartConfig]):
    """A part that processes each token by itself."""

    hint: str  # The end of the message that refuses a view: what the user can set instead.

    def __call__(
        self, x: Float[Array, "B T D"], seq: SequenceInfo, *, key: Array | None = None
    ) -> tuple[Float[Array, "B T D"], AuxMetrics]:
        """Computes the branch of the block, without the residual.

        Args:
            x: the tokens.
            seq: their positions, segments and visibility.
            key: the key of jitter and dropout; None means neither.

        Returns:
            The output, and the channel's loss terms and metrics by name, each a scalar sum.
        """

    @staticmethod
    def aux_losses(cfg: PartConfig) -> dict[str, float]:
        """Returns the coefficients of the metrics that are added to the loss, by name."""
