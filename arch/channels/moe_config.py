"""The settings of a Mixture of Experts and its cost (see `arch/channels/moe.py`)."""

from collections.abc import Iterable
from typing import ClassVar, Literal

from arch.channels import routing
from arch.channels.mlp import Mlp, MlpConfig
from arch.layers.activations import Activation
from arch.part_cost import CostContext, PartCost, TermFlops
from errors import ConfigError
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

    @property
    def has_constant_weights(self) -> bool:
        """Whether a token's weights do not depend on the router, which the loss cannot train then.

        The normalized weight of a single expert is 1 (NVIDIA/Megatron-LM#894).
        """
        chooses_one = self.routing == "token" and self.top_k == 1 < self.num_experts
        return chooses_one and self.normalize_weights

    def inner_dim(self, D: int) -> int:
        """Returns the hidden width of one expert (F) in a model of width D."""
        return MlpConfig(width=self.width, gated=self.gated).inner_dim(D)

    def max_tokens_per_expert(self, T: int, *, is_training: bool = True) -> int:
        """Returns how many tokens of a row of T one expert can take; T if there is no limit."""
        if self.routing == "expert":
            return max(1, T * self.top_k // self.num_experts)
        if self.expert_capacity:
            return min(T, self.expert_capacity)
        if not self.capacity_factor or not is_training:
            return T
        return routing.expert_capacity(
            self.capacity_factor, self.top_k, T, self.num_experts, self.min_capacity
        )

    def shared_experts_config(self, D: int) -> MlpConfig:
        """Returns the config of the shared experts: one MLP as wide as all of them."""
        width = self.shared_width or self.shared_experts * self.inner_dim(D)
        return MlpConfig(width, self.gated, self.activation, self.bias)


def moe_cost(D: int, cfg: MoeConfig, context: CostContext) -> PartCost:
    """Returns the cost: model FLOPs count the chosen experts alone.

    Executed FLOPs count every slot if there is a capacity, and every expert on every token for
    `reference`.
    """
    E, k, T = cfg.num_experts, cfg.top_k, max(context.length, 1)
    expert = Mlp.cost(D, MlpConfig(cfg.inner_dim(D), cfg.gated, cfg.activation, cfg.bias), context)
    expert_flops = expert.terms["mlp"].model
    params, active = E * expert.params, k * expert.params
    capacity = cfg.max_tokens_per_expert(T)
    has_slots = cfg.implementation == "gather" or (cfg.implementation == "auto" and capacity < T)
    if cfg.implementation == "reference":
        experts_per_token = float(E)
    elif has_slots:
        experts_per_token = E * capacity / T
    else:
        experts_per_token = float(k)
    router = 2.0 * D * E
    terms = {
        "router": TermFlops(router, router),
        "routed": TermFlops(
            k * expert_flops,
            experts_per_token * expert_flops,
            batched=True,
            groups="equal" if has_slots or cfg.implementation == "reference" else "ragged",
        ),
    }
    common = D * E + (E if cfg.bias_update_rate else 0) + E * cfg.router_bias
    if cfg.shared_experts:
        shared = Mlp.cost(D, cfg.shared_experts_config(D), context)
        terms["shared"] = shared.terms["mlp"]
        common += shared.params + D * cfg.shared_gate
        if cfg.shared_gate:
            terms["shared_gate"] = TermFlops(2.0 * D, 2.0 * D)
    return PartCost(common + params, common + active, terms)


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
