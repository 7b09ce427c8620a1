"""Capability probes: synthetic tasks that measure what an architecture can learn within a budget.

The loss of a language model is a mean over many abilities. A probe requires one ability: to recall,
to copy, or to track a state. It also measures whether the ability holds in rows that are longer
than those of training.
"""

from eval.capability.copying import Copying, SelectiveCopying
from eval.capability.examples import CapabilityProbe, ProbeBatch
from eval.capability.recall import Induction, Mqar, Needle
from eval.capability.tracking import ModularArithmetic, Parity

# To add a probe, write its class, add it here, and add its training budget to BUDGETS (tasks.py).
PROBES: dict[str, CapabilityProbe] = {
    "mqar": Mqar(),
    "induction": Induction(),
    "needle": Needle(),
    "copying": Copying(),
    "selective_copying": SelectiveCopying(),
    "parity": Parity(),
    "modular": ModularArithmetic(),
}

__all__ = ["PROBES", "CapabilityProbe", "ProbeBatch"]
