"""Operations along time are compared with goldens, float64 loops and single documents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden

from errors import ConfigError
from ops.recurrent import (
    causal_conv,
    chunked_recurrence,
    delta_chunks,
    delta_rule,
    gla,
    matrix_memory,
    selective_scan,
    selective_scan_kernel,
    selective_scan_loop,
    selective_scan_mosaic,
    ssd,
    tpu_kernel,
)

PS = jax.P


def with_beta(q, k, v, g, beta, **options):
    """Runs the delta rule with one gate; a g for a head is Gated DeltaNet, for a channel KDA."""
    g, beta = g if g.ndim == 4 else g[..., None], beta[..., None]
    return delta_rule.delta_rule(q, k, v, g, beta, beta, **options)


OPS = {
    "causal_conv": causal_conv.causal_conv,
    "selective_scan": selective_scan.selective_scan,
    "ssd": functools.partial(ssd.ssd, chunk_size=5),
    "gated_delta": functools.partial(with_beta, chunk_size=5),
    "kda": functools.partial(with_beta, chunk_size=5),
    "gla": functools.partial(gla.gla, chunk_size=5),
}
TOLERANCE = {"float64": (1e-10, 1e-10), "float32": (2e-5, 1e-4)}  # for values, for gradients


def near(actual, expected, tolerance: float) -> None:
    """Asserts that arrays differ by at most `tolerance` times the expected array's RMS."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    scale = max(np.sqrt(np.mean(expected**2)), 1e-30) if expected.size else 1
    np.testing.assert_allclose(actual / scale, expected / scale, rtol=0, atol=tolerance)


def first_tokens(case: dict) -> np.ndarray | None:
    """Returns where documents begin by the goldens' rule: where the id changes, also to padding."""
    if "segment_ids" not in case:
        return None
    ids = case["segment_ids"]
    return np.concatenate([np.zeros_like(ids[:, :1]), ids[:, 1:] != ids[:, :-1]], axis=1) > 0


def scan_golden(case: dict, reset, options: dict, name: str | None):
    dt = jax.nn.softplus(case["delta"] + case["delta_bias"])
    u = case["u"]
    y, h = selective_scan.selective_scan(
        *(u, dt, case["A"], case["B"], case["C"]),
        reset=reset,
        state=case.get("h0"),
        implementation=name,
    )
    y = y + case["D"] * u if "D" in case else y
    return (y * jax.nn.silu(case["z"]) if "z" in case else y), h


def ssd_golden(case: dict, reset, options: dict, name: str | None):
    dt = jax.nn.softplus(case["dt"] + case["dt_bias"])
    dt = jnp.clip(dt, *(float(end) for end in options["dt_limit"]))
    x = case["x"]
    y, h = ssd.ssd(
        *(x, dt, case["A"], case["B"], case["C"]),
        reset=reset,
        state=case.get("h0"),
        chunk_size=16,
        implementation=name,
    )
    return (y + case["D"][:, None] * x if "D" in case else y), h


GOLDENS = {"selective_scan": scan_golden, "ssd": ssd_golden}
CASES = {file: {case[0]: case[1:] for case in golden(file)} for file in GOLDENS}
NARROW = {"packed", "with_state", "long_memory", "strong_decay", "not_chunk_multiple"}
RUNS = [  # The default suite compares the reference with `xla` alone.
    pytest.param(
        *(file, case, name, dtype),
        id=f"{file}-{case}-{name}-{dtype}",
        marks=[] if name == "xla" else pytest.mark.slow,
    )
    for file in GOLDENS
    for case in CASES[file]
    for name, dtype in [
        ("reference", "float64"),
        ("xla", "float64"),
        ("xla", "float32"),
        ("unrolled", "float64"),
    ]
    if (dtype == "float64" or case in NARROW) and (name != "unrolled" or file == "selective_scan")
]


