"""Estimate the memory of a step from shapes alone: nothing is compiled.

Parameters, optimizer state and batch are exact. The activations are the residuals that JAX itself
would save under the model's remat policy, divided by the devices that share the batch. To these the
estimate adds the gradients, the residuals of one layer of a scan and their gradients, the logits of
one chunk, and the parameters that FSDP gathers: those outside the scan and those of one
repetition in it, unsharded, and as many bytes for their gradients before these are scattered. On
TPUs it adds the parameters in the model's dtype, because the compiler casts all layers at once.

How a compiler reuses memory is not known before it runs. `preflight.py` compiles the step and
prints the compiler's figure beside this one.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, PyTree

from arch import ModelConfig
from arch.sharding import BATCH_AXES
from objectives import Batch, Trainable
from ops.cross_entropy import CHUNK_LOGITS
from training.checkpoint.param_names import named_leaves
from training.memory_bank import update_and_lookup
from training.mesh import bytes_per_device
from training.program import TrainProgram
from training.state import init_trainable


def estimate(program: TrainProgram) -> dict[str, int]:
    """Returns the estimated memory of a step, in bytes per device by component."""
    state = program.abstract_state
    params, banks = bytes_per_device(state.trainable), bytes_per_device(state.banks)
    gathered = _gathered_param_bytes(program)
    return {
        "parameters": params,
        "optimizer": bytes_per_device((state.opt_state, state.guard)),
        **({"memory banks": banks} if banks else {}),
        "batch": bytes_per_device(program.abstract_batch),
        "gradients": params,
        "activations": activation_bytes(program, program.settings.model),
        "layer residuals": _layer_bytes(program),
        "logits": _logit_bytes(program),
        **({"gathered parameters": gathered} if gathered else {}),
        **({"cast parameters": cast} if (cast := _cast_param_bytes(program)) else {}),
    }


def _cast_param_bytes(program: TrainProgram) -> int:
    """Bytes of the parameters in the dtype of the model, which TPUs cast before the scan."""
    dtype = jnp.dtype(program.settings.model.dtype)
    device = program.mesh.devices.flat[0]
    if device.platform != "tpu" or dtype.itemsize >= jnp.dtype(jnp.float32).itemsize:
        return 0
    return bytes_per_device(program.abstract_state.trainable) * dtype.itemsize // 4


def compiled_memory(compiled_step: jax.stages.Compiled) -> dict[str, int]:
    """Returns the memory of a compiled step by its compiler, in bytes per device by component.

    The compiler of TPUs reports as temporary what does not exist at the same time, and the peak
    besides. That of CPUs reports no peak.

    Raises:
        RuntimeError: if the compiler does not report it.
    """
    analysis = compiled_step.memory_analysis()
    if analysis is None:
        raise RuntimeError("the compiler of this platform does not report memory")
    arguments = analysis.argument_size_in_bytes
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    temporary = analysis.temp_size_in_bytes
    if _platform(compiled_step) == "tpu":
        temporary = max(analysis.peak_memory_in_bytes - arguments - outputs, 0)
    return {"arguments": arguments, "unaliased outputs": outputs, "temporary": temporary}


def _platform(compiled_step: jax.stages.Compiled) -> str:
    """Returns the platform of the devices that a step is compiled for."""
    sharding = jax.tree.leaves(compiled_step.input_shardings)[0]
    return next(iter(sharding.device_set)).platform


def _layer_bytes(program: TrainProgram) -> int:
    """Bytes of all residuals of one scanned layer and of their gradients, in its backward pass."""
    model = program.settings.model
    if not model.scan:
        return 0  # without a scan the compiler sees every layer and reuses memory between them
    return 2 * activation_bytes(program, dataclasses.replace(model, remat="none")) // model.depth


def _gathered_param_bytes(program: TrainProgram) -> int:
    """Bytes of the parameters that a device holds unsharded at a time, and of their gradients."""
    total, dtype = 0, jnp.dtype(program.settings.model.dtype)
    num_shards = program.mesh.shape["data"]
    for name, leaf in named_leaves(program.abstract_state.trainable).items():
        sharding = leaf.sharding
        if isinstance(sharding, NamedSharding) and "data" in jax.tree.leaves(tuple(sharding.spec)):
            size = math.prod(sharding.shard_shape(leaf.shape)) * num_shards
            total += size // (leaf.shape[0] if ".blocks." in name else 1)
    return 2 * total * dtype.itemsize if num_shards > 1 else 0


def _logit_bytes(program: TrainProgram) -> int:
    """Bytes of the logits that exist at a time, and of their gradient."""
    train, model = program.settings.train, program.settings.model
    specs = [
        part.objective.row_spec(model, train.seq_len) for part in program.settings.mixture_parts()
    ]
    if not any(spec.needs_logits for spec in specs):
        return 0
    tokens = train.batch_size * train.seq_len // train.grad_accum_steps // _token_shards(program)
    logits = tokens * model.padded_vocab_size // program.mesh.shape["model"]
    return 2 * 4 * min(logits, CHUNK_LOGITS)


def _token_shards(program: TrainProgram) -> int:
    """Devices that share the tokens of a batch."""
    return math.prod(program.mesh.shape[axis] for axis in (*BATCH_AXES, "context"))


def activation_bytes(program: TrainProgram, model: ModelConfig) -> int:
    """Bytes per device that the forward pass of a microbatch saves for the backward pass."""
    objective, num_parts = program.objective, program.settings.train.grad_accum_steps
    _, batch = jax.eval_shape(
        lambda state, batch: update_and_lookup(
            *(objective, state.trainable, state.banks, batch, state.step, num_parts)
        ),
        *(program.abstract_state, program.abstract_batch),
    )
    microbatch = {
        name: jax.ShapeDtypeStruct((s.shape[0] // num_parts, *s.shape[1:]), s.dtype)
        for name, s in batch.items()
    }
    trainable = jax.eval_shape(lambda: init_trainable(model, objective, 0))

    def backward(trainable: Trainable, batch: Batch, key: Array) -> PyTree:
        def loss(trainable: Trainable) -> Array | int:
            terms, _ = objective.reduce(trainable, objective.forward(trainable, batch, key), batch)
            return sum(term.coefficient * term.sum for term in terms.values())

        return jax.vjp(loss, trainable)[1]

    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(program.mesh):  # operations choose their implementation by its devices
        saved = jax.tree.leaves(jax.eval_shape(backward, trainable, microbatch, key))
    params = {(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(trainable)}
    residuals = (leaf for leaf in saved if (leaf.shape, leaf.dtype) not in params)
    return sum(x.size * x.dtype.itemsize for x in residuals) // _token_shards(program)
