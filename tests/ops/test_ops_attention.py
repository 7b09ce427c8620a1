"""Attention equals its goldens in all implementations, and skips and stores what it promises."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden

from errors import ConfigError
from ops.attention import attention as attention_module
from ops.attention import chunked as attention_chunked
from ops.attention import kernels as attention_kernels
from ops.attention.attention import IMPLEMENTATIONS, TokenIndex, attention, reference
from ops.attention.mask import AttentionSpec

PS = jax.P
AXES = ("replica", "data", "context", "expert", "model")
GOLDENS = {case: (tensors, options) for case, options, tensors in golden("attention")}


def tokens(segments, start=0, prefix=None) -> TokenIndex:
    """Returns the index of rows with these segments; padding does not count in the order."""
    segments = np.asarray(segments)
    order = (start + np.cumsum(segments != 0, axis=1) - 1).astype(np.int32)
    return TokenIndex(order, segments, order, prefix)


def documents(batch: int, length: int, seed: int = 0) -> np.ndarray:
    """Returns segments of packed rows; every second row ends in padding."""
    rng, segments = np.random.default_rng(seed), np.ones((batch, length), np.int32)
    for row in range(batch):
        cuts = sorted(rng.choice(np.arange(1, length), 3, replace=False))
        for cut in cuts:
            segments[row, cut:] += 1
        if row % 2:
            segments[row, cuts[-1] :] = 0
    return segments


def t5_bucket(relative: np.ndarray, bidirectional: bool, buckets: int, farthest: int) -> np.ndarray:
    """Computes buckets by the definition in the T5 paper (arXiv:1910.10683)."""
    out = np.zeros_like(relative)
    if bidirectional:
        buckets //= 2
        out += buckets * (relative > 0)
    distance = np.abs(relative) if bidirectional else np.maximum(-relative, 0)
    half = buckets // 2
    ratio = np.log(np.maximum(distance, 1) / half) / math.log(farthest / half)
    far = np.minimum(half + (ratio * (buckets - half)).astype(int), buckets - 1)
    return out + np.where(distance < half, distance, far)


def golden_call(case: str, implementation: str):
    """Returns the attention of a golden case as a function of q, k, v."""
    tensors, settings = GOLDENS[case]
    (B, T), S, words = tensors["q"].shape[:2], tensors["k"].shape[1], settings["mask"]
    causal, offset = "causal" in words, settings.get("query_offset", 0)
    ones = np.ones((B, max(T, S)), np.int32)
    segments = tensors.get("segment_ids", tensors.get("key_mask", ones[:, :S]))
    cross = case.startswith("cross")
    prefix = (
        np.arange(S)[None] < np.full((B, 1), settings["prefix"]) if "prefix" in settings else None
    )
    keys = tokens(segments, prefix=prefix)
    queries = tokens(ones[:, :T] if cross or offset else segments, start=offset)
    bias, window = None, settings.get("window")
    if "slopes" in tensors:

        def bias(a: TokenIndex, b: TokenIndex):
            slopes = jnp.asarray(tensors["slopes"])[:, None, None]
            return -slopes * (a.positions[:, :, None] - b.positions[:, None])[:, None]

    if "bias_table" in tensors:
        position = np.arange(T)
        buckets = t5_bucket(position[None] - position[:, None], not causal, 8, 16)

        def bias(a: TokenIndex, b: TokenIndex):
            near = jnp.asarray(buckets)[a.positions[:, :, None], b.positions[:, None]]
            return jnp.moveaxis(jnp.asarray(tensors["bias_table"])[near], 3, 1)

    return lambda q, k, v: attention(
        *(q, k, v, queries, keys),
        causal=causal,
        window=None if window is None else (window - 1, 0) if causal else (window, window),
        scale=settings["scale"],
        softcap=settings["softcap"] or 0.0,
        bias=bias,
        aligned=not (cross or offset),
        implementation=implementation,
    )


KINDS = (  # one golden of each kind of mask, where not all are needed
    *("causal_gqa", "causal_left_padding", "sliding_window_5", "bidirectional_window_3"),
    *("packed_bidirectional", "packed_sliding_window", "cross_attention_padded", "prefix_lm"),
    *("t5_causal", "causal_large_logits"),
)
VARIANTS = {  # implementation, queries of a chunk, cases
    "reference": ("reference", 128, tuple(GOLDENS)),
    "xla": ("xla", 128, tuple(GOLDENS)),
    "chunks": ("xla", 8, KINDS),
    "narrow": ("xla", 128, KINDS),
}
RUNS = [
    *(("reference", "float64"), ("chunks", "float64")),
    *(("xla", "float32"), ("narrow", "bfloat16")),
]


@functools.cache
def golden_results(variant: str, dtype: str) -> dict[str, dict[str, np.ndarray]]:
    """Returns the output and gradients of all cases, from one compiled program."""
    implementation, chunk, cases = VARIANTS[variant]

    def run_case(case: str) -> dict[str, jax.Array]:
        tensors = GOLDENS[case][0]
        q, k, v, cotangent = (jnp.asarray(tensors[n], dtype) for n in ("q", "k", "v", "cot_o"))
        o, pull = jax.vjp(golden_call(case, implementation), q, k, v)
        return {"o": o} | dict(zip(("grad_q", "grad_k", "grad_v"), pull(cotangent), strict=True))

    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(dtype == "float64"):
        patch.setattr(attention_chunked, "CHUNK_SIZE", chunk)
        patch.setattr(attention_chunked, "NUM_BANDS", 2)
        actual = jax.jit(lambda: {case: run_case(case) for case in cases})()
        return jax.tree.map(np.asarray, actual)


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference over the expected RMS; for bfloat16 the RMS difference."""
    assert actual.shape == expected.shape
    size = float(np.sqrt(np.mean(np.square(expected)))) or 1.0
    difference = np.abs(actual.astype(np.float64) - expected) / size
    if actual.dtype == jnp.bfloat16:
        return float(np.sqrt(np.mean(np.square(difference))))
    return float(np.max(difference))