@functools.cache
def golden_results(file: str, name: str, dtype: str) -> dict[str, tuple]:
    """Returns the outputs and gradients of the cases of this dtype, from one compiled program."""

    def run_case(case: str):
        options, tensors = CASES[file][case]
        moved = [key.removeprefix("grad_") for key in tensors if key.startswith("grad_")]
        inputs = {key: jnp.asarray(tensors[key], dtype) for key in moved}
        cots = tuple(jnp.asarray(tensors[f"cot_{key}"], dtype) for key in ("y", "h_last"))
        reset = first_tokens(tensors)
        out, pull = jax.vjp(lambda inputs: GOLDENS[file](inputs, reset, options, name), inputs)
        return out, pull(cots)[0]

    cases = [case for case in CASES[file] if dtype == "float64" or case in NARROW]
    with jax.enable_x64(dtype == "float64"):
        return jax.device_get(jax.jit(lambda: {case: run_case(case) for case in cases})())


@pytest.mark.parametrize(("file", "case", "name", "dtype"), RUNS)
def test_goldens(file, case, name, dtype):
    tensors = CASES[file][case][1]
    (y, h), grads = golden_results(file, name, dtype)[case]
    assert y.dtype == h.dtype == dtype
    near(y, tensors["y"], TOLERANCE[dtype][0])
    near(h, tensors["h_last"], TOLERANCE[dtype][0])
    for key, grad in grads.items():
        near(grad, tensors[f"grad_{key}"], TOLERANCE[dtype][1])


@pytest.mark.parametrize("name", causal_conv.IMPLEMENTATIONS)
def test_causal_conv_goldens(name):
    cases = {case: (options, tensors) for case, options, tensors in golden("causal_conv1d")}

    def run_case(options, tensors):
        y, state = causal_conv.causal_conv(
            *(jnp.asarray(tensors["x"]), jnp.asarray(tensors["w"].T)),
            tensors.get("b"),
            reset=first_tokens(tensors),
            state=tensors.get("state"),
            implementation=name,
        )
        return jax.nn.silu(y) if options["activation"] else y, state

    with jax.enable_x64(True):
        results = jax.jit(lambda: {case: run_case(*cases[case]) for case in cases})()
    for case, (y, state) in results.items():
        tensors = cases[case][1]
        assert y.dtype == jnp.float64
        near(y, tensors["y"], 1e-10)
        if case != "packed" and "state_last" in tensors:  # the goldens' state crosses documents
            near(state, tensors["state_last"], 1e-10)


def normal(rng, *shape):
    return rng.normal(size=shape)


def example(op: str, B: int = 2, T: int = 24, seed: int = 0):
    """Returns arrays along T, other arrays and the state, in the operation's order of arguments."""
    rng, C, H, G, P, N = np.random.default_rng(seed), 4, 4, 2, 3, 5
    if op == "causal_conv":
        return [normal(rng, B, T, C)], [normal(rng, 4, C), normal(rng, C)], normal(rng, B, 3, C)
    if op == "selective_scan":
        N = 3
        rows = [normal(rng, B, T, C), rng.random((B, T, C)), *normal(rng, 2, B, T, N)]
        return rows, [-2 * rng.random((C, N))], normal(rng, B, C, N)
    if op == "ssd":
        rows = [normal(rng, B, T, H, P), rng.random((B, T, H)), *normal(rng, 2, B, T, G, N)]
        return rows, [-2 * rng.random(H)], normal(rng, B, H, P, N)
    K, Kv = 3, 5
    q, k = normal(rng, 2, B, T, H, K)
    rows = [q, k / np.linalg.norm(k, axis=-1, keepdims=True), normal(rng, B, T, H, Kv)]
    rows += [-rng.random((B, T, H) if op == "gated_delta" else (B, T, H, K))]
    rows += [] if op == "gla" else [2 * rng.random((B, T, H))]
    return rows, [], normal(rng, B, H, K, Kv)


def run(op: str, rows, others, reset=None, state=None, name: str | None = None):
    """Runs an operation; `a` is the third argument of the scans."""
    index = 1 if op == "causal_conv" else 2
    arrays = [*rows[:index], *others, *rows[index:]]
    return OPS[op](*arrays, reset=reset, state=state, implementation=name)


def narrow(arrays, dtype=jnp.float32):
    return jax.tree.map(lambda x: np.asarray(x, dtype), arrays)


