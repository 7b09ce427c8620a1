"""Capability probes: what an architecture can learn at all, from synthetic rows, at a fixed budget.

Where a language model's loss is a mean over everything, a probe asks for one thing: to recall, to
copy, to track a state; and whether that holds in rows longer than any it has learned from.
"""

from eval.capability.copying import Copying, SelectiveCopying
from eval.capability.examples import Capability, Examples
from eval.capability.recall import Induction, Mqar, Needle
from eval.capability.tracking import Modular, Parity

# To add a probe: write it, name it here and, with what it takes to learn it, in BUDGETS (tasks.py).
PROBES: dict[str, Capability] = {
    "mqar": Mqar(),
    "induction": Induction(),
    "needle": Needle(),
    "copying": Copying(),
    "selective_copying": SelectiveCopying(),
    "parity": Parity(),
    "modular": Modular(),
}

__all__ = ["PROBES", "Capability", "Examples"]
