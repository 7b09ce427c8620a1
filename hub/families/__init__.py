"""Lists the supported families by the `model_type` of their config.json.

To add a family, write a module with its config conversion and its name map, and list it here. A
model is exported as the first family, in this order, that computes the same function.
"""

from hub.family import HfFamily
from settings.lazy import LazyTable

# Families under the `model_type` of files that are older than their class in transformers.
OLD_MODEL_TYPES = {"RefinedWeb": "falcon", "RefinedWebModel": "falcon"}

FAMILIES: LazyTable[HfFamily] = LazyTable(
    {
        "llama": "hub.families.llama:LLAMA",
        "mistral": "hub.families.llama:MISTRAL",
        "gpt2": "hub.families.gpt2:GPT2",
        "bert": "hub.families.bert:BERT",
        "roberta": "hub.families.bert:ROBERTA",
        "opt": "hub.families.opt:OPT",
        "bloom": "hub.families.bloom:BLOOM",
        "falcon": "hub.families.falcon:FALCON",
        "codegen": "hub.families.gptj:CODEGEN",
        "gptj": "hub.families.gptj:GPTJ",
        "gpt_neox": "hub.families.gptj:NEOX",
        "mixtral": "hub.families.experts:MIXTRAL",
        "olmoe": "hub.families.experts:OLMOE",
        "qwen2_moe": "hub.families.experts:QWEN2_MOE",
        "qwen3_moe": "hub.families.experts:QWEN3_MOE",
        "mamba": "hub.families.mamba:MAMBA",
        "mamba2": "hub.families.mamba:MAMBA2",
        "bamba": "hub.families.hybrids.bamba:BAMBA",
        "falcon_h1": "hub.families.hybrids.falcon_h1:FALCON_H1",
        "jamba": "hub.families.hybrids.bamba:JAMBA",
        "t5": "hub.families.t5:T5",
        "switch_transformers": "hub.families.t5:SWITCH",
        "gemma2": "hub.families.gemma2:GEMMA2",
        "gemma3_text": "hub.families.gemma2:GEMMA3",
        "qwen3": "hub.families.qwen3:QWEN3",
        "qwen3_next": "hub.families.hybrids.qwen3_next:QWEN3_NEXT",
        "gpt_oss": "hub.families.gpt_oss:GPT_OSS",
        "phi3": "hub.families.phi3:PHI3",
        "deepseek_v2": "hub.families.deepseek:DEEPSEEK_V2",
        "deepseek_v3": "hub.families.deepseek:DEEPSEEK_V3",
        "kimi_linear": "hub.families.hybrids.kimi_linear:KIMI_LINEAR",
        "olmo2": "hub.families.olmo:OLMO2",
        "olmo3": "hub.families.olmo:OLMO3",
        "olmo_hybrid": "hub.families.hybrids.olmo_hybrid:OLMO_HYBRID",
        "clip": "hub.families.vision.clip:CLIP",
        "llava": "hub.families.vision.llava:LLAVA",
        "siglip_vision_model": "hub.families.vision.siglip:SIGLIP_VISION",
        "vit": "hub.families.vision.vit:VIT",
        "modernbert": "hub.families.modernbert:MODERNBERT",
    }
)
