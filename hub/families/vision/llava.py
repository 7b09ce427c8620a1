"""Maps LLaVA-1.5 (arXiv:2310.03744): CLIP's vision tower, two matrices, and a LLaMA decoder.

The decoder reads the vectors of patches in the place of image tokens. They come from before the
last block of the tower, so the model has no such block and no norm behind it; the files have both.
An export has the blocks that the model has, and states that all are used.
"""

import dataclasses

from arch import ModelConfig
from arch.layers.patches import VisionConfig
from hub import rotary
from hub.families import llama
from hub.families.vision import clip
from hub.family import HfFamily
from hub.hf_config import HfConfig
from hub.tensor_transforms import TensorMap, linear
from settings.json_types import JsonObject

TEXT_PREFIX, VISION_PREFIX = "language_model.", "vision_tower.vision_model."
TEXT_DEFAULTS = {
    **{"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
    **{"num_attention_heads": 32, "vocab_size": 32000},
}
VISION_DEFAULTS = {
    **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24},
    **{"num_attention_heads": 16, "image_size": 336, "patch_size": 14, "num_channels": 3},
}


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a LLaVA config.json.

    Raises:
        ConfigError: if the features are those of several blocks or include the class token.
    """
    text = hf.section("text_config", "llama", TEXT_DEFAULTS)
    image = hf.section("vision_config", "clip_vision_model", VISION_DEFAULTS)
    hf.require_value("vision_feature_select_strategy", "default")
    hf.require_value("projector_hidden_act", "gelu")
    hf.require_value("multimodal_projector_bias", True)
    hf.ignore("image_seq_length")
    hf.require_value("tie_word_embeddings", text.get("tie_word_embeddings", False))
    selected = hf.get("vision_feature_layer", -2)
    if type(selected) is not int:
        raise hf.unsupported_error("vision_feature_layer", "known: the number of one block")
    token_id = hf.get_any("image_token_index", "image_token_id")
    outputs = VisionConfig(class_token=True, projector="mlp", token_id=token_id, final_norm=False)
    vision = clip.read_tower(image, outputs)
    depth = selected if selected > 0 else vision.depth + 1 + selected
    return dataclasses.replace(
        llama.read_llama(text), vision=dataclasses.replace(vision, depth=depth)
    )


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for LLaVA.

    Raises:
        LookupError: if the model does not write about images.
    """
    if not config.vision.n_prefix_tokens:
        raise LookupError("no projector of images")
    text = {"model_type": "llama", **llama.write_llama(config)}
    return {
        "text_config": rotary.with_both_generations(text),
        "vision_config": clip.write_tower(config),
        "image_token_index": config.vision.token_id,
        "image_seq_length": config.vision.n_patches,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": config.head.tied,
    }


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of LLaVA."""
    text = (entry._replace(hf_name=TEXT_PREFIX + entry.hf_name) for entry in llama.NAME_MAP)
    return (
        *text,
        *clip.tower_map(config, VISION_PREFIX),
        *linear("vision.w_project", "multi_modal_projector.linear_1"),
        *linear("vision.w_out", "multi_modal_projector.linear_2"),
    )


def unused_tensors(config: ModelConfig) -> tuple[str, ...]:
    """Returns patterns of the tensors behind the block whose vectors are used."""
    used = "|".join(str(i) for i in range(config.vision.depth))
    layers = VISION_PREFIX.replace(".", r"\.") + r"encoder\.layers\."
    return (rf"{layers}(?!(?:{used})\.).*", r"vision_tower\..*post_layernorm\..*")


# Version 5 of the reference has other names than the published files.
RENAMES = (
    (r"^model\.vision_tower\.", "vision_tower."),
    (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
    (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
)
LLAVA = HfFamily(
    *("llava", "LlavaForConditionalGeneration", read, write, name_map),
    ignored_tensors=(r".*embeddings\.position_ids", r".*rotary_emb\.inv_freq"),
    unused_tensors=unused_tensors,
    renames=RENAMES,
)
