"""Reads and writes Hugging Face checkpoints; every family is a configuration of one backbone.

    model, config, tokenizer = hub.load("path/to/folder")
    hub.save(model, config, "path/to/other")

Only safetensors files are read, and no code of a repository is run. An option that is not
implemented is refused by its name.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from arch import Model, ModelConfig
from data.tokenizers import Tokenizer
from errors import ConfigError
from hub import checkpoint, rotary, safetensors_io, vocabulary
from hub.download import resolve_folder
from hub.families import lookup
from hub.hf_config import CONFIG_FILE, read_config, write_json
from hub.reference_outputs import compute_outputs
from hub.vision_outputs import compute_vision_outputs
from settings.json_types import JsonObject
from training.run.run_paths import staged_folder

__all__ = ["forward", "load", "save"]


def load(
    path: str | Path, *, dtype: str = "float32", mesh: Mesh | None = None
) -> tuple[Model, ModelConfig, Tokenizer | None]:
    """Loads a checkpoint folder, or `owner/name[@revision]` of the hub, as a model.

    Parameters are float32 (float64 if `dtype` is float64) and are read one at a time, each to its
    place on `mesh`.

    Args:
        path: a folder, or the name of a repository on the Hugging Face hub.
        dtype: the dtype in which the model computes.
        mesh: the device mesh for the parameters; by default they are on the first device.

    Returns:
        The model, its config, and the tokenizer of tokenizer.json, None if there is no such file.
    """
    folder = resolve_folder(path)
    family, config = lookup.detect_family(folder)
    config = checkpoint.with_dtype(config, dtype)
    tokenizer = vocabulary.load_tokenizer(folder, config)
    return checkpoint.load_model(folder, family, config, mesh), config, tokenizer


def save(
    model: Model,
    config: ModelConfig,
    path: str | Path,
    *,
    family: str = "",
    dtype: str = "float32",
    tokenizer: Tokenizer | None = None,
    text_use: vocabulary.TextUse | None = None,
    extra_config: JsonObject | None = None,
    max_shard_bytes: int = safetensors_io.MAX_SHARD_BYTES,
) -> None:
    """Writes a model as a folder that Hugging Face's libraries read.

    Args:
        model: the model to write.
        config: the config of `model`.
        path: the folder to write; it must not contain weights.
        family: the `model_type` of the folder; by default the first family that computes the same
            function as `config`.
        dtype: the dtype of the tensors in the files.
        tokenizer: a tokenizer to write next to the weights.
        text_use: what frames a text, which the tokenizer's post-processor then inserts; by default
            as the tokenizer's files say.
        extra_config: additional keys of config.json, such as `max_position_embeddings` and the ids
            of special tokens; a key that the family itself writes takes precedence.
        max_shard_bytes: the approximate upper limit of the size of one file.

    Raises:
        ConfigError: if the folder already contains weights.
    """
    extra_config = dict(extra_config or {})
    pad = extra_config.get("pad_token_id", None if tokenizer is None else tokenizer.specials.pad)
    hf_family, hf_keys = lookup.find_export_family(config, family, pad_id=pad)
    folder = Path(path)
    weight_files = sorted(
        p.name for pattern in safetensors_io.WEIGHT_PATTERNS for p in folder.glob(pattern)
    )
    if weight_files:
        raise ConfigError(
            f"{folder} holds weights already ({weight_files[0]}); give another folder"
        )
    keys = hf_family.default_keys(config) | extra_config | hf_keys | {"torch_dtype": dtype}
    keys |= {"architectures": [hf_family.architecture_of(config)]}
    keys = rotary.with_both_generations(keys | {"model_type": hf_family.model_type})
    use = text_use
    if use is None and tokenizer is not None:
        use = vocabulary.published_use(tokenizer, hf_family.task == "causal")
    with staged_folder(folder) as stage:
        checkpoint.save_model(model, config, stage, hf_family, dtype, max_shard_bytes)
        write_json(stage / CONFIG_FILE, keys)
        if tokenizer is not None and use is not None:
            vocabulary.save_tokenizer(tokenizer, stage, use)


def forward(
    path: str | Path, inputs: Mapping[str, np.ndarray], dtype: str = "float64"
) -> dict[str, np.ndarray]:
    """Computes the outputs of a checkpoint for the arrays of an `inputs.safetensors`.

    hub/reference_outputs.py and hub/vision_outputs.py list the names of inputs and outputs. Under
    float32, matrix products have the highest precision.
    """
    folder = resolve_folder(path)
    x64 = jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()
    with x64, jax.default_matmul_precision("highest"):
        family, config = lookup.detect_family(folder)
        has_experts = any(spec.channel == "moe" for spec in config.layer_specs())
        config = dataclasses.replace(config, scan=not has_experts)
        config = checkpoint.with_dtype(config, dtype)
        model = checkpoint.load_model(folder, family, config)
        if model.vision is not None:
            return compute_vision_outputs(model, inputs)
        keys = read_config(folder)
        pad, start = keys.get("pad_token_id") or 0, keys.get("decoder_start_token_id") or 0
        return compute_outputs(model, family, pad, start, inputs)
