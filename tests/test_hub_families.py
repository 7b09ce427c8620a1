"""Every family against its reference: outputs, decoding, and the bytes that come back."""

import dataclasses

import hub_goldens as goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hub
from arch import Sequence
from data import DataConfig, fetch
from hub import checkpoint, tensors
from hub.families import FAMILIES
from hub.graph import differences
from hub.outputs import sequence

# A part of the default suite; the others are slow.
FEW = {"llama3", "bert", "t5_v1_0", "mixtral", "bamba"}
# Ways to store: each layout and each quirk of old files once.
WAYS = FEW | {"gpt2_hub", "bert_gamma_beta", "llama_sharded", "llama_bfloat16", "codegen"}
WAYS |= {"falcon_40b", "mamba", "switch_transformers"}
STORED = [pytest.param(n, marks=[] if n in WAYS else pytest.mark.slow) for n in goldens.NAMES]
SOME = [pytest.param(n, marks=[] if n in FEW else pytest.mark.slow) for n in goldens.NAMES]
CAUSAL = [n for n in goldens.NAMES if "greedy_ids" in goldens.arrays(n, "expected")]
# Keys that decoding has cached stay as short rows turned them; no capacity is reached by steps.
STEPS = [n for n in CAUSAL if n not in ("llama_dynamic_rope", "switch_transformers")]


@pytest.mark.parametrize("name", SOME)
def test_outputs_in_float64_are_those_of_the_reference(name):
    """Logits to 1e-8 of their RMS; the same tokens by recompute, the same experts."""
    inputs, expected = goldens.arrays(name, "inputs"), goldens.arrays(name, "expected")
    got = hub.forward(goldens.FOLDER / name, inputs)
    assert got["logits"].dtype == np.float64
    assert goldens.difference(name, got["logits"]) < 1e-8
    for key, wanted in expected.items():
        if key == "greedy_ids":
            np.testing.assert_array_equal(got[key], wanted)
        elif "router_combine" in key:
            of = "decoder_" if key.startswith("decoder") else ""
            seen = inputs[f"{of}attention_mask"].reshape(-1) != 0
            np.testing.assert_array_equal(got[key][seen] != 0, wanted[seen] != 0)
            np.testing.assert_allclose(got[key][seen], wanted[seen], atol=1e-5)
        elif key in ("pooler_output", "seq_relationship_logits"):
            whole = inputs["attention_mask"][:, 0] != 0  # of the others the first is padding
            np.testing.assert_allclose(got[key][whole], wanted[whole], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", goldens.NAMES)
def test_outputs_in_float32_are_within_its_noise(name):
    inputs = goldens.arrays(name, "inputs")
    inputs.pop("prompt_ids", None)
    got = hub.forward(goldens.FOLDER / name, inputs, dtype="float32")
    assert got["logits"].dtype == np.float32
    assert goldens.difference(name, got["logits"], least=0.3) < 5e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_prefill_and_steps_say_the_same_tokens(name):
    prompt = jnp.asarray(goldens.arrays(name, "inputs")["prompt_ids"])
    expected = goldens.arrays(name, "expected")
    model, config, _ = hub.load(goldens.FOLDER / name)
    source, (B, P) = None, prompt.shape
    state = model.start(B, P + 16, source=P if config.encoder.depth else 0)
    if config.encoder.depth:
        source = prompt, Sequence.plain(B, P, causal=False)
        prompt, P = jnp.zeros((B, 1), jnp.int32), 1

    @jax.jit
    def step(model, tokens, seq, state, source=None):
        hidden, _, state = model(tokens, seq, state=state, source=source)
        return model.logits(hidden[:, -1:])[:, 0, : config.vocab], state

    with jax.default_matmul_precision("highest"):
        logits, state = step(model, prompt, Sequence.plain(B, P), state, source)
        found = [logits]
        for n in range(15):
            token = jnp.argmax(logits, axis=-1)[:, None]
            logits, state = step(model, token, Sequence.plain(B, 1, start=P + n), state)
            found.append(logits)
    got = np.stack(found, axis=1)
    np.testing.assert_array_equal(got.argmax(-1), expected["greedy_ids"])
    np.testing.assert_allclose(got, expected["greedy_logits"], atol=2e-4)


@pytest.mark.parametrize("name", STORED)
def test_what_is_exported_has_the_bytes_that_were_imported(name, tmp_path):
    """Tensor by tensor, but for buffers, duplicates and old names; the config means the same."""
    folder = goldens.FOLDER / name
    family, config = checkpoint.family_of(folder)
    model, _, _ = hub.load(folder)
    dtype = "bfloat16" if name == "llama_bfloat16" else "float32"
    hub.save(model, config, tmp_path, family=family.kind, dtype=dtype)
    wanted, got = tensors.entries(folder), tensors.entries(tmp_path)
    if name in ("gpt2_hub", "bert_gamma_beta"):
        bounds = checkpoint.bind(config, model, family.ties(config))
        wanted = checkpoint._renamed(wanted, family, {n for b in bounds for n in b.theirs})
    extra = {n for n, _ in family.copies} | {"cls.predictions.decoder.bias"}
    assert set(wanted) - extra == set(got) - extra
    for key in got:
        other = wanted[key if key in wanted else dict(family.copies)[key]]
        assert tensors.read(got[key]).tobytes() == tensors.read(other).tobytes(), key
    again, other = checkpoint.family_of(tmp_path)
    assert again.kind == family.kind
    assert not differences(config, other)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("llama2", "llama"), ("mistral", "mistral"), ("mixtral", "mixtral"), ("bamba", "bamba")],
        *[
            ("gpt_neox", "gpt_neox"),
            ("bloom", "bloom"),
            ("roberta", "roberta"),
            ("mamba2", "mamba2"),
        ],
    ],
)
def test_a_config_finds_a_family_that_computes_the_same(name, kind):
    _, config = checkpoint.family_of(goldens.FOLDER / name)
    family, _ = checkpoint.exported(dataclasses.replace(config, remat="full"))
    assert family.kind == kind


