"""Maps SigLIP's vision tower (arXiv:2303.15343): a vision stack alone, pooled by attention.

The model has no text stack (`depth` 0). A learned query attends to all patches, and an MLP behind a
norm is added to what it reads. Positions are those of patches, without a class token.
"""

from arch import ModelConfig
from arch.layers.patches import ImagePooling, VisionConfig
from hub.families.vision.vision_tower import (
    BASE_DEFAULTS,
    TOKEN,
    block_map,
    patch_matrix,
    read_blocks,
    read_tower_alone,
    write_tower,
)
from hub.family import HfFamily
from hub.hf_config import HfConfig
from hub.tensor_transforms import IDENTITY, TRANSPOSED, TensorMap, identity, linear, norm
from settings.json_types import JsonObject

PREFIX, POOLER = "vision_model.", "vision.pooler."
DEFAULT_NORM_EPS = 1e-6


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a config.json of SigLIP's vision tower."""
    blocks = read_blocks(hf, activation="gelu_pytorch_tanh", norm_eps=DEFAULT_NORM_EPS)
    pooling: ImagePooling = "attention" if hf.get("vision_use_head", True) else "mean"
    return read_tower_alone(hf, blocks, VisionConfig(pooling=pooling))


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for SigLIP's vision tower.

    Raises:
        LookupError: if the model has a text stack or class scores.
    """
    if config.depth or config.vision.num_classes:
        raise LookupError("a text stack or class scores")
    return {**write_tower(config), "vision_use_head": config.vision.pooling == "attention"}


def pooler_map(width: int) -> tuple[TensorMap, ...]:
    """Returns the tensor names of the pooler, whose three matrices are one tensor in the files."""
    qkv = [tuple(f"{POOLER}attention.{kind}_{x}" for x in "qkv") for kind in "wb"]
    head, sizes = f"{PREFIX}head.", (width, width, width)
    return (
        TensorMap((f"{POOLER}query",), f"{head}probe", TOKEN),
        TensorMap(qkv[0], f"{head}attention.in_proj_weight", TRANSPOSED, sizes),
        TensorMap(qkv[1], f"{head}attention.in_proj_bias", IDENTITY, sizes),
        *linear(f"{POOLER}attention.w_o", f"{head}attention.out_proj"),
        *norm(f"{POOLER}norm", f"{head}layernorm"),
        *linear(f"{POOLER}mlp.w_in", f"{head}mlp.fc1"),
        *linear(f"{POOLER}mlp.w_out", f"{head}mlp.fc2"),
    )


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of SigLIP's vision tower."""
    embeddings = f"{PREFIX}embeddings."
    return (
        *linear("vision.patches.w_in", f"{embeddings}patch_embedding", patch_matrix(config.vision)),
        identity("vision.patches.positions", f"{embeddings}position_embedding.weight"),
        *block_map("vision.stack.{i}.", PREFIX + "encoder.layers.{i}."),
        *norm("vision.stack.norm", f"{PREFIX}post_layernorm"),
        *(pooler_map(config.width) if config.vision.pooling == "attention" else ()),
    )


SIGLIP_VISION = HfFamily(
    *("siglip_vision_model", "SiglipVisionModel", read, write, name_map),
    hf_defaults={**BASE_DEFAULTS, "patch_size": 16, "layer_norm_eps": DEFAULT_NORM_EPS},
    prefix=PREFIX,
    ignored_tensors=(r".*embeddings\.position_ids", r"text_model\..*", r"logit_(scale|bias)"),
)
