"""What a published family is: how its config reads as one of ours, and the names of its tensors."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from arch import ModelConfig
from hub.graph import KINDS
from hub.keys import Keys
from hub.layouts import Tie


@dataclasses.dataclass(frozen=True)
class Family:
    """`read` and `write` turn their config into ours and back; `ties` is the map of names.

    `defaults` are what a missing key means to the reference where that is not what null means.
    A file may leave out `prefix`, may hold tensors that match `ignored`, `copies` of others
    (name: of which), and names that `renames` (pattern, replacement) turn into those of the map.
    `twins` are what version 5 of the reference has twice and version 4 once (name: of which):
    both are written; read is the second, and the first where that is missing.
    """

    kind: str  # model_type
    architecture: str  # the class that reads what is exported
    read: Callable[[Keys], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]  # raises LookupError where it has no words
    ties: Callable[[ModelConfig], tuple[Tie, ...]]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    prefix: str = ""
    ignored: tuple[str, ...] = (r".*rotary_emb\.inv_freq",)
    copies: tuple[tuple[str, str], ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    twins: Callable[[ModelConfig], tuple[tuple[str, str], ...]] = lambda config: ()
    usual: Callable[[ModelConfig], dict[str, Any]] = (
        lambda config: {}
    )  # keys, if a run has no other
    # What the classes that read an export cannot do, though config.json has words for it.
    lacks: Callable[[ModelConfig], list[str]] = lambda config: []
    # Of the first real token in a padded row: "column" is where it stands, "count" 0, and "ids"
    # counts the tokens that are not `pad_token_id`.
    positions: Literal["column", "count", "ids"] = "column"
    task: Literal["causal", "masked", "seq2seq"] = "causal"
    padding_sees: bool = False  # what it sees counts: in a pooled first token, in a capacity


def part(config: ModelConfig, kind: str, layer: int = -1) -> Any:
    """The settings of the first `kind` of mixer or channel, or of that of `layer`; LookupError."""
    for i, e in enumerate(config.plan().entries()):
        for name, variant in (e[:2], e[2:]):
            found = config.part(name, variant)
            if KINDS.get(name, name) == kind and layer in (-1, i) and found is not None:
                return found
    raise LookupError(f"no {kind}")


def own(config: ModelConfig, kind: str) -> Any:
    """As `part`, but the settings that such a layer would have where there is none."""
    try:
        return part(config, kind)
    except LookupError:
        return config.part(kind, "")


def every(config: ModelConfig, kind: str) -> list[Any]:
    """The settings of `kind` in all layers; LookupError if one has another part."""
    return [part(config, kind, i) for i in range(config.depth)]


def shortest(layers: tuple[str, ...]) -> tuple[str, ...]:
    """The shortest pattern that tiles to `layers`."""
    n = len(layers)
    return next(
        layers[:p] for p in range(1, n + 1) if all(layers[i] == layers[i % p] for i in range(n))
    )
