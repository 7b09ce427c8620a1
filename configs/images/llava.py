"""Defines LLaVA 1.5 (arXiv:2310.03744): Vicuna behind the patches of CLIP's ViT-L/14 at 336 pixels.

    uv run --extra images train.py --config=configs/images/llava.py:tiny

The open counterpart of GPT-4 with vision. Its patches are read after 23 of the 24 layers of CLIP's
tower, so that the last layer, which checkpoints have as well, is no part of the model. `tiny` reads
pictures of handwritten digits.
"""

from arch import ModelConfig
from configs.families import lookup_size, vicuna
from configs.images import image_caption
from settings.changes import with_changes
from settings.tree import to_config_dict

# Vocabularies end with the tokens of the image and of padding, padded to a multiple of 64.
TEXT = {"vocab_size": 32064, "norm.eps": 1e-5, "vision.token_id": 32000}
TOWER = {
    **{"vision.width": 1024, "vision.depth": 23, "vision.image_size": 336},
    **{"vision.patch_size": 14, "vision.projector": "mlp", "vision.class_token": True},
    **{"vision.input_norm": True, "vision.final_norm": False, "vision.patch_bias": False},
    "vision.channels": 3,
    "vision.mean": (0.48145466, 0.4578275, 0.40821073),
    "vision.std": (0.26862954, 0.26130258, 0.27577711),
    "vision.parts": {
        "attention": {
            "heads": 16,
            "kv_heads": 0,
            "position_encoding": "none",
            "bias_qkv": True,
            "bias_out": True,
        },
        "mlp": {"width": 4096, "gated": False, "activation": "quick_gelu", "bias": True},
        "norm": {"kind": "layer", "eps": 1e-5},
    },
}


def model_config(size: str) -> ModelConfig:
    """Returns the LLaVA model of one published size."""
    name = lookup_size({"7b": "7b"}, size)
    return with_changes(vicuna.model_config(name), TEXT | TOWER)


def get_config(model="tiny"):
    """Returns the settings to train LLaVA, tiny or of a published size."""
    c = image_caption.get_config()
    if model != "tiny":
        c.model.update(to_config_dict(model_config(model)))
        c.model.dtype = "bfloat16"
        # Needs `data.path`: JSON lines of images and texts (docs/images.md).
        c.data.images.size, c.data.images.channels = 336, 3
        c.train.seq_len, c.train.batch_size = 2048, 8
    return c
