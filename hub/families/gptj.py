"""GPT-J (Wang and Komatsuzaki 2021), CodeGen (arXiv:2203.13474) and GPT-NeoX (arXiv:2204.06745).

Attention and MLP read the stream side by side. CodeGen is GPT-J's graph with one matrix for the
queries, values and keys (in this order) of each of four devices that once trained it.
"""

from typing import Any

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.block import BlockConfig
from arch.embedding import HeadConfig
from arch.mlp import MlpConfig
from arch.norms import NormConfig
from arch.rope import RopeConfig
from errors import ConfigError
from hub import rotary
from hub.family import Family, part
from hub.keys import Keys, activation_name
from hub.layouts import Tie, fused, linear, norm, same

L, T = "stack.{i}.", "transformer.h.{i}."
DEVICES = 4  # CodeGen's


def read(k: Keys) -> ModelConfig:
    D, H = k["n_embd"], k["n_head"]
    turned = k["rotary_dim"]
    k.unused("n_positions", "scale_attn_weights", "rotary")
    return ModelConfig(
        width=D,
        depth=k["n_layer"],
        vocab=k["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig("layer", eps=k.get("layer_norm_epsilon", 1e-5)),
        block=BlockConfig(wiring="parallel", norms=1),
        head=HeadConfig(tied=k.get("tie_word_embeddings", False), bias=True),
        attention=AttentionConfig(
            heads=H, rope=RopeConfig(width=0 if turned == D // H else turned, style="pairs")
        ),
        mlp=MlpConfig(
            width=k.get("n_inner", 4 * D),
            gated=False,
            activation=k.activation("activation_function", "gelu_new"),
            bias=True,
        ),
    )


def read_codegen(k: Keys) -> ModelConfig:
    config = read(k)
    if config.attention.heads % DEVICES:
        raise ConfigError(
            f"config.json: n_head {config.attention.heads} is not a multiple of {DEVICES}, as "
            "CodeGen's matrices need"
        )
    return config


def write(config: ModelConfig) -> dict[str, Any]:
    a, m = part(config, "attention"), part(config, "mlp")
    H, _, K = a.shape(config.width)
    return {
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_head": H,
        "vocab_size": config.vocab,
        "n_inner": m.size(config.width),
        "rotary_dim": a.rope.width or K,
        "activation_function": activation_name(m.activation),
        "layer_norm_epsilon": config.norm.eps,
        "tie_word_embeddings": config.head.tied,
    }


def frame(out: tuple[Tie, ...]) -> tuple[Tie, ...]:
    return (
        same("embed.table", "transformer.wte.weight"),
        *norm(f"{L}norm_mixer", f"{T}ln_1"),
        *out,
        *linear(f"{L}attention.w_o", f"{T}attn.out_proj"),
        *linear(f"{L}mlp.w_in", f"{T}mlp.fc_in"),
        *linear(f"{L}mlp.w_out", f"{T}mlp.fc_out"),
        *norm("stack.norm", "transformer.ln_f"),
        same("head.table", "lm_head.weight"),
        same("head.bias", "lm_head.bias"),
    )


def ties_gptj(config: ModelConfig) -> tuple[Tie, ...]:
    qkv = (linear(f"{L}attention.w_{n}", f"{T}attn.{n}_proj") for n in "qkv")
    return frame(tuple(tie for pair in qkv for tie in pair))


def ties_codegen(config: ModelConfig) -> tuple[Tie, ...]:
    H, _, K = part(config, "attention").shape(config.width)
    if H % DEVICES:
        raise LookupError(f"heads {H} are not a multiple of {DEVICES}")
    qvk = tuple(f"{L}attention.w_{n}" for n in "qvk")
    size = H // DEVICES * K
    return frame(fused(qvk, f"{T}attn.qkv_proj", (size, size, size), groups=DEVICES))


def read_neox(k: Keys) -> ModelConfig:
    D, H, bias = k["hidden_size"], k["num_attention_heads"], k.get("attention_bias", True)
    share, theta = k.get("rotary_pct", 0.25), k.get("rotary_emb_base", 10000.0)
    k.unused("max_position_embeddings")
    parallel = k.get("use_parallel_residual", True)
    return ModelConfig(
        width=D,
        depth=k["num_hidden_layers"],
        vocab=k["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig("layer", eps=k.get("layer_norm_eps", 1e-5)),
        block=BlockConfig(wiring="parallel" if parallel else "pre"),
        head=HeadConfig(tied=k.get("tie_word_embeddings", False)),
        attention=AttentionConfig(
            heads=H,
            rope=rotary.rope(k, D // H, partial=share, theta=theta),
            bias_qkv=bias,
            bias_out=bias,
        ),
        mlp=MlpConfig(
            width=k["intermediate_size"],
            gated=False,
            activation=k.activation("hidden_act", "gelu"),
            bias=True,
        ),
    )


def write_neox(config: ModelConfig) -> dict[str, Any]:
    a, m = part(config, "attention"), part(config, "mlp")
    H, _, K = a.shape(config.width)
    keys = rotary.written(a.rope, K, partial=0.25)
    keys.pop("partial_rotary_factor", None)
    return keys | {
        "rotary_emb_base": keys.pop("rope_theta"),
        "rotary_pct": (a.rope.width or K) / K,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "vocab_size": config.vocab,
        "num_attention_heads": H,
        "intermediate_size": m.size(config.width),
        "hidden_act": activation_name(m.activation),
        "attention_bias": a.bias_qkv,
        "use_parallel_residual": config.block.wiring == "parallel",
        "layer_norm_eps": config.norm.eps,
        "tie_word_embeddings": config.head.tied,
    }


def ties_neox(config: ModelConfig) -> tuple[Tie, ...]:
    H, _, K = part(config, "attention").shape(config.width)
    qkv, t = tuple(f"{L}attention.w_{n}" for n in "qkv"), "gpt_neox.layers.{i}."
    return (
        same("embed.table", "gpt_neox.embed_in.weight"),
        *norm(f"{L}norm_mixer", f"{t}input_layernorm"),
        *fused(qkv, f"{t}attention.query_key_value", (K, K, K), groups=H),
        *linear(f"{L}attention.w_o", f"{t}attention.dense"),
        *norm(f"{L}norm_channel", f"{t}post_attention_layernorm"),
        *linear(f"{L}mlp.w_in", f"{t}mlp.dense_h_to_4h"),
        *linear(f"{L}mlp.w_out", f"{t}mlp.dense_4h_to_h"),
        *norm("stack.norm", "gpt_neox.final_layer_norm"),
        same("head.table", "embed_out.weight"),
    )


BUFFERS = (r".*\.attn\.(bias|masked_bias|causal_mask)",)
TIED = (("lm_head.weight", "transformer.wte.weight"),)
GPTJ = Family(
    *("gptj", "GPTJForCausalLM", read, write, ties_gptj),
    prefix="transformer.",
    ignored=BUFFERS,
    copies=TIED,
)
CODEGEN = Family(
    *("codegen", "CodeGenForCausalLM", read_codegen, write, ties_codegen),
    prefix="transformer.",
    ignored=BUFFERS,
    copies=TIED,
)
NEOX = Family(
    *("gpt_neox", "GPTNeoXForCausalLM", read_neox, write_neox, ties_neox),
    prefix="gpt_neox.",
    ignored=(r".*\.attention\.(bias|masked_bias)", r".*rotary_emb\.inv_freq"),
    copies=(("embed_out.weight", "gpt_neox.embed_in.weight"),),
)
