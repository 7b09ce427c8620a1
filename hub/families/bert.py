"""Maps BERT (arXiv:1810.04805) and RoBERTa (arXiv:1907.11692) with their pre-training heads."""

import dataclasses

from arch import ModelConfig
from arch.block import BlockConfig
from arch.channels.mlp import MlpConfig
from arch.layers.embedding import EmbedConfig, HeadConfig
from arch.layers.norms import NormConfig
from arch.layers.pooler import PoolerConfig
from arch.layers.positions import PositionsConfig
from arch.mixers.attention import AttentionConfig
from hub.family import HfFamily, find_part
from hub.hf_config import HfConfig, activation_name
from hub.tensor_transforms import TensorMap, identity, linear, norm
from settings.json_types import JsonObject

LAYER = "stack.{i}."


def read_base(hf: HfConfig, *, eps: float, offset: int) -> ModelConfig:
    """Returns the model config of either family, without the heads that the file lacks."""
    hf.require_value("position_embedding_type", "absolute")
    act, D = hf.activation("hidden_act", "gelu"), hf["hidden_size"]
    return ModelConfig(
        width=D,
        depth=hf["num_hidden_layers"],
        vocab_size=hf["vocab_size"],
        vocab_multiple=1,
        final_norm=False,
        norm=NormConfig("layer", eps=hf.get("layer_norm_eps", eps)),
        embed=EmbedConfig(norm=True, token_types=hf.get("type_vocab_size", 2)),
        positions=PositionsConfig(
            learned=True, max_length=hf["max_position_embeddings"] - offset, offset=offset
        ),
        block=BlockConfig(wiring="post"),
        head=HeadConfig(
            tied=hf.get("tie_word_embeddings", True),
            bias=hf.has_tensor("predictions.bias", "lm_head.bias", "decoder.bias", if_unknown=True),
            mlm_transform=hf.has_tensor(
                "transform.dense.weight", "lm_head.dense.weight", if_unknown=True
            ),
            mlm_transform_activation=act,
        ),
        pooler=PoolerConfig(
            "first" if hf.has_tensor("pooler.dense.weight", if_unknown=False) else "none",
            num_classes=2 if hf.has_tensor("seq_relationship.weight", if_unknown=False) else 0,
        ),
        attention=AttentionConfig(
            heads=hf["num_attention_heads"], position_encoding="none", bias_qkv=True, bias_out=True
        ),
        mlp=MlpConfig(hf.get("intermediate_size", 4 * D), gated=False, activation=act, bias=True),
    )


