"""Slow: SigLIP's towers (arXiv:2303.15343) are the vision stack and a text stack with its settings.

The weights have the names of transformers' files, whose values are float32; both libraries compute
in float64.
"""

import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import peer_python

from arch import ModelConfig, SequenceInfo
from arch.channels.mlp import MlpConfig
from arch.layers.norms import NormConfig
from arch.layers.patches import VisionConfig
from arch.layers.positions import PositionsConfig
from arch.mixers.attention import AttentionConfig
from hub import checkpoint, safetensors_io
from hub.families.vision.vision_tower import block_map, patch_matrix
from hub.family import HfFamily
from hub.tensor_transforms import IDENTITY, TRANSPOSED, TensorMap, Transform, identity, linear, norm

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "peers/siglip_model.py"
D = 12
QUERY = Transform(lambda x: x[0, 0], lambda x: x[None, None])  # [1 1 D] to [D]


def config() -> ModelConfig:
    """Returns the settings of the tiny model that the script writes."""
    return ModelConfig(
        width=16,
        depth=2,
        vocab_size=30,
        vocab_multiple=1,
        norm=NormConfig("layer", eps=1e-6),
        positions=PositionsConfig(learned=True, max_length=9),
        attention=AttentionConfig(heads=2, position_encoding="none", bias_qkv=True, bias_out=True),
        mlp=MlpConfig(20, gated=False, activation="gelu_tanh", bias=True),
        vision=VisionConfig(
            depth=2, width=D, image_size=12, channels=3, patch_size=4, pooling="attention"
        ),
    )


def name_map(cfg: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of both towers."""
    image, text, pooler = "vision_model.", "text_model.", "vision.pooler."
    qkv = [tuple(f"{pooler}attention.{kind}_{x}" for x in "qkv") for kind in "wb"]
    embedding = f"{image}embeddings."
    return (
        identity("embed.table", f"{text}embeddings.token_embedding.weight"),
        identity("embed.positions.table", f"{text}embeddings.position_embedding.weight"),
        *block_map("stack.{i}.", text + "encoder.layers.{i}."),
        *norm("stack.norm", f"{text}final_layer_norm"),
        *linear("vision.patches.w_in", f"{embedding}patch_embedding", patch_matrix(cfg.vision)),
        identity("vision.patches.positions", f"{embedding}position_embedding.weight"),
        *block_map("vision.stack.{i}.", image + "encoder.layers.{i}."),
        *norm("vision.stack.norm", f"{image}post_layernorm"),
        TensorMap((f"{pooler}query",), f"{image}head.probe", QUERY),
        TensorMap(qkv[0], f"{image}head.attention.in_proj_weight", TRANSPOSED, (D, D, D)),
        TensorMap(qkv[1], f"{image}head.attention.in_proj_bias", IDENTITY, (D, D, D)),
        *linear(f"{pooler}attention.w_o", f"{image}head.attention.out_proj"),
        *norm(f"{pooler}norm", f"{image}head.layernorm"),
        *linear(f"{pooler}mlp.w_in", f"{image}head.mlp.fc1"),
        *linear(f"{pooler}mlp.w_out", f"{image}head.mlp.fc2"),
    )


def test_the_towers_of_siglip_give_the_outputs_of_transformers(tmp_path):
    argv = [peer_python(), str(SCRIPT), str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    expected = safetensors_io.read_file(tmp_path / "outputs.st")
    family = HfFamily(
        *("siglip", "SiglipModel", lambda hf: config(), lambda cfg: {}, name_map),
        ignored_tensors=(r"text_model\.head\..*", r"logit_.*", r".*position_ids"),
    )
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        cfg = checkpoint.with_dtype(config(), "float64")
        model = checkpoint.load_model(tmp_path, family, cfg)

        @jax.jit
        def run(model, pixels, ids):
            vectors, _ = model.vision(jnp.moveaxis(pixels, 1, -1))
            seq = SequenceInfo.unpacked(*ids.shape, causal=False)
            text = model(ids, seq)[0]
            return {
                "image_hidden": vectors,
                "image_pooled": model.vision.pool(vectors),
                "text_hidden": text,
            }

        ids = jnp.asarray(expected["ids"], jnp.int32)
        got = jax.device_get(run(model, jnp.asarray(expected["pixels"]), ids))
    for name, value in got.items():
        reference = expected[name]
        gap = np.abs(value - reference).max() / np.sqrt(np.mean(reference**2))
        assert gap < 1e-8, (name, gap)
