"""BERT (arXiv:1810.04805) and RoBERTa (arXiv:1907.11692), with their heads of masked words."""

import dataclasses
from typing import Any

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.block import BlockConfig
from arch.embedding import EmbedConfig, HeadConfig
from arch.mlp import MlpConfig
from arch.norms import NormConfig
from arch.pooler import PoolerConfig
from arch.positions import PositionsConfig
from hub.family import Family, part
from hub.keys import Keys, activation_name
from hub.layouts import Tie, linear, norm, same

L = "stack.{i}."


def frame(k: Keys, *, eps: float, offset: int) -> ModelConfig:
    """What both have in common; a file of the encoder alone lacks heads."""
    k.only("position_embedding_type", "absolute")
    act, D = k.activation("hidden_act", "gelu"), k["hidden_size"]
    return ModelConfig(
        width=D,
        depth=k["num_hidden_layers"],
        vocab=k["vocab_size"],
        vocab_multiple=1,
        final_norm=False,
        norm=NormConfig("layer", eps=k.get("layer_norm_eps", eps)),
        embed=EmbedConfig(norm=True, types=k.get("type_vocab_size", 2)),
        positions=PositionsConfig(
            learned=True, length=k["max_position_embeddings"] - offset, offset=offset
        ),
        block=BlockConfig(wiring="post"),
        head=HeadConfig(
            tied=k.get("tie_word_embeddings", True),
            bias=k.holds("predictions.bias", "lm_head.bias", "decoder.bias"),
            transform=k.holds("transform.dense.weight", "lm_head.dense.weight"),
            transform_activation=act,
        ),
        pooler=PoolerConfig(
            "first" if k.holds("pooler.dense.weight") else "none",
            classes=2 if k.holds("seq_relationship.weight") else 0,
        ),
        attention=AttentionConfig(
            heads=k["num_attention_heads"], position="none", bias_qkv=True, bias_out=True
        ),
        mlp=MlpConfig(k.get("intermediate_size", 4 * D), gated=False, activation=act, bias=True),
    )


def read_bert(k: Keys) -> ModelConfig:
    return frame(k, eps=1e-12, offset=0)


def read_roberta(k: Keys) -> ModelConfig:
    config = frame(k, eps=1e-12, offset=k.get("pad_token_id", 1) + 1)
    head = dataclasses.replace(config.head, transform_activation="gelu")  # whatever hidden_act is
    return dataclasses.replace(config, head=head)


def write(config: ModelConfig) -> dict[str, Any]:
    a, m = part(config, "attention"), part(config, "mlp")
    positions = config.positions
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "vocab_size": config.vocab,
        "num_attention_heads": a.heads,
        "intermediate_size": m.size(config.width),
        "hidden_act": activation_name(m.activation),
        "layer_norm_eps": config.norm.eps,
        "max_position_embeddings": positions.length + positions.offset,
        "type_vocab_size": config.embed.types,
        "tie_word_embeddings": config.head.tied,
    }


def write_roberta(config: ModelConfig) -> dict[str, Any]:
    return write(config) | {"pad_token_id": config.positions.offset - 1}


def lacks(config: ModelConfig) -> list[str]:
    """Their classes always have both, at random where a file has none."""
    found = [] if config.head.transform else ["head.transform False, not True"]
    return found if config.embed.types else [*found, "embed.types 0, not 1 or more"]


def encoder(base: str) -> tuple[Tie, ...]:
    """Everything but the heads, below `base`."""
    e, t = f"{base}.embeddings.", base + ".encoder.layer.{i}."
    return (
        same("embed.table", f"{e}word_embeddings.weight"),
        same("embed.positions.table", f"{e}position_embeddings.weight"),
        same("embed.types", f"{e}token_type_embeddings.weight"),
        *norm("embed.norm", f"{e}LayerNorm"),
        *linear(f"{L}attention.w_q", f"{t}attention.self.query"),
        *linear(f"{L}attention.w_k", f"{t}attention.self.key"),
        *linear(f"{L}attention.w_v", f"{t}attention.self.value"),
        *linear(f"{L}attention.w_o", f"{t}attention.output.dense"),
        *norm(f"{L}norm_mixer", f"{t}attention.output.LayerNorm"),
        *linear(f"{L}mlp.w_in", f"{t}intermediate.dense"),
        *linear(f"{L}mlp.w_out", f"{t}output.dense"),
        *norm(f"{L}norm_channel", f"{t}output.LayerNorm"),
        *linear("pooler.w_pool", f"{base}.pooler.dense"),
    )


def ties_bert(config: ModelConfig) -> tuple[Tie, ...]:
    p = "cls.predictions."
    return (
        *encoder("bert"),
        *linear("head.w_transform", f"{p}transform.dense"),
        *norm("head.norm", f"{p}transform.LayerNorm"),
        same("head.table", f"{p}decoder.weight"),
        same("head.bias", f"{p}bias" if config.head.tied else f"{p}decoder.bias"),
        *linear("pooler.w_class", "cls.seq_relationship"),
    )


def ties_roberta(config: ModelConfig) -> tuple[Tie, ...]:
    return (
        *encoder("roberta"),
        *linear("head.w_transform", "lm_head.dense"),
        *norm("head.norm", "lm_head.layer_norm"),
        same("head.table", "lm_head.decoder.weight"),
        same("head.bias", "lm_head.bias" if config.head.tied else "lm_head.decoder.bias"),
    )


def twins_bert(config: ModelConfig) -> tuple[tuple[str, str], ...]:
    bias = "cls.predictions.bias", "cls.predictions.decoder.bias"
    return () if config.head.tied or not config.head.bias else (bias,)


def twins_roberta(config: ModelConfig) -> tuple[tuple[str, str], ...]:
    bias = "lm_head.bias", "lm_head.decoder.bias"
    return () if config.head.tied or not config.head.bias else (bias,)


OLD = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
BERT = Family(
    *("bert", "BertForPreTraining", read_bert, write, ties_bert),
    defaults={"intermediate_size": 3072},
    prefix="bert.",
    ignored=(r"(bert\.)?embeddings\.(position|token_type)_ids",),
    copies=(
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    renames=OLD,
    twins=twins_bert,
    lacks=lacks,
    task="masked",
    padding_sees=True,
)
ROBERTA = Family(
    *("roberta", "RobertaForMaskedLM", read_roberta, write_roberta, ties_roberta),
    defaults={"intermediate_size": 3072},
    prefix="roberta.",
    ignored=(r"(roberta\.)?embeddings\.(position|token_type)_ids",),
    copies=(
        ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("lm_head.decoder.bias", "lm_head.bias"),
    ),
    renames=OLD,
    twins=twins_roberta,
    lacks=lacks,
    positions="ids",
    task="masked",
    padding_sees=True,
)
