"""Maps ViT (arXiv:2010.11929): a vision stack alone, with class scores from its class token.

The model has no text stack (`depth` 0). A pooler, which some files have, is not read, because the
scores do not come from it.
"""

from arch import ModelConfig
from arch.layers.patches import VisionConfig
from hub.families.vision.vision_tower import (
    BASE_DEFAULTS,
    TOKEN,
    patch_matrix,
    read_blocks,
    read_tower_alone,
    write_tower,
)
from hub.family import HfFamily, find_part
from hub.hf_config import HfConfig
from hub.tensor_transforms import TensorMap, Transform, linear, norm
from settings.json_types import JsonObject

LAYER, HF_LAYER, HF_EMBEDDINGS = "vision.stack.{i}.", "vit.encoder.layer.{i}.", "vit.embeddings."
DEFAULT_LABELS = 2  # classes of a config without `id2label`
ROWS = Transform(lambda x: x[0], lambda x: x[None])  # [1 S D] to [S D]


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a ViT config.json."""
    hf.ignore("encoder_stride", "pooler_act", "pooler_output_size")
    labels: JsonObject = hf.get("id2label", {})
    has_classes = hf.has_tensor("classifier.weight", if_unknown=True)
    outputs = VisionConfig(
        class_token=True,
        pooling="class",
        num_classes=(len(labels) or DEFAULT_LABELS) if has_classes else 0,
    )
    bias_qkv = hf.get("qkv_bias", True)
    blocks = read_blocks(hf, activation="gelu", norm_eps=1e-12, bias_qkv=bias_qkv)
    return read_tower_alone(hf, blocks, outputs)


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for ViT.

    Raises:
        LookupError: if the model has a text stack.
    """
    if config.depth:
        raise LookupError("a text stack")
    names = {str(i): f"LABEL_{i}" for i in range(config.vision.num_classes)}
    return {
        **write_tower(config),
        "qkv_bias": find_part(config.vision_stack(), "attention").bias_qkv,
        "id2label": names,
        "label2id": {name: int(i) for i, name in names.items()},
    }


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of ViT."""
    a = f"{HF_LAYER}attention."
    return (
        TensorMap(("vision.patches.class_token",), f"{HF_EMBEDDINGS}cls_token", TOKEN),
        TensorMap(("vision.patches.positions",), f"{HF_EMBEDDINGS}position_embeddings", ROWS),
        *linear(
            "vision.patches.w_in",
            f"{HF_EMBEDDINGS}patch_embeddings.projection",
            patch_matrix(config.vision),
        ),
        *norm(f"{LAYER}norm_mixer", f"{HF_LAYER}layernorm_before"),
        *linear(f"{LAYER}attention.w_q", f"{a}attention.query"),
        *linear(f"{LAYER}attention.w_k", f"{a}attention.key"),
        *linear(f"{LAYER}attention.w_v", f"{a}attention.value"),
        *linear(f"{LAYER}attention.w_o", f"{a}output.dense"),
        *norm(f"{LAYER}norm_channel", f"{HF_LAYER}layernorm_after"),
        *linear(f"{LAYER}mlp.w_in", f"{HF_LAYER}intermediate.dense"),
        *linear(f"{LAYER}mlp.w_out", f"{HF_LAYER}output.dense"),
        *norm("vision.stack.norm", "vit.layernorm"),
        *linear("vision.w_class", "classifier"),
    )


def smaller_architecture(config: ModelConfig) -> str:
    """Returns the class of a ViT without class scores."""
    return "" if config.vision.num_classes else "ViTModel"


VIT = HfFamily(
    *("vit", "ViTForImageClassification", read, write, name_map),
    hf_defaults={**BASE_DEFAULTS, "patch_size": 16},
    prefix="vit.",
    ignored_tensors=(r"(vit\.)?pooler\.dense\..*",),
    smaller_architecture=smaller_architecture,
)
