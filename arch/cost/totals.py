"""The cost of a model: parameters, model and executed FLOPs per token, and state bytes.

Every part computes its own cost (`arch/part_cost.py`). This module adds the costs up.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax.numpy as jnp

from arch.config import ModelConfig
from arch.layers.embedding import Embedding, OutputHead
from arch.layers.joint_embedding import JointEmbedding
from arch.layers.norms import Norm
from arch.layers.pooler import Pooler
from arch.layers.positions import RelativePositionBias
from arch.mixers.attention_config import cross_attention_cost
from arch.part_cost import CostContext, PartCost, TermFlops
from arch.pattern import LayerLayout
from arch.sequence import View
from arch.vision import vision_costs

OBJECTIVE = "objective"  # The part of the objective's weights (see `add_objective_cost`).
NON_BLOCK_PARTS = ("embedding", "head", OBJECTIVE)  # Parts that non-embedding totals exclude.


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one token in the forward pass.

    The keys of `terms` are `part.term`; the layers with the same part are added up.
    """

    params: int
    active_params: int
    model_flops: float
    executed_flops: float
    terms: dict[str, TermFlops]
    parts: dict[str, int]  # Parameters by part.
    recomputed_flops: float  # Executed FLOPs that the backward pass repeats (`model.remat`).
    state_bytes: int  # Bytes of the decoding state of one row of `length` tokens.

    @property
    def non_embedding_params(self) -> int:
        """The parameters, of which those of embedding, head and objective are excluded."""
        return self.params - sum(self.parts.get(name, 0) for name in NON_BLOCK_PARTS)

    @property
    def active_non_embedding_params(self) -> int:
        """The non-embedding parameters that one token uses."""
        return self.active_params - (self.params - self.non_embedding_params)

    @property
    def non_embedding_flops(self) -> float:
        """The model FLOPs, of which those of the head and the objective are excluded."""
        objective_flops = sum(
            flops.model for name, flops in self.terms.items() if _part_of_term(name) == OBJECTIVE
        )
        return self.model_flops - self.head_flops - objective_flops

    @property
    def head_flops(self) -> float:
        """The model FLOPs that the logits need."""
        return self.terms["head.logits"].model

    @property
    def training_flops(self) -> float:
        """The model FLOPs that the forward and backward passes need."""
        return 3 * self.model_flops


def compute_cost(
    config: ModelConfig,
    length: int,
    *,
    view: View = "causal",
    source_length: int = 0,
    logit_fraction: float = 1.0,
    images: float = 0.0,
    images_as_prefix: bool = True,
) -> Cost:
    """Computes the cost per token of a model on rows of `length` tokens.

    Args:
        config: the model; `vocab_size` must be set.
        length: tokens per row; for an encoder-decoder, per row of the decoder.
        view: the view of the rows.
        source_length: prefix tokens under the view "prefix", or tokens of the encoder.
        logit_fraction: the share of the tokens for which logits are computed.
        images: the images that the vision stack reads for each row.
        images_as_prefix: whether the images enter the text stack, by `vision.projector`.
    """
    itemsize, has_encoder = jnp.dtype(config.dtype).itemsize, config.encoder.depth > 0
    context = CostContext(length, view, source_length, itemsize)
    costs = [("embedding", _embedding_cost(config, length, source_length))]
    costs += _layer_costs(config, config.layer_layout(), context, has_encoder)
    if config.vision.depth:
        images_per_token = images / length if length else 0.0
        costs += _vision_costs(config, images_per_token, itemsize, images_as_prefix)
    if has_encoder:
        costs += _encoder_costs(config, length, source_length, itemsize)
    costs += [("norms", _norms_cost(config)), ("head", _head_cost(config, logit_fraction))]
    # The pooler has no FLOPs, because no objective runs it.
    optional = {
        "relative": _relative_params(config) * (2 if has_encoder else 1),
        "pooler": Pooler.params(config.width, config.pooler),
        "joint": _joint_params(config),
    }
    costs += [(name, _without_flops(params)) for name, params in optional.items() if params]
    return _add_up(costs, config.remat)


