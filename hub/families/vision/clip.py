"""Maps CLIP (arXiv:2103.00020): a causal text tower, a vision tower, and two projections.

A text is pooled at its last token, which is the end token, and an image at its class token. The
vision tower has a norm before its blocks, called `pre_layrnorm` in the files, and its last norm is
applied to the class token alone, which is the only token that is pooled.
"""

import dataclasses

import numpy as np

from arch import ModelConfig
from arch.channels.mlp import MlpConfig
from arch.layers.norms import NormConfig
from arch.layers.patches import VisionConfig
from arch.layers.positions import PositionsConfig
from arch.mixers.attention import AttentionConfig
from hub.family import HfFamily, find_part
from hub.hf_config import HfConfig, activation_name
from hub.tensor_transforms import TRANSPOSED, TensorMap, Transform, identity, linear, norm
from settings.json_types import JsonObject

# Mean and deviation of the colours, in the preprocessing of the published models.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
TEXT_DEFAULTS = {
    **{"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12},
    **{"num_attention_heads": 8, "max_position_embeddings": 77, "vocab_size": 49408},
}
VISION_DEFAULTS = {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
    **{"num_attention_heads": 12, "image_size": 224, "patch_size": 32, "num_channels": 3},
}


def patch_matrix(cfg: VisionConfig) -> Transform:
    """Returns the transform of a convolution [D channels y x] to a matrix [channels y x, D]."""
    shape = cfg.channels, cfg.patch_size, cfg.patch_size

    def to_hf(x: np.ndarray) -> np.ndarray:
        return x.T.reshape(-1, *shape)

    return Transform(lambda x: x.reshape(len(x), -1).T, to_hf)


def read_blocks(hf: HfConfig) -> tuple[AttentionConfig, MlpConfig, NormConfig]:
    """Returns the parts of the blocks of one tower."""
    attention = AttentionConfig(
        heads=hf["num_attention_heads"], position_encoding="none", bias_qkv=True, bias_out=True
    )
    activation = hf.activation("hidden_act", "quick_gelu")
    mlp = MlpConfig(hf["intermediate_size"], gated=False, activation=activation, bias=True)
    return attention, mlp, NormConfig("layer", eps=hf.get("layer_norm_eps", 1e-5))


def read_tower(hf: HfConfig, base: VisionConfig) -> VisionConfig:
    """Returns the vision stack of a `vision_config`, with what `base` says of its outputs."""
    attention, mlp, block_norm = read_blocks(hf)
    hf.ignore("projection_dim", "vocab_size")
    channels = hf["num_channels"]
    return dataclasses.replace(
        base,
        depth=hf["num_hidden_layers"],
        width=hf["hidden_size"],
        parts={
            "attention": dataclasses.asdict(attention),
            "mlp": dataclasses.asdict(mlp),
            "norm": dataclasses.asdict(block_norm),
        },
        image_size=hf["image_size"],
        channels=channels,
        patch_size=hf["patch_size"],
        mean=MEAN if channels == len(MEAN) else base.mean,
        std=STD if channels == len(STD) else base.std,
        patch_bias=False,
        class_token=True,
        input_norm=True,
    )


def write_tower(config: ModelConfig) -> JsonObject:
    """Returns the keys of `vision_config`."""
    cfg, tower = config.vision, config.vision_stack()
    attention, mlp = find_part(tower, "attention"), find_part(tower, "mlp")
    return {
        "model_type": "clip_vision_model",
        "hidden_size": tower.width,
        "intermediate_size": mlp.inner_dim(tower.width),
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": attention.heads,
        "hidden_act": activation_name(mlp.activation),
        "layer_norm_eps": tower.norm.eps,
        "image_size": cfg.image_size,
        "patch_size": cfg.patch_size,
        "num_channels": cfg.channels,
        "projection_dim": cfg.embed_dim or tower.width,
    }


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a CLIP config.json."""
    text = hf.section("text_config", "clip_text_model", TEXT_DEFAULTS)
    image = hf.section("vision_config", "clip_vision_model", VISION_DEFAULTS)
    hf.ignore("logit_scale_init_value", "text_config_dict", "vision_config_dict")
    text.ignore("projection_dim")
    attention, mlp, block_norm = read_blocks(text)
    joint = VisionConfig(class_token=True, pooling="class", embed_dim=hf.get("projection_dim", 512))
    return ModelConfig(
        width=text["hidden_size"],
        depth=text["num_hidden_layers"],
        vocab_size=text["vocab_size"],
        vocab_multiple=1,
        norm=block_norm,
        positions=PositionsConfig(learned=True, max_length=text["max_position_embeddings"]),
        attention=attention,
        mlp=mlp,
        vision=read_tower(image, joint),
    )


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for CLIP.

    Raises:
        LookupError: if the model does not compare images with texts.
    """
    if not config.vision.depth or not config.vision.embed_dim:
        raise LookupError("no joint embedding")
    attention, mlp = find_part(config, "attention"), find_part(config, "mlp")
    return {
        "projection_dim": config.vision.embed_dim,
        "vision_config": write_tower(config),
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_size": config.width,
            "intermediate_size": mlp.inner_dim(config.width),
            "num_hidden_layers": config.depth,
            "num_attention_heads": attention.heads,
            "hidden_act": activation_name(mlp.activation),
            "layer_norm_eps": config.norm.eps,
            "max_position_embeddings": config.positions.max_length,
            "vocab_size": config.vocab_size,
            "projection_dim": config.vision.embed_dim,
        },
    }


