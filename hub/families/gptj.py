"""Maps GPT-J, CodeGen and GPT-NeoX, whose attention and MLP are parallel.

Sources: Wang and Komatsuzaki 2021 (GPT-J), arXiv:2203.13474 (CodeGen), arXiv:2204.06745 (GPT-NeoX).
CodeGen computes the same as GPT-J. Its fused matrix consists of four groups of queries, values and
keys (in this order), one for each device of its original training.
"""

from arch import ModelConfig
from arch.block import BlockConfig
from arch.channels.mlp import MlpConfig
from arch.layers.embedding import HeadConfig
from arch.layers.norms import NormConfig
from arch.layers.rope import RopeConfig
from arch.mixers.attention import AttentionConfig
from errors import ConfigError
from hub import rotary
from hub.family import HfFamily, find_part
from hub.hf_config import HfConfig, activation_name
from hub.tensor_transforms import TensorMap, fused_linear, identity, linear, norm
from settings.json_types import JsonObject

LAYER, HF_LAYER = "stack.{i}.", "transformer.h.{i}."
CODEGEN_SHARDS = 4  # groups of rows in the fused matrix of CodeGen


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a GPT-J config.json."""
    D, H = hf["n_embd"], hf["n_head"]
    rotary_dim = hf["rotary_dim"]
    hf.ignore("n_positions", "scale_attn_weights", "rotary")
    return ModelConfig(
        width=D,
        depth=hf["n_layer"],
        vocab_size=hf["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig("layer", eps=hf.get("layer_norm_epsilon", 1e-5)),
        block=BlockConfig(wiring="parallel", norms=1),
        head=HeadConfig(tied=hf.get("tie_word_embeddings", False), bias=True),
        attention=AttentionConfig(
            heads=H,
            rope=RopeConfig(
                rotary_dim=0 if rotary_dim == D // H else rotary_dim, style="interleaved"
            ),
        ),
        mlp=MlpConfig(
            width=hf.get("n_inner", 4 * D),
            gated=False,
            activation=hf.activation("activation_function", "gelu_new"),
            bias=True,
        ),
    )


def read_codegen(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a CodeGen config.json.

    Raises:
        ConfigError: if the number of heads is not a multiple of four.
    """
    config = read(hf)
    if config.attention.heads % CODEGEN_SHARDS:
        raise ConfigError(
            f"config.json: n_head {config.attention.heads} is not a multiple of "
            f"{CODEGEN_SHARDS}, which CodeGen's fused matrix requires"
        )
    return config


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for GPT-J and CodeGen."""
    a, m = find_part(config, "attention"), find_part(config, "mlp")
    H, _, K = a.head_shape(config.width)
    return {
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_head": H,
        "vocab_size": config.vocab_size,
        "n_inner": m.inner_dim(config.width),
        "rotary_dim": a.rope.rotary_dim or K,
        "activation_function": activation_name(m.activation),
        "layer_norm_epsilon": config.norm.eps,
        "tie_word_embeddings": config.head.tied,
    }


def base_map(qkv_map: tuple[TensorMap, ...]) -> tuple[TensorMap, ...]:
    """Returns the tensor names of GPT-J or CodeGen around those of queries, keys and values."""
    return (
        identity("embed.table", "transformer.wte.weight"),
        *norm(f"{LAYER}norm_mixer", f"{HF_LAYER}ln_1"),
        *qkv_map,
        *linear(f"{LAYER}attention.w_o", f"{HF_LAYER}attn.out_proj"),
        *linear(f"{LAYER}mlp.w_in", f"{HF_LAYER}mlp.fc_in"),
        *linear(f"{LAYER}mlp.w_out", f"{HF_LAYER}mlp.fc_out"),
        *norm("stack.norm", "transformer.ln_f"),
        identity("head.table", "lm_head.weight"),
        identity("head.bias", "lm_head.bias"),
    )


def name_map_gptj(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of GPT-J."""
    qkv = (linear(f"{LAYER}attention.w_{n}", f"{HF_LAYER}attn.{n}_proj") for n in "qkv")
    return base_map(tuple(tensor_map for pair in qkv for tensor_map in pair))