def add_objective_cost(cost: Cost, objective_cost: PartCost) -> Cost:
    """Returns `cost` with the cost per token of the objective's own weights added."""
    terms = {f"{OBJECTIVE}.{name}": flops for name, flops in objective_cost.terms.items()}
    return dataclasses.replace(
        cost,
        params=cost.params + objective_cost.params,
        active_params=cost.active_params + objective_cost.active_params,
        model_flops=cost.model_flops + sum(flops.model for flops in terms.values()),
        executed_flops=cost.executed_flops + sum(flops.executed for flops in terms.values()),
        terms=cost.terms | terms,
        parts=cost.parts | ({OBJECTIVE: objective_cost.params} if objective_cost.params else {}),
    )


def mean_cost(costs: Sequence[Cost], shares: Sequence[float]) -> Cost:
    """Returns the mean cost per token of one model under several objectives.

    FLOPs are averaged with the weights `shares`. The model's parameters count once; the parameters
    of the objectives are added up.
    """
    pairs = list(zip(costs, shares, strict=True))

    def term(name: str) -> TermFlops:
        flops = (cost.terms[name].times(share) for cost, share in pairs if name in cost.terms)
        return functools.reduce(TermFlops.plus, flops)

    objective_params = sum(cost.parts.get(OBJECTIVE, 0) for cost in costs)
    extra_params = objective_params - costs[0].parts.get(OBJECTIVE, 0)
    return dataclasses.replace(
        costs[0],
        params=costs[0].params + extra_params,
        active_params=costs[0].active_params + extra_params,
        parts=costs[0].parts | ({OBJECTIVE: objective_params} if objective_params else {}),
        recomputed_flops=sum(share * cost.recomputed_flops for cost, share in pairs),
        model_flops=sum(share * cost.model_flops for cost, share in pairs),
        executed_flops=sum(share * cost.executed_flops for cost, share in pairs),
        terms={name: term(name) for cost in costs for name in cost.terms},
    )


def _add_up(costs: list[tuple[str, PartCost]], remat: str) -> Cost:
    """Returns the cost of a model with these parts; costs of one name are added up."""
    terms: dict[str, TermFlops] = {}
    parts: dict[str, int] = {}
    for name, cost in costs:
        parts[name] = parts.get(name, 0) + cost.params
        for term, flops in cost.terms.items():
            key = f"{name}.{term}"
            terms[key] = terms[key].plus(flops) if key in terms else flops
    return Cost(
        params=sum(cost.params for _, cost in costs),
        active_params=sum(cost.active_params for _, cost in costs),
        model_flops=sum(flops.model for flops in terms.values()),
        executed_flops=sum(flops.executed for flops in terms.values()),
        terms=terms,
        parts=parts,
        recomputed_flops=_recomputed_flops(remat, terms),
        state_bytes=sum(cost.state_bytes for _, cost in costs),
    )


def _layer_costs(
    config: ModelConfig, layout: LayerLayout, context: CostContext, has_cross_attention: bool
) -> list[tuple[str, PartCost]]:
    """Returns the cost of all uses of a part in each distinct block, with the part's name."""
    costs: list[tuple[str, PartCost]] = []
    for layer, uses in config.stack_parts(layout):
        costs += [(name, cost.repeated(uses)) for name, cost in layer.costs(context)]
        if has_cross_attention:
            cross = cross_attention_cost(config.width, config.cross_attention, context)
            costs.append(("cross_attention", cross.repeated(uses)))
    return costs


def _encoder_costs(
    config: ModelConfig, length: int, source_length: int, itemsize: int
) -> list[tuple[str, PartCost]]:
    """Returns the encoder's costs per token of the decoder, of which a row has `length`."""
    share = source_length / length if length else 0.0
    context = CostContext(source_length, "bidirectional", 0, itemsize)
    costs = _layer_costs(config, config.encoder_layout(), context, False)
    return [(f"encoder.{name}", _times(cost, share)) for name, cost in costs]


