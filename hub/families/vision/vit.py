"""Maps ViT (arXiv:2010.11929): a vision stack alone, with class scores from its class token.

The model has no text stack (`depth` 0). A pooler, which some files have, is not read, because the
scores do not come from it.
"""

from arch import ModelConfig
from arch.channels.mlp import MlpConfig
from arch.layers.norms import NormConfig
from arch.layers.patches import VisionConfig
from arch.mixers.attention import AttentionConfig
from hub.families.vision.clip import patch_matrix
from hub.family import HfFamily, find_part
from hub.hf_config import HfConfig, activation_name
from hub.tensor_transforms import TensorMap, Transform, linear, norm
from settings.json_types import JsonObject

LAYER, HF_LAYER, HF_EMBEDDINGS = "vision.stack.{i}.", "vit.encoder.layer.{i}.", "vit.embeddings."
DEFAULT_LABELS = 2  # classes of a config without `id2label`
TOKEN = Transform(lambda x: x[0, 0], lambda x: x[None, None])  # [1 1 D] to [D]
ROWS = Transform(lambda x: x[0], lambda x: x[None])  # [1 S D] to [S D]


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a ViT config.json."""
    width, channels = hf["hidden_size"], hf["num_channels"]
    hf.ignore("encoder_stride", "pooler_act", "pooler_output_size")
    labels: JsonObject = hf.get("id2label", {})
    n_labels = len(labels) or DEFAULT_LABELS
    has_classes = hf.has_tensor("classifier.weight", if_unknown=True)
    return ModelConfig(
        width=width,
        depth=0,
        final_norm=False,
        norm=NormConfig("layer", eps=hf.get("layer_norm_eps", 1e-12)),
        attention=AttentionConfig(
            heads=hf["num_attention_heads"],
            position_encoding="none",
            bias_qkv=hf.get("qkv_bias", True),
            bias_out=True,
        ),
        mlp=MlpConfig(
            hf["intermediate_size"],
            gated=False,
            activation=hf.activation("hidden_act", "gelu"),
            bias=True,
        ),
        vision=VisionConfig(
            depth=hf["num_hidden_layers"],
            image_size=hf["image_size"],
            channels=channels,
            patch_size=hf["patch_size"],
            class_token=True,
            pooling="class",
            num_classes=n_labels if has_classes else 0,
        ),
    )


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for ViT.

    Raises:
        LookupError: if the model has a text stack.
    """
    if config.depth:
        raise LookupError("a text stack")
    tower, cfg = config.vision_stack(), config.vision
    attention, mlp = find_part(tower, "attention"), find_part(tower, "mlp")
    names = {str(i): f"LABEL_{i}" for i in range(cfg.num_classes)}
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": attention.heads,
        "intermediate_size": mlp.inner_dim(tower.width),
        "hidden_act": activation_name(mlp.activation),
        "layer_norm_eps": tower.norm.eps,
        "qkv_bias": attention.bias_qkv,
        "image_size": cfg.image_size,
        "patch_size": cfg.patch_size,
        "num_channels": cfg.channels,
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
    hf_defaults={
        **{"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
        **{"intermediate_size": 3072, "image_size": 224, "patch_size": 16, "num_channels": 3},
    },
    prefix="vit.",
    ignored_tensors=(r"(vit\.)?pooler\.dense\..*",),
    smaller_architecture=smaller_architecture,
)