def name_map_codegen(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of CodeGen.

    Raises:
        LookupError: if the number of heads is not a multiple of four.
    """
    H, _, K = find_part(config, "attention").head_shape(config.width)
    if H % CODEGEN_SHARDS:
        raise LookupError(f"heads {H} are not a multiple of {CODEGEN_SHARDS}")
    qvk = tuple(f"{LAYER}attention.w_{n}" for n in "qvk")
    size = H // CODEGEN_SHARDS * K
    return base_map(
        fused_linear(qvk, f"{HF_LAYER}attn.qkv_proj", (size, size, size), n_groups=CODEGEN_SHARDS)
    )


def read_neox(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a GPT-NeoX config.json."""
    D, H, bias = hf["hidden_size"], hf["num_attention_heads"], hf.get("attention_bias", True)
    fraction, theta = hf.get("rotary_pct", 0.25), hf.get("rotary_emb_base", 10000.0)
    hf.ignore("max_position_embeddings")
    parallel = hf.get("use_parallel_residual", True)
    return ModelConfig(
        width=D,
        depth=hf["num_hidden_layers"],
        vocab_size=hf["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig("layer", eps=hf.get("layer_norm_eps", 1e-5)),
        block=BlockConfig(wiring="parallel" if parallel else "pre"),
        head=HeadConfig(tied=hf.get("tie_word_embeddings", False)),
        attention=AttentionConfig(
            heads=H,
            rope=rotary.from_hf(hf, D // H, rotary_fraction=fraction, theta=theta),
            bias_qkv=bias,
            bias_out=bias,
        ),
        mlp=MlpConfig(
            width=hf["intermediate_size"],
            gated=False,
            activation=hf.activation("hidden_act", "gelu"),
            bias=True,
        ),
    )


def write_neox(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for GPT-NeoX."""
    a, m = find_part(config, "attention"), find_part(config, "mlp")
    H, _, K = a.head_shape(config.width)
    keys = rotary.to_hf(a.rope, K, rotary_fraction=0.25)
    keys.pop("partial_rotary_factor", None)
    return keys | {
        "rotary_emb_base": keys.pop("rope_theta"),
        "rotary_pct": (a.rope.rotary_dim or K) / K,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "vocab_size": config.vocab_size,
        "num_attention_heads": H,
        "intermediate_size": m.inner_dim(config.width),
        "hidden_act": activation_name(m.activation),
        "attention_bias": a.bias_qkv,
        "use_parallel_residual": config.block.wiring == "parallel",
        "layer_norm_eps": config.norm.eps,
        "tie_word_embeddings": config.head.tied,
    }


def name_map_neox(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of GPT-NeoX."""
    H, _, K = find_part(config, "attention").head_shape(config.width)
    qkv, t = tuple(f"{LAYER}attention.w_{n}" for n in "qkv"), "gpt_neox.layers.{i}."
    return (
        identity("embed.table", "gpt_neox.embed_in.weight"),
        *norm(f"{LAYER}norm_mixer", f"{t}input_layernorm"),
        *fused_linear(qkv, f"{t}attention.query_key_value", (K, K, K), n_groups=H),
        *linear(f"{LAYER}attention.w_o", f"{t}attention.dense"),
        *norm(f"{LAYER}norm_channel", f"{t}post_attention_layernorm"),
        *linear(f"{LAYER}mlp.w_in", f"{t}mlp.dense_h_to_4h"),
        *linear(f"{LAYER}mlp.w_out", f"{t}mlp.dense_4h_to_h"),
        *norm("stack.norm", "gpt_neox.final_layer_norm"),
        identity("head.table", "embed_out.weight"),
    )


BUFFERS = (r".*\.attn\.(bias|masked_bias|causal_mask)",)
TIED_EMBEDDING = (("lm_head.weight", "transformer.wte.weight"),)
END_OF_TEXT = {"bos_token_id": 50256, "eos_token_id": 50256}
GPTJ = HfFamily(
    *("gptj", "GPTJForCausalLM", read, write, name_map_gptj),
    hf_ids=END_OF_TEXT,
    prefix="transformer.",
    ignored_tensors=BUFFERS,
    tied_tensors=TIED_EMBEDDING,
)
CODEGEN = HfFamily(
    *("codegen", "CodeGenForCausalLM", read_codegen, write, name_map_codegen),
    hf_ids=END_OF_TEXT,
    prefix="transformer.",
    ignored_tensors=BUFFERS,
    tied_tensors=TIED_EMBEDDING,
)
NEOX = HfFamily(
    *("gpt_neox", "GPTNeoXForCausalLM", read_neox, write_neox, name_map_neox),
    prefix="gpt_neox.",
    ignored_tensors=(r".*\.attention\.(bias|masked_bias)", r".*rotary_emb\.inv_freq"),
    tied_tensors=(("embed_out.weight", "gpt_neox.embed_in.weight"),),
)
