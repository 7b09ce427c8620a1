"""Tests of the backbone: refused settings, costs, and the properties of single parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from golden import golden
from test_contracts import multiply_adds

from arch import Model, ModelConfig, SequenceInfo, compute_cost
from arch.block import BlockConfig
from arch.channels.mlp import Mlp, MlpConfig
from arch.channels.moe import MoeConfig
from arch.layers.activations import ACTIVATIONS
from arch.layers.embedding import EmbedConfig, HeadConfig
from arch.layers.norms import NormConfig, gated_rms_norm, layer_norm, rms_norm
from arch.layers.positions import PositionsConfig, alibi_slopes
from arch.layers.rope import RopeConfig, apply_rope, attention_factor, inv_freq, rotate
from arch.mixers.attention import Attention, AttentionConfig
from arch.mixers.attention_config import attention_cost
from arch.mixers.combined.bidirectional import BidirectionalConfig
from arch.mixers.gated_deltanet import GatedDeltaNetConfig
from arch.mixers.mamba1 import Mamba1, Mamba1Config
from arch.mixers.mamba2 import Mamba2, Mamba2Config
from arch.part_cost import CostContext
from errors import ConfigError
from ops.recurrent import channel_decay, chunked_recurrence, ssd


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"width": 100, "attention": AttentionConfig(heads=8)}, ["100", "heads 8", "96 or 104"]),
        ({"layers": ("atention+mlp",)}, ["'atention'", "did you mean 'attention'"]),
        ({"layers": ("attention+mpl",)}, ["'mpl'", "did you mean 'mlp'"]),
        ({"layers": ("attention",)}, ["'attention'", "mixer+channel"]),
        ({"layers": ()}, ["empty"]),
        ({"layers": ("attention@far+mlp",)}, ["attention@far", "variants"]),
        ({"depth": 1, "layers": ("attention+mlp",) * 2}, ["depth 1", "nearest valid value: 2"]),
        ({"dtype": "float16"}, ["'float16'", "float"]),
        (
            {"layers": ("mamba2+none",), "mamba2": Mamba2Config(head_dim=60)},
            ["head_dim 60", "512", "nearest valid value: 64"],
        ),
        (
            {"layers": ("mamba2+none",), "mamba2": Mamba2Config(n_groups=3)},
            ["groups 3", "8 heads", "nearest valid value: 2"],
        ),
        (
            {"layers": ("gated_deltanet+mlp",), "gated_deltanet": GatedDeltaNetConfig(heads=5)},
            ["256", "heads 5", "key_dim", "nearest valid value: 38"],
        ),
        ({"dtype": "float64"}, ["jax_enable_x64"]),
    ],
)
def test_a_model_that_cannot_be_is_refused_in_one_line(changes, fragments):
    # covers C9 C13 N6
    with pytest.raises(ConfigError) as error:
        ModelConfig(**changes)
    message = str(error.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def test_heads_must_divide_and_variants_must_name_settings():
    # covers C9
    with pytest.raises(ConfigError, match="kv_heads 3 does not divide attention.heads 8.*1, 2, 4"):
        AttentionConfig(heads=8, kv_heads=3)
    with pytest.raises(ConfigError, match="variants.local.windw; did you mean 'window'"):
        tiny.config(layers=("attention@local+mlp",), variants={"local": {"windw": 2}})
    with pytest.raises(ConfigError, match=r"variants.local.rope.theta is -1"):
        changes = {"local": {"rope": {"theta": -1.0}}}
        tiny.config(layers=("attention@local+mlp",), variants=changes)


def test_variants_of_a_part_interleave():
    layers = ("attention@local+mlp", "attention+mlp")
    cfg = tiny.config(layers=layers, depth=5, variants={"local": {"window": 2}})
    model = tiny.model(cfg)
    assert [b.mixer.cfg.window for b in model.stack.blocks] == [2, 0]
    assert len(model.stack.last) == 1 and model.stack.last[0].mixer.cfg.window == 2
    assert model.stack.blocks[0].mixer.w_q.shape == (2, 16, 16)
    assert tuple(model.stack.blocks[0].mixer.w_q.get_metadata()["out_sharding"]) == (
        None,
        "data",
        "model",
    )


def test_a_hybrid_is_scanned_and_decoded():
    """Mixers with different states, channels with and without metrics, windows that interleave."""
    cfg = tiny.config(
        layers=("mamba2+none", "attention@local+moe"),
        first_layers=("gated_deltanet+none",),
        depth=6,
        variants={"local": {"window": 3}},
    )
    model, ids, seq = tiny.model(cfg), tiny.tokens(1, 8), tiny.packed([5, 3], 8)
    assert model.stack.repeats == 2 and len(model.stack.last) == 1  # The suffix repeats mamba2.
    run = jax.jit(lambda m, t, s, state: m(t, s, state=state))
    full, aux, _ = run(model, ids, seq, None)
    assert aux["moe.balance_loss"].sum.shape == (2,)
    state, parts = jax.jit(lambda m: m.init_state(1, 8))(model), []
    for low, high in ((0, 4), (4, 8)):
        cut = jax.tree.map(lambda a: a[:, low:high], seq)  # noqa: B023
        hidden, _, state = run(model, ids[:, low:high], cut, state)
        parts.append(hidden)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), full, atol=3e-5)


def test_each_block_of_a_pattern_is_rematerialised_by_itself():
    """Otherwise the backward pass of a hybrid stores the activations of all blocks of a pattern."""
    cfg = tiny.config(layers=("attention+mlp", "attention+none", "attention+mlp"), depth=6)
    cfg = dataclasses.replace(cfg, remat="full")
    model, ids, seq = tiny.model(cfg), tiny.tokens(1, 7), tiny.packed([5, 2], 7)
    traced = jax.make_jaxpr(lambda m: m(ids, seq)[0])(model)
    (loop,) = (e for e in traced.eqns if e.primitive.name == "scan")
    inside = [e.primitive.name for e in loop.params["jaxpr"].eqns]
    assert loop.params["length"] == 2 and inside.count("remat2") + inside.count("checkpoint") == 3


def test_published_counts_and_pinned_flops():
    """The reference figures are for D=1024, T=2048, 16 heads of width 64, V=32000, F=2816."""
    context = CostContext(2048)
    sixteen = AttentionConfig(heads=16)
    terms = Attention.cost(1024, sixteen, context).terms
    assert terms["projections"].executed == 8_388_608
    assert terms["core"].executed == 4_196_352
    grouped = dataclasses.replace(sixteen, kv_heads=4)
    assert Attention.cost(1024, grouped, context).terms["projections"].executed == 5_242_880
    windowed = dataclasses.replace(sixteen, window=512)
    assert Attention.cost(1024, windowed, context).terms["core"].executed == 1_835_520
    assert Mlp.cost(1024, MlpConfig(width=2816), context).terms["mlp"].executed == 17_301_504
    model = ModelConfig(width=1024, depth=1, vocab_size=32000, attention=sixteen)
    assert compute_cost(model, 2048).head_flops == 65_536_000
    assert compute_cost(model, 2048, logit_fraction=0.25).head_flops == 16_384_000


def test_pinned_flops_of_state_space_models():
    """The reference figures are for D=1024 and T=2048.

    Mamba-1 has N=16; Mamba-2 has N=128, P=64, G=1 and chunks of 256.
    """
    context = CostContext(2048)

    def total(cost, count):
        return sum(dataclasses.asdict(flops)[count] for flops in cost.terms.values())

    mamba1 = Mamba1.cost(1024, Mamba1Config(), context)
    assert {name: flops.executed for name, flops in mamba1.terms.items()} == {
        "in": 8_388_608,
        "conv": 16_384,
        "select": 393_216,
        "dt": 262_144,
        "scan": 229_376,
        "out": 4_194_304,
    }
    assert total(mamba1, "executed") == 13_484_032
    mamba2 = Mamba2.cost(1024, Mamba2Config(chunk_size=256), context)
    assert {name: flops.executed for name, flops in mamba2.terms.items()} == {
        "in": 8_978_432,
        "conv": 18_432,
        "cb": 65_536,
        "yx": 1_048_576,
        "states": 524_288,
        "inter_chunk": 2_048,
        "off_diagonal": 524_288,
        "out": 4_194_304,
    }
    assert total(mamba2, "executed") == 15_355_904
    assert total(mamba2, "model") == 14_387_200
    assert (
        Mamba2.cost(1024, Mamba2Config(chunk_size=64), context).terms["cb"].model
        == mamba2.terms["cb"].model
    )
    # The states have C N + C (K - 1) and H P N + (C + 2 G N) (K - 1) numbers.
    assert mamba1.state_bytes == 4 * (2048 * 16 + 2048 * 3)
    assert mamba2.state_bytes == 4 * (2048 * 128 + (2048 + 256) * 3)


def added_up(g):
    """Computes `chunk_decays` by sums, which are not counted, where it uses products with ones."""
    i, j = np.ogrid[: g.shape[-1], : g.shape[-1]]
    within = jnp.exp(jnp.cumsum(jnp.where(i > j, g[..., None], 0), axis=-2)) * (i >= j)
    into = jnp.exp(jnp.cumsum(g, axis=-1))
    return chunked_recurrence.ChunkDecays(within, into, within[..., -1, :], into[..., -1])


CHUNKED = [
    ("mamba2", ssd),
    *((name, channel_decay) for name in ("gated_deltanet", "kda", "gdn2", "delta_product")),
    *((name, channel_decay) for name in ("gla", "hgrn2", "lightning")),
]


@pytest.mark.parametrize(("mixer", "op"), CHUNKED)
def test_chunked_recurrences_execute_what_they_say(mixer, op, monkeypatch):
    g = -np.exp(np.random.default_rng(0).normal(size=(2, 3, 8))).astype(np.float32)
    decays = jax.jit(lambda g: (chunked_recurrence.chunk_decays(g), added_up(g)))(g)
    for actual, expected in zip(*decays, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)
    monkeypatch.setattr(op, "chunk_decays", added_up)
    cfg = tiny.config(mixer, depth=1, scan=False)
    model, T = jax.eval_shape(lambda: Model(cfg, key=jax.random.key(0))), 8
    ids, seq = tiny.tokens(1, T), SequenceInfo.unpacked(1, T)
    jaxpr = jax.make_jaxpr(lambda m: m.logits(m(ids, seq)[0]))(model)
    matrix = sum(w.executed for w in compute_cost(cfg, T).terms.values() if not w.elementwise)
    assert multiply_adds(jaxpr.jaxpr) == pytest.approx(T * matrix)


def test_the_second_direction_costs_what_the_first_does():
    shared, separate = (
        tiny.config("mamba1", bidirectional=BidirectionalConfig(weights=w))
        for w in ("shared", "separate")
    )
    once, twice = compute_cost(shared, 8), compute_cost(shared, 8, view="bidirectional")
    assert once.params == twice.params
    assert twice.terms["mamba1.in"].model == 2 * once.terms["mamba1.in"].model
    assert twice.terms["mlp.mlp"] == once.terms["mlp.mlp"]
    twice_separate = compute_cost(separate, 8, view="bidirectional")
    assert twice_separate.parts["mamba1"] == 2 * once.parts["mamba1"]
    assert compute_cost(separate, 8).active_params == once.active_params


GPT2 = ModelConfig(
    width=768,
    depth=12,
    vocab_size=50257,
    vocab_multiple=1,
    attention=AttentionConfig(heads=12, position_encoding="none", bias_qkv=True, bias_out=True),
    mlp=MlpConfig(gated=False, activation="gelu_tanh", bias=True),
    norm=NormConfig(kind="layer", eps=1e-5),
    positions=PositionsConfig(learned=True, max_length=1024),
)
LLAMA2_7B = ModelConfig(
    width=4096,
    depth=32,
    vocab_size=32000,
    attention=AttentionConfig(heads=32),
    mlp=MlpConfig(width=11008),
    head=HeadConfig(tied=False),
)
MISTRAL_7B = dataclasses.replace(
    LLAMA2_7B,
    attention=AttentionConfig(heads=32, kv_heads=8, window=4096),
    mlp=MlpConfig(width=14336),
)


MIXTRAL = dataclasses.replace(
    MISTRAL_7B,
    layers=("attention+moe",),
    attention=AttentionConfig(heads=32, kv_heads=8),
    moe=MoeConfig(width=14336),
)
MAMBA = ModelConfig(
    width=2560, depth=64, vocab_size=50277, vocab_multiple=8, layers=("mamba1+none",)
)


@pytest.mark.parametrize(
    ("model", "published"),
    [
        (GPT2, 124_439_808),
        (LLAMA2_7B, 6_738_415_616),
        (MISTRAL_7B, 7_241_732_096),
        (MIXTRAL, 46_702_792_704),
        (MAMBA, 2_768_345_600),
    ],
)
def test_published_models_have_their_published_parameters(model, published):
    shapes = jax.eval_shape(lambda: Model(model, key=jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == published
    assert compute_cost(model, 1024).params == published


@pytest.mark.parametrize("view", ["causal", "prefix", "bidirectional"])
@pytest.mark.parametrize("window", [0, 1, 3, 4, 9])
def test_mean_keys_are_those_of_the_mask(view, window):
    T, P = 7, 4
    i, j = np.mgrid[:T, :T]
    visible = (j <= i) | (view == "bidirectional") | ((view == "prefix") & (j < P))
    if window:
        reach = window // 2 if view == "bidirectional" else window - 1
        visible &= abs(i - j) <= reach
    assert CostContext(T, view, P).mean_keys_per_query(window) == pytest.approx(visible.sum() / T)


def test_costs_of_deep_models_and_long_rows_need_no_loop():
    shallow, deeper, deep = (
        compute_cost(tiny.config("attention", depth=depth), 2**30) for depth in (1, 2, 10**6)
    )
    one_layer = deeper.model_flops - shallow.model_flops
    assert deep.model_flops == pytest.approx(shallow.model_flops + (10**6 - 1) * one_layer)
    assert deep.params - shallow.params == (10**6 - 1) * (deeper.params - shallow.params)
    assert deep.state_bytes == 10**6 * shallow.state_bytes
    T = 10**9
    assert CostContext(T, "bidirectional").mean_keys_per_query(4) == pytest.approx(
        5 - 6 / T, rel=1e-15
    )
    assert CostContext(T, "prefix", 10).mean_keys_per_query() == (T * (T + 1) // 2 + 45) / T


@pytest.mark.parametrize(("block_size", "top_blocks"), [(1, 1), (4, 1), (4, 3), (5, 9)])
@pytest.mark.parametrize("T", [1, 7, 24])
def test_selected_keys_are_those_of_the_blocks(block_size, top_blocks, T):
    cfg, D = AttentionConfig(heads=2, block_size=block_size, top_blocks=top_blocks), 8
    terms = attention_cost(D, cfg, CostContext(T)).terms
    earlier = [i // block_size for i in range(T)]  # whole blocks before the block of a token
    keys = [min(n, top_blocks - 1) * block_size + i % block_size + 1 for i, n in enumerate(earlier)]
    assert terms["core"].model == pytest.approx(4 * D * np.mean(keys))
    assert terms["selection"].model == pytest.approx(2 * D * np.mean(earlier))


@pytest.mark.parametrize(
    "wiring",
    ["pre", "residual_post_norm", "post", "sandwich", "branch_norm", "parallel"],
)
def test_wirings_follow_their_formulas(wiring):
    cfg = tiny.config(depth=1, block=BlockConfig(wiring=wiring))
    block = jax.tree.map(lambda a: a[0], tiny.model(cfg).stack.blocks[0])
    x = np.random.default_rng(0).normal(size=(1, 5, 16)).astype(np.float32)
    actual, expected = jax.jit(_run_wiring, static_argnums=2)(block, x, wiring)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def _run_wiring(block, x, wiring):
    """Returns the output of a block and that of the wiring's formula."""
    seq = SequenceInfo.unpacked(1, 5)

    def mixer(x):
        return block.mixer(x, seq)[0]

    def channel(x):
        return block.channel(x, seq)[0]

    n, m = block.norm_mixer, block.norm_channel
    if wiring == "pre":
        y = x + mixer(n(x))
        expected = y + channel(m(y))
    elif wiring == "residual_post_norm":
        y = n(x) + mixer(n(x))
        expected = m(y) + channel(m(y))
    elif wiring == "post":
        y = n(x + mixer(x))
        expected = m(y + channel(y))
    elif wiring == "branch_norm":
        y = x + block.norm_post_mixer(mixer(x))
        expected = y + block.norm_post_channel(channel(y))
    elif wiring == "sandwich":
        y = x + block.norm_post_mixer(mixer(n(x)))
        expected = y + block.norm_post_channel(channel(m(y)))
    else:
        expected = x + mixer(n(x)) + channel(m(x))
    return block(x, seq)[0], expected


