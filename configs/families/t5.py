"""T5 1.0 (arXiv:1910.10683, section 3.7) and 1.1 (arXiv:2002.05202; the authors' released models).

train.py --config=configs/families/t5.py:tiny
"""

import dataclasses

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.config import EncoderConfig
from arch.embedding import HeadConfig
from arch.mlp import MlpConfig
from configs.families import pick, preset

# width, depth of each stack, heads, width of a head, width of the MLP
SIZES = {
    "tiny": (128, 2, 4, 32, 512),
    "small": (512, 6, 8, 64, 2048),
    "base": (768, 12, 12, 64, 3072),
    "large": (1024, 24, 16, 64, 4096),
    "3b": (1024, 24, 32, 128, 16384),
    "11b": (1024, 24, 128, 128, 65536),
    "1.1-small": (512, 8, 6, 64, 1024),
    "1.1-base": (768, 12, 12, 64, 2048),
    "1.1-large": (1024, 24, 16, 64, 2816),
    "1.1-xl": (2048, 24, 32, 64, 5120),
    "1.1-xxl": (4096, 24, 64, 64, 10240),
}


def model(size: str) -> ModelConfig:
    width, depth, heads, head_width, wide = pick(SIZES, size)
    new, vocab = size.startswith("1.1"), 0 if size == "tiny" else 32128
    attention = AttentionConfig(heads=heads, head_width=head_width, scale=1.0, position="relative")
    return ModelConfig(
        width=width,
        depth=depth,
        vocab=vocab,
        vocab_multiple=1 if vocab else 128,
        encoder=EncoderConfig(depth=depth),
        head=HeadConfig(tied=not new, scale=1.0 if new else width**-0.5),
        attention=attention,
        cross=dataclasses.replace(attention, position="none"),
        mlp=MlpConfig(wide, gated=new, activation="gelu_tanh" if new else "relu"),
    )


def get_config(size="tiny"):
    return preset(model(size), "denoising")
