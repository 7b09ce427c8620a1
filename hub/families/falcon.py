"""Maps Falcon (arXiv:2311.16867): 7B, 40B and 180B, Falcon2-11B, and the sequential RW models.

The rows of the fused matrix are G groups of [H/G queries, one key, one value]. Falcon-7B has G = 1
(multi-query attention), and the RW models have G = H.
"""

from typing import Literal

from arch import ModelConfig
from arch.block import BlockConfig
from arch.channels.mlp import MlpConfig
from arch.layers.embedding import HeadConfig
from arch.layers.norms import NormConfig
from arch.layers.rope import RopeConfig
from arch.mixers.attention import AttentionConfig
from hub import rotary
from hub.family import HfFamily, find_part
from hub.hf_config import HfConfig, activation_name
from hub.tensor_transforms import TensorMap, fused_linear, identity, linear, norm
from settings.json_types import JsonObject

LAYER, HF_LAYER = "stack.{i}.", "transformer.h.{i}."
QKV = tuple(f"{LAYER}attention.w_{n}" for n in "qkv")


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a Falcon config.json."""
    D, H = hf["hidden_size"], hf.get_any("num_attention_heads", "n_head")
    new, bias = hf.get("new_decoder_architecture", False), hf.get("bias", False)
    hf.require_value("parallel_attn", True, *(() if new else (False,)))
    parallel = new or hf.get("parallel_attn", True)
    norms: Literal[1, 2] = hf.get("num_ln_in_parallel_attn", 2 if new else 1)
    if norms not in ((1, 2) if new else (1,)):
        raise hf.unsupported_error(
            "num_ln_in_parallel_attn", "known: 1, and with new_decoder_architecture also 2"
        )
    shared = hf.get("multi_query", True) and not new
    G = hf.get("num_kv_heads", H) if new else 1 if shared else H
    hf.ignore("num_kv_heads", "n_head_kv", "max_position_embeddings")
    hf.require_value("ff_factor", None, hf.get("ffn_hidden_size", 4 * D) // D)
    alibi = hf.get("alibi", False)
    hf.ignore(*(("rope_theta", "rope_scaling", "rope_parameters") if alibi else ()))
    return ModelConfig(
        width=D,
        depth=hf.get_any("num_hidden_layers", "n_layer"),
        vocab_size=hf["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig("layer", eps=hf.get("layer_norm_epsilon", 1e-5)),
        block=BlockConfig(wiring="parallel" if parallel else "pre", norms=norms),
        head=HeadConfig(tied=hf.get("tie_word_embeddings", True)),
        attention=AttentionConfig(
            heads=H,
            kv_heads=0 if G == H else G,
            position_encoding="alibi" if alibi else "rope",
            alibi_rounded=alibi,
            bias_qkv=bias,
            bias_out=bias,
            rope=RopeConfig() if alibi else rotary.from_hf(hf, D // H),
        ),
        mlp=MlpConfig(
            width=hf.get("ffn_hidden_size", 4 * D),
            gated=False,
            activation=hf.activation("activation", "gelu"),
            bias=bias,
        ),
    )


def from_old(values: JsonObject) -> JsonObject:
    """Returns the keys of a RefinedWeb(Model) config.json, whose own class had other defaults.

    Falcon-40B has `n_head_kv` and two norms, which that class did not call by a name.
    """
    is_new = values.get("n_head_kv") is not None
    off = dict.fromkeys(("multi_query", "parallel_attn", "alibi", "bias"), False)
    renamed = {"num_kv_heads": values.get("n_head_kv"), "new_decoder_architecture": is_new}
    return {**off, **({"parallel_attn": True} if is_new else {}), **values, **renamed}


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for Falcon."""
    a, m = find_part(config, "attention"), find_part(config, "mlp")
    (H, G, K), norms = a.head_shape(config.width), config.block.norms
    parallel = config.block.wiring == "parallel"
    new = parallel and (norms == 2 or 1 < G < H)
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "vocab_size": config.vocab_size,
        "num_attention_heads": H,
        "num_kv_heads": G,
        "ffn_hidden_size": m.inner_dim(config.width),
        "activation": activation_name(m.activation),
        "bias": m.bias,
        "alibi": a.position_encoding == "alibi",
        "parallel_attn": parallel,
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": norms if new else None,
        "multi_query": G == 1 or new,
        "layer_norm_epsilon": config.norm.eps,
        "tie_word_embeddings": config.head.tied,
        **({} if a.position_encoding == "alibi" else rotary.to_hf(a.rope, K)),
    }


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of Falcon."""
    H, G, K = find_part(config, "attention").head_shape(config.width)
    parallel = config.block.wiring == "parallel"
    if parallel and config.block.norms == 2:
        norm_mixer, norm_channel = "ln_attn", "ln_mlp"
    else:
        norm_mixer, norm_channel = "input_layernorm", "post_attention_layernorm"
    return (
        identity("embed.table", "transformer.word_embeddings.weight"),
        *norm(f"{LAYER}norm_mixer", f"{HF_LAYER}{norm_mixer}"),
        *fused_linear(
            QKV, f"{HF_LAYER}self_attention.query_key_value", (H // G * K, K, K), n_groups=G
        ),
        *linear(f"{LAYER}attention.w_o", f"{HF_LAYER}self_attention.dense"),
        *norm(f"{LAYER}norm_channel", f"{HF_LAYER}{norm_channel}"),
        *linear(f"{LAYER}mlp.w_in", f"{HF_LAYER}mlp.dense_h_to_4h"),
        *linear(f"{LAYER}mlp.w_out", f"{HF_LAYER}mlp.dense_4h_to_h"),
        *norm("stack.norm", "transformer.ln_f"),
        identity("head.table", "lm_head.weight"),
    )


FALCON = HfFamily(
    *("falcon", "FalconForCausalLM", read, write, name_map),
    prefix="transformer.",
    tied_tensors=(("lm_head.weight", "transformer.word_embeddings.weight"),),
    position_numbering="count",
    from_old=from_old,
)
