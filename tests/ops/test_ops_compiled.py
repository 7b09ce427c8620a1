"""Operations compiled for accelerators that are not here: loops, kernels, and their text.

The compilers are those of `uv run --group compilers`, without which these tests are skipped.
"""

import functools

import hlo_kernels
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from errors import ConfigError
from ops.attention.attention import TokenIndex, attention
from ops.attention.kernels import _has_cudnn
from ops.experts.experts import Routes, experts
from ops.experts.mlp import ExpertWeights
from ops.recurrent.delta_rule import delta_rule
from ops.recurrent.gla import gla
from ops.recurrent.selective_scan import selective_scan
from ops.recurrent.ssd import ssd
from training.preflight.topology import parse_topology

pytestmark = pytest.mark.slow
MAX_KERNELS = 12  # in the body of a loop over chunks, in each pass
B, T, H, K = 2, 1024, 4, 64
BF16, F32 = jnp.bfloat16, jnp.float32
HEADS = ((B, T, H, K), BF16)
RECURRENCES = {  # function, and the shapes and dtypes of its arguments
    "ssd": (ssd, [HEADS, ((B, T, H), F32), ((H,), F32), *[((B, T, 1, K), BF16)] * 2]),
    "gla": (gla, [*[HEADS] * 3, ((B, T, H, K), F32)]),
    "lightning": (gla, [*[HEADS] * 3, ((B, T, H, 1), F32)]),
    "gated_delta": (delta_rule, [*[HEADS] * 3, *[((B, T, H, 1), F32)] * 3]),
    "kda": (delta_rule, [*[HEADS] * 3, ((B, T, H, K), F32), *[((B, T, H, 1), F32)] * 2]),
    "selective_scan": (
        selective_scan,
        [((B, T, 256), BF16), ((B, T, 256), F32), ((256, 16), F32), *[((B, T, 16), BF16)] * 2],
    ),
}


def compiled(topology: str, function, arguments) -> str:
    """Returns the compiled text of the function and its gradient on one device."""
    try:
        device = parse_topology(topology).devices[0]
    except ConfigError as error:
        pytest.skip(str(error))
    mesh = jax.sharding.Mesh(np.array([device]), ("data",))
    replicated = jax.NamedSharding(mesh, jax.P())
    arrays = [jax.ShapeDtypeStruct(*argument, sharding=replicated) for argument in arguments]
    inexact = [i for i, (_, dtype) in enumerate(arguments) if jnp.issubdtype(dtype, jnp.inexact)]

    def loss(*arrays):
        return jnp.sum(jnp.square(function(*arrays)[0].astype(F32)))

    with jax.set_mesh(mesh):
        program = jax.jit(jax.value_and_grad(loss, inexact)).lower(*arrays)
        return program.compile().as_text()


@pytest.mark.parametrize("name", RECURRENCES)
def test_a_recurrence_on_a_gpu_loops_over_chunks_with_few_kernels(name):
    found = hlo_kernels.loops(compiled("h100:1", *RECURRENCES[name]))
    assert found and max(loop.turns for loop in found) <= T // 16
    assert not any(loop.has_loop_inside for loop in found)
    assert max(loop.kernels for loop in found) <= MAX_KERNELS, found


@pytest.mark.parametrize(
    ("topology", "name", "call"),
    [
        ("v5e:2x2", "pallas", "tpu_custom_call"),
        ("v6e:2x2", "pallas", "tpu_custom_call"),
        ("h100:1", "mosaic_gpu", "mosaic_gpu"),
    ],
)
def test_a_kernel_of_the_selective_scan_compiles(topology, name, call):
    function, arguments = RECURRENCES["selective_scan"]
    scan = functools.partial(function, implementation=name)
    assert call in compiled(topology, scan, arguments)


@pytest.mark.parametrize("topology", ["v5e:1", "v6e:1"])
@pytest.mark.parametrize("name", ["ssd", "lightning", "gated_delta", "selective_scan"])
def test_a_recurrence_on_a_tpu_is_one_kernel_for_each_pass(topology, name):
    text = compiled(topology, *RECURRENCES[name])
    assert text.count('custom_call_target="tpu_custom_call"') == 2
    assert not hlo_kernels.loops(text)


def test_attention_on_a_gpu_is_cudnn_where_its_library_is_installed():
    segments = jnp.repeat(jnp.arange(1, 3, dtype=jnp.int32), T // 2)[None].repeat(B, axis=0)
    order = jnp.broadcast_to(jnp.arange(T), (B, T))
    index = TokenIndex(order, segments, order)

    def run(q, k, v):
        return (attention(q, k, v, index, index, causal=True, window=(100, 0), scale=0.1),)

    text = compiled("h100:1", run, [HEADS] * 3)
    assert ("__cudnn$fmhaScaleBiasSoftmaxBackward" in text) == _has_cudnn()


def test_experts_on_a_gpu_multiply_a_row_by_the_weights_of_its_experts_alone():
    D, F, E, k = 128, 256, 8, 2
    shapes = ((B, T, D), BF16), ((B, T, k), jnp.int32), ((B, T, k), F32)

    def run(x, ids, weights, w_in, w_out):
        w = ExpertWeights(w_in, None, w_out)
        return (experts(x, Routes(ids, weights), w, lambda h, gate: jax.nn.silu(h)),)

    text = compiled("h100:1", run, [*shapes, ((E, D, F), BF16), ((E, F, D), BF16)])
    assert f"[{E * D}" not in text  # as XLA:GPU expands a ragged product
    assert all(loop.turns < 2 * E * k * 4 for loop in hlo_kernels.loops(text))
