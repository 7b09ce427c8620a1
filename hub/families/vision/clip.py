"""Maps CLIP (arXiv:2103.00020): a causal text tower, a vision tower, and two projections.

A text is pooled at its last token, which is the end token, and an image at its class token. The
vision tower has a norm before its blocks, called `pre_layrnorm` in the files, and its last norm is
applied to the class token alone, which is the only token that is pooled.
"""

import dataclasses

from arch import ModelConfig
from arch.layers.patches import VisionConfig
from arch.layers.positions import PositionsConfig
from hub.families.vision import vision_tower
from hub.families.vision.vision_tower import (
    BASE_DEFAULTS,
    BlockConfigs,
    block_map,
    patch_matrix,
    read_images,
)
from hub.family import HfFamily, find_part
from hub.hf_config import HfConfig, activation_name
from hub.tensor_transforms import TRANSPOSED, TensorMap, identity, norm
from settings.json_types import JsonObject

# Mean and deviation of the colours, in the preprocessing of the published models.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
TEXT_DEFAULTS = {
    **{"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12},
    **{"num_attention_heads": 8, "max_position_embeddings": 77, "vocab_size": 49408},
}


def read_blocks(hf: HfConfig) -> BlockConfigs:
    """Returns the parts of the blocks of one tower."""
    return vision_tower.read_blocks(hf, activation="quick_gelu", norm_eps=1e-5)


def read_tower(hf: HfConfig, outputs: VisionConfig) -> VisionConfig:
    """Returns the vision stack of a `vision_config`, with what `outputs` says of its outputs."""
    hf.ignore("projection_dim", "vocab_size")
    blocks, is_color = read_blocks(hf), hf["num_channels"] == len(MEAN)
    return dataclasses.replace(
        read_images(hf, outputs),
        width=hf["hidden_size"],
        parts={name: dataclasses.asdict(part) for name, part in blocks._asdict().items()},
        mean=MEAN if is_color else outputs.mean,
        std=STD if is_color else outputs.std,
        patch_bias=False,
        class_token=True,
        input_norm=True,
    )


def write_tower(config: ModelConfig) -> JsonObject:
    """Returns the keys of `vision_config`."""
    return {
        "model_type": "clip_vision_model",
        **vision_tower.write_tower(config),
        "projection_dim": config.vision.embed_dim or config.vision_stack().width,
    }


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a CLIP config.json."""
    text = hf.section("text_config", "clip_text_model", TEXT_DEFAULTS)
    image = hf.section("vision_config", "clip_vision_model", BASE_DEFAULTS | {"patch_size": 32})
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
