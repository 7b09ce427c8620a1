"""How their tensors hold our numbers: a closed set of forms, each a pair of inverse functions.

A `Tie` is one line of a family's name map. Import and export read the same lines, so that a round
trip gives back the same bytes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Form(NamedTuple):
    """`ours(theirs(x)) == x`; neither changes a number."""

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


SAME = Form(lambda x: x, lambda x: x)  # vectors, tables, and GPT-2's [in, out] matrices
LINEAR = Form(lambda x: x.T, lambda x: x.T)  # torch's [out, in]
TAPS = Form(lambda x: x[:, 0].T, lambda x: x.T[:, None])  # depthwise [C, 1, K] to [K, C]


class Tie(NamedTuple):
    """`ours` are names of our parameters, `theirs` one of a tensor; {i} is a layer, {e} an expert.

    Several of ours lie side by side in theirs: along our last axis there are `groups` times
    [sizes[0], sizes[1], ...] numbers. Experts, one tensor each, are stacked along our first axis.
    """

    ours: tuple[str, ...]
    theirs: str
    form: Form = SAME
    sizes: tuple[int, ...] = ()
    groups: int = 1


def same(ours: str, theirs: str) -> Tie:
    return Tie((ours,), theirs)


def linear(ours: str, theirs: str, form: Form = LINEAR) -> tuple[Tie, Tie]:
    """A matrix `w_X` and, where there is one, its bias `b_X`; `theirs` without .weight."""
    matrix = Tie((ours,), f"{theirs}.weight", form)
    return matrix, same(ours.replace(".w_", ".b_"), f"{theirs}.bias")


def norm(ours: str, theirs: str) -> tuple[Tie, Tie]:
    return same(f"{ours}.scale", f"{theirs}.weight"), same(f"{ours}.bias", f"{theirs}.bias")


def fused(
    ours: tuple[str, ...],
    theirs: str,
    sizes: tuple[int, ...],
    *,
    groups: int = 1,
    form: Form = LINEAR,
) -> tuple[Tie, Tie]:
    """Matrices `w_X` in one tensor, and their biases in another."""
    biases = tuple(name.replace(".w_", ".b_") for name in ours)
    return (
        Tie(ours, f"{theirs}.weight", form, sizes, groups),
        Tie(biases, f"{theirs}.bias", SAME, sizes, groups),
    )


def cut(whole: np.ndarray, tie: Tie) -> list[np.ndarray]:
    """The arrays of ours in what `tie.form` made of theirs."""
    if len(tie.ours) == 1:
        return [whole]
    lead = whole.shape[:-1]
    parts = whole.reshape(*lead, tie.groups, sum(tie.sizes))
    cuts = np.split(parts, np.cumsum(tie.sizes)[:-1], axis=-1)
    return [
        part.reshape(*lead, tie.groups * size) for part, size in zip(cuts, tie.sizes, strict=True)
    ]


def joined(parts: list[np.ndarray], tie: Tie) -> np.ndarray:
    """The inverse of `cut`."""
    if len(parts) == 1:
        return parts[0]
    lead = parts[0].shape[:-1]
    pieces = [
        part.reshape(*lead, tie.groups, size) for part, size in zip(parts, tie.sizes, strict=True)
    ]
    return np.concatenate(pieces, axis=-1).reshape(*lead, tie.groups * sum(tie.sizes))
