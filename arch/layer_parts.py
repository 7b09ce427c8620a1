"""The parts of one layer before they are made: their classes and settings, and what these imply.

A `LayerSpec` (`arch/pattern.py`) has the names that stand in a pattern. `ModelConfig.layer_parts`
looks them up.
"""

import dataclasses
from collections.abc import Iterable

from arch.block import Block, BlockConfig
from arch.canon import canon_cost, inner_widths, point_widths
from arch.layers.norms import NormConfig
from arch.mixers.combined.bidirectional import MixerSpec
from arch.part import Channel
from arch.part_cost import CostContext, PartCost
from arch.pattern import LayerSpec
from arch.sequence import View, intersect_views
from errors import ConfigError


@dataclasses.dataclass(frozen=True)
class LayerParts:
    """The parts of one layer in a model of width D."""

    spec: LayerSpec
    D: int
    block: BlockConfig
    mixer: MixerSpec
    channel_class: type[Channel]
    channel_config: object  # None for a channel without settings.

    def supported_views(self) -> dict[View, str]:
        """Returns the views that both parts support, with "full" or "causal" for each."""
        channel_views = self.channel_class.supported_views(self.channel_config)
        return intersect_views(self.mixer.supported_views(), channel_views)

    def canon_points(self) -> dict[str, tuple[int, ...]]:
        """Returns the widths that Canon layers convolve at each of their points."""
        return point_widths(
            *(self.block.canon, self.D),
            mixer=self.mixer.inner_widths(self.D),
            channel=inner_widths(self.channel_class, self.D, self.channel_config),
            has_channel=self.spec.channel != "none",
        )

    def costs(self, context: CostContext) -> list[tuple[str, PartCost]]:
        """Returns the name and the cost of each part, without norms and cross-attention."""
        channel_cost = self.channel_class.cost(self.D, self.channel_config, context)
        costs = [
            (self.spec.mixer, self.mixer.cost(self.D, context)),
            (self.spec.channel, channel_cost),
        ]
        if points := self.canon_points():
            costs.append(("canon", canon_cost(points, self.block.canon_width, context)))
        return costs

    def norm_params(self, norm: NormConfig, has_cross_attention: bool) -> int:
        """Returns the number of parameters of the norms of the block."""
        return Block.params(self.D, self.block, norm, self.spec.channel, has_cross_attention)


def merge_aux_losses(layers: Iterable[LayerParts]) -> dict[str, float]:
    """Returns the coefficient of each loss term that the channels of layers report.

    Raises:
        ConfigError: if two variants of a channel give a term different coefficients.
    """
    losses: dict[str, float] = {}
    for layer in layers:
        for name, coefficient in layer.channel_class.aux_losses(layer.channel_config).items():
            if losses.setdefault(name, coefficient) != coefficient:
                raise ConfigError(
                    f"model.variants give {name} the coefficients {losses[name]} and "
                    f"{coefficient}, must be equal in all layers"
                )
    return losses
