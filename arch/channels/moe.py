"""The Mixture of Experts channel: a router sends each token to a few of many MLPs.

One config covers Switch (arXiv:2101.03961), Mixtral (arXiv:2401.04088), the shared experts of
DeepSeekMoE (arXiv:2401.06066), the sigmoid scores, expert groups and loss-free balance of
DeepSeek-V3 (arXiv:2412.19437), and expert choice (arXiv:2202.09368). The routing is in
`arch/channels/routing.py`, their settings and cost in
`arch/channels/moe_config.py`, the computation of the experts in `ops/experts/experts.py`.

Without a key (in evaluation) there is no jitter, and the capacity factor drops no token, so a
token's output does not depend on other rows of the batch. Only a fixed `expert_capacity`, with
which published Switch Transformers run, drops tokens in evaluation too.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from arch.channels import routing
from arch.channels.mlp import Mlp
from arch.channels.moe_config import MoeConfig, moe_cost
from arch.channels.routing import ExpertGroups, Routes
from arch.layers.activations import Hidden
from arch.layers.linear import linear
from arch.part_cost import CostContext, PartCost
from arch.sequence import ALL_VIEWS, SequenceInfo, View
from arch.sharding import P, make_matrix, make_param, make_vector
from arch.weighted_sum import AuxMetrics
from ops.experts.experts import ExpertWeights, experts


class MoE(nnx.Module):
    """A channel (see `arch/part.py`) that sends no padding to experts and counts none."""

    hint = "set model.moe.routing=token: experts that choose tokens see the whole document"

    def __init__(self, D: int, cfg: MoeConfig, *, key: Array, scale: float = 1.0):
        E, F, keys = cfg.num_experts, cfg.inner_dim(D), jax.random.split(key, 5)
        self.cfg = cfg
        self.w_router = make_matrix(keys[0], (D, E), P("data", None), is_readout=True)
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
                spec = P("data", None)
                self.w_shared_gate = make_matrix(gate, (D, 1), spec, is_readout=True)

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
        all_routes = routes = self._choose(score, seq.segment_ids, token_mask)
        capacity = cfg.max_tokens_per_expert(T, is_training=key is not None)
        if cfg.routing == "token" and capacity < T:
            routes = routing.drop_over_capacity(all_routes, capacity, cfg.num_experts)
        aux: AuxMetrics = {
            **routing.router_metrics(logits, score, all_routes, routes, token_mask, cfg.top_k)
        }
        if cfg.balances_batch:
            aux["moe.balance_loss"] = routing.balance_loss(score, all_routes, token_mask)
        if cfg.bias_update_rate:
            bias = self.balance_bias[...]
            aux["moe.load_excess"] = routing.load_excess_loss(all_routes, bias, token_mask)
        return routes, capacity, aux

    def _choose(
        self,
        score: Float[Array, "B T E"],
        segment_ids: Int[Array, "B T"],
        token_mask: Bool[Array, "B T"],
    ) -> Routes:
        """Returns the routes from tokens to experts, however many tokens an expert gets."""
        cfg = self.cfg
        if cfg.routing == "expert":
            return routing.expert_choice(score, segment_ids, cfg.top_k, scale=cfg.route_scale)
        groups = ExpertGroups(cfg.n_groups, cfg.top_groups or cfg.n_groups, cfg.group_score_top_k)
        bias = self.balance_bias[...] if cfg.bias_update_rate else None
        indices = routing.top_k_experts(score, cfg.top_k, bias=bias, groups=groups)
        return routing.token_choice(
            *(score, indices, token_mask),
            normalize=cfg.normalize_weights,
            scale=cfg.route_scale,
        )

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
        """Returns the cost; model FLOPs count the chosen experts alone."""
        return moe_cost(D, cfg, context)


def _expert_biases(num_experts: int, width: int, spec: P) -> nnx.Param:
    zeros = nnx.initializers.zeros
    shape = num_experts, width
    return make_param(jax.random.key(0), shape, spec, zeros, role="vector", decay=False)