@pytest.mark.parametrize(
    ("variant", "dtype", "case"),
    [(variant, dtype, case) for variant, dtype in RUNS for case in VARIANTS[variant][2]],
)
def test_golden(variant, dtype, case):
    tensors, actual = GOLDENS[case][0], golden_results(variant, dtype)[case]
    values, gradients = {
        "float64": (1e-10, 1e-10),
        "float32": (2e-5, 1e-4),
        "bfloat16": (1e-2, 1e-2),
    }[dtype]
    if case == "causal_large_logits" and dtype != "float64":
        values, gradients = 5 * values, 5 * gradients
    assert actual["o"].dtype == dtype
    assert (actual["o"][tensors["query_valid"] == 0] == 0).all()  # covers N8
    assert error(actual["o"], tensors["o"]) < values
    for name in ("grad_q", "grad_k", "grad_v"):
        assert actual[name].dtype == dtype
        assert error(actual[name], tensors[name]) < gradients, name


def inputs(B: int, T: int, H: int = 4, G: int = 2, K: int = 8, Kv: int = 6, S: int = 0):
    """Returns q, k, v and a cotangent."""
    shapes = (B, T, H, K), (B, S or T, G, K), (B, S or T, G, Kv), (B, T, H, Kv)
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def rule(
    causal: bool, window=None, scale=0.3, softcap=0.0, bias=None, aligned=True
) -> AttentionSpec:
    return AttentionSpec(causal, window, scale, softcap, bias, aligned)


def pulled(run, q, k, v, cotangent, *others):
    """Returns the output of `run` and its gradients."""
    o, pull = jax.vjp(run, q, k, v, *others)
    return o, pull(cotangent)


