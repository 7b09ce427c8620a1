"""The families that are known, by the `model_type` of their config.json.

To add one: write its file (how its config reads, and the map of names), and name it here. A config
of ours is exported as the first family, in this order, that has words for all of it.
"""

from hub.families import (
    bert,
    bloom,
    experts,
    falcon,
    gemma2,
    gpt2,
    gptj,
    hybrid,
    llama,
    mamba,
    modernbert,
    opt,
    t5,
)
from hub.family import Family

_ALL = (
    llama.LLAMA,
    llama.MISTRAL,
    gpt2.GPT2,
    bert.BERT,
    bert.ROBERTA,
    opt.OPT,
    bloom.BLOOM,
    falcon.FALCON,
    gptj.CODEGEN,
    gptj.GPTJ,
    gptj.NEOX,
    experts.MIXTRAL,
    experts.OLMOE,
    experts.QWEN2_MOE,
    experts.QWEN3_MOE,
    mamba.MAMBA,
    mamba.MAMBA2,
    hybrid.BAMBA,
    hybrid.JAMBA,
    t5.T5,
    t5.SWITCH,
    gemma2.GEMMA2,
    modernbert.MODERNBERT,
)
FAMILIES: dict[str, Family] = {family.kind: family for family in _ALL}
