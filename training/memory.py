"""What a step will hold in memory, from shapes alone: nothing is compiled.

Parameters, optimizer state and batch are exact. What the backward pass needs is the set of
residuals that JAX itself would save under the model's remat policy, divided over the devices that
the batch is split over; beside them stand the gradients. Scratch space of single operations is left
out: a compiler decides on it (`preflight.py` compiles and knows).
"""

import math
from typing import Any

import jax

from arch.sharding import BATCH
from objectives import Learner
from training.program import Program
from training.report import bytes_per_device


def estimate(program: Program) -> dict[str, int]:
    """Bytes per device by component."""
    learner = program.state.learner
    parameters = bytes_per_device(learner)
    return {
        "parameters": parameters,
        "optimizer": bytes_per_device((program.state.optimizer, program.state.guard)),
        "batch": bytes_per_device(program.batch),
        "gradients": parameters,
        "activations": _residuals(program),
    }


def measured(compiled: Any) -> dict[str, int]:
    """Bytes per device of a compiled step, as its compiler says."""
    found = compiled.memory_analysis()
    return {
        "arguments": found.argument_size_in_bytes,
        "results not in their place": found.output_size_in_bytes - found.alias_size_in_bytes,
        "temporary": found.temp_size_in_bytes,
    }


def _residuals(program: Program) -> int:
    """Bytes that the forward pass of one microbatch leaves for the backward pass, per device."""
    objective, parts = program.objective, program.settings.train.accumulate
    micro = {
        name: jax.ShapeDtypeStruct((s.shape[0] // parts, *s.shape[1:]), s.dtype)
        for name, s in program.batch.items()
    }
    learner = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), program.state.learner)

    def backward(learner: Learner, batch: Any, key: Any) -> Any:
        def loss(learner: Learner) -> Any:
            terms, _ = objective.reduce(learner, objective.encode(learner, batch, key), batch)
            return sum(term.coefficient * term.sum for term in terms.values())

        return jax.vjp(loss, learner)[1]

    saved = jax.tree.leaves(jax.eval_shape(backward, learner, micro, jax.random.key(0)))
    own = {(s.shape, s.dtype) for s in jax.tree.leaves(learner)}
    ways = math.prod(program.mesh.shape[axis] for axis in (*BATCH, "context"))
    return sum(s.size * s.dtype.itemsize for s in saved if (s.shape, s.dtype) not in own) // ways
