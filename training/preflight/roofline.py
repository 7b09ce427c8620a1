"""Estimate the time of a step from a roofline: products, memory traffic and collectives.

    device time = products / (peak x sustained share) + bytes / memory bandwidth
    step time   = max(device time, bytes of collectives / bandwidth of the links)

Products of weights run at the sustained share of the peak, products of activations (attention,
chunks of a recurrence) at `BATCHED_SHARE` of that. Experts multiply groups of tokens with a weight
each: groups of equal sizes, as with a capacity, like one weight, others at `GROUPED_SHARE` of that.
Memory traffic is that of what one pass leaves to the next: activations, parameters, gradients and
optimizer state. Collectives are hidden behind computation as far as it lasts. `docs/machines.md`
compares the estimates with published figures.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from arch import Cost, ModelConfig, compute_cost
from errors import ConfigError
from settings.changes import with_changes
from training.accounting import executed_flops_per_token, model_cost, run_tokens
from training.mesh import bytes_per_device
from training.preflight import memory_estimate
from training.preflight.hlo_collectives import CollectiveTraffic
from training.program import TrainProgram, make_program
from training.settings import Settings

BATCHED_SHARE = 0.5  # speed of products of two activations, relative to products with a weight
GROUPED_SHARE = {"equal": 1.0, "ragged": 0.85}  # the same of groups of tokens by experts' weights
FP32_SLOWDOWN = {
    "tpu": 6.0,
    "cuda": 15.0,
}  # float32 products: passes of bfloat16, or no tensor core
ACTIVATION_PASSES = 4  # each residual and its gradient are written once and read once
BYTES_PER_ELEMENTWISE_FLOP = 4  # elementwise recurrences are bound by memory
MIN_GAIN = 0.05  # a faster setting must save this share of the step
HYBRID_MIXERS = (*("gated_deltanet",) * 3, "attention")  # common proportions
LENGTHS = tuple(2**i for i in range(7, 21))  # lengths at which two mixers are compared


class ChipSpeed(NamedTuple):
    """What a device can do in a second at most, and the share of it that training reaches."""

    platform: str
    peak_flops: float  # FLOP/s in bfloat16, without sparsity
    sustained: float  # share of the peak that products with weights reach in a training step
    memory_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s of one device in one direction, inside a host or a slice
    network_bandwidth: float  # bytes/s of one device in one direction, between hosts
    devices_per_link: int  # devices that the fast links connect


# Peaks and bandwidths: NVIDIA's data sheets of H100 SXM and H200 (NVLink 900 GB/s in both
# directions, one 400 Gb/s adapter for each GPU), cloud.google.com/tpu for v5e, v5p and v6e
# (interconnect 400, 1,200 and 800 GB/s in both directions). The sustained shares are fitted to the
# published figures in docs/machines.md.
CHIP_SPEEDS = {
    "h100": ChipSpeed("cuda", 989e12, 0.60, 3.35e12, 450e9, 50e9, 8),
    "h200": ChipSpeed("cuda", 989e12, 0.60, 4.8e12, 450e9, 50e9, 8),
    "v5e": ChipSpeed("tpu", 197e12, 0.85, 0.819e12, 200e9, 200e9, 256),
    "v5p": ChipSpeed("tpu", 459e12, 0.90, 2.765e12, 600e9, 600e9, 8960),
    "v6e": ChipSpeed("tpu", 918e12, 0.65, 1.64e12, 400e9, 400e9, 256),
}


class StepTime(NamedTuple):
    """The estimated seconds of a step on one device, by what it waits for."""

    products: float  # products of weights and activations
    memory: float  # traffic between the chip and its memory
    collectives: float  # traffic between devices
    mfu: float  # model FLOPs of the step / (its time x peak of the devices)

    @property
    def seconds(self) -> float:
        """The time of the step; collectives overlap with the rest."""
        return max(self.products + self.memory, self.collectives)

    @property
    def bottleneck(self) -> str:
        """The name of what takes the longest."""
        times = {name: getattr(self, name) for name in ("products", "memory", "collectives")}
        return max(times, key=lambda name: times[name])


def estimate_step(
    program: TrainProgram, speed: ChipSpeed, traffic: dict[str, CollectiveTraffic] | None = None
) -> StepTime:
    """Returns the estimated time of a training step.

    Args:
        program: the program, on a mesh of the devices that it is estimated for.
        speed: the speed of one device.
        traffic: the collectives of the compiled step; by default those that the mesh needs for
            parameters, gradients and tensor parallelism.
    """
    settings, num_devices = program.settings, program.mesh.size
    steps = max(settings.train.steps, 1)
    tokens = run_tokens(settings) / steps if settings.train.steps else _batch_tokens(settings)
    cost = model_cost(settings)
    work = tokens / num_devices
    # What is repeated, by remat or a second forward pass, has the mix of terms of one pass.
    repeated = executed_flops_per_token(settings) / (3 * cost.executed_flops)
    products = 3 * repeated * product_seconds(cost, speed, settings.model.dtype) * work
    memory = memory_bytes(program) / speed.memory_bandwidth
    sent = traffic_seconds(traffic or mesh_traffic(program), program, speed)
    seconds = max(products + memory, sent)
    mfu = 3 * cost.model_flops * work / (seconds * speed.peak_flops)
    return StepTime(products, memory, sent, mfu)


def product_seconds(cost: Cost, speed: ChipSpeed, dtype: str) -> float:
    """Returns the seconds of one token in one forward pass on one device, without traffic."""
    slowdown = 1.0 if dtype in ("bfloat16", "float16") else FP32_SLOWDOWN[speed.platform]
    rate = speed.peak_flops * speed.sustained / slowdown
    seconds = 0.0
    for flops in cost.terms.values():
        if flops.elementwise:
            seconds += flops.executed * BYTES_PER_ELEMENTWISE_FLOP / speed.memory_bandwidth
        else:
            share = BATCHED_SHARE if flops.batched else 1.0
            seconds += flops.executed / (rate * GROUPED_SHARE.get(flops.groups, share))
    return seconds


def memory_bytes(program: TrainProgram) -> float:
    """Returns the bytes that a step moves between a device and its memory."""
    settings, state = program.settings, program.abstract_state
    train, model = settings.train, settings.model
    without_remat = dataclasses.replace(model, remat="none")
    activations = memory_estimate.activation_bytes(program, without_remat)
    passes = ACTIVATION_PASSES + 2 * (model.remat != "none")  # repeated: written and read again
    itemsize = jnp.dtype(model.dtype).itemsize
    num_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.trainable))
    weights = 3 * num_params // program.mesh.shape["model"] // program.mesh.shape["expert"]
    stored = bytes_per_device((state.trainable, state.opt_state)) * 2  # read and written
    gradients = bytes_per_device(state.trainable) * 2
    return train.grad_accum_steps * (passes * activations + weights * itemsize) + stored + gradients


def mesh_traffic(program: TrainProgram) -> dict[str, CollectiveTraffic]:
    """Returns the collectives that a mesh needs, without those of experts and of `context`.

    FSDP gathers the parameters in both passes and scatters their gradients, replicas add gradients,
    and tensor parallelism adds the outputs of each mixer and channel in both passes.
    """
    settings, shape = program.settings, program.mesh.shape
    model, parts = settings.model, settings.train.grad_accum_steps
    itemsize = jnp.dtype(model.dtype).itemsize
    num_params = sum(
        math.prod(leaf.shape) for leaf in jax.tree.leaves(program.abstract_state.trainable)
    )
    num_params //= shape["model"] * shape["expert"]
    traffic = {}
    if shape["data"] > 1:
        passes = parts * (2 + (model.remat == "full"))
        traffic["all-gather"] = CollectiveTraffic(passes, passes * num_params * itemsize)
        traffic["reduce-scatter"] = CollectiveTraffic(parts, parts * num_params * itemsize)
    reduced = num_params // shape["data"] * 4 if shape["replica"] > 1 else 0
    if shape["model"] > 1:
        tokens = _batch_tokens(settings) // max(
            shape["data"] * shape["replica"] * shape["context"], 1
        )
        reduced += 4 * model.depth * tokens * model.width * itemsize
    if reduced:
        traffic["all-reduce"] = CollectiveTraffic(1, reduced)
    return traffic


def traffic_seconds(
    traffic: dict[str, CollectiveTraffic], program: TrainProgram, speed: ChipSpeed
) -> float:
    """Returns the seconds of collectives as rings: an all-reduce moves its bytes twice."""
    num_devices = program.mesh.size
    is_inside = num_devices <= speed.devices_per_link
    bandwidth = speed.link_bandwidth if is_inside else speed.network_bandwidth
    share = (num_devices - 1) / num_devices
    moved = sum(
        share * (2 if kind == "all-reduce" else 1) * sent.bytes for kind, sent in traffic.items()
    )
    return moved / bandwidth


def faster_setting(
    program: TrainProgram, speed: ChipSpeed, limit: float
) -> tuple[tuple[str, str | int], float] | None:
    """Returns the change of one setting that saves the most time and fits, and the new seconds.

    Only changes that leave the mathematics of a run as it is are tried, and bfloat16.

    Args:
        program: the program.
        speed: the speed of one device.
        limit: bytes that the memory estimate may reach.
    """
    settings, seconds = program.settings, estimate_step(program, speed).seconds
    changes: list[tuple[str, str | int]] = [
        ("model.remat", policy) for policy in ("none", "dots") if settings.model.remat != policy
    ]
    changes += [("train.grad_accum_steps", n) for n in _fewer_parts(settings)]
    changes += [("model.dtype", "bfloat16")] if settings.model.dtype == "float32" else []
    best = None
    for change in changes:
        try:
            candidate = make_program(with_changes(settings, dict([change])), program.mesh)
        except ConfigError:
            continue
        if sum(memory_estimate.estimate(candidate).values()) > limit:
            continue
        estimate = estimate_step(candidate, speed).seconds
        if estimate < (1 - MIN_GAIN) * (best[1] if best else seconds):
            best = (change, estimate)
    return best


def crossover(config: ModelConfig, speed: ChipSpeed) -> tuple[str, int] | None:
    """Returns the alternative to a model's mixers, and the length from which one is faster.

    The alternative of a model with attention alone is a hybrid of three layers of gated DeltaNet
    and one of attention. The alternative of every other model is attention in all its layers. The
    time is that of the products of a forward pass. None means that no length up to 2^20 divides
    them, or that the alternative cannot have these widths.
    """
    specs = config.layer_layout().layer_specs()
    has_attention_only = {name for spec in specs for name, _ in spec.mixers()} == {"attention"}
    mixers = HYBRID_MIXERS if has_attention_only else ("attention",)
    layers = tuple(
        f"{mixers[i % len(mixers)]}+{spec.channel}" + f"@{spec.channel_variant}".rstrip("@")
        for i, spec in enumerate(specs)
    )
    name = "a hybrid of gated DeltaNet and attention, 3:1" if has_attention_only else "attention"
    try:
        other = with_changes(config, {"layers": layers, "first_layers": ()})
        for length in LENGTHS:
            seconds, other_seconds = (
                product_seconds(compute_cost(c, length), speed, config.dtype)
                for c in (config, other)
            )
            if (other_seconds < seconds) == has_attention_only:
                return name, length
    except ConfigError:
        return None
    return None


def _batch_tokens(settings: Settings) -> int:
    """Returns the tokens of a batch that the model reads."""
    return settings.train.batch_size * settings.row_spec.tokens_per_row(settings.train.seq_len)


def _fewer_parts(settings: Settings) -> list[int]:
    """Returns smaller numbers of microbatches that divide the batch, the smallest first."""
    train = settings.train
    return [n for n in range(1, train.grad_accum_steps) if train.batch_size % n == 0]