def block_map(layer: str, hf_layer: str) -> tuple[TensorMap, ...]:
    """Returns the tensor names of the blocks of one tower."""
    return (
        *norm(f"{layer}norm_mixer", f"{hf_layer}layer_norm1"),
        *linear(f"{layer}attention.w_q", f"{hf_layer}self_attn.q_proj"),
        *linear(f"{layer}attention.w_k", f"{hf_layer}self_attn.k_proj"),
        *linear(f"{layer}attention.w_v", f"{hf_layer}self_attn.v_proj"),
        *linear(f"{layer}attention.w_o", f"{hf_layer}self_attn.out_proj"),
        *norm(f"{layer}norm_channel", f"{hf_layer}layer_norm2"),
        *linear(f"{layer}mlp.w_in", f"{hf_layer}mlp.fc1"),
        *linear(f"{layer}mlp.w_out", f"{hf_layer}mlp.fc2"),
    )


def tower_map(config: ModelConfig, prefix: str) -> tuple[TensorMap, ...]:
    """Returns the tensor names of the vision tower below `prefix`."""
    e = f"{prefix}embeddings."
    transform = patch_matrix(config.vision)
    return (
        TensorMap(("vision.patches.w_in",), f"{e}patch_embedding.weight", transform),
        identity("vision.patches.class_token", f"{e}class_embedding"),
        identity("vision.patches.positions", f"{e}position_embedding.weight"),
        *norm("vision.patches.norm", f"{prefix}pre_layrnorm"),
        *block_map("vision.stack.{i}.", prefix + "encoder.layers.{i}."),
        *norm("vision.stack.norm", f"{prefix}post_layernorm"),
    )


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of CLIP."""
    return (
        identity("embed.table", "text_model.embeddings.token_embedding.weight"),
        identity("embed.positions.table", "text_model.embeddings.position_embedding.weight"),
        *block_map("stack.{i}.", "text_model.encoder.layers.{i}."),
        *norm("stack.norm", "text_model.final_layer_norm"),
        *tower_map(config, "vision_model."),
        TensorMap(("joint.w_image",), "visual_projection.weight", TRANSPOSED),
        TensorMap(("joint.w_text",), "text_projection.weight", TRANSPOSED),
        identity("joint.log_scale", "logit_scale"),
    )


CLIP = HfFamily(
    *("clip", "CLIPModel", read, write, name_map),
    ignored_tensors=(r".*embeddings\.position_ids",),
)
