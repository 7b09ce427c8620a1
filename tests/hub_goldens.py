"""Tiny checkpoints of published families, and what their reference made of them.

tests/goldens/hf/NAME: config.json (some with config_v4.json, as older files write it),
model.safetensors, inputs.safetensors, and expected.safetensors: of the logits in float64 every
second row of those that are no padding, and parts of the outputs in float32. Made with Hugging Face
transformers 5.23.0 on torch 2.13.0 from random weights; neither is needed to read them. A folder is
named after its family and the option that it is there for.
"""

import shutil
from pathlib import Path

import numpy as np

from hub import tensors

FOLDER = Path(__file__).parent / "goldens" / "hf"
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


def arrays(name: str, file: str) -> dict[str, np.ndarray]:
    return tensors.read_file(FOLDER / name / f"{file}.safetensors")


def real(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Which positions of the logits are no padding."""
    return inputs.get("decoder_attention_mask", inputs["attention_mask"]) != 0


def difference(name: str, logits: np.ndarray, least: float = 0.0) -> float:
    """The largest one to the golden, in units of its RMS (at least `least`)."""
    wanted = arrays(name, "expected")["logits"]
    got = logits[real(arrays(name, "inputs"))][::2]
    rms = max(np.sqrt(np.mean(np.square(wanted))), least)
    return float(np.abs(got - wanted).max() / rms)


def copy(name: str, to: Path, leave: tuple[str, ...] = ()) -> Path:
    """A folder of one's own, to damage."""
    to.mkdir()
    for path in (FOLDER / name).iterdir():
        if path.name not in leave and path.name != "config_v4.json":
            shutil.copyfile(path, to / path.name)
    return to