@pytest.mark.parametrize("size", [1, 5, 32])
def test_inverse_where_powers_grow(size):
    """With equal keys and sign changes powers of x exceed 1e20, but the inverse stays at 2."""
    x = np.tril(np.full((2, size, size), 2.0), -1)
    actual = delta_chunks.unit_lower_inverse(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(actual, np.linalg.inv(np.eye(size) + x), rtol=0, atol=1e-6)


def resets(T: int, *positions: int) -> np.ndarray:
    return np.broadcast_to(np.isin(np.arange(T), positions), (2, T))


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """Shortens chunks and blocks: 24 tokens in chunks of 5 become several blocks of two chunks."""
    monkeypatch.setattr(selective_scan_loop, "CHUNK_SIZE", 5)
    monkeypatch.setattr(chunked_recurrence, "BLOCK_ELEMENTS", {"cpu": 2 * 2 * 4 * 5**2})


@functools.partial(jax.jit, static_argnames=("op", "name"))
def run_and_pull(rows, others, reset, state, *, op, name):
    out, pull = jax.vjp(lambda *z: run(op, *z[:2], reset, z[2], name), rows, others, state)
    cots = [jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) for x in out]
    return out, pull(tuple(cots))


def values_and_gradients(op, rows, others, reset, state, name):
    """Returns outputs and gradients, with cotangents that differ for every element.

    Calls with equal shapes share one compiled program.
    """
    return jax.tree.leaves(run_and_pull(rows, others, reset, state, op=op, name=name))