def _vision_costs(
    config: ModelConfig, images_per_token: float, itemsize: int, with_projector: bool
) -> list[tuple[str, PartCost]]:
    """Returns the vision stack's costs per token of the text stack."""
    tower, n_tokens = config.vision_stack(), config.vision.n_tokens
    context = CostContext(n_tokens, "bidirectional", 0, itemsize)
    per_image = list(vision_costs(config, with_projector=with_projector).items())
    for name, cost in _layer_costs(tower, tower.layer_layout(), context, False):
        per_image.append((name, _times(cost, n_tokens)))
    norms = _norm_params(tower, tower.layer_layout(), False) + _relative_params(tower)
    per_image.append(("norms", _without_flops(norms)))
    return [(f"vision.{name}", _times(cost, images_per_token)) for name, cost in per_image]


def _times(cost: PartCost, uses: float) -> PartCost:
    """Returns the cost of `uses` uses per token of a part that keeps nothing while decoding."""
    terms = {term: flops.times(uses) for term, flops in cost.terms.items()}
    return PartCost(cost.params, cost.active_params, terms)


def _without_flops(params: int) -> PartCost:
    return PartCost(params, params, {})


def _embedding_cost(config: ModelConfig, length: int, source_length: int) -> PartCost:
    if not config.depth:
        return _without_flops(0)
    D, V, embed = config.width, config.padded_vocab_size, config.embed
    params = Embedding.params(V, D, embed, config.positions, config.norm)
    if not embed.factorized_width:
        return _without_flops(params)
    embedded_tokens = 1 + source_length / length if config.encoder.depth and length else 1.0
    flops = 2.0 * D * embed.factorized_width * embedded_tokens
    return PartCost(params, params, {"projection": TermFlops(flops, flops)})


def _head_cost(config: ModelConfig, logit_fraction: float) -> PartCost:
    """Returns the cost of the head, of which the logits of padding ids are executed FLOPs only."""
    if not config.depth:
        return PartCost(0, 0, {"logits": TermFlops(0.0, 0.0)})
    D, V, head, embed = config.width, config.padded_vocab_size, config.head, config.embed
    params = OutputHead.params(V, D, head, embed, config.norm)
    model, executed = (OutputHead.flops(n, D, head, embed) for n in (config.vocab_size, V))
    logits = TermFlops(logit_fraction * model, logit_fraction * executed)
    return PartCost(params, params, {"logits": logits})


def _norms_cost(config: ModelConfig) -> PartCost:
    """Returns the cost of the norms of both stacks."""
    has_encoder = config.encoder.depth > 0
    params = _norm_params(config, config.layer_layout(), has_encoder)
    if has_encoder:
        params += _norm_params(config, config.encoder_layout(), False)
    return _without_flops(params)


def _relative_params(config: ModelConfig) -> int:
    """Returns the parameters of the table of relative positions of one stack."""
    heads = config.num_relative_heads()
    return RelativePositionBias.params(heads, config.positions) if heads else 0


def _joint_params(config: ModelConfig) -> int:
    vision = config.vision
    if not vision.depth or not vision.embed_dim:
        return 0
    return JointEmbedding.params(vision.width or config.width, config.width, vision.embed_dim)


def _norm_params(config: ModelConfig, layout: LayerLayout, has_cross_attention: bool) -> int:
    params = sum(
        uses * layer.norm_params(config.norm, has_cross_attention)
        for layer, uses in config.stack_parts(layout)
    )
    params -= config.block.skip_first_norm * Norm.params(config.width, config.norm)
    return params + config.final_norm * Norm.params(config.width, config.norm)


def _recomputed_flops(remat: str, terms: dict[str, TermFlops]) -> float:
    """Returns the executed FLOPs of the blocks that the backward pass repeats.

    With "full" these are all of them, otherwise those that are not a product with a weight. They
    include the last product of a block, whose result the backward pass does not need, although a
    compiler may omit it.
    """
    if remat == "none":
        return 0.0
    blocks = [flops for name, flops in terms.items() if _part_of_term(name) not in NON_BLOCK_PARTS]
    repeated = [f for f in blocks if remat == "full" or f.elementwise or f.batched]
    return sum(flops.executed for flops in repeated)


def _part_of_term(term: str) -> str:
    return term.partition(".")[0]
