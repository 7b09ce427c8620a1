"""Architectures: the parts, the backbone that stacks them, and the cost of a model.

Dimension letters, one meaning each in the whole project:

    B  rows of a batch          T  tokens of a row          S  source or cached tokens (keys)
    V  vocabulary               D  width of the model       F  hidden width of an MLP
    H  heads                    G  groups of heads: KV heads in attention, groups in Mamba-2
    K  head_dim of attention and of keys                    Kv width of a value head
    P  head width of Mamba-2    N  state size               R  rank of dt in Mamba-1
    C  inner width of a mixer   W  width of a convolution   Q  tokens of a chunk
    M  chunks of a row          E  experts                  k  experts that a token uses
    L  layers                   rep  repeats of a pattern, or heads of a group
    Y  texts of a row           Z  width of a text's embedding

A dimension of another kind has a word as its name, such as `buckets`. A capital letter that is not
listed, such as the A of a recurrence, is the symbol of its paper. In code, `P` is `jax.P`, the
layout of an array over the mesh.
"""

from arch.config import CHANNELS, MIXERS, ModelConfig
from arch.cost import Cost, compute_cost
from arch.model import Model
from arch.part import Channel, Mixer
from arch.sequence import SequenceInfo

__all__ = [
    "CHANNELS",
    "MIXERS",
    "Channel",
    "Cost",
    "Mixer",
    "Model",
    "ModelConfig",
    "SequenceInfo",
    "compute_cost",
]