@pytest.mark.parametrize("op", OPS)
def test_fast_equals_reference_in_float64(op):
    case, reset = example(op), resets(24, 7, 8, 21)
    with jax.enable_x64(True):
        expected = values_and_gradients(op, *case[:2], reset, case[2], "reference")
        actual = values_and_gradients(op, *case[:2], reset, case[2], "xla")
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == jnp.float64
        near(a, b, 1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_halves_make_a_whole_and_documents_stand_alone(op):
    rows, others, _ = example(op)
    reset, alone = resets(24, 5, 11, 23), resets(12, 0)
    with jax.enable_x64(True):
        part = jax.jit(functools.partial(run, op))
        y, state = part(rows, others, reset)
        first, middle = part([x[:, :12] for x in rows], others, reset[:, :12])
        second, last = part([x[:, 12:] for x in rows], others, reset[:, 12:], middle)
        document, _ = part([x[:, 11:23] for x in rows], others, alone, 1e3 * middle)
    near(np.concatenate([first, second], axis=1), y, 1e-12)
    near(last, state, 1e-12)
    near(document, y[:, 11:23], 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reference", "xla"])
@pytest.mark.parametrize("op", OPS)
def test_no_tokens_leave_the_state(op, name):
    rows, others, state = narrow(example(op, T=0))
    y, after = run(op, rows, others, np.zeros((2, 0), bool), state, name)
    assert y.shape == rows[2 if DECAYS.get(op) == 3 else 0].shape
    assert (after == state).all()


@pytest.mark.parametrize("op", OPS)
def test_bfloat16_rows_keep_a_float32_state(op):
    rows, others, _ = example(op)
    rows, others = narrow(rows, jnp.bfloat16), narrow(others)
    y, state = jax.jit(functools.partial(run, op))(rows, others, resets(24, 7))
    assert y.dtype == jnp.bfloat16
    assert state.dtype == (jnp.bfloat16 if op == "causal_conv" else jnp.float32)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (rows, others))
        empty = np.zeros_like(example(op)[2])
        expected, last = values_and_gradients(op, *wide, resets(24, 7), empty, "reference")[:2]
    for actual, exact in [(y, expected), (state, last)]:
        actual, exact = np.asarray(actual, np.float64), np.asarray(exact)
        assert np.sqrt(np.mean((actual - exact) ** 2) / np.mean(exact**2)) < 2e-2


def delta_by_hand(q, k, v, g, beta, reset, state):
    """Computes equation 10 as it is written, one head after the other."""
    o, last = np.zeros_like(v), state.copy()
    for b, h in np.ndindex(state.shape[:2]):
        for t in range(q.shape[1]):
            s = np.zeros_like(state[b, h]) if reset[b, t] else last[b, h]
            key, size = k[b, t, h], beta[b, t, h]
            s = np.exp(g[b, t, h]) * (s - size * np.outer(key, key @ s))
            last[b, h] = s + size * np.outer(key, v[b, t, h])
            o[b, t, h] = last[b, h].T @ q[b, t, h]
    return o, last


@pytest.mark.parametrize("name", ["reference", "xla"])
@pytest.mark.parametrize("positions", [(), (0, 4, 9, 10, 22)])
def test_gated_delta_by_hand(name, positions):
    rows, _, state = example("gated_delta")
    reset, rng = resets(24, *positions), np.random.default_rng(1)
    arrays = [*rows, state]
    directions = [0.3 * normal(rng, *x.shape) for x in arrays]
    expected = delta_by_hand(*rows, reset, state)
    with jax.enable_x64(True):
        actual = values_and_gradients("gated_delta", rows, [], reset, state, name)
    near(actual[0], expected[0], 1e-12)
    near(actual[1], expected[1], 1e-12)

    def loss(step, index):
        moved = [
            x + step * d * (i == index)
            for i, (x, d) in enumerate(zip(arrays, directions, strict=True))
        ]
        out = delta_by_hand(*moved[:5], reset, moved[5])
        return sum((np.cos(np.arange(x.size)).reshape(x.shape) * x).sum() for x in out)

    for i, (grad, direction) in enumerate(zip(actual[2:], directions, strict=True)):
        slope = (loss(1e-5, i) - loss(-1e-5, i)) / 2e-5
        np.testing.assert_allclose(
            (np.asarray(grad) * direction).sum(), slope, rtol=1e-6, atol=1e-7
        )


DECAYS = {
    "selective_scan": 1,
    "ssd": 1,
    "gated_delta": 3,
    "kda": 3,
    "gla": 3,
}  # which row holds dt or g


@pytest.mark.slow
@pytest.mark.parametrize("op", DECAYS)
def test_32k_tokens_stay_finite(op, monkeypatch):  # covers N18
    """Some steps are so long that the state is forgotten, the others so short that it is kept."""
    monkeypatch.setattr(selective_scan_loop, "CHUNK_SIZE", 32)
    rows, others, _ = example(op, B=1, T=32768)
    scale = np.where(np.arange(32768) % 100 == 50, 1e4, 1e-6)
    rows[DECAYS[op]] = rows[DECAYS[op]] * scale.reshape(-1, *[1] * (rows[DECAYS[op]].ndim - 2))
    rows, others = narrow((rows, others))
    actual = jax.jit(jax.value_and_grad(lambda z: jnp.square(run(op, *z)[0]).mean()))(
        (rows, others)
    )
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(actual))
    assert all(bool((x != 0).any()) for x in jax.tree.leaves(actual))


