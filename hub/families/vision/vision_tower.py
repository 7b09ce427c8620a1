"""Vision towers: the keys of config.json and the tensor names that several families share."""

import dataclasses
from typing import NamedTuple

import numpy as np

from arch import ModelConfig
from arch.channels.mlp import MlpConfig
from arch.layers.norms import NormConfig
from arch.layers.patches import VisionConfig
from arch.mixers.attention import AttentionConfig
from hub.family import find_part
from hub.hf_config import HfConfig, activation_name
from hub.tensor_transforms import TensorMap, Transform, linear, norm
from settings.json_types import JsonObject

BASE_DEFAULTS = {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
    **{"num_attention_heads": 12, "image_size": 224, "num_channels": 3},
}
TOKEN = Transform(lambda x: x[0, 0], lambda x: x[None, None])  # [1 1 D] to [D]


class BlockConfigs(NamedTuple):
    """The parts of the blocks of one tower."""

    attention: AttentionConfig
    mlp: MlpConfig
    norm: NormConfig


def read_blocks(
    hf: HfConfig, *, activation: str, norm_eps: float, bias_qkv: bool = True
) -> BlockConfigs:
    """Returns the parts of the blocks of one tower.

    Args:
        hf: the config.json, or the section of the tower.
        activation: the activation if the file does not name it.
        norm_eps: the epsilon of the norms if the file does not have it.
        bias_qkv: whether queries, keys and values have biases.
    """
    attention = AttentionConfig(
        heads=hf["num_attention_heads"],
        position_encoding="none",
        bias_qkv=bias_qkv,
        bias_out=True,
    )
    activation = hf.activation("hidden_act", activation)
    mlp = MlpConfig(hf["intermediate_size"], gated=False, activation=activation, bias=True)
    return BlockConfigs(attention, mlp, NormConfig("layer", eps=hf.get("layer_norm_eps", norm_eps)))


def read_images(hf: HfConfig, outputs: VisionConfig) -> VisionConfig:
    """Returns the vision stack of a config.json, with what `outputs` says of its outputs."""
    return dataclasses.replace(
        outputs,
        depth=hf["num_hidden_layers"],
        image_size=hf["image_size"],
        channels=hf["num_channels"],
        patch_size=hf["patch_size"],
    )


def read_tower_alone(hf: HfConfig, blocks: BlockConfigs, outputs: VisionConfig) -> ModelConfig:
    """Returns the model config of a vision stack without a text stack."""
    return ModelConfig(
        width=hf["hidden_size"],
        depth=0,
        final_norm=False,
        norm=blocks.norm,
        attention=blocks.attention,
        mlp=blocks.mlp,
        vision=read_images(hf, outputs),
    )


def write_tower(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json of a vision stack."""
    cfg, tower = config.vision, config.vision_stack()
    attention, mlp = find_part(tower, "attention"), find_part(tower, "mlp")
    return {
        "hidden_size": tower.width,
        "intermediate_size": mlp.inner_dim(tower.width),
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": attention.heads,
        "hidden_act": activation_name(mlp.activation),
        "layer_norm_eps": tower.norm.eps,
        "image_size": cfg.image_size,
        "patch_size": cfg.patch_size,
        "num_channels": cfg.channels,
    }


def patch_matrix(cfg: VisionConfig) -> Transform:
    """Returns the transform of a convolution [D channels y x] to a matrix [channels y x, D]."""
    shape = cfg.channels, cfg.patch_size, cfg.patch_size

    def to_hf(x: np.ndarray) -> np.ndarray:
        return x.T.reshape(-1, *shape)

    return Transform(lambda x: x.reshape(len(x), -1).T, to_hf)


def block_map(layer: str, hf_layer: str) -> tuple[TensorMap, ...]:
    """Returns the tensor names of the blocks of one tower of CLIP or SigLIP."""
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
