"""Defines Vicuna 1.5 (lmsys.org/blog/2023-03-30-vicuna): LLaMA-2 fine-tuned on chats.

The 16k size scales RoPE linearly for rows of 16k tokens.

train.py --config=configs/families/vicuna.py:tiny
"""

from arch import ModelConfig
from configs.families import llama2, lookup_size, preset
from settings.changes import with_changes

LONG_ROWS = {"attention.rope.scaling": "linear", "attention.rope.factor": 4.0}
# size of llama2, and what differs from it
SIZES: dict[str, tuple[str, dict[str, object]]] = {
    "tiny": ("tiny", {}),
    "7b": ("7b", {}),
    "13b": ("13b", {}),
    "7b-16k": ("7b", {**LONG_ROWS}),
}


def model_config(size: str) -> ModelConfig:
    """Returns the Vicuna model of one size."""
    name, changes = lookup_size(SIZES, size)
    return with_changes(llama2.model_config(name), changes)


def get_config(size="tiny"):
    """Returns the settings to train Vicuna at one size."""
    return preset(model_config(size))
