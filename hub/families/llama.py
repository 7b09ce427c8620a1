"""Maps LLaMA 1 to 3 (arXiv:2302.13971, 2307.09288, 2407.21783), Vicuna, XGen, and Mistral.

Vicuna (lmsys.org/blog/2023-03-30-vicuna) is LLaMA fine-tuned on chats, and its 16k version scales
RoPE linearly. XGen-7B (arXiv:2309.03450) is LLaMA trained on rows of 8192 tokens. Mistral
(arXiv:2310.06825) adds a window.
"""

import dataclasses

from arch import ModelConfig
from arch.channels.mlp import MlpConfig
from arch.layers.embedding import HeadConfig
from arch.layers.norms import NormConfig
from arch.layers.rope import RopeConfig
from arch.mixers.attention import AttentionConfig
from hub import rotary
from hub.family import HfFamily, find_part
from hub.hf_config import HfConfig, activation_name
from hub.tensor_transforms import TensorMap, identity, linear, norm
from settings.json_types import JsonObject

EMBEDDING_MAP = (identity("embed.table", "model.embed_tokens.weight"),)
HEAD_MAP = (*norm("stack.norm", "model.norm"), identity("head.table", "lm_head.weight"))
LAYER, HF_LAYER = "stack.{i}.", "model.layers.{i}."
ATTENTION_MAP = (
    *linear(f"{LAYER}attention.w_q", f"{HF_LAYER}self_attn.q_proj"),
    *linear(f"{LAYER}attention.w_k", f"{HF_LAYER}self_attn.k_proj"),
    *linear(f"{LAYER}attention.w_v", f"{HF_LAYER}self_attn.v_proj"),
    *linear(f"{LAYER}attention.w_o", f"{HF_LAYER}self_attn.o_proj"),
)
NORM_MAP = (
    *norm(f"{LAYER}norm_mixer", f"{HF_LAYER}input_layernorm"),
    *norm(f"{LAYER}norm_channel", f"{HF_LAYER}post_attention_layernorm"),
)
TIED_EMBEDDING = (("lm_head.weight", "model.embed_tokens.weight"),)


def mlp_map(hf_prefix: str) -> tuple[TensorMap, ...]:
    """Returns the tensor names of a gated MLP below `hf_prefix`."""
    return (
        *linear(f"{LAYER}mlp.w_gate", f"{hf_prefix}.gate_proj"),
        *linear(f"{LAYER}mlp.w_in", f"{hf_prefix}.up_proj"),
        *linear(f"{LAYER}mlp.w_out", f"{hf_prefix}.down_proj"),
    )


NAME_MAP = (*EMBEDDING_MAP, *ATTENTION_MAP, *NORM_MAP, *mlp_map(f"{HF_LAYER}mlp"), *HEAD_MAP)


def read_attention(hf: HfConfig, rope: RopeConfig | None = None) -> AttentionConfig:
    """Reads attention with the keys of LLaMA, except window and biases.

    `rope` replaces the rotary positions that are read.
    """
    D, H = hf["hidden_size"], hf["num_attention_heads"]
    G, K = hf.get("num_key_value_heads", H), hf.get("head_dim", D // H)
    return AttentionConfig(
        heads=H,
        kv_heads=0 if G == H else G,
        head_dim=0 if K * H == D else K,
        rope=rope or rotary.from_hf(hf, K),
    )


def read_decoder(hf: HfConfig, rope: RopeConfig | None = None) -> ModelConfig:
    """Reads a decoder with the keys of LLaMA; `rope` replaces the rotary positions."""
    return ModelConfig(
        width=hf["hidden_size"],
        depth=hf["num_hidden_layers"],
        vocab_size=hf["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig(eps=hf.get("rms_norm_eps", 1e-6)),
        head=HeadConfig(tied=hf.get("tie_word_embeddings", False)),
        attention=read_attention(hf, rope),
        mlp=MlpConfig(
            width=hf["intermediate_size"], activation=hf.activation("hidden_act", "silu")
        ),
    )


def base_to_hf(config: ModelConfig, attn: AttentionConfig) -> JsonObject:
    """Returns the keys of `read_decoder`, except channel, head width and rotary positions."""
    H, G, _ = attn.head_shape(config.width)
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "vocab_size": config.vocab_size,
        "num_attention_heads": H,
        "num_key_value_heads": G,
        "rms_norm_eps": config.norm.eps,
        "tie_word_embeddings": config.head.tied,
    }


def decoder_to_hf(config: ModelConfig, attn: AttentionConfig) -> JsonObject:
    """Returns the keys of `read_decoder`, except those of the channel."""
    K = attn.head_shape(config.width)[2]
    return {**base_to_hf(config, attn), "head_dim": K, **rotary.to_hf(attn.rope, K)}


def mlp_to_hf(mlp: MlpConfig, D: int) -> JsonObject:
    """Returns the keys of a gated MLP."""
    return {"intermediate_size": mlp.inner_dim(D), "hidden_act": activation_name(mlp.activation)}


def read_llama(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a LLaMA config.json."""
    config, bias = read_decoder(hf), hf.get("attention_bias", False)
    hf.ignore("max_position_embeddings")
    return dataclasses.replace(
        config,
        attention=dataclasses.replace(config.attention, bias_qkv=bias, bias_out=bias),
        mlp=dataclasses.replace(config.mlp, bias=hf.get("mlp_bias", False)),
    )


def write_llama(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for LLaMA."""
    a, m = find_part(config, "attention"), find_part(config, "mlp")
    keys = {**decoder_to_hf(config, a), **mlp_to_hf(m, config.width)}
    return keys | {"attention_bias": a.bias_qkv, "mlp_bias": m.bias}


def read_mistral(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a Mistral config.json."""
    config = read_decoder(hf)
    hf.ignore("max_position_embeddings")
    window = hf.get("sliding_window", 0)
    return dataclasses.replace(
        config, attention=dataclasses.replace(config.attention, window=window)
    )


def write_mistral(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for Mistral."""
    a, m = find_part(config, "attention"), find_part(config, "mlp")
    keys = {**decoder_to_hf(config, a), **mlp_to_hf(m, config.width)}
    return keys | {"sliding_window": a.window or None}


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of LLaMA and Mistral."""
    return NAME_MAP


LLAMA = HfFamily(
    "llama",
    "LlamaForCausalLM",
    read_llama,
    write_llama,
    name_map,
    prefix="model.",
    tied_tensors=TIED_EMBEDDING,
)
MISTRAL = HfFamily(
    *("mistral", "MistralForCausalLM", read_mistral, write_mistral, name_map),
    hf_defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    prefix="model.",
    tied_tensors=TIED_EMBEDDING,
)
