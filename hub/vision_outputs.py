"""Computes the outputs of a model that reads images, under the names of its reference.

Inputs: `pixel_values` [B channels height width], normalized, and for texts `input_ids` and
`attention_mask`. Outputs: `image_embeds`, `text_embeds`, `logits_per_image`, `logits_per_text` and
`text_last_hidden_state` of a model that compares images with texts; `logits` and
`last_hidden_state` of one that classifies images; `pooler_output` and `last_hidden_state` of one
that pools them by attention; `image_features` and `logits` of one that writes about them.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from arch import Model, SequenceInfo


def compute_vision_outputs(model: Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Computes all outputs of a model with a vision stack for the given inputs."""
    rows = {
        name: jnp.asarray(value, model.config.dtype if name == "pixel_values" else jnp.int32)
        for name, value in inputs.items()
        if "prompt" not in name
    }
    outputs = jax.jit(_forward)(model, rows)
    return {name: np.asarray(value) for name, value in outputs.items()}


def _forward(model: Model, rows: dict[str, Array]) -> dict[str, Array]:
    images = jnp.moveaxis(rows["pixel_values"], 1, -1)
    tower = model.require_vision()
    vectors, _ = tower(images)
    cfg, outputs = model.config.vision, dict[str, Array]()
    if cfg.num_classes:
        outputs |= {"logits": tower.class_scores(vectors), "last_hidden_state": vectors}
    elif cfg.pooling == "attention":
        outputs |= {"pooler_output": tower.pool(vectors), "last_hidden_state": vectors}
    if "input_ids" not in rows:
        return outputs
    ids = rows["input_ids"]
    mask = rows.get("attention_mask", jnp.ones_like(ids))
    seq = SequenceInfo.unpacked(*ids.shape)
    seq = dataclasses.replace(seq, segment_ids=mask)
    if cfg.n_prefix_tokens:
        features = tower.project(vectors)
        outputs["image_features"] = features.reshape(-1, features.shape[-1])
        hidden, _, _ = model(ids, dataclasses.replace(seq, images=images))
        outputs["logits"] = model.logits(hidden)[..., : model.config.vocab_size]
    if model.joint is not None:
        hidden, _, _ = model(ids, seq)
        last = jnp.sum(mask, axis=1) - 1
        texts = model.joint.embed_texts(hidden[jnp.arange(len(ids)), last])
        image_vectors = model.joint.embed_images(tower.pool(vectors))
        outputs |= _compare(model.joint.log_scale[...], image_vectors, texts)
        outputs["text_last_hidden_state"] = hidden
    return outputs


def _compare(
    log_scale: Array, images: Float[Array, "B Z"], texts: Float[Array, "B Z"]
) -> dict[str, Array]:
    images, texts = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (images, texts))
    logits = jnp.exp(log_scale) * texts @ images.T
    return {
        "image_embeds": images,
        "text_embeds": texts,
        "logits_per_text": logits,
        "logits_per_image": logits.T,
    }
