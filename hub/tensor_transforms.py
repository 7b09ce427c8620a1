"""Maps parameters to tensors of a checkpoint by a closed set of invertible transforms.

A `TensorMap` is one entry of a family's name map. Import and export use the same entries, so that a
round trip gives back the same bytes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Transform(NamedTuple):
    """A pair of inverse functions, `from_hf(to_hf(x)) == x`, that only rearrange numbers."""

    from_hf: Callable[[np.ndarray], np.ndarray]
    to_hf: Callable[[np.ndarray], np.ndarray]


IDENTITY = Transform(lambda x: x, lambda x: x)  # vectors, tables, GPT-2's [in, out] matrices
TRANSPOSED = Transform(lambda x: x.T, lambda x: x.T)  # matrices [out, in]
CONV1D = Transform(lambda x: x[:, 0].T, lambda x: x.T[:, None])  # depthwise [C, 1, K] to [K, C]
PER_HEAD = Transform(lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, -1, 1))  # [1, 1, H, 1]


class TensorMap(NamedTuple):
    """Maps parameters to one tensor of a checkpoint; {i} is a layer and {e} an expert.

    A tensor can fuse several parameters: their last axis then consists of `n_groups` groups of
    [sizes[0], sizes[1], ...] numbers. Experts have one tensor each in a checkpoint, and the
    parameter stacks them along its first axis.
    """

    params: tuple[str, ...]  # names of parameters of the model
    hf_name: str  # name of the tensor
    transform: Transform = IDENTITY
    sizes: tuple[int, ...] = ()  # numbers of each parameter in a group, if several are fused
    n_groups: int = 1


def identity(param: str, hf_name: str) -> TensorMap:
    """Maps a parameter to a tensor with the same numbers in the same order."""
    return TensorMap((param,), hf_name)


def linear(
    param: str, hf_name: str, transform: Transform = TRANSPOSED
) -> tuple[TensorMap, TensorMap]:
    """Maps a matrix `w_X` and its bias `b_X`, if it has one; `hf_name` excludes `.weight`."""
    matrix = TensorMap((param,), f"{hf_name}.weight", transform)
    return matrix, identity(param.replace(".w_", ".b_"), f"{hf_name}.bias")


def norm(param: str, hf_name: str) -> tuple[TensorMap, TensorMap]:
    """Maps the scale and the bias of a norm."""
    scale = identity(f"{param}.scale", f"{hf_name}.weight")
    return scale, identity(f"{param}.bias", f"{hf_name}.bias")


def qk_norms(mixer: str, hf_prefix: str) -> tuple[TensorMap, TensorMap]:
    """Maps the norms of queries and keys of LLaMA-like layers, `hf_prefix` being `self_attn`."""
    q, k = (
        identity(f"stack.{{i}}.{mixer}.norm_{x}", f"model.layers.{{i}}.{hf_prefix}.{x}_norm.weight")
        for x in "qk"
    )
    return q, k


def fused_linear(
    params: tuple[str, ...],
    hf_name: str,
    sizes: tuple[int, ...],
    *,
    n_groups: int = 1,
    transform: Transform = TRANSPOSED,
) -> tuple[TensorMap, TensorMap]:
    """Maps matrices `w_X` to one tensor, and their biases `b_X` to another."""
    biases = tuple(name.replace(".w_", ".b_") for name in params)
    return (
        TensorMap(params, f"{hf_name}.weight", transform, sizes, n_groups),
        TensorMap(biases, f"{hf_name}.bias", IDENTITY, sizes, n_groups),
    )


def split_fused(fused: np.ndarray, tensor_map: TensorMap) -> list[np.ndarray]:
    """Splits the output of `tensor_map.transform.from_hf` into one array per parameter."""
    if len(tensor_map.params) == 1:
        return [fused]
    leading = fused.shape[:-1]
    groups = fused.reshape(*leading, tensor_map.n_groups, sum(tensor_map.sizes))
    parts = np.split(groups, np.cumsum(tensor_map.sizes)[:-1], axis=-1)
    return [
        part.reshape(*leading, tensor_map.n_groups * size)
        for part, size in zip(parts, tensor_map.sizes, strict=True)
    ]


def concat_fused(parts: list[np.ndarray], tensor_map: TensorMap) -> np.ndarray:
    """Concatenates the parameters of a fused tensor; the inverse of `split_fused`."""
    if len(parts) == 1:
        return parts[0]
    leading = parts[0].shape[:-1]
    groups = [
        part.reshape(*leading, tensor_map.n_groups, size)
        for part, size in zip(parts, tensor_map.sizes, strict=True)
    ]
    return np.concatenate(groups, axis=-1).reshape(
        *leading, tensor_map.n_groups * sum(tensor_map.sizes)
    )
