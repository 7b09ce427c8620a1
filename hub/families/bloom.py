"""Maps BLOOM (arXiv:2211.05100), with ALiBi and a norm after the embedding.

The rows of the fused matrix are [query, key, value] of each head in turn.
"""

from arch import ModelConfig
from arch.block import BlockConfig
from arch.channels.mlp import MlpConfig
from arch.layers.embedding import EmbedConfig, HeadConfig
from arch.layers.norms import NormConfig
from arch.mixers.attention import AttentionConfig
from hub.family import HfFamily, find_part
from hub.hf_config import HfConfig
from hub.tensor_transforms import TensorMap, fused_linear, identity, linear, norm
from settings.json_types import JsonObject

LAYER, HF_LAYER = "stack.{i}.", "transformer.h.{i}."
QKV = tuple(f"{LAYER}attention.w_{n}" for n in "qkv")
# These keys select equivalent computations of Megatron, or a length that ALiBi does not need.
IGNORED_KEYS: tuple[str, ...] = (
    "attention_softmax_in_fp32",
    "bias_dropout_fusion",
    "masked_softmax_fusion",
)
IGNORED_KEYS += ("skip_bias_add", "skip_bias_add_qkv", "offset_alibi", "seq_length")


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a BLOOM config.json."""
    hf.ignore(*IGNORED_KEYS)
    D, after = hf.get_any("hidden_size", "n_embed"), "apply_residual_connection_post_layernorm"
    hf.require_value("n_inner", None, 4 * D)
    return ModelConfig(
        width=D,
        depth=hf.get_any("n_layer", "num_hidden_layers"),
        vocab_size=hf["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig("layer", eps=hf.get("layer_norm_epsilon", 1e-5)),
        block=BlockConfig(wiring="residual_post_norm" if hf.get(after, False) else "pre"),
        embed=EmbedConfig(norm=True),
        head=HeadConfig(tied=hf.get("tie_word_embeddings", True)),
        attention=AttentionConfig(
            heads=hf.get_any("n_head", "num_attention_heads"),
            position_encoding="alibi",
            bias_qkv=True,
            bias_out=True,
        ),
        mlp=MlpConfig(width=4 * D, gated=False, activation="gelu_bloom", bias=True),
    )


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for BLOOM."""
    return {
        "hidden_size": config.width,
        "n_layer": config.depth,
        "n_head": find_part(config, "attention").heads,
        "vocab_size": config.vocab_size,
        "layer_norm_epsilon": config.norm.eps,
        "apply_residual_connection_post_layernorm": config.block.wiring == "residual_post_norm",
        "tie_word_embeddings": config.head.tied,
    }


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of BLOOM."""
    H, _, K = find_part(config, "attention").head_shape(config.width)
    return (
        identity("embed.table", "transformer.word_embeddings.weight"),
        *norm("embed.norm", "transformer.word_embeddings_layernorm"),
        *norm(f"{LAYER}norm_mixer", f"{HF_LAYER}input_layernorm"),
        *fused_linear(QKV, f"{HF_LAYER}self_attention.query_key_value", (K, K, K), n_groups=H),
        *linear(f"{LAYER}attention.w_o", f"{HF_LAYER}self_attention.dense"),
        *norm(f"{LAYER}norm_channel", f"{HF_LAYER}post_attention_layernorm"),
        *linear(f"{LAYER}mlp.w_in", f"{HF_LAYER}mlp.dense_h_to_4h"),
        *linear(f"{LAYER}mlp.w_out", f"{HF_LAYER}mlp.dense_4h_to_h"),
        *norm("stack.norm", "transformer.ln_f"),
        identity("head.table", "lm_head.weight"),
    )


BLOOM = HfFamily(
    *("bloom", "BloomForCausalLM", read, write, name_map),
    prefix="transformer.",
    tied_tensors=(("lm_head.weight", "transformer.word_embeddings.weight"),),
    position_numbering="count",
)