def read_bert(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a BERT config.json."""
    return read_base(hf, eps=1e-12, offset=0)


def read_roberta(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a RoBERTa config.json."""
    config = read_base(hf, eps=1e-12, offset=hf.get("pad_token_id", 1) + 1)
    head = dataclasses.replace(
        config.head, mlm_transform_activation="gelu"
    )  # RoBERTa ignores hidden_act here
    return dataclasses.replace(config, head=head)


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for BERT, which RoBERTa extends."""
    a, m = find_part(config, "attention"), find_part(config, "mlp")
    positions = config.positions
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "vocab_size": config.vocab_size,
        "num_attention_heads": a.heads,
        "intermediate_size": m.inner_dim(config.width),
        "hidden_act": activation_name(m.activation),
        "layer_norm_eps": config.norm.eps,
        "max_position_embeddings": positions.max_length + positions.offset,
        "type_vocab_size": config.embed.token_types,
        "tie_word_embeddings": config.head.tied,
    }


def write_roberta(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for RoBERTa."""
    return write(config) | {"pad_token_id": config.positions.offset - 1}


def unsupported(config: ModelConfig) -> list[str]:
    """Returns the missing parts that the classes always have and would initialize randomly."""
    mismatches = []
    if config.head.bias and not config.head.mlm_transform:
        mismatches.append("head.mlm_transform False, not True")
    if not config.embed.token_types:
        mismatches.append("embed.token_types 0, not 1 or more")
    return mismatches


def smaller_bert(config: ModelConfig) -> str:
    """Returns the class of a BERT without all of the parts of its pre-training."""
    if not config.head.mlm_transform:
        return "BertModel"
    return "" if config.pooler.num_classes else "BertForMaskedLM"


def smaller_roberta(config: ModelConfig) -> str:
    """Returns the class of a RoBERTa without a head."""
    return "" if config.head.mlm_transform else "RobertaModel"


def encoder_map(hf_prefix: str) -> tuple[TensorMap, ...]:
    """Returns the tensor names of everything below `hf_prefix`, which excludes the heads."""
    e, t = f"{hf_prefix}.embeddings.", hf_prefix + ".encoder.layer.{i}."
    return (
        identity("embed.table", f"{e}word_embeddings.weight"),
        identity("embed.positions.table", f"{e}position_embeddings.weight"),
        identity("embed.types", f"{e}token_type_embeddings.weight"),
        *norm("embed.norm", f"{e}LayerNorm"),
        *linear(f"{LAYER}attention.w_q", f"{t}attention.self.query"),
        *linear(f"{LAYER}attention.w_k", f"{t}attention.self.key"),
        *linear(f"{LAYER}attention.w_v", f"{t}attention.self.value"),
        *linear(f"{LAYER}attention.w_o", f"{t}attention.output.dense"),
        *norm(f"{LAYER}norm_mixer", f"{t}attention.output.LayerNorm"),
        *linear(f"{LAYER}mlp.w_in", f"{t}intermediate.dense"),
        *linear(f"{LAYER}mlp.w_out", f"{t}output.dense"),
        *norm(f"{LAYER}norm_channel", f"{t}output.LayerNorm"),
        *linear("pooler.w_pool", f"{hf_prefix}.pooler.dense"),
    )


def name_map_bert(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of BERT."""
    p = "cls.predictions."
    return (
        *encoder_map("bert"),
        *linear("head.w_transform", f"{p}transform.dense"),
        *norm("head.norm", f"{p}transform.LayerNorm"),
        identity("head.table", f"{p}decoder.weight"),
        identity("head.bias", f"{p}bias" if config.head.tied else f"{p}decoder.bias"),
        *linear("pooler.w_class", "cls.seq_relationship"),
    )


def name_map_roberta(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of RoBERTa."""
    return (
        *encoder_map("roberta"),
        *linear("head.w_transform", "lm_head.dense"),
        *norm("head.norm", "lm_head.layer_norm"),
        identity("head.table", "lm_head.decoder.weight"),
        identity("head.bias", "lm_head.bias" if config.head.tied else "lm_head.decoder.bias"),
    )


def duplicated_tensors_bert(config: ModelConfig) -> tuple[tuple[str, str], ...]:
    """Returns the two names of the bias of an untied head of BERT."""
    bias = "cls.predictions.bias", "cls.predictions.decoder.bias"
    return () if config.head.tied or not config.head.bias else (bias,)


def duplicated_tensors_roberta(config: ModelConfig) -> tuple[tuple[str, str], ...]:
    """Returns the two names of the bias of an untied head of RoBERTa."""
    bias = "lm_head.bias", "lm_head.decoder.bias"
    return () if config.head.tied or not config.head.bias else (bias,)


OLD_NAMES = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
BERT = HfFamily(
    *("bert", "BertForPreTraining", read_bert, write, name_map_bert),
    hf_defaults={"intermediate_size": 3072},
    prefix="bert.",
    ignored_tensors=(r"(bert\.)?embeddings\.(position|token_type)_ids",),
    tied_tensors=(
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    renames=OLD_NAMES,
    duplicated_tensors=duplicated_tensors_bert,
    unsupported=unsupported,
    smaller_architecture=smaller_bert,
    task="masked",
    padding_matters=True,
)
ROBERTA = HfFamily(
    *("roberta", "RobertaForMaskedLM", read_roberta, write_roberta, name_map_roberta),
    hf_defaults={"intermediate_size": 3072},
    prefix="roberta.",
    ignored_tensors=(r"(roberta\.)?embeddings\.(position|token_type)_ids",),
    tied_tensors=(
        ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("lm_head.decoder.bias", "lm_head.bias"),
    ),
    renames=OLD_NAMES,
    duplicated_tensors=duplicated_tensors_roberta,
    unsupported=unsupported,
    smaller_architecture=smaller_roberta,
    position_numbering="ids",
    task="masked",
    padding_matters=True,
)
