"""Multi-token prediction (MTP) by the sequential modules of DeepSeek-V3 (arXiv:2412.19437, 2.2).

Module k predicts the token that is k tokens after the next one. From the hidden vectors of the
module before it (the model's, for k = 1) and the embedding of the token at i + k it computes

    h_k[i] = block(M_k [norm(h_{k-1}[i]); norm(embed(t[i + k]))])

with a block like the model's last layer, which reads the earlier positions of the document, and a
norm of its own. Embedding and output head are the model's. No module reads or predicts a token of
another document. The modules belong to the objective: evaluation and decoding do not run them.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from arch import Model, ModelConfig, SequenceInfo, compute_cost
from arch.layers.dropout import maybe_split_key
from arch.layers.linear import linear
from arch.layers.norms import Norm
from arch.part_cost import PartCost, TermFlops
from arch.sharding import P, make_matrix
from arch.stack import Stack
from arch.weighted_sum import AuxMetrics, ProductOfMeans, WeightedSum


class MtpModule(nnx.Module):
    """One module `module(hidden, embedded, seq) -> (hidden, aux)`."""

    def __init__(self, model: ModelConfig, *, key: Array):
        keys, D, block = jax.random.split(key), model.width, _block_config(model)
        self.norm_hidden = Norm(D, model.norm)
        self.norm_embedded = Norm(D, model.norm)
        self.w_in = make_matrix(keys[0], (2 * D, D), P("data", None))
        self.stack = Stack(block, block.layer_layout(), key=keys[1])

    def __call__(
        self,
        hidden: Float[Array, "B T D"],
        embedded: Float[Array, "B T D"],
        seq: SequenceInfo,
        key: Array | None,
    ) -> tuple[Float[Array, "B T D"], AuxMetrics]:
        """Computes the vectors from which the head predicts, and the report of the channel."""
        inputs = self.norm_hidden(hidden), self.norm_embedded(embedded)
        x = linear(jnp.concatenate(inputs, axis=-1), self.w_in[...])
        x, aux, _ = self.stack(x, seq, key=key)
        return x, aux


def run_modules(
    modules: nnx.List,
    model: Model,
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    seq: SequenceInfo,
    key: Array | None,
) -> tuple[list[Float[Array, "B T D"]], list[AuxMetrics]]:
    """Runs the modules one after another.

    Args:
        modules: the modules.
        model: the model, whose embedding they share.
        hidden: the model's vectors.
        targets: the next token at each position.
        seq: the structure of the rows.
        key: the key of dropout and jitter; None means neither.

    Returns:
        The vectors and the report of each module.
    """
    outputs, reports = [], []
    for k, (module, k_key) in enumerate(
        zip(modules, maybe_split_key(key, len(modules)), strict=True), 1
    ):
        keys = maybe_split_key(k_key, 2)
        tokens, is_known = shift_left(targets, seq.segment_ids, k - 1)
        # Positions whose document ends earlier come last in it, so that they count as padding.
        seq_k = dataclasses.replace(seq, segment_ids=jnp.where(is_known, seq.segment_ids, 0))
        embedded = model.embed(tokens, seq_k, hidden.dtype, keys[0])
        hidden, aux = module(hidden, embedded, seq_k, keys[1])
        outputs.append(hidden)
        reports.append(aux)
    return outputs, reports


def shift_left(x: Array, segment_ids: Int[Array, "B T"], shift: int) -> tuple[Array, Array]:
    """Returns x[i + shift] [B T], and whether that position is in the document of i [B T].

    Where it is not, the value is 0.
    """

    def move(a: Array) -> Array:
        padded = jnp.concatenate([a, jnp.zeros_like(a)], axis=1)
        return jax.lax.slice_in_dim(padded, shift, shift + a.shape[1], axis=1)

    same = (move(segment_ids) == segment_ids) & (segment_ids != 0)
    return jnp.where(same, move(x), 0), same


def append_layers(aux: AuxMetrics, reports: Sequence[AuxMetrics]) -> AuxMetrics:
    """Returns the reports of the model's channels with those of the modules as further layers."""

    def join(name: str) -> WeightedSum | ProductOfMeans:
        parts = [aux[name], *(report[name] for report in reports if name in report)]
        return jax.tree.map(lambda *layers: jnp.concatenate(layers), *parts)

    return {name: join(name) for name in aux}


def mtp_cost(model: ModelConfig, length: int, depth: int) -> PartCost | None:
    """Returns the cost per token of `depth` modules, each with its logits; None for none."""
    if not depth:
        return None
    D = model.width
    # The size of the vocabulary is unknown before a run resolves its settings.
    block = dataclasses.replace(_block_config(model), vocab_size=model.vocab_size or 1)
    cost = compute_cost(block, length)
    outside = ("embedding", "head", "pooler")
    shared = sum(cost.parts.get(name, 0) for name in outside)
    norms, weights = 2 * Norm.params(D, model.norm), 2 * D * D
    terms = {
        f"mtp.{name}": flops.times(depth)
        for name, flops in cost.terms.items()
        if not name.startswith("embedding.")
    }
    terms["mtp.in"] = TermFlops(2.0 * depth * weights, 2.0 * depth * weights)
    return PartCost(
        params=depth * (cost.params - shared + norms + weights),
        active_params=depth * (cost.active_params - shared + norms + weights),
        terms=terms,
    )


def _block_config(model: ModelConfig) -> ModelConfig:
    """Returns the config of a model whose only layer is the last one of `model`.

    Its activations are kept for the backward pass: they are those of one layer.
    """
    index = model.depth - len(model.first_layers) - 1
    last = model.layers[index % len(model.layers)]
    block = dataclasses.replace(model.block, skip_first_norm=False)
    return dataclasses.replace(
        model, depth=1, first_layers=(), layers=(last,), block=block, remat="none"
    )