@pytest.mark.parametrize(
    "path", sorted(p.parent.name for p in goldens.FOLDER.glob("*/config_v4.json"))
)
def test_configs_of_older_versions_mean_the_same(path, tmp_path):
    folder = goldens.copy(path, tmp_path / "old", leave=("config.json",))
    (folder / "config.json").write_text((goldens.FOLDER / path / "config_v4.json").read_text())
    old, new = (checkpoint.family_of(f)[1] for f in (folder, goldens.FOLDER / path))
    assert not differences(old, new)


@pytest.mark.slow
def test_published_weights_of_minilm_say_the_published_cosines():
    """Of sentences, as the mean over their tokens: the figures of the package's model card."""
    folder = fetch.place("minilm", DataConfig().cache)
    if not folder.exists():
        pytest.skip("needs the weights: python -m data.fetch minilm")
    model, _, tokenizer = hub.load(folder)
    texts = ["That is a happy person", "That is a happy dog"]
    texts += ["That is a very happy person", "Today is a sunny day"]
    ids = tokenizer.specials
    rows = [[ids.cls, *text, ids.sep] for text in tokenizer.encode(texts)]
    mask = np.array([[i < len(row) for i in range(10)] for row in rows])
    tokens = np.array([row + [ids.pad] * (10 - len(row)) for row in rows])
    seq = sequence(FAMILIES["bert"], jnp.asarray(tokens), jnp.asarray(mask), ids.pad)
    with jax.default_matmul_precision("highest"):
        hidden = np.asarray(model(jnp.asarray(tokens), seq)[0])
    mean = (hidden * mask[..., None]).sum(1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(mean[1:] @ mean[0], [0.6946, 0.9429, 0.2569], atol=1e-3)
