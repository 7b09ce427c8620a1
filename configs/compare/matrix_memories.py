"""Delta rules and gated linear attention beside attention, at the same training FLOPs.

compare.py --config=configs/compare/matrix_memories.py
"""

from configs.compare.quickstart import get_config
from protocol.study.study import Study

__all__ = ["get_config", "study"]

MEMORIES = ("gated_deltanet", "kda", "gdn2", "delta_product", "gla", "hgrn2", "lightning")


def study():
    """Returns the study of the mixers with a matrix memory, each beside attention."""
    return Study(
        candidates={name: {"model.layers": (f"{name}+mlp",)} for name in ("attention", *MEMORIES)},
        reference="kda",  # All others can be matched to its cost within 1 %.
        comparisons=tuple((name, "attention") for name in MEMORIES),
        margin=0.02,  # bits per byte; a smaller difference is of no practical consequence
    )
