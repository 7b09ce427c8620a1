"""Reads tiny checkpoints of published families, with the outputs of their references.

tests/goldens/hf/NAME has config.json (some also config_v4.json, the format of older versions),
model.safetensors, inputs.safetensors and expected.safetensors. The expected outputs are every
second unpadded row of the logits in float64, and parts of the other outputs in float32. They were
computed by Hugging Face transformers 5.23.0 (phi3_longrope, olmo3_yarn_rope and
siglip_vision_model: 5.24.0) on torch 2.13.0 from random weights; reading them needs neither.
A folder is named after its family and the option that it tests.
"""

import shutil
from pathlib import Path

import numpy as np

from hub import safetensors_io

FOLDER = Path(__file__).parent / "goldens" / "hf"
VISION_FOLDER = FOLDER.parent / "vision"  # Models that read images.
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


def arrays(name: str, file: str) -> dict[str, np.ndarray]:
    """Returns the arrays of one file of a golden."""
    return safetensors_io.read_file(FOLDER / name / f"{file}.safetensors")


def is_token(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Returns a mask of the positions of the logits that are not padding."""
    return inputs.get("decoder_attention_mask", inputs["attention_mask"]) != 0


def difference(name: str, logits: np.ndarray, min_rms: float = 0.0) -> float:
    """Returns the largest difference to the golden, in units of its RMS (at least `min_rms`)."""
    expected = arrays(name, "expected")["logits"]
    actual = logits[is_token(arrays(name, "inputs"))][::2]
    rms = max(np.sqrt(np.mean(np.square(expected))), min_rms)
    return float(np.abs(actual - expected).max() / rms)


def copy(name: str, target: Path, exclude: tuple[str, ...] = ()) -> Path:
    """Copies a golden to a folder that a test can change."""
    target.mkdir()
    for path in (FOLDER / name).iterdir():
        if path.name not in exclude and path.name != "config_v4.json":
            shutil.copyfile(path, target / path.name)
    return target
