"""Maps OPT (arXiv:2205.01068), whose learned positions start at row 2 of their table.

OPT-350m has projections around a narrow embedding and norms after its sublayers. LayerNorm always
has eps 1e-5, and the final norm exists only in models with norms before their sublayers.
"""

from arch import ModelConfig
from arch.block import BlockConfig
from arch.channels.mlp import MlpConfig
from arch.layers.embedding import EmbedConfig, HeadConfig
from arch.layers.norms import NormConfig
from arch.layers.positions import PositionsConfig
from arch.mixers.attention import AttentionConfig
from hub.family import HfFamily, find_part
from hub.hf_config import HfConfig, activation_name
from hub.tensor_transforms import TensorMap, identity, linear, norm
from settings.json_types import JsonObject

LAYER, HF_LAYER, HF_BASE = "stack.{i}.", "model.decoder.layers.{i}.", "model.decoder."


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a OPT config.json."""
    D, bias = hf["hidden_size"], hf.get("enable_bias", True)
    W, before = hf.get("word_embed_proj_dim", D), hf.get("do_layer_norm_before", True)
    remove_final_norm = hf.get("_remove_final_layer_norm", False)
    return ModelConfig(
        width=D,
        depth=hf["num_hidden_layers"],
        vocab_size=hf["vocab_size"],
        vocab_multiple=1,
        final_norm=before and not remove_final_norm,
        norm=NormConfig("layer", eps=1e-5, affine=hf.get("layer_norm_elementwise_affine", True)),
        block=BlockConfig(wiring="pre" if before else "post"),
        embed=EmbedConfig(factorized_width=0 if W == D else W),
        positions=PositionsConfig(learned=True, max_length=hf["max_position_embeddings"], offset=2),
        head=HeadConfig(tied=hf.get("tie_word_embeddings", True)),
        attention=AttentionConfig(
            heads=hf["num_attention_heads"], position_encoding="none", bias_qkv=bias, bias_out=bias
        ),
        mlp=MlpConfig(
            width=hf["ffn_dim"],
            gated=False,
            activation=hf.activation("activation_function", "relu"),
            bias=bias,
        ),
    )


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for OPT."""
    a, m = find_part(config, "attention"), find_part(config, "mlp")
    before = config.block.wiring == "pre"
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "vocab_size": config.vocab_size,
        "word_embed_proj_dim": config.embed.factorized_width or config.width,
        "num_attention_heads": a.heads,
        "ffn_dim": m.inner_dim(config.width),
        "activation_function": activation_name(m.activation),
        "enable_bias": m.bias,
        "max_position_embeddings": config.positions.max_length,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not config.final_norm,
        "layer_norm_elementwise_affine": config.norm.affine,
        "tie_word_embeddings": config.head.tied,
    }


NAME_MAP = (
    identity("embed.table", f"{HF_BASE}embed_tokens.weight"),
    identity("embed.positions.table", f"{HF_BASE}embed_positions.weight"),
    *linear("embed.w_in", f"{HF_BASE}project_in"),
    *norm(f"{LAYER}norm_mixer", f"{HF_LAYER}self_attn_layer_norm"),
    *linear(f"{LAYER}attention.w_q", f"{HF_LAYER}self_attn.q_proj"),
    *linear(f"{LAYER}attention.w_k", f"{HF_LAYER}self_attn.k_proj"),
    *linear(f"{LAYER}attention.w_v", f"{HF_LAYER}self_attn.v_proj"),
    *linear(f"{LAYER}attention.w_o", f"{HF_LAYER}self_attn.out_proj"),
    *norm(f"{LAYER}norm_channel", f"{HF_LAYER}final_layer_norm"),
    *linear(f"{LAYER}mlp.w_in", f"{HF_LAYER}fc1"),
    *linear(f"{LAYER}mlp.w_out", f"{HF_LAYER}fc2"),
    *norm("stack.norm", f"{HF_BASE}final_layer_norm"),
    *linear("head.w_out", f"{HF_BASE}project_out"),
    identity("head.table", "lm_head.weight"),
)


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of OPT."""
    return NAME_MAP


OPT = HfFamily(
    *("opt", "OPTForCausalLM", read, write, name_map),
    prefix="model.",
    tied_tensors=(("lm_head.weight", f"{HF_BASE}embed_tokens.weight"),),
    position_numbering="count",
)
