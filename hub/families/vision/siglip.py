"""Maps SigLIP's vision tower (arXiv:2303.15343): a vision stack alone, pooled by attention.

The model has no text stack (`depth` 0). A learned query attends to all patches, and an MLP behind a
norm is added to what it reads. Positions are those of patches, without a class token.
"""

from arch import ModelConfig
from arch.channels.mlp import MlpConfig
from arch.layers.norms import NormConfig
from arch.layers.patches import VisionConfig
from arch.mixers.attention import AttentionConfig
from hub.families.vision.clip import block_map, patch_matrix
from hub.families.vision.vit import TOKEN
from hub.family import HfFamily, find_part
from hub.hf_config import HfConfig, activation_name
from hub.tensor_transforms import IDENTITY, TRANSPOSED, TensorMap, identity, linear, norm
from settings.json_types import JsonObject

PREFIX, POOLER = "vision_model.", "vision.pooler."
# Mean and deviation of the colours, in the preprocessing of the published models.
MEAN = STD = (0.5, 0.5, 0.5)


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a config.json of SigLIP's vision tower."""
    channels = hf["num_channels"]
    return ModelConfig(
        width=hf["hidden_size"],
        depth=0,
        final_norm=False,
        norm=NormConfig("layer", eps=hf["layer_norm_eps"]),
        attention=AttentionConfig(
            heads=hf["num_attention_heads"],
            position_encoding="none",
            bias_qkv=True,
            bias_out=True,
        ),
        mlp=MlpConfig(
            hf["intermediate_size"],
            gated=False,
            activation=hf.activation("hidden_act", "gelu_pytorch_tanh"),
            bias=True,
        ),
        vision=VisionConfig(
            depth=hf["num_hidden_layers"],
            image_size=hf["image_size"],
            channels=channels,
            patch_size=hf["patch_size"],
            mean=MEAN if channels == len(MEAN) else (0.5,),
            std=STD if channels == len(STD) else (0.5,),
            pooling="attention" if hf.get("vision_use_head", True) else "mean",
        ),
    )


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for SigLIP's vision tower.

    Raises:
        LookupError: if the model has a text stack or class scores.
    """
    if config.depth or config.vision.num_classes:
        raise LookupError("a text stack or class scores")
    tower, cfg = config.vision_stack(), config.vision
    attention, mlp = find_part(tower, "attention"), find_part(tower, "mlp")
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": attention.heads,
        "intermediate_size": mlp.inner_dim(tower.width),
        "hidden_act": activation_name(mlp.activation),
        "layer_norm_eps": tower.norm.eps,
        "image_size": cfg.image_size,
        "patch_size": cfg.patch_size,
        "num_channels": cfg.channels,
        "vision_use_head": cfg.pooling == "attention",
    }


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
    hf_defaults={
        **{"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
        **{"intermediate_size": 3072, "image_size": 224, "patch_size": 16, "num_channels": 3},
        "layer_norm_eps": 1e-6,
    },
    prefix=PREFIX,
    ignored_tensors=(r".*embeddings\.position_ids", r"text_model\..*", r"logit_(scale|bias)"),
)
