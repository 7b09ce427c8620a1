"""Architectures: parts, the one backbone that arranges them, and what they cost.

Dimension letters, everywhere in this project:

    B batch rows            T tokens of a row         S cached or source tokens   V vocabulary
    D width                 H heads                   G key/value heads           K width of a head
    F feed-forward width    R repeats of the pattern  L layers
    C inner width           E experts                 N state of a recurrence (Mamba)
"""

from arch.config import CHANNELS, MIXERS, ModelConfig
from arch.cost import Cost, cost
from arch.model import Model
from arch.sequence import Sequence

__all__ = ["CHANNELS", "MIXERS", "Cost", "Model", "ModelConfig", "Sequence", "cost"]