@pytest.mark.parametrize("op", DECAYS)
def test_a_long_step_does_not_blur_the_short_ones_after_it(op):  # covers N18
    """Differences of cumulative sums in float32 would have errors of 1e-3."""
    rows, others, state = example(op)
    rows[DECAYS[op]][:, 3] *= 1e4
    with jax.enable_x64(True):
        expected = values_and_gradients(op, rows, others, resets(24), state, "reference")
    rows, others, state = narrow((rows, others, state))
    for a, b in zip(
        values_and_gradients(op, rows, others, resets(24), state, "xla"), expected, strict=True
    ):
        near(a, b, 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_sharded_equals_single_device(op):
    """The batch is split over data, tokens over context, and channels or heads over model."""
    rows, others, state = narrow(example(op))
    reset = resets(24, 7, 8, 21)
    expected = values_and_gradients(op, rows, others, reset, state, "xla")
    mesh = jax.make_mesh(
        *((1, 2, 2, 1, 2), ("replica", "data", "context", "expert", "model")),
        axis_types=(jax.sharding.AxisType.Auto,) * 5,
    )
    specs = [
        PS("data", "context", "model") if x.shape[2] == 4 else PS("data", "context") for x in rows
    ]
    with jax.set_mesh(mesh):
        rows = [
            jax.device_put(x, jax.NamedSharding(mesh, s)) for x, s in zip(rows, specs, strict=True)
        ]
        actual = values_and_gradients(op, rows, others, reset, state, "xla")
    for a, b in zip(actual, expected, strict=True):
        near(a, b, 1e-5)


def test_unrolled_chunks_compute_what_a_loop_over_tokens_does(monkeypatch):
    monkeypatch.setattr(selective_scan_loop, "UNROLLED_CHUNK_SIZE", 5)
    rows, others, state = example("selective_scan", T=12)
    with jax.enable_x64(True):
        expected, actual = (
            values_and_gradients("selective_scan", rows, others, resets(12, 0, 7), state, name)
            for name in ("reference", "unrolled")
        )
    for a, b in zip(actual, expected, strict=True):
        near(a, b, 1e-10)


def gpu_interpreter():
    """Returns the parameters of Pallas' interpreter of GPUs, which jax 0.10 does not export."""
    from jax.experimental.pallas import mosaic_gpu

    if not hasattr(mosaic_gpu, "InterpretGPUParams"):
        from jax._src.pallas.mosaic_gpu.interpret import params as mosaic_gpu
    return mosaic_gpu.InterpretGPUParams()


@pytest.mark.slow
@pytest.mark.parametrize("module", [selective_scan_kernel, selective_scan_mosaic])
def test_an_interpreted_kernel_computes_what_a_loop_over_tokens_does(module, monkeypatch):
    """Rows of several chunks end inside one, and documents begin in the middle of a chunk."""
    interpreter = gpu_interpreter() if module is selective_scan_mosaic else True
    interpreted = functools.partial(module.scan_rows, interpret=interpreter)
    run_on_mesh = functools.partial(selective_scan._on_mesh, interpreted)
    monkeypatch.setitem(selective_scan.IMPLEMENTATIONS, "interpreted", run_on_mesh)
    rng, T = np.random.default_rng(0), 150
    rows = [rng.normal(size=(2, T, 128)), rng.uniform(0.001, 0.1, (2, T, 128))]
    rows += [rng.normal(size=(2, T, 4)) for _ in range(2)]
    others, state = [-rng.uniform(1, 16, (128, 4))], rng.normal(size=(2, 128, 4))
    rows, others, state = narrow((rows, others, state))
    expected, actual = (
        values_and_gradients("selective_scan", rows, others, resets(T, 0, 30, 129), state, name)
        for name in ("reference", "interpreted")
    )
    for a, b in zip(actual, expected, strict=True):
        near(a, b, 2e-5)


@pytest.fixture
def interpreted_memory(monkeypatch):
    """Interprets the kernels of matrix memories, as on a TPU."""
    interpreted = functools.partial(matrix_memory.scan_rows, interpret=True)
    monkeypatch.setattr(matrix_memory, "scan_rows", interpreted)
    monkeypatch.setattr(tpu_kernel, "platform", lambda: "tpu")


def memory_example(op: str, T: int):
    """Returns an operation on heads with one decay each, and its rows, other arrays and state."""
    rng, B, H = np.random.default_rng(0), 2, 4
    k, v = normal(rng, B, T, 2 if op == "ssd" else H, 128), normal(rng, B, T, H, 64)
    k, q = k / np.linalg.norm(k, axis=-1, keepdims=True), normal(rng, *k.shape)
    dt, state = 0.3 * rng.random((B, T, H)), normal(rng, B, H, 128, 64)
    if op == "ssd":
        function = functools.partial(ssd.ssd, a=-rng.random(H).astype(np.float32))
        return function, [v, dt, k, q], np.swapaxes(state, 2, 3)
    if op == "gla":
        return gla.gla, [q, k, v, -dt[..., None]], state
    return with_beta, [q, k, v, -dt, 2 * rng.random((B, T, H))], state


@pytest.mark.slow
@pytest.mark.parametrize("op", ["ssd", "gla", "gated_delta"])
def test_an_interpreted_kernel_computes_what_the_recurrence_does(op, interpreted_memory):
    """Two chunks, of which the last is not full, and documents that begin inside a chunk."""
    T = 150
    function, rows, state = memory_example(op, T)
    rows, state = narrow((rows, state))

    def values(rows, state, name):
        if op == "ssd":
            x, dt, b, c = rows
            return function(x, dt, b=b, c=c, reset=reset, state=state, implementation=name)
        return function(*rows, reset=reset, state=state, implementation=name)

    def with_gradients(name):
        out, pull = jax.vjp(functools.partial(values, name=name), rows, state)
        cots = tuple(jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) for x in out)
        return jax.tree.leaves((out, pull(cots)))

    reset = resets(T, 0, 30, 129)
    expected, actual = (
        jax.jit(with_gradients, static_argnums=0)(n) for n in ("reference", "pallas")
    )
    for a, b in zip(actual, expected, strict=True):
        near(a, b, 5e-5)


