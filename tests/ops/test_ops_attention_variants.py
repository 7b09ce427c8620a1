"""Sinks, forgetting, block selection, gates and latent attention equal their goldens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from golden import golden

from arch import SequenceInfo
from arch.layers.rope import RopeConfig
from arch.mixers.combined.side_by_side import SideBySideConfig
from arch.mixers.latent_attention import LatentAttentionConfig, absorbed_form, plain_form
from errors import ConfigError
from ops.attention import chunked as attention_chunked
from ops.attention.attention import TokenIndex, attention
from ops.attention.decay import cumulative_log_decay
from ops.attention.moba import select_blocks

OPERATIONS = ("attention_sinks", "forgetting_attention", "moba", "gated_attention", "mla")
GOLDENS = {
    (op, case): (options, tensors) for op in OPERATIONS for case, options, tensors in golden(op)
}
# In "chunks" a chunk has 8 queries, so that a row has several.
VARIANTS = (
    ("chunks", "float64"),
    pytest.param("reference", "float64", marks=pytest.mark.slow),
    pytest.param("xla", "float32", marks=pytest.mark.slow),
)


def index_of(tensors, length: int, start: int = 0) -> TokenIndex:
    """Returns the tokens of the rows; segment 0 of the goldens is a document of its own."""
    segments = tensors.get("segment_ids", np.zeros((len(tensors["o"]), length), np.int32)) + 1
    order = (start + np.cumsum(segments != 0, axis=1) - 1).astype(np.int32)
    return TokenIndex(order, segments.astype(np.int32), order)


def run_case(op: str, case: str, x: dict[str, jax.Array], implementation: str) -> jax.Array:
    """Computes one golden case from its inputs."""
    options, tensors = GOLDENS[op, case]
    if op == "mla":
        forms = [latent_attention(options, tensors, x, implementation, a) for a in (False, True)]
        return jnp.stack(forms)
    queries = keys = index_of(tensors, x["q"].shape[1])
    if op == "forgetting_attention":
        decay = cumulative_log_decay(x["logf"], queries.segment_ids)
        queries = keys = queries._replace(log_decay=decay)
    if op == "moba":
        sizes = {"block_size": options["block"], "top_blocks": options["topk"]}
        queries, keys = select_blocks(x["q"], x["k"], queries, keys, **sizes, aligned=True)
    window = options.get("window")
    o = attention(
        *(x["q"], x["k"], x["v"], queries, keys),
        causal=True,
        window=None if window is None else (window - 1, 0),
        scale=options["scale"],
        sinks=x.get("sink"),
        implementation=implementation,
    )
    if op == "gated_attention":
        gate = jax.nn.sigmoid(x["gate"])
        o = o * (gate if gate.ndim == 4 else gate[..., None])
    return o


def latent_attention(options, tensors, x, implementation, absorbed) -> jax.Array:
    """Computes latent attention in one of its two forms."""
    weights = [jnp.moveaxis(x[n], 2, 0).reshape(x[n].shape[2], -1) for n in ("w_uk", "w_uv")]
    inputs = x["q_nope"], x["q_rope"], x["c"], x["k_rope"]
    form = absorbed_form(*inputs, weights[0]) if absorbed else plain_form(*inputs, *weights)
    (q, k, v), offset = form, options["query_offset"]
    queries, keys = index_of(tensors, q.shape[1], offset), index_of(tensors, k.shape[1])
    o = attention(
        *(q, k, v, queries, keys),
        causal=True,
        scale=options["scale"],
        aligned=not offset,
        implementation=implementation,
    )
    return jnp.einsum("bthr,hvr->bthv", o, x["w_uv"]) if absorbed else o


@functools.cache
def results(variant: str, dtype: str) -> dict:
    """Returns outputs and gradients of all cases, from one compiled program."""

    def run(op: str, case: str) -> tuple[jax.Array, dict]:
        tensors = GOLDENS[op, case][1]
        implementation = "reference" if variant == "reference" else "xla"
        x = {
            name: jnp.asarray(value, dtype)
            for name, value in tensors.items()
            if value.dtype == np.float64
        }
        inputs = {name: x[name] for name in x if f"grad_{name}" in x}
        o, pull = jax.vjp(lambda given: run_case(op, case, x | given, implementation), inputs)
        return o, pull(jnp.broadcast_to(x["cot_o"], o.shape))[0] if "cot_o" in x else {}

    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(dtype == "float64"):
        patch.setattr(attention_chunked, "CHUNK_SIZE", 128 if variant == "xla" else 8)
        actual = jax.jit(lambda: [run(*name) for name in GOLDENS])()
        return dict(zip(GOLDENS, jax.device_get(actual), strict=True))


@pytest.mark.parametrize(("variant", "dtype"), VARIANTS)
@pytest.mark.parametrize("op", OPERATIONS)
def test_golden(op, variant, dtype):
    """Outputs and gradients agree relative to the RMS of the expected ones."""
    for name, case in GOLDENS:
        if name != op:
            continue
        tensors, (o, gradients) = GOLDENS[op, case][1], results(variant, dtype)[op, case]
        values = 1e-10 if dtype == "float64" else 2e-5
        limits = {"o": values} | {f"grad_{n}": 5 * values for n in gradients}
        for key, actual in {"o": o, **{f"grad_{n}": g for n, g in gradients.items()}}.items():
            expected = tensors[key]
            if op == "mla":  # Both forms; their gradients add up.
                expected = np.stack([expected] * 2) if key == "o" else 2 * expected
            size = max(float(np.sqrt(np.mean(np.square(expected)))), 1e-3)
            assert np.abs(actual - expected).max() < limits[key] * size, (case, key)


def test_one_number_in_float32_would_forget_the_digits_of_weak_gates():
    """After 3000 tokens that each forget e^-20, a gate of e^-0.001 still has its digits."""
    T = 4096
    log_f = np.where(np.arange(T) < 3000, -20.0, -0.001).astype(np.float32)[None, :, None]
    ones = np.ones((1, T), np.int32)
    c = np.asarray(jax.jit(cumulative_log_decay)(log_f, ones))[0, :, 0]
    difference = (c[-1] - c[-2]).sum(dtype=np.float32)
    assert np.isfinite(c).all() and abs(difference + 0.001) < 1e-6
    assert abs(np.cumsum(log_f[0, :, 0], dtype=np.float32)[-2:] @ [-1, 1] + 0.001) > 1e-4


def test_all_blocks_are_full_attention_and_padding_selects_nothing():
    rng, T = np.random.default_rng(0), 21
    q, k, v = (rng.normal(size=(2, T, 2, 4)).astype(np.float32) for _ in range(3))
    segments = np.ones((2, T), np.int32)
    segments[1, :3], segments[1, 12:] = 0, 2
    order = np.maximum(np.cumsum(segments != 0, axis=1) - 1, 0).astype(np.int32)
    index = TokenIndex(order, segments, order)

    @jax.jit
    def run(q, k, v):
        pair = select_blocks(q, k, index, index, block_size=4, top_blocks=99, aligned=True)
        options = {"causal": True, "scale": 0.5}
        return attention(q, k, v, *pair, **options), attention(q, k, v, index, index, **options)

    chosen, full = jax.device_get(run(q, k, v))
    np.testing.assert_array_equal(chosen, full)


def test_the_cache_of_latents_has_its_declared_bytes_and_absorbed_steps_are_the_plain_form():
    with jax.enable_x64(True):
        cfg = tiny.config("latent_attention", dtype="float64")
        model = tiny.model(cfg)
        ids, seq = tiny.tokens(1, 9), SequenceInfo.unpacked(1, 9)
        full = jax.jit(lambda m: m(ids, seq)[0])(model)
        state = model.init_state(1, 9)
        cache = state.blocks[0].mixer
        assert cache.k.shape[1:] == (1, 9, 1, 6 + 2) and cache.v.size == 0
        step = jax.jit(lambda m, i, s, state: m(i, s, state=state)[::2])
        got = []
        for start, stop in ((0, 4), (4, 5), (5, 9)):
            part = SequenceInfo(seq.positions[:, start:stop], seq.segment_ids[:, start:stop])
            hidden, state = step(model, ids[:, start:stop], part, state)
            got.append(hidden)
        np.testing.assert_allclose(np.concatenate(got, 1), full, rtol=1e-10, atol=1e-12)


def test_settings_of_latents_that_do_not_fit_are_refused():
    for changes, words in (
        ({"kv_rank": 17}, "kv_rank 17 is above model.width 16.*16"),
        ({"query_rank": 40}, "query_rank 40 is above model.width 16"),
        ({"heads": 3}, "heads 3.*nearest valid values: 15 or 18"),
    ):
        with pytest.raises(ConfigError, match=words):
            tiny.config("latent_attention", latent_attention=LatentAttentionConfig(**changes))
    with pytest.raises(ConfigError, match="rope_dim 3 must be even"):
        LatentAttentionConfig(rope_dim=3, rope=RopeConfig())
    with pytest.raises(ConfigError, match="block_size 4.*window 3"):
        tiny.attention(block_size=4, window=3)
    with pytest.raises(ConfigError, match="out_scales has 3 factors, attention&lstm has 2"):
        sums = SideBySideConfig(out_scales=(1.0, 2.0, 3.0))
        tiny.config("attention&lstm", side_by_side=sums)
