"""What a step will hold in memory, from shapes alone: nothing is compiled.

Parameters, optimizer state and batch are exact. What the backward pass needs is the set of
residuals that JAX itself would save under the model's remat policy, divided over the devices that
the batch is split over. Beside them stand the gradients, what one layer of a scan takes while it is
run backwards, the logits at hand, and what FSDP gathers: weights outside the scan and of one
repetition in it, whole, and as much for their gradients before they are cut again.

How a compiler reuses memory is not known before it has run: `preflight.py` compiles, and sets its
figure beside this one.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from arch import ModelConfig
from arch.sharding import BATCH
from objectives import Learner
from ops.cross_entropy import LOGITS
from training.banks import consulted
from training.leaves import named_leaves
from training.program import Program
from training.report import bytes_per_device
from training.state import new_learner


def estimate(program: Program) -> dict[str, int]:
    """Bytes per device by component."""
    learner = program.state.learner
    parameters, banks = bytes_per_device(learner), bytes_per_device(program.state.banks)
    gathered = _gathered(program)
    return {
        "parameters": parameters,
        "optimizer": bytes_per_device((program.state.optimizer, program.state.guard)),
        **({"banks": banks} if banks else {}),
        "batch": bytes_per_device(program.batch),
        "gradients": parameters,
        "activations": _residuals(program, program.settings.model),
        "one layer": _layer(program),
        "logits": _logits(program),
        **({"gathered": gathered} if gathered else {}),
    }


def measured(compiled: Any) -> dict[str, int]:
    """Bytes per device of a compiled step, as its compiler says."""
    found = compiled.memory_analysis()
    return {
        "arguments": found.argument_size_in_bytes,
        "results not in their place": found.output_size_in_bytes - found.alias_size_in_bytes,
        "temporary": found.temp_size_in_bytes,
    }


def _layer(program: Program) -> int:
    """Bytes that the backward pass of one scanned layer works with: all its residuals."""
    model = program.settings.model
    if not model.scan:
        return 0  # the compiler sees every layer and reuses what it can
    return _residuals(program, dataclasses.replace(model, remat="none")) // model.depth


def _gathered(program: Program) -> int:
    """Bytes of the weights that one device has whole at a time, and of their gradients."""
    total, dtype = 0, jnp.dtype(program.settings.model.dtype)
    for name, leaf in named_leaves(program.state.learner).items():
        if "data" in jax.tree.leaves(tuple(leaf.sharding.spec)):
            here = math.prod(leaf.sharding.shard_shape(leaf.shape)) * program.mesh.shape["data"]
            total += here // (leaf.shape[0] if ".blocks." in name else 1)
    return 2 * total * dtype.itemsize if program.mesh.shape["data"] > 1 else 0


def _logits(program: Program) -> int:
    """Bytes of the logits that are there at a time, and of their gradient."""
    train, model = program.settings.train, program.settings.model
    if not any(m.objective.rows(model, train.length).logits for m in program.settings.members()):
        return 0
    tokens = train.batch * train.length // train.accumulate // _ways(program)
    return 2 * 4 * min(tokens * model.rows // program.mesh.shape["model"], LOGITS)


def _ways(program: Program) -> int:
    """Devices that share the tokens of a batch."""
    return math.prod(program.mesh.shape[axis] for axis in (*BATCH, "context"))


def _residuals(program: Program, model: ModelConfig) -> int:
    """Bytes that the forward pass of one microbatch leaves for the backward pass, per device."""
    objective, parts = program.objective, program.settings.train.accumulate
    _, batch = jax.eval_shape(
        lambda state, batch: consulted(
            *(objective, state.learner, state.banks, batch, state.step, parts)
        ),
        *(program.state, program.batch),
    )
    micro = {
        name: jax.ShapeDtypeStruct((s.shape[0] // parts, *s.shape[1:]), s.dtype)
        for name, s in batch.items()
    }
    learner = jax.eval_shape(lambda: new_learner(model, objective, 0))

    def backward(learner: Learner, batch: Any, key: Any) -> Any:
        def loss(learner: Learner) -> Any:
            terms, _ = objective.reduce(learner, objective.encode(learner, batch, key), batch)
            return sum(term.coefficient * term.sum for term in terms.values())

        return jax.vjp(loss, learner)[1]

    saved = jax.tree.leaves(jax.eval_shape(backward, learner, micro, jax.random.key(0)))
    own = {(s.shape, s.dtype) for s in jax.tree.leaves(learner)}
    kept = (s for s in saved if (s.shape, s.dtype) not in own)
    return sum(s.size * s.dtype.itemsize for s in kept) // _ways(program)
