"""Mixture of Experts channel: a router sends each token to a few of many MLPs.

One config covers Switch (arXiv:2101.03961), Mixtral (arXiv:2401.04088), the shared experts of
DeepSeekMoE (arXiv:2401.06066), sigmoid scores, groups and loss-free balance of DeepSeek-V3
(arXiv:2412.19437) and expert choice (arXiv:2202.09368). The choice is in `arch/routing.py`, the
work in `ops/experts.py`.

Without a key (evaluation) nothing is jittered and nothing dropped, whatever the capacity: what a
token scores does not depend on its neighbours in the batch. Only `slots`, with which published
Switch Transformers run, drop always.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from arch import routing
from arch.ledger import Bill, Place, Work
from arch.linear import linear
from arch.mlp import ACTIVATIONS, Activation, Mlp, MlpConfig
from arch.routing import Groups, Routes
from arch.sequence import EVERYWHERE, Sequence, View
from arch.sharding import P, matrix, vector, weight
from arch.terms import Aux
from errors import ConfigError
from ops.experts import Weights, experts
from schema import Count, Natural, NonNegative, Positive, Rate, config


@config
class MoeConfig:
    experts: Count = 8  # E
    top_k: Count = 2  # experts of a token, in the mean if experts choose
    width: Natural = 0  # F of one expert; 0: as the MLP's
    gated: bool = True
    activation: Activation = "silu"
    bias: bool = False  # in experts
    router_bias: bool = False  # of its logits
    choice: Literal["token", "expert"] = "token"  # who chooses
    score: Literal["softmax", "sigmoid"] = "softmax"  # over all experts, or of each
    normalize: bool = True  # scores of the chosen sum to 1 (softmax: one over the chosen alone)
    route_scale: Positive = 1.0  # times what the routed experts say
    groups: Count = 1  # of experts
    top_groups: Natural = 0  # groups that a token may use; 0: all
    group_best: Count = 2  # best scores that are a group's score together
    shared: Natural = 0  # experts that every token uses
    shared_width: Natural = 0  # F of all of these together; 0: `shared` times that of one expert
    shared_gate: bool = False  # times a sigmoid of the token (Qwen2-MoE)
    slots: Natural = 0  # tokens of a row that an expert takes, in evaluation too; 0: by capacity
    capacity: NonNegative = 0.0  # times an even share of a row: more is dropped; 0: never
    min_capacity: Natural = 4  # tokens of a row that an expert takes in any case
    jitter: Rate = 0.0  # the router's input times 1 +- this
    balance: NonNegative = 0.01  # coefficient of the balance loss
    z: NonNegative = 1e-3  # coefficient of the router's z-loss
    bias_rate: NonNegative = 0.0  # step of the selection bias that evens the load; 0: no bias
    implementation: Literal["auto", "reference", "blocks", "gather", "ragged"] = "auto"

    def check(self) -> None:
        E = self.experts
        if self.top_k > E:
            raise ConfigError(f"moe.top_k {self.top_k} is above moe.experts {E}; nearest: {E}")
        if E % self.groups:
            known = [str(g) for g in range(1, E + 1) if E % g == 0]
            raise ConfigError(
                f"moe.groups {self.groups} does not divide moe.experts {E}; "
                f"choose one of {', '.join(known)}"
            )
        if self.top_groups > self.groups:
            raise ConfigError(
                f"moe.top_groups {self.top_groups} is above moe.groups {self.groups}; "
                f"nearest: {self.groups}"
            )
        size, kept = E // self.groups, self.top_groups or self.groups
        if self.top_k > kept * size:
            raise ConfigError(
                f"moe.top_k {self.top_k} is above the {kept * size} experts of moe.top_groups "
                f"{kept} groups; nearest: {kept * size}"
            )
        if kept < self.groups and self.group_best > size:
            raise ConfigError(
                f"moe.group_best {self.group_best} is above the {size} experts of a group; "
                f"nearest: {size}"
            )
        self._check_choice()

    def _check_choice(self) -> None:
        """Experts that choose are even by construction, and see the whole document."""
        if self.choice == "token":
            return
        default = type(self)()
        for name in ("capacity", "slots", "bias_rate", "top_groups"):
            if value := getattr(self, name):
                raise ConfigError(
                    f"moe.{name} {value} has no meaning where moe.choice is 'expert'; "
                    f"set it to {getattr(default, name)}"
                )

    def size(self, D: int) -> int:
        """F of one expert."""
        return MlpConfig(width=self.width, gated=self.gated).size(D)

    def places(self, T: int) -> int:
        """How many tokens of a row of T one expert can have, in training."""
        if self.choice == "expert":
            return max(1, T * self.top_k // self.experts)
        if self.slots:
            return min(T, self.slots)
        if not self.capacity:
            return T
        return routing.slots(self.capacity, self.top_k, T, self.experts, self.min_capacity)

    def common(self, D: int) -> MlpConfig:
        """The shared experts: one MLP as wide as all of them."""
        width = self.shared_width or self.shared * self.size(D)
        return MlpConfig(width, self.gated, self.activation, self.bias)


class MoE(nnx.Module):
    """A channel (see `arch/model.py`); padding goes to no expert and fills no capacity."""

    remedy = "set model.moe.choice=token: experts that choose have seen all tokens"

    def __init__(self, D: int, cfg: MoeConfig, *, key: Array, scale: float = 1.0):
        E, F, keys = cfg.experts, cfg.size(D), jax.random.split(key, 5)
        self.cfg = cfg
        self.w_router = matrix(keys[0], (D, E), P("data", None))
        if cfg.router_bias:
            self.b_router = vector(E, 0.0)
        self.w_in = matrix(keys[1], (E, D, F), P("expert", "data", "model"))
        if cfg.gated:
            self.w_gate = matrix(keys[2], (E, D, F), P("expert", "data", "model"))
        self.w_out = matrix(keys[3], (E, F, D), P("expert", "model", "data"), scale)
        if cfg.bias:
            self.b_in = _biases(E, F, P("expert", "model"))
            if cfg.gated:
                self.b_gate = _biases(E, F, P("expert", "model"))
            self.b_out = _biases(E, D, P("expert", None))
        if cfg.bias_rate:
            zeros = nnx.initializers.zeros
            self.balance_bias = weight(
                *(keys[0], (E,), P(None), zeros), role="balance", decay=False, rate=cfg.bias_rate
            )
        if cfg.shared:
            self.shared = Mlp(D, cfg.common(D), key=keys[4], scale=scale)
            if cfg.shared_gate:
                gate = jax.random.fold_in(keys[4], 0)
                self.w_shared = matrix(gate, (D, 1), P("data", None))

    def __call__(
        self, x: Float[Array, "B T D"], seq: Sequence, *, key: Array | None = None
    ) -> tuple[Float[Array, "B T D"], Aux]:
        cfg = self.cfg
        with jax.named_scope("route"):
            routes, most, aux = self.route(x, seq, key)
        with jax.named_scope("experts"):
            y = experts(
                *(x, routes, self._weights(), ACTIVATIONS[cfg.activation]),
                slots=most,
                implementation=cfg.implementation,
            )
        if cfg.shared:
            common = self.shared(x, seq)[0]
            if cfg.shared_gate:
                common = jax.nn.sigmoid(linear(x, self.w_shared[...])) * common
            y = y + common
        return y, aux

    def route(
        self, x: Float[Array, "B T D"], seq: Sequence, key: Array | None
    ) -> tuple[Routes, int, Aux]:
        """Routes, how many tokens of a row an expert can have, and statistics."""
        cfg, T, real = self.cfg, x.shape[1], seq.segments != 0
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if key is not None and cfg.jitter:
            low, high = 1 - cfg.jitter, 1 + cfg.jitter
            x = x * jax.random.uniform(key, x.shape, x.dtype, low, high)
        logits = self.logits(x)
        score = routing.scores(logits, cfg.score)
        if cfg.choice == "expert":
            most = cfg.places(T)
            asked = routes = routing.by_expert(
                score, seq.segments, cfg.top_k, scale=cfg.route_scale
            )
        else:
            most = T
            bias = self.balance_bias[...] if cfg.bias_rate else None
            groups = Groups(cfg.groups, cfg.top_groups or cfg.groups, cfg.group_best)
            chosen = routing.chosen_by_token(score, cfg.top_k, bias=bias, groups=groups)
            asked = routes = routing.by_token(
                score, chosen, real, normalize=cfg.normalize, scale=cfg.route_scale
            )
            if cfg.slots or (key is not None and cfg.capacity):
                most = cfg.places(T)
                routes = routing.within(routes, most, cfg.experts)
        aux = routing.statistics(logits, score, asked, routes, real, cfg.top_k)
        if cfg.bias_rate:
            aux["moe.excess"] = routing.excess(asked, self.balance_bias[...], real)
        return routes, most, aux

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
        """The router's, in at least float32."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        bias = self.b_router[...] if self.cfg.router_bias else None
        with jax.default_matmul_precision("highest"):  # else TPUs round its inputs to bfloat16
            return linear(x, self.w_router[...], bias)

    def _weights(self) -> Weights:
        gated, bias = self.cfg.gated, self.cfg.bias
        return Weights(
            self.w_in[...],
            self.w_gate[...] if gated else None,
            self.w_out[...],
            self.b_in[...] if bias else None,
            self.b_gate[...] if bias and gated else None,
            self.b_out[...] if bias else None,
        )

    @staticmethod
    def views(cfg: MoeConfig) -> dict[View, str]:
        """An expert that chooses has seen all tokens of a document."""
        return {"both": "full"} if cfg.choice == "expert" else EVERYWHERE

    @staticmethod
    def losses(cfg: MoeConfig) -> dict[str, float]:
        balance = 0.0 if cfg.choice == "expert" else cfg.balance
        excess = 1.0 if cfg.bias_rate else 0.0
        found = {"moe.balance": balance, "moe.z": cfg.z, "moe.excess": excess}
        return {name: coefficient for name, coefficient in found.items() if coefficient}

    @staticmethod
    def cuts(D: int, cfg: MoeConfig) -> dict[str, int]:
        shared = {"shared_width": cfg.common(D).size(D)} if cfg.shared else {}
        return {"width": cfg.size(D), "experts": cfg.experts} | shared

    @staticmethod
    def cost(D: int, cfg: MoeConfig, place: Place) -> Bill:
        """The model's work is that of the chosen experts; a capacity fills all places of a row,
        `reference` runs every expert on every token."""
        E, k, T = cfg.experts, cfg.top_k, max(place.length, 1)
        expert = Mlp.cost(D, MlpConfig(cfg.size(D), cfg.gated, cfg.activation, cfg.bias), place)
        once = expert.work["mlp"].model
        params, active = E * expert.params, k * expert.params
        slots = cfg.places(T)
        if cfg.implementation == "reference":
            runs = float(E)
        elif cfg.implementation == "gather" or (cfg.implementation == "auto" and slots < T):
            runs = E * slots / T
        else:
            runs = float(k)
        router = 2.0 * D * E
        work = {"router": Work(router, router), "routed": Work(k * once, runs * once, batched=True)}
        always = D * E + (E if cfg.bias_rate else 0) + E * cfg.router_bias
        if cfg.shared:
            shared = Mlp.cost(D, cfg.common(D), place)
            work["shared"] = shared.work["mlp"]
            always += shared.params + D * cfg.shared_gate
            if cfg.shared_gate:
                work["shared_gate"] = Work(2.0 * D, 2.0 * D)
        return Bill(always + params, always + active, work)


def _biases(experts: int, width: int, spec: P) -> nnx.Param:
    zeros = nnx.initializers.zeros
    shape = experts, width
    return weight(jax.random.key(0), shape, spec, zeros, role="vector", decay=False)