@pytest.mark.slow
def test_an_interpreted_kernel_runs_on_the_heads_of_each_device(interpreted_memory):
    _, rows, state = memory_example("ssd", 128)
    (x, dt, b, c), state = narrow((rows, state))
    a = -np.ones(4, np.float32)

    @jax.jit
    def gradients(x, dt, a, b, c, state):
        def loss(*arrays):
            y, h = ssd.ssd(*arrays[:5], state=arrays[5], implementation="pallas")
            return jnp.sum(y * jnp.cos(y)) + jnp.sum(h**2)

        return jax.grad(loss, range(6))(x, dt, a, b, c, state)

    expected = gradients(x, dt, a, b, c, state)
    shape, axes = (1, 2, 1, 1, 2), ("replica", "data", "context", "expert", "model")
    devices = np.array(jax.devices()[:4]).reshape(shape)
    mesh = jax.sharding.Mesh(devices, axes, axis_types=(jax.sharding.AxisType.Auto,) * 5)
    with jax.set_mesh(mesh):
        actual = gradients(x, dt, a, b, c, state)
    for one, other in zip(actual, expected, strict=True):
        near(one, other, 1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "it needs a TPU, this is a cpu"),
        ({"chunk_size": 64}, "its chunks have 128 tokens, more than chunk_size 64"),
        ({"g": 3}, "its gates are for heads, these are for channels"),
    ],
)
def test_a_kernel_says_why_it_cannot_run(changes, said):
    rows = narrow(example("gla")[0])
    rows[3] = rows[3][..., : changes.get("g", 1)]
    with pytest.raises(ConfigError, match=said):
        gla.gla(*rows, chunk_size=changes.get("chunk_size"), implementation="pallas")


def test_selective_scan_never_holds_all_states(monkeypatch):
    monkeypatch.setattr(selective_scan_loop, "CHUNK_SIZE", 32)
    B, T, C, N = 2, 1024, 32, 16

    def temporary(name):
        rows = [jax.ShapeDtypeStruct((B, T, n), "float32") for n in (C, C, N, N)]
        a = [jax.ShapeDtypeStruct((C, N), "float32")]
        loss = jax.grad(lambda *z: run("selective_scan", *z, name=name)[0].sum(), (0, 1))
        return jax.jit(loss).lower(rows, a).compile().memory_analysis().temp_size_in_bytes

    all_states = 4 * B * T * C * N  # bytes
    assert temporary("reference") >= all_states
    assert temporary("xla") < all_states / 3


@pytest.mark.parametrize("op", OPS)
def test_what_does_not_fit_is_refused(op):
    rows, others, state = narrow(example(op))
    with pytest.raises(ConfigError, match="'xal'.*did you mean 'xla'"):
        run(op, rows, others, name="xal")
    with pytest.raises(ValueError, match="fit"):
        run(op, [rows[0][..., :2], *rows[1:]], [x[..., :3] for x in others])
    if op == "ssd":
        with pytest.raises(ValueError, match="4 heads do not divide into 3 groups"):
            run(op, [x[:, :, [0, 1, 1]] if i > 1 else x for i, x in enumerate(rows)], others)
