"""Maps Qwen3 without experts (arXiv:2505.09388).

It is LLaMA with a norm of each head's queries and keys, and a window in some layers.
"""

import dataclasses

from arch import ModelConfig
from hub import layer_types
from hub.families.llama import NAME_MAP, TIED_EMBEDDING, decoder_to_hf, mlp_to_hf, read_decoder
from hub.family import HfFamily, all_parts, find_part, shortest_period
from hub.hf_config import HfConfig
from hub.tensor_transforms import TensorMap, qk_norms
from settings.json_types import JsonObject

QWEN3_NAME_MAP = (*NAME_MAP, *qk_norms("attention", "self_attn"))


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a Qwen3 config.json.

    With `use_sliding_window`, the layers from `max_window_layers` on have a window.
    """
    config, bias = read_decoder(hf), hf.get("attention_bias", False)
    hf.ignore("max_position_embeddings")
    window = hf.get("sliding_window", 4096)
    window = window if hf.get("use_sliding_window", False) else 0
    first = hf.get("max_window_layers", 28)
    has_window = [window > 0 and i >= first for i in range(config.depth)]
    mixers = layer_types.from_hf(hf, has_window)
    if set(mixers) != {"attention"} and not window:
        raise hf.unsupported_error("layer_types", "set use_sliding_window and sliding_window too")
    attention = dataclasses.replace(
        config.attention,
        qk_norm="head",
        qk_norm_eps=config.norm.eps,
        bias_qkv=bias,
        bias_out=bias,
    )
    return dataclasses.replace(
        config,
        layers=shortest_period(tuple(f"{mixer}+mlp" for mixer in mixers)),
        attention=attention,
        local_attention=dataclasses.replace(attention, window=window),
    )


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for Qwen3."""
    parts, m = all_parts(config, "attention"), find_part(config, "mlp")
    window = max(part.window for part in parts)
    return {
        **decoder_to_hf(config, parts[0]),
        **mlp_to_hf(m, config.width),
        "attention_bias": parts[0].bias_qkv,
        "layer_types": layer_types.to_hf(parts),
        "max_window_layers": config.depth,
        "use_sliding_window": window > 0,
        "sliding_window": window or None,
    }


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of Qwen3."""
    return QWEN3_NAME_MAP


QWEN3 = HfFamily(
    *("qwen3", "Qwen3ForCausalLM", read, write, name_map),
    hf_defaults={"num_key_value_heads": 32, "head_dim": 128},
    prefix="model.",
    tied_tensors=TIED_EMBEDDING,
)
