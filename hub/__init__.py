"""Published checkpoints: Hugging Face folders in and out, a file a family, as one backbone.

    model, config, tokenizer = hub.load("path/to/folder")
    hub.save(model, config, "path/to/other")

Only safetensors are read, no code of a repository is run, every option that is not implemented is
refused by its name.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from arch import Model, ModelConfig
from data.tokenizers import Tokenizer
from errors import ConfigError
from hub import checkpoint, tensors, vocabulary
from hub.fetch import local
from hub.keys import FILE, read_config
from hub.outputs import outputs

__all__ = ["forward", "load", "save"]


def load(
    path: str | Path, *, dtype: str = "float32", mesh: Mesh | None = None
) -> tuple[Model, ModelConfig, Tokenizer | None]:
    """A folder, or `owner/name[@revision]` of the hub, as a model that computes in `dtype`.

    Parameters pass one at a time from the file to where `mesh` has them, in float32 (float64 under
    that dtype); the tokenizer is that of tokenizer.json, if there is one.
    """
    folder = local(path)
    family, config = checkpoint.family_of(folder)
    config = checkpoint.in_dtype(config, dtype)
    tokenizer = checkpoint.tokenizer_of(folder, config)
    return checkpoint.load_model(folder, family, config, mesh), config, tokenizer


def save(
    model: Model,
    config: ModelConfig,
    path: str | Path,
    *,
    family: str = "",
    dtype: str = "float32",
    tokenizer: Tokenizer | None = None,
    about: Mapping[str, Any] | None = None,
    limit: int = tensors.SHARD,
) -> None:
    """Write a folder that Hugging Face's libraries read, of the first family that computes the same
    (or of `family`); ConfigError with the differences if there is none. `about` adds to config.json
    what the family does not say itself (`max_position_embeddings`, ids of specials); files have
    about `limit` bytes. A folder that holds weights is refused.
    """
    about = dict(about or {})
    pad = about.get("pad_token_id", None if tokenizer is None else tokenizer.specials.pad)
    found, keys = checkpoint.exported(config, family, pad=pad)
    folder = Path(path)
    if held := sorted(p.name for pattern in tensors.WEIGHTS for p in folder.glob(pattern)):
        raise ConfigError(f"{folder} holds weights already ({held[0]}); give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save_model(model, config, folder, found, dtype, limit)
    keys = found.usual(config) | about | keys | {"torch_dtype": dtype}
    keys |= {"architectures": [found.architecture], "model_type": found.kind}
    (folder / FILE).write_text(json.dumps(keys, indent=2, sort_keys=True) + "\n")
    if tokenizer is not None:
        vocabulary.save(tokenizer, folder)


def forward(
    path: str | Path, inputs: Mapping[str, np.ndarray], dtype: str = "float64"
) -> dict[str, np.ndarray]:
    """What a checkpoint makes of the arrays of an `inputs.safetensors`; names: `hub/outputs.py`.

    float32 runs at the highest precision of matrix products.
    """
    folder = local(path)
    x64 = jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()
    with x64, jax.default_matmul_precision("highest"):
        found, config = checkpoint.family_of(folder)
        routed = any(e.channel == "moe" for e in config.entries())
        config = dataclasses.replace(config, scan=not routed)
        config = checkpoint.in_dtype(config, dtype)
        model = checkpoint.load_model(folder, found, config)
        keys = read_config(folder)
        pad, start = keys.get("pad_token_id") or 0, keys.get("decoder_start_token_id") or 0
        return outputs(model, found, pad, start, inputs)
