"""The Mixture of Experts channel: a router sends each token to a few of many MLPs.

One config covers Switch (arXiv:2101.03961), Mixtral (arXiv:2401.04088), the shared experts of
DeepSeekMoE (arXiv:2401.06066), the sigmoid scores, expert groups and loss-free balance of
DeepSeek-V3 (arXiv:2412.19437), and expert choice (arXiv:2202.09368). The routing is in
`arch/channels/routing.py`, the expert computation in `ops/experts.py`.

Without a key (in evaluation) there is no jitter, and the capacity factor drops no token, so a
token's output does not depend on other rows of the batch. Only a fixed `expert_capacity`, with
which published Switch Transformers run, drops tokens in evaluation too.
"""

from collections.abc import Iterable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from arch.channels import routing
from arch.channels.mlp import Mlp, MlpConfig
from arch.channels.routing import ExpertGroups, Routes
from arch.layers.activations import Activation, Hidden
from arch.layers.linear import linear
from arch.part_cost import CostContext, PartCost, TermFlops
from arch.sequence import ALL_VIEWS, SequenceInfo, View
from arch.sharding import P, make_matrix, make_param, make_vector
from arch.weighted_sum import AuxMetrics
from errors import ConfigError
from ops.experts.experts import ExpertWeights, experts
from settings.types import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    check_divides,
    config,
)