def test_embedding_scale_positions_head_cap_and_padding_of_the_vocabulary():
    cfg = tiny.config(
        depth=1,
        embed=EmbedConfig(scale=4.0, norm=True),
        positions=PositionsConfig(learned=True, max_length=8, offset=2),
        head=HeadConfig(tied=False, bias=True, scale=0.5, logit_softcap=3.0),
    )
    model = tiny.model(cfg)
    ids, seq = tiny.tokens(1, 6), SequenceInfo.unpacked(1, 6)
    hidden = np.random.default_rng(3).normal(size=(1, 6, 16)).astype(np.float32)

    @jax.jit
    def run(model):
        e = model.embed
        x = e.table[...][ids] * 4 + e.positions.table[...][2:8][None]
        return e(ids, seq, jnp.float32, None), e.norm(x), model.logits(hidden)

    actual, expected, logits = jax.device_get(run(model))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert logits.shape == (1, 6, 128)
    raw = 0.5 * hidden @ np.asarray(model.head.table[...]).T + np.asarray(model.head.bias[...])
    np.testing.assert_allclose(logits[..., :40], 3 * np.tanh(raw / 3)[..., :40], rtol=1e-4)
    assert (logits[..., 40:] == np.finfo(np.float32).min).all()


def test_dropout_needs_a_key_and_leaves_the_mean():
    cfg = tiny.config(block=BlockConfig(dropout=0.5), embed=EmbedConfig(dropout=0.1))
    model, ids, seq = tiny.model(cfg), tiny.tokens(2, 6), SequenceInfo.unpacked(2, 6)
    run = jax.jit(lambda m, key: m(ids, seq, key=key)[0])
    evaluated = [run(model, None) for _ in range(2)]
    np.testing.assert_array_equal(*evaluated)
    first, repeated, other = (run(model, jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, repeated)
    assert not np.allclose(first, other) and not np.allclose(first, evaluated[0])


def test_a_state_of_too_few_tokens_is_refused():
    model = tiny.model(tiny.config())
    with pytest.raises(ValueError, match="5 tokens after 0 do not fit a state for 3"):
        model(tiny.tokens(1, 5), SequenceInfo.unpacked(1, 5), state=model.init_state(1, 3))


@pytest.mark.parametrize("name", ["norms", "activations", "rope", "gated_rmsnorm"])
def test_goldens(name):
    """Compares with float64 outputs of other implementations (tests/goldens/ops)."""
    # covers N7
    cases = list(golden(name))
    with jax.enable_x64(True):
        results = jax.jit(lambda: [CHECKS[name](*case) for case in cases])()
    for (case, _, tensors), got in zip(cases, results, strict=True):
        for tensor, value in got.items():
            np.testing.assert_allclose(
                value, tensors[tensor], rtol=1e-10, atol=1e-12, err_msg=f"{case} {tensor}"
            )


def _norm(case, options, t):
    scale, bias = t.get("w"), t.get("b")
    if "layer" in case:
        return {"y": layer_norm(t["x"], scale, bias, options["eps"])}
    return {"y": rms_norm(t["x"], 1 + scale if "plus_one" in case else scale, options["eps"])}


def _activation(case, options, t):
    name = {"bloom_gelu": "gelu_bloom", "gelu_new": "gelu_tanh"}.get(case, case)
    return {"y": ACTIVATIONS[name](t["x"])} if name in ACTIVATIONS else {}


def _rope(case, options, t):
    style = {"half": "half", "pair": "interleaved"}[options["style"]]
    x, positions, factor = (
        t["x"][None],
        jnp.asarray(t["positions"])[None],
        options["attention_factor"],
    )
    last = options.get("seq_len", 1) - 1  # The last position, on which some scalings depend.
    cfg = stretched(options, style)
    assert attention_factor(cfg) == pytest.approx(factor, rel=1e-12), case
    got = {"inv_freq": inv_freq(cfg, options["dim"], jnp.asarray([[last]]))}
    if options["kind"] == "default":
        return got | {"y": apply_rope(x, positions, cfg)[0]}
    angle = positions[..., None, None] * t["inv_freq"]
    return got | {"y": rotate(x, factor * jnp.cos(angle), factor * jnp.sin(angle), style)[0]}


def stretched(options, style):
    """Returns the settings for a golden's options."""
    names = {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    }
    names |= {name: name for name in ("beta_fast", "beta_slow", "truncate")}
    names |= {"short_factor": "short_factor", "long_factor": "long_factor"}
    kind = options["kind"].replace("default", "none")
    max_length = options.get("max_position_embeddings", 0)
    changes = {ours: options[theirs] for theirs, ours in names.items() if theirs in options}
    changes |= {"original_length": options.get("original_max_position_embeddings", max_length)}
    if kind == "longrope":
        changes |= {"factor": max_length / changes["original_length"]}
    elif options["attention_factor"] != 1 and ("mscale" in options or "truncate" in options):
        changes |= {"attention_factor": options["attention_factor"]}
    return RopeConfig(
        theta=options["theta"], rotary_dim=options["dim"], style=style, scaling=kind, **changes
    )


def _gated(case, options, t):
    if options.get("norm_before_gate"):
        return {}
    inputs = t["x"], t["z"], t["w"]
    return {"y": gated_rms_norm(*inputs, options["eps"], options["groups"], False)}


CHECKS = {"norms": _norm, "activations": _activation, "rope": _rope, "gated_rmsnorm": _gated}


def test_alibi_slopes_golden():
    for _, _, t in golden("position_bias"):
        if "slopes" in t:
            np.testing.assert_allclose(alibi_slopes(len(t["slopes"])), t["slopes"], rtol=1e-12)


def test_norms_accumulate_in_float32():
    # covers N7
    x = (100 + np.random.default_rng(0).normal(size=(2, 4096))).astype(np.float64)
    half = jnp.asarray(x, jnp.bfloat16)
    wide = np.asarray(half, np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(rms_norm(half, None, 1e-6).astype(float), expected, rtol=4e-3)
