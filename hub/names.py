"""Our parameters by the layer and part that they are of, however a stack arranges its layers.

`stack.3.attention.w_q` is the matrix of layer 3 wherever the pattern puts it; in the model it may
be slice 1 of `stack.blocks.1.mixer.w_q`, which holds the repeats of a pattern.
"""

import re
from typing import Any, NamedTuple

import numpy as np

from arch import ModelConfig
from arch.pattern import Plan
from errors import CheckpointError
from hub.graph import KINDS
from hub.layouts import Tie, joined
from training.leaves import named_leaves

ROWS = ("embed.table", "head.table", "head.bias")  # may be padded beyond `vocab`
MOST = 10  # names in one message


class Place(NamedTuple):
    leaf: str  # of the model
    repeat: int  # along its first axis; -1: it has no such axis


class Bound(NamedTuple):
    """One line of the map for one layer and expert."""

    tie: Tie
    places: tuple[Place, ...]
    theirs: tuple[str, ...]  # several: experts, along our first axis


def places(config: ModelConfig, model: Any) -> dict[str, Place]:
    """Every parameter of `model` (arrays or shapes) by the name that a map uses.

    What reads a row both ways has the weights of a published mixer if both ways share them; the
    leaves that no such mixer has are below `both`.
    """
    found: dict[str, Place] = {}
    leaves = named_leaves(model)
    wrapped = {name.partition(".mixer.")[0] for name in leaves if ".mixer.ahead." in name}
    for name in leaves:
        match = re.fullmatch(r"(encoder|stack)\.(first|blocks|last)\.(\d+)\.(.*)", name)
        if match is None:
            found[name] = Place(name, -1)
            continue
        stack, group, slot, rest = match[1], match[2], int(match[3]), match[4]
        if rest.startswith("mixer.") and name.partition(".mixer.")[0] in wrapped:
            _, way, leaf = rest.partition("mixer.ahead.")
            rest = f"mixer.{leaf}" if way else rest.replace("mixer.", "mixer.both.", 1)
        plan = config.plan() if stack == "stack" else config.encoder_plan()
        if group != "blocks":
            layer = slot if group == "first" else len(plan.entries()) - len(plan.last) + slot
            _put(found, _named(stack, plan, layer, rest), Place(name, -1))
            continue
        for repeat in range(plan.repeats):
            layer = len(plan.first) + repeat * len(plan.layers) + slot
            _put(found, _named(stack, plan, layer, rest), Place(name, repeat))
    return found


def bind(config: ModelConfig, model: Any, ties: tuple[Tie, ...]) -> list[Bound]:
    """The map spelt out for a model, in the order of its lines; each parameter is met once."""
    known, leaves = places(config, model), named_leaves(model)
    found, met = [], set()
    layers = range(max(config.depth, config.encoder.depth))
    for tie in ties:
        for i in layers if "{i}" in tie.theirs + tie.ours[0] else (0,):
            ours = [name.replace("{i}", str(i)) for name in tie.ours]
            if not all(name in known for name in ours):
                continue
            theirs = tie.theirs.replace("{i}", str(i))
            several: tuple[str, ...] = (theirs,)
            if "{e}" in theirs:
                place = known[ours[0]]
                count = leaves[place.leaf].shape[int(place.repeat >= 0)]
                several = tuple(theirs.replace("{e}", str(e)) for e in range(count))
            found.append(Bound(tie, tuple(known[name] for name in ours), several))
            met.update(ours)
    if lost := sorted(set(known) - met):
        raise CheckpointError(
            f"this family has no names for {', '.join(lost[:MOST])}; export another pattern"
        )
    return found


def shape(bound: Bound, config: ModelConfig, leaves: dict[str, Any]) -> tuple[int, ...]:
    """Of one of the tensors of theirs."""
    parts = []
    for place in bound.places:
        own = leaves[place.leaf].shape[int(place.repeat >= 0) :]
        own = own[1:] if "{e}" in bound.tie.theirs else own
        own = (config.vocab, *own[1:]) if place.leaf in ROWS else own
        parts.append(np.broadcast_to(np.int8(0), own))
    return bound.tie.form.theirs(joined(parts, bound.tie)).shape


def _put(found: dict[str, Place], name: str, place: Place) -> None:
    if name in found:
        raise CheckpointError(
            f"{found[name].leaf} and {place.leaf} are both {name}; rename one in its module"
        )
    found[name] = place


def _named(stack: str, plan: Plan, layer: int, rest: str) -> str:
    """`mixer` and `channel` by the names of the parts that they are."""
    e = plan.entries()[layer]
    part, dot, leaf = rest.partition(".")
    part = {"mixer": KINDS.get(e.mixer, e.mixer), "channel": e.channel}.get(part, part)
    return f"{stack}.{layer}.{part}{dot}{leaf}"