def assert_same(actual, expected, limit: float = 2e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.isfinite(a).all() and np.isfinite(b).all()
        assert error(a, b) < limit


CASES = {  # options of attention; "local": each chunk gets its own copy of its keys
    "causal": {"causal": True},
    "both sides": {"causal": False},
    "multi-query, softcap": {"causal": True, "G": 1, "softcap": 2.0},
    "no groups": {"causal": True, "G": 4},
    "window": {"causal": True, "window": (7, 0), "local": True},
    "window on both sides": {"causal": False, "window": (20, 30), "local": True},
    "window without the query": {"causal": False, "window": (9, -1), "local": True},
    "window wider than the row": {"causal": True, "window": (1000, 1000)},
    "window to all before": {"causal": False, "window": (1000, 3)},
    "prefix": {"causal": True, "prefix": True},
    "prefix in a window": {"causal": True, "window": (12, 5), "prefix": True, "local": True},
    "not aligned": {"causal": True, "window": (7, 0), "aligned": False},
    "bias": {"causal": True, "bias": True},
    "bias in a window": {"causal": True, "window": (7, 0), "bias": True, "local": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_chunks_equal_reference(name, monkeypatch):
    # covers N8: rows end in padding, and a window may hold no key
    monkeypatch.setattr(attention_chunked, "CHUNK_SIZE", 16)
    B, T, case = 2, 150, dict(CASES[name])
    prefix, biased, local = (case.pop(key, False) for key in ("prefix", "bias", "local"))
    arrays, slopes = inputs(B, T, G=case.pop("G", 2)), np.linspace(0.1, 0.4, 4, dtype=np.float32)
    chance = np.random.default_rng(5).random((B, T)) < 0.3
    index = tokens(documents(B, T), prefix=chance if prefix else None)
    assert (attention_chunked._window_layout(T, rule(**case), index) is not None) == local

    def run(implementation: str):
        def forward(q, k, v, slopes):
            def bias(queries: TokenIndex, keys: TokenIndex) -> jax.Array:
                distance = queries.positions[:, :, None] - keys.positions[:, None]
                return -slopes[:, None, None] * jnp.abs(distance)[:, None]

            options = {"scale": 0.3, "bias": bias if biased else None} | case
            return attention(q, k, v, index, index, implementation=implementation, **options)

        return pulled(forward, *arrays, slopes)

    actual, expected = jax.jit(lambda: [run(name) for name in ("xla", "reference")])()
    assert_same(actual, expected)
    assert (actual[1][3] != 0).any() == biased


@pytest.mark.parametrize(("T", "implementation"), [(5, "reference"), (5, "xla"), (40, "xla")])
def test_row_without_keys_gives_zero(implementation, T, monkeypatch):
    # covers N8
    monkeypatch.setattr(attention_chunked, "CHUNK_SIZE", 16)
    index, arrays = tokens(np.array([[1] * (T - 3) + [0] * 3, [0] * T])), inputs(2, T)

    def run(q, k, v):
        return attention(
            *(q, k, v, index, index), causal=True, scale=0.3, implementation=implementation
        )

    o, gradients = jax.device_get(jax.jit(functools.partial(pulled, run))(*arrays))
    assert (o[0, -3:] == 0).all() and (o[1] == 0).all() and (o[0, :-3] != 0).all()
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert (gradient[0, -3:] == 0).all() and (gradient[1] == 0).all()


@pytest.mark.parametrize("window", [None, (6, 0)])
def test_steps_with_a_cache_equal_the_row(window):
    B, T, S = 2, 21, 32  # the cache is not full, and the second row begins with padding
    q, k, v, _ = inputs(B, T)
    segments = np.ones((B, T), np.int32)
    segments[1, :4] = 0
    index = tokens(segments)
    options = {"causal": True, "window": window, "scale": 0.3}
    row = np.asarray(jax.jit(lambda q, k, v: attention(q, k, v, index, index, **options))(q, k, v))
    room = [(0, 0), (0, S - T)]
    k, v = (np.pad(x, [*room, (0, 0), (0, 0)]) for x in (k, v))
    cached = jax.tree.map(lambda x: np.pad(x, room), index)
    step = jax.jit(lambda q, *tokens: attention(q, k, v, *tokens, aligned=False, **options))
    for t in range(T):
        ids = np.where(np.arange(S) <= t, cached.segment_ids, 0)
        query = jax.tree.map(lambda x: x[:, t : t + 1], index)  # noqa: B023
        o = step(q[:, t : t + 1], query, cached._replace(segment_ids=ids))
        np.testing.assert_allclose(o, row[:, t : t + 1], atol=1e-6)


def equations(jaxpr, times: int = 1):
    """Yields the equations of a program, also in its loops and calls, and how often each runs."""
    for equation in jaxpr.eqns:
        yield equation, times
        length = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for part in jax.tree.leaves(list(equation.params.values())):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield from equations(part, times * length)


def largest_array(jaxpr) -> int:
    return max(math.prod(x.aval.shape) for e, _ in equations(jaxpr) for x in e.outvars)


def multiply_adds(jaxpr) -> int:
    total = 0
    for equation, times in equations(jaxpr):
        if equation.primitive.name == "dot_general":
            (axes, _), _ = equation.params["dimension_numbers"]
            width = math.prod(equation.invars[0].aval.shape[axis] for axis in axes)
            total += times * width * math.prod(equation.outvars[0].aval.shape)
    return total


def traced(T: int, implementation: str, backward: bool = False, **options):
    index, arrays = tokens(np.ones((1, T), np.int32)), inputs(1, T, H=2, G=1, K=8, Kv=8)

    def forward(q, k, v):
        options_ = {"causal": True, "scale": 0.3, "implementation": implementation} | options
        return attention(q, k, v, index, index, **options_)

    run = functools.partial(pulled, forward) if backward else lambda q, k, v, _: forward(q, k, v)
    return jax.make_jaxpr(run)(*arrays).jaxpr


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": (100, 0)}])
def test_arrays_grow_linearly(options):
    sizes = {
        name: [largest_array(traced(T, name, backward=True, **options)) for T in (1024, 4096)]
        for name in ("xla", "reference")
    }
    assert sizes["reference"][1] == 16 * sizes["reference"][0]
    assert sizes["xla"][1] <= 4 * sizes["xla"][0]


@pytest.mark.parametrize(
    ("options", "share"),  # share of the T x T scores that have to be computed
    [
        ({"causal": False}, 1.0),
        ({}, 0.63),
        ({"window": (127, 0)}, 0.13),
        ({"window": (4000, 0)}, 0.63),
    ],
)
def test_what_cannot_be_seen_is_skipped(options, share):
    T = 2048
    done = multiply_adds(traced(T, "xla", **options))
    assert done <= share * multiply_adds(traced(T, "reference", **options))


def test_compiled_memory_does_not_follow_the_square():
    def temporary(T: int) -> int:
        index, arrays = tokens(np.ones((2048 // T, T), np.int32)), inputs(2048 // T, T, K=16, Kv=16)
        run = functools.partial(attention, queries=index, keys=index, causal=True, scale=0.3)
        compiled = jax.jit(functools.partial(pulled, run)).lower(*arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(2048) < 1.5 * temporary(512)  # for equally many tokens


def test_dropout_keeps_the_mean_and_its_gradient(monkeypatch):
    monkeypatch.setattr(attention_chunked, "CHUNK_SIZE", 16)
    T = 40
    index, (q, k, v, c) = tokens(np.ones((1, T), np.int32)), inputs(1, T)

    def run(q, k, v, key, rate=0.4):
        return attention(q, k, v, index, index, causal=True, scale=0.3, dropout=rate, key=key)

    plain, unchanged = jax.jit(lambda *a: (run(*a, None), run(*a, jax.random.key(3), 0.0)))(q, k, v)
    assert (unchanged == plain).all()
    keys = jax.random.split(jax.random.key(3), 600)
    draw = jax.jit(jax.vmap(run, (None, None, None, 0)))
    samples = np.asarray(draw(q, k, v, keys))
    standard_error = samples.std(0) / 600**0.5
    assert (np.abs(samples.mean(0) - plain) < 5 * standard_error).all()
    assert (standard_error < 0.2 * np.abs(v).max()).all()
    weights = np.asarray(draw(q, np.zeros_like(k), np.ones_like(v), keys))
    spread = weights[:, 0, :, 0, 0]  # sums of weights 1 / (t + 1), kept or dropped
    np.testing.assert_allclose(spread[:, 0][spread[:, 0] > 0], 1 / 0.6, rtol=1e-5)
    assert not np.array_equal(spread[:, :16], spread[:, 16:32])
    pull = jax.jit(lambda q, k, v: pulled(lambda *a: run(*a, jax.random.key(3)), q, k, v, c))
    o, gradients = jax.device_get(pull(q, k, v))
    assert np.allclose(np.vdot(gradients[2], v), np.vdot(o, c), rtol=1e-4)  # o is linear in v
    nudge = 1e-3 * np.sign(gradients[0])
    moved = np.vdot(pull(q + nudge, k, v)[0] - pull(q - nudge, k, v)[0], c) / 2
    assert np.allclose(moved, np.vdot(gradients[0], nudge), rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize(("T", "S"), [(0, 0), (1, 1), (3, 0), (0, 3), (7, 3), (139, 17)])
def test_any_length(implementation, T, S):
    q, k, v, cotangent = inputs(2, T, S=max(S, 1))
    queries, keys = (tokens(np.ones((2, n), np.int32)) for n in (T, S))

    def run(q, k, v):
        return attention(
            *(q, k, v, queries, keys),
            causal=True,
            scale=0.3,
            aligned=T == S,
            implementation=implementation,
        )

    pull = jax.jit(functools.partial(pulled, run))
    o, gradients = jax.device_get(pull(q, k[:, :S], v[:, :S], cotangent))
    assert o.shape == cotangent.shape
    assert all(np.isfinite(x).all() for x in (o, *gradients))
    assert S > 0 or (o == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [(1, 8, 1, 1, 1), (1, 2, 1, 2, 2), (2, 1, 2, 1, 2), (1, 1, 1, 1, 8)]
)
def test_sharded_equals_single_device(shape):
    index, arrays = tokens(documents(4, 150)), inputs(4, 150, H=8)

    def run(q, k, v):
        return attention(q, k, v, index, index, causal=True, scale=0.3)

    expected = jax.jit(functools.partial(pulled, run))(*arrays)
    with jax.set_mesh(mesh(shape)):
        rows = ("replica", "data", "expert") if shape[1] < 8 else None  # 4 rows do not divide by 8
        length = "context" if shape[2] > 1 else None
        placed = [
            jax.device_put(x, PS(rows, length, "model" if x.shape[2] % shape[4] == 0 else None))
            for x in arrays
        ]
        assert_same(jax.jit(functools.partial(pulled, run))(*placed), expected)


RING_CASES = {
    "causal": {"causal": True},
    "window": {"causal": True, "window": (13, 0), "softcap": 3.0},
    "both sides": {"causal": False, "window": (9, 20)},
    "all": {"causal": False},
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "window")) for n in RING_CASES]
)
def test_a_ring_of_devices_computes_what_one_device_does(name, monkeypatch):
    """Rows of documents and padding are cut into four parts, and these into chunks of queries."""
    monkeypatch.setattr(attention_chunked, "CHUNK_SIZE", 8)
    B, T = 2, 64
    index, arrays = tokens(documents(B, T)), inputs(B, T, H=4)
    is_prefix = (index.order < 5) & (name == "causal")

    def run(implementation, is_prefix, q, k, v):
        keys = index._replace(is_prefix=is_prefix) if name == "causal" else index
        rule = {"scale": 0.3, "implementation": implementation} | RING_CASES[name]
        return attention(q, k, v, index, keys, **rule)

    expected = jax.jit(functools.partial(pulled, functools.partial(run, "reference", is_prefix)))(
        *arrays
    )
    with jax.set_mesh(mesh((1, 1, 4, 1, 2))):
        placed = [jax.device_put(x, PS(None, "context")) for x in arrays]
        program = jax.jit(functools.partial(pulled, functools.partial(run, "ring", is_prefix)))
        assert_same(program(*placed), expected)
        assert "collective-permute" in program.lower(*placed).compile().as_text()


def mesh(shape: tuple[int, ...]) -> jax.sharding.Mesh:
    return jax.make_mesh(shape, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 5)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_dtype_comes_back(dtype):
    with jax.enable_x64(dtype == "float64"):
        index = tokens(np.ones((2, 150), np.int32))
        arrays = [x.astype(dtype) for x in inputs(2, 150)]
        for name in ("reference", "xla"):
            run = functools.partial(
                attention, queries=index, keys=index, causal=True, scale=0.3, implementation=name
            )
            actual = jax.eval_shape(functools.partial(pulled, run), *arrays)
            assert {x.dtype for x in jax.tree.leaves(actual)} == {jnp.dtype(dtype)}


def test_gradients_of_chunks_add_up_in_float32(monkeypatch):
    """With 64 queries and one key, the gradient of its value is a sum over 8 chunks."""
    monkeypatch.setattr(attention_chunked, "CHUNK_SIZE", 8)
    T = 64
    q, k, v, _ = (x.astype(jnp.bfloat16) for x in inputs(1, T, S=1))
    queries, keys = (tokens(np.ones((1, n), np.int32)) for n in (T, 1))

    def total(v):
        o = attention(q, k, v, queries, keys, causal=False, scale=0.3, aligned=False)
        weights = jnp.where(jnp.arange(T) < 8, 1.0, 1 / 256)  # in bfloat16, 16 + 1/32 is 16
        return jnp.sum(o.astype(jnp.float32) * weights[:, None, None])

    assert (jax.jit(jax.grad(total))(v) == 16 + 2 * 56 / 256).all()


# The choice by platform, and the refusals.


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("splash", {}, "splash.*TPU.*cpu.*'xla'"),
        ("cudnn", {}, "cudnn.*NVIDIA.*cpu.*'xla'"),
        ("xls", {}, "'xls' is unknown.*xla"),
    ],
)
def test_implementation_that_cannot_run_is_refused(name, options, words):
    index, (q, k, v, _) = tokens(np.ones((1, 4), np.int32)), inputs(1, 4)
    with pytest.raises(ConfigError, match=words):
        attention(*(q, k, v, index, index), causal=True, scale=1.0, implementation=name, **options)


def test_shapes_that_do_not_fit_are_refused():
    index, (q, k, v, _) = tokens(np.ones((1, 4), np.int32)), inputs(1, 4)
    with pytest.raises(ValueError, match="do not fit"):
        attention(q, k[:, :, :1, :3], v, index, index, causal=True, scale=1.0)
    with pytest.raises(ValueError, match="aligned=False"):
        attention(q[:, :3], k, v, index, index, causal=True, scale=1.0)


SINKS = jax.ShapeDtypeStruct((4,), "float32")
DECAY = jax.ShapeDtypeStruct((2, 256, 4, 2), "float32")
BLOCKS = jax.ShapeDtypeStruct((2, 256, 4, 3), "int32")
PLAIN = {"causal": True, "window": None, "prefix": False, "dtype": "bfloat16", "H": 4, "T": 256}


@pytest.mark.parametrize(
    ("platform", "changes", "chosen"),
    [
        ("cpu", {}, "xla"),
        ("tpu", {}, "splash"),
        ("tpu", {"dtype": "float32", "T": 150}, "splash"),
        ("tpu", {"window": (7, 0), "softcap": 2.0}, "splash"),
        ("tpu", {"window": (9, -1), "causal": False}, "xla"),
        ("tpu", {"prefix": True}, "xla"),
        ("tpu", {"prefix": True, "causal": False}, "splash"),
        ("tpu", {"bias": lambda queries, keys: 0.0}, "xla"),
        ("tpu", {"dropout": 0.1}, "xla"),
        ("tpu", {"aligned": False}, "xla"),
        *((name, {"sinks": SINKS}, "xla") for name in ("tpu", "gpu")),
        *((name, {"log_decay": DECAY}, "xla") for name in ("tpu", "gpu")),
        *((name, {"blocks": BLOCKS}, "xla") for name in ("tpu", "gpu")),
        ("tpu", {"dtype": "float16"}, "xla"),
        ("gpu", {}, "cudnn"),
        ("gpu", {"window": (7, 3), "prefix": True}, "cudnn"),
        ("gpu", {"aligned": False}, "cudnn"),
        ("gpu", {"dtype": "float32"}, "xla"),
        ("gpu", {"T": 1}, "xla"),
        ("gpu", {"T": 16384}, "xla"),
        ("gpu", {"softcap": 2.0}, "xla"),
        ("gpu", {"Kv": 16}, "xla"),
        ("gpu", {"bias": lambda queries, keys: 0.0}, "xla"),
        ("gpu", {"dropout": 0.1}, "xla"),
    ],
)
def test_platform_chooses(platform, changes, chosen, monkeypatch):
    case = PLAIN | changes
    B, T, H, G, K, dtype = 2, case.pop("T"), case.pop("H"), 2, 8, case.pop("dtype")
    for module in (attention_module, attention_kernels):
        monkeypatch.setattr(module, "platform", lambda: platform)
    monkeypatch.setattr(attention_kernels, "_is_nvidia", lambda: platform == "gpu")
    monkeypatch.setattr(attention_kernels, "_has_cudnn", lambda: True)
    ran = []
    stub = {
        name: (lambda *a, name=name: ran.append(name), why)
        for name, (_, why) in IMPLEMENTATIONS.items()
    }
    monkeypatch.setattr(attention_module, "IMPLEMENTATIONS", stub)
    shapes = (B, T, H, K), (B, T, G, K), (B, T, G, case.pop("Kv", K))
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    index = TokenIndex(
        *[jax.ShapeDtypeStruct((B, T), "int32")] * 3, "somewhere" if case.pop("prefix") else None
    )
    index = index._replace(
        **{name: case.pop(name) for name in {"log_decay", "blocks"} & case.keys()}
    )
    attention(*arrays, index, index, scale=1.0, key=jax.random.key(0), **case)
    assert ran == [chosen]


KERNEL_CASES = {
    "causal": {"causal": True},
    "window, softcap": {"causal": True, "window": (30, 4), "softcap": 2.0},
    "both sides": {"causal": False, "window": (20, 30)},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n != "window, softcap" else n
        for n in KERNEL_CASES
    ],
)
def test_splash_equals_reference(name):
    # covers N8: rows end in padding
    index, arrays, case = (
        tokens(documents(2, 130)),
        inputs(2, 130, H=2, G=1),
        rule(**KERNEL_CASES[name]),
    )

    def run(implementation):
        return pulled(lambda q, k, v: implementation(q, k, v, index, index, case), *arrays)

    kernel = functools.partial(attention_kernels.splash, interpret=True)
    assert_same(*jax.jit(lambda: (run(kernel), run(reference)))())


@pytest.fixture
def installed_cudnn(monkeypatch):
    """Lets JAX lower cuDNN's attention as if its library were installed."""
    cudnn = "jax._src.cudnn.fused_attention_stablehlo."
    monkeypatch.setattr(cudnn + "check_cudnn_version", lambda: 91100)
    monkeypatch.setattr(attention_kernels, "_has_cudnn", lambda: True)


ON_H100 = jax.sharding.AbstractMesh(
    *((1,), ("data",)),
    axis_types=(jax.sharding.AxisType.Auto,),
    abstract_device=jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, "cuda"),
)


def lowered_for_h100(implementation=None, is_prefix=None, **options) -> str:
    """Returns the text of attention and its gradients for a GPU that is not attached."""
    index = tokens(documents(2, 64))._replace(is_prefix=is_prefix)
    arrays = [x.astype(jnp.bfloat16) for x in inputs(2, 64, H=4, G=2, K=64, Kv=64)]

    def forward(q, k, v):
        options_ = {"causal": True, "scale": 0.1} | options
        return attention(q, k, v, index, index, implementation=implementation, **options_)

    with jax.sharding.use_abstract_mesh(ON_H100):
        program = jax.jit(functools.partial(pulled, forward)).trace(*arrays)
        return program.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": (7, 0)},
        {"is_prefix": jnp.arange(64)[None] < jnp.asarray([[9], [0]])},
        {"causal": False},
        {"causal": False, "window": (5, 9)},
    ],
)
def test_every_mask_lowers_to_cudnn_for_a_gpu_that_is_absent(options, installed_cudnn):
    text = lowered_for_h100(**options)
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward(" in text


def test_a_gpu_that_is_absent_gets_a_reason_where_cudnn_cannot_run(installed_cudnn, monkeypatch):
    assert "__cudnn" not in lowered_for_h100(softcap=2.0)
    with pytest.raises(ConfigError, match="it has no softcap"):
        lowered_for_h100("cudnn", softcap=2.0)
    monkeypatch.setattr(attention_kernels, "_has_cudnn", lambda: False)
    assert "__cudnn" not in lowered_for_h100()
    with pytest.raises(ConfigError, match="the GPU is absent, and so is cuDNN's library"):
        lowered_for_h100("cudnn")


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (1, 2, 1, 1, 4), (1, 2, 2, 1, 2)])
@pytest.mark.parametrize(("kernel", "platform"), [("splash", "tpu"), ("cudnn", "cuda")])
def test_kernel_lowers_for_its_platform(kernel, platform, shape, installed_cudnn):
    """The kernel runs on one device's part: of 8 heads over 2, each of 4 devices has 2 over 1."""
    index, run = tokens(documents(4, 256)), IMPLEMENTATIONS[kernel][0]
    arrays = [x.astype(jnp.bfloat16) for x in inputs(4, 256, H=8, K=64, Kv=64)]

    def forward(q, k, v):
        return run(q, k, v, index, index, rule(causal=True))

    devices = math.prod(shape)
    abstract_mesh = jax.sharding.AbstractMesh(
        shape, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 5
    )
    with jax.sharding.use_abstract_mesh(abstract_mesh):
        program = jax.jit(functools.partial(pulled, forward)).trace(*arrays)
        text = program.lower(lowering_platforms=(platform,)).as_text()
    B, H = 4 // (shape[1] if devices > 1 else 1), 8 // shape[4]
    layout = f"{B}x{H}x256x64" if kernel == "splash" else f"{B}x256x{H}x64"
    call = {"splash": "tpu_custom_call", "cudnn": "__cudnn$fmhaScaleBiasSoftmax"}[kernel]
    assert any(call in line and layout in line for line in text.splitlines())