@config
class MoeConfig:
    """The Mixture of Experts channel."""

    scaled_fields: ClassVar[tuple[str, ...]] = ("width", "shared_width")
    knob_fields: ClassVar[tuple[str, ...]] = ("width", "shared_width")

    num_experts: PositiveInt = 8  # Number of routed experts (E).
    top_k: PositiveInt = 2  # Experts per token; the mean number if experts choose tokens.
    width: NonNegativeInt = 0  # Width of one expert's hidden layer (F); 0: as for the MLP.
    gated: bool = True  # Multiply each expert's hidden layer by an activated gate.
    activation: Activation = "silu"  # Activation of the experts' hidden layer, or of its gate.
    bias: bool = False  # Add a bias to the experts' projections.
    router_bias: bool = False  # Add a bias to the router's logits.
    routing: Literal["token", "expert"] = "token"  # Tokens choose experts, or experts tokens.
    # Router scores: softmax over all experts, or a sigmoid per expert.
    router_activation: Literal["softmax", "sigmoid"] = "softmax"
    # Divide the weights of a token's experts by their sum (softmax: as one over them alone).
    normalize_weights: bool = True
    route_scale: PositiveFloat = 1.0  # Factor of the routed experts' output.
    n_groups: PositiveInt = 1  # Number of groups that the experts are divided into.
    top_groups: NonNegativeInt = 0  # Number of groups that a token may use; 0: all.
    group_score_top_k: PositiveInt = 2  # Number of best scores that add up to a group's score.
    shared_experts: NonNegativeInt = 0  # Number of experts that process every token.
    # Total hidden width of the shared experts; 0: shared_experts times that of one expert.
    shared_width: NonNegativeInt = 0
    shared_gate: bool = False  # Multiply the shared output by a sigmoid per token (Qwen2-MoE).
    # Maximum tokens per row and expert, in evaluation too; 0: by capacity_factor.
    expert_capacity: NonNegativeInt = 0
    # Maximum tokens per row and expert in training, relative to an even share; 0: no limit.
    capacity_factor: NonNegativeFloat = 0.0
    min_capacity: NonNegativeInt = 4  # Lower bound of the capacity from capacity_factor, in tokens.
    # Amplitude j of the noise in training: the router's input is multiplied by 1 - j to 1 + j.
    router_jitter: Probability = 0.0
    # Coefficient of the load-balancing loss.
    balance_loss: NonNegativeFloat = 0.01
    # Tokens whose load the balance loss evens; batch: over several microbatches, a second forward
    # pass makes it that of the whole batch.
    balance_over: Literal["microbatch", "batch"] = "microbatch"
    z_loss: NonNegativeFloat = 1e-3  # Coefficient of the router's z-loss.
    # Update size of the selection bias that evens the load without a loss; 0: no such bias.
    bias_update_rate: NonNegativeFloat = 0.0
    # Implementation of the experts; auto: chosen by platform, mesh and capacity.
    implementation: Literal["auto", "reference", "blocks", "grouped", "gather", "ragged"] = "auto"

    def check(self) -> None:
        """Checks the numbers of experts and groups.

        Raises:
            ConfigError: if `top_k`, the groups or the settings of expert choice do not fit.
        """
        E = self.num_experts
        if self.top_k > E:
            raise ConfigError(
                f"moe.top_k {self.top_k} is above moe.num_experts {E}; nearest valid value: {E}"
            )
        check_divides("moe.n_groups", self.n_groups, "moe.num_experts", E)
        if self.top_groups > self.n_groups:
            raise ConfigError(
                f"moe.top_groups {self.top_groups} is above moe.n_groups {self.n_groups}; "
                f"nearest valid value: {self.n_groups}"
            )
        size, num_groups = E // self.n_groups, self.top_groups or self.n_groups
        if self.top_k > num_groups * size:
            raise ConfigError(
                f"moe.top_k {self.top_k} is above the {num_groups * size} experts of the "
                f"{num_groups} groups in moe.top_groups; nearest valid value: {num_groups * size}"
            )
        if num_groups < self.n_groups and self.group_score_top_k > size:
            raise ConfigError(
                f"moe.group_score_top_k {self.group_score_top_k} is above the {size} experts of "
                f"a group; nearest valid value: {size}"
            )
        self._check_expert_choice()

    def _check_expert_choice(self) -> None:
        """Refuses capacity, groups and bias if experts choose: their load is even already.

        Raises:
            ConfigError: if one of these settings is set.
        """
        if self.routing == "token":
            return
        default = type(self)()
        for name in ("capacity_factor", "expert_capacity", "bias_update_rate", "top_groups"):
            if value := getattr(self, name):
                raise ConfigError(
                    f"moe.{name} {value} has no meaning where moe.routing is 'expert'; "
                    f"set it to {getattr(default, name)}"
                )

    @property
    def balances_batch(self) -> bool:
        """Whether there is a balance loss, and it is over the whole batch."""
        has_loss = self.routing == "token" and self.balance_loss > 0
        return has_loss and self.balance_over == "batch"

    def inner_dim(self, D: int) -> int:
        """Returns the hidden width of one expert (F) in a model of width D."""
        return MlpConfig(width=self.width, gated=self.gated).inner_dim(D)

    def max_tokens_per_expert(self, T: int) -> int:
        """Returns how many tokens of a row of T one expert can take in training."""
        if self.routing == "expert":
            return max(1, T * self.top_k // self.num_experts)
        if self.expert_capacity:
            return min(T, self.expert_capacity)
        if not self.capacity_factor:
            return T
        return routing.expert_capacity(
            self.capacity_factor, self.top_k, T, self.num_experts, self.min_capacity
        )

    def shared_experts_config(self, D: int) -> MlpConfig:
        """Returns the config of the shared experts: one MLP as wide as all of them."""
        width = self.shared_width or self.shared_experts * self.inner_dim(D)
        return MlpConfig(width, self.gated, self.activation, self.bias)


class MoE(nnx.Module):
    """A channel (see `arch/part.py`) that sends no padding to experts and counts none."""

    hint = "set model.moe.routing=token: experts that choose tokens see the whole document"

    def __init__(self, D: int, cfg: MoeConfig, *, key: Array, scale: float = 1.0):
        E, F, keys = cfg.num_experts, cfg.inner_dim(D), jax.random.split(key, 5)
        self.cfg = cfg
        self.w_router = make_matrix(keys[0], (D, E), P("data", None))
        if cfg.router_bias:
            self.b_router = make_vector(E, 0.0)
        self.w_in = make_matrix(keys[1], (E, D, F), P("expert", "data", "model"))
        if cfg.gated:
            self.w_gate = make_matrix(keys[2], (E, D, F), P("expert", "data", "model"))
        self.w_out = make_matrix(keys[3], (E, F, D), P("expert", "model", "data"), scale)
        if cfg.bias:
            self.b_in = _expert_biases(E, F, P("expert", "model"))
            if cfg.gated:
                self.b_gate = _expert_biases(E, F, P("expert", "model"))
            self.b_out = _expert_biases(E, D, P("expert", None))
        if cfg.bias_update_rate:
            zeros = nnx.initializers.zeros
            self.balance_bias = make_param(
                *(keys[0], (E,), P(None), zeros),
                role="balance_bias",
                decay=False,
                rate=cfg.bias_update_rate,
            )
        if cfg.shared_experts:
            self.shared = Mlp(D, cfg.shared_experts_config(D), key=keys[4], scale=scale)
            if cfg.shared_gate:
                gate = jax.random.fold_in(keys[4], 0)
                self.w_shared_gate = make_matrix(gate, (D, 1), P("data", None))

    def __call__(
        self, x: Float[Array, "B T D"], seq: SequenceInfo, *, key: Array | None = None
    ) -> tuple[Float[Array, "B T D"], AuxMetrics]:
        """Sends each token to its experts; returns their weighted sum, losses and metrics."""
        cfg = self.cfg
        with jax.named_scope("route"):
            routes, capacity, aux = self.route(x, seq, key)
        with jax.named_scope("experts"):
            y = experts(
                x,
                routes,
                self._expert_weights(),
                Hidden(cfg.activation),
                capacity=capacity,
                implementation=cfg.implementation,
            )
        if cfg.shared_experts:
            shared = self.shared(x, seq)[0]
            if cfg.shared_gate:
                shared = jax.nn.sigmoid(linear(x, self.w_shared_gate[...])) * shared
            y = y + shared
        return y, aux

    def route(
        self, x: Float[Array, "B T D"], seq: SequenceInfo, key: Array | None
    ) -> tuple[Routes, int, AuxMetrics]:
        """Returns the routes, the maximum tokens per row and expert, and metrics.

        Args:
            x: input vectors, of any float dtype; the routing is computed in at least float32.
            seq: the structure of the rows; tokens of segment 0 get no expert.
            key: the key of the jitter; None means evaluation, without jitter or capacity factor.
        """
        cfg, T, token_mask = self.cfg, x.shape[1], seq.segment_ids != 0
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if key is not None and cfg.router_jitter:
            low, high = 1 - cfg.router_jitter, 1 + cfg.router_jitter
            x = x * jax.random.uniform(key, x.shape, x.dtype, low, high)
        logits = self.logits(x)
        score = routing.router_scores(logits, cfg.router_activation)
        if cfg.routing == "expert":
            capacity = cfg.max_tokens_per_expert(T)
            all_routes = routes = routing.expert_choice(
                score, seq.segment_ids, cfg.top_k, scale=cfg.route_scale
            )
        else:
            capacity = T
            bias = self.balance_bias[...] if cfg.bias_update_rate else None
            groups = ExpertGroups(
                cfg.n_groups, cfg.top_groups or cfg.n_groups, cfg.group_score_top_k
            )
            indices = routing.top_k_experts(score, cfg.top_k, bias=bias, groups=groups)
            all_routes = routes = routing.token_choice(
                score, indices, token_mask, normalize=cfg.normalize_weights, scale=cfg.route_scale
            )
            if cfg.expert_capacity or (key is not None and cfg.capacity_factor):
                capacity = cfg.max_tokens_per_expert(T)
                routes = routing.drop_over_capacity(routes, capacity, cfg.num_experts)
        aux: AuxMetrics = {
            **routing.router_metrics(logits, score, all_routes, routes, token_mask, cfg.top_k)
        }
        if cfg.balances_batch:
            aux["moe.balance_loss"] = routing.balance_loss(score, all_routes, token_mask)
        if cfg.bias_update_rate:
            aux["moe.load_excess"] = routing.load_excess_loss(
                all_routes, self.balance_bias[...], token_mask
            )
        return routes, capacity, aux

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
        """Computes the router's logits in at least float32."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        bias = self.b_router[...] if self.cfg.router_bias else None
        # At the default precision TPUs round the inputs of a product to bfloat16.
        with jax.default_matmul_precision("highest"):
            return linear(x, self.w_router[...], bias)

    def _expert_weights(self) -> ExpertWeights:
        gated, bias = self.cfg.gated, self.cfg.bias
        return ExpertWeights(
            self.w_in[...],
            self.w_gate[...] if gated else None,
            self.w_out[...],
            self.b_in[...] if bias else None,
            self.b_gate[...] if bias and gated else None,
            self.b_out[...] if bias else None,
        )

    @staticmethod
    def supported_views(cfg: MoeConfig) -> dict[View, str]:
        """Returns only "bidirectional" for expert choice: an expert sees the whole document."""
        return {"bidirectional": "full"} if cfg.routing == "expert" else ALL_VIEWS

    @staticmethod
    def aux_losses(cfg: MoeConfig) -> dict[str, float]:
        """Returns the coefficients of the loss terms that are not zero."""
        balance = 0.0 if cfg.routing == "expert" else cfg.balance_loss
        excess = 1.0 if cfg.bias_update_rate else 0.0
        losses = {"moe.balance_loss": balance, "moe.z_loss": cfg.z_loss, "moe.load_excess": excess}
        return {name: coefficient for name, coefficient in losses.items() if coefficient}

    @staticmethod
    def tp_dims(D: int, cfg: MoeConfig) -> dict[str, int]:
        """Returns the dimensions that tensor and expert parallelism split."""
        shared = (
            {"shared_width": cfg.shared_experts_config(D).inner_dim(D)}
            if cfg.shared_experts
            else {}
        )
        return {"width": cfg.inner_dim(D), "num_experts": cfg.num_experts} | shared

    @staticmethod
    def cost(D: int, cfg: MoeConfig, context: CostContext) -> PartCost:
        """Returns the cost: model FLOPs count the chosen experts alone.

        Executed FLOPs count every slot if there is a capacity, and every expert on every token
        for `reference`.
        """
        E, k, T = cfg.num_experts, cfg.top_k, max(context.length, 1)
        expert = Mlp.cost(
            D, MlpConfig(cfg.inner_dim(D), cfg.gated, cfg.activation, cfg.bias), context
        )
        expert_flops = expert.terms["mlp"].model
        params, active = E * expert.params, k * expert.params
        capacity = cfg.max_tokens_per_expert(T)
        if cfg.implementation == "reference":
            experts_per_token = float(E)
        elif cfg.implementation == "gather" or (cfg.implementation == "auto" and capacity < T):
            experts_per_token = E * capacity / T
        else:
            experts_per_token = float(k)
        router = 2.0 * D * E
        terms = {
            "router": TermFlops(router, router),
            "routed": TermFlops(k * expert_flops, experts_per_token * expert_flops, batched=True),
        }
        common = D * E + (E if cfg.bias_update_rate else 0) + E * cfg.router_bias
        if cfg.shared_experts:
            shared = Mlp.cost(D, cfg.shared_experts_config(D), context)
            terms["shared"] = shared.terms["mlp"]
            common += shared.params + D * cfg.shared_gate
            if cfg.shared_gate:
                terms["shared_gate"] = TermFlops(2.0 * D, 2.0 * D)
        return PartCost(common + params, common + active, terms)


def _expert_biases(num_experts: int, width: int, spec: P) -> nnx.Param:
    zeros = nnx.initializers.zeros
    shape = num_experts, width
    return make_param(jax.random.key(0), shape, spec, zeros, role="vector", decay=False)


def balances_batch(parts: Iterable[object]) -> bool:
    """Whether a balance loss of experts is over the whole batch (`moe.balance_over`).

    Raises:
        ConfigError: if it is, and layers with experts differ in this or in their number.
    """
    moes = [part for part in parts if isinstance(part, MoeConfig)]
    if not any(moe.balances_batch for moe in moes):
        return False
    if len({(moe.balances_batch, moe.num_experts) for moe in moes}) > 1:
        raise ConfigError(
            "model.moe.balance_over 'batch' needs an equal balance_over, routing, num_experts "
            "and balance_loss in all variants of moe; use balance_over 'microbatch'"
        )
    return True
