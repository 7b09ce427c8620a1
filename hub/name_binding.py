"""Names parameters by layer and part, independently of how a stack arranges its layers.

For example, `stack.3.attention.w_q` is the matrix of layer 3. In the model it may be slice 1 of
`stack.blocks.1.mixer.w_q`, which stacks the repeats of a pattern.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from arch import Model, ModelConfig
from arch.pattern import LayerLayout
from errors import CheckpointError
from hub.config_equivalence import CANONICAL_PART
from hub.tensor_transforms import TensorMap, concat_fused
from training.checkpoint.param_names import named_leaves

Leaf = jax.Array | jax.ShapeDtypeStruct  # a parameter, or its shape
VOCAB_PARAMS = ("embed.table", "head.table", "head.bias")  # may have more rows than `vocab_size`
MAX_LISTED_NAMES = 10  # limit of the names in one message


class LeafIndex(NamedTuple):
    """The location of a parameter in the model."""

    leaf: str  # name of the leaf in the model
    repeat: int  # index along the leaf's first axis; -1 if the leaf has no axis of repeats


class BoundTensor(NamedTuple):
    """One entry of a name map, applied to one layer."""

    tensor_map: TensorMap
    leaf_indices: tuple[LeafIndex, ...]
    hf_names: tuple[str, ...]  # one name, or one per expert


def index_leaves(config: ModelConfig, model: Model) -> dict[str, LeafIndex]:
    """Returns the location of every parameter of `model` (arrays or shapes) by its layer name.

    A bidirectional mixer whose directions share weights has those of the published mixer under the
    usual names. Parameters that exist only in the bidirectional mixer are below `bidirectional`.
    """
    indices: dict[str, LeafIndex] = {}
    leaves = named_leaves(model)
    wrapped = {name.partition(".mixer.")[0] for name in leaves if ".mixer.forward." in name}
    for name in leaves:
        match = re.fullmatch(
            r"(encoder|stack|vision\.stack)\.(first|blocks|last)\.(\d+)\.(.*)", name
        )
        if match is None:
            indices[name] = LeafIndex(name, -1)
            continue
        stack, group, slot, path = match[1], match[2], int(match[3]), match[4]
        if path.startswith("mixer.") and name.partition(".mixer.")[0] in wrapped:
            _, is_forward, leaf = path.partition("mixer.forward.")
            path = (
                f"mixer.{leaf}" if is_forward else path.replace("mixer.", "mixer.bidirectional.", 1)
            )
        layout = _stack_layout(config, stack)
        if group == "first":
            _add_unique(indices, _param_name(stack, layout, slot, path), LeafIndex(name, -1))
        elif group == "last":
            layer = len(layout.layer_specs()) - len(layout.suffix) + slot
            _add_unique(indices, _param_name(stack, layout, layer, path), LeafIndex(name, -1))
        else:
            for repeat in range(layout.repeats):
                layer = len(layout.prefix) + repeat * len(layout.period) + slot
                param = _param_name(stack, layout, layer, path)
                _add_unique(indices, param, LeafIndex(name, repeat))
    return indices


def resolve_name_map(
    config: ModelConfig, model: Model, name_map: tuple[TensorMap, ...]
) -> list[BoundTensor]:
    """Applies a name map to every layer of a model, in the order of its entries.

    Raises:
        CheckpointError: if the map has no name for a parameter.
    """
    indices, leaves = index_leaves(config, model), named_leaves(model)
    bounds, mapped = [], set()
    layers = range(max(config.depth, config.encoder.depth, config.vision.depth))
    for tensor_map in name_map:
        for i in layers if "{i}" in tensor_map.hf_name + tensor_map.params[0] else (0,):
            params = [name.replace("{i}", str(i)) for name in tensor_map.params]
            if not all(name in indices for name in params):
                continue
            hf_name = tensor_map.hf_name.replace("{i}", str(i))
            hf_names: tuple[str, ...] = (hf_name,)
            if "{e}" in hf_name:
                index = indices[params[0]]
                n_experts = leaves[index.leaf].shape[int(index.repeat >= 0)]
                hf_names = tuple(hf_name.replace("{e}", str(e)) for e in range(n_experts))
            bounds.append(BoundTensor(tensor_map, tuple(indices[n] for n in params), hf_names))
            mapped.update(params)
    if unmapped := sorted(set(indices) - mapped):
        raise CheckpointError(
            f"this family has no names for {', '.join(unmapped[:MAX_LISTED_NAMES])}; "
            "export another pattern"
        )
    return bounds


def hf_shape(
    bound: BoundTensor, config: ModelConfig, leaves: Mapping[str, Leaf]
) -> tuple[int, ...]:
    """Returns the shape that each tensor of `bound` has in the files."""
    parts = []
    for index in bound.leaf_indices:
        shape = leaves[index.leaf].shape[int(index.repeat >= 0) :]
        shape = shape[1:] if "{e}" in bound.tensor_map.hf_name else shape
        shape = (config.vocab_size, *shape[1:]) if index.leaf in VOCAB_PARAMS else shape
        parts.append(np.broadcast_to(np.int8(0), shape))
    return bound.tensor_map.transform.to_hf(concat_fused(parts, bound.tensor_map)).shape


def _stack_layout(config: ModelConfig, stack: str) -> LayerLayout:
    if stack == "stack":
        return config.layer_layout()
    if stack == "encoder":
        return config.encoder_layout()
    return config.vision_stack().layer_layout()


def _add_unique(index: dict[str, LeafIndex], name: str, leaf_index: LeafIndex) -> None:
    if name in index:
        raise CheckpointError(
            f"{index[name].leaf} and {leaf_index.leaf} have the same name {name}; "
            "rename one in its module"
        )
    index[name] = leaf_index


def _param_name(stack: str, layout: LayerLayout, layer: int, path: str) -> str:
    """Replaces `mixer` and `channel` by the name of the part in this layer."""
    spec = layout.layer_specs()[layer]
    part, dot, leaf = path.partition(".")
    mixer, match = spec.mixer, re.fullmatch(r"mixers\.(\d+)\.(.*)", leaf)
    if "&" in mixer and part == "mixer" and match:
        mixer, leaf = mixer.split("&")[int(match[1])], match[2]
    names = {"mixer": CANONICAL_PART.get(mixer, mixer), "channel": spec.channel}
    return f"{stack}.{layer}.{names.get(part, part)}{dot}{leaf}"
