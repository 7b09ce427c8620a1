"""Checkpoints of Hugging Face in and out.

python -m hub import SRC --workdir=RUN     a run folder of a checkpoint
python -m hub export RUN DST               a checkpoint of a run [--family=NAME --dtype=bfloat16]
python -m hub check DIR                    a folder against its reference's outputs
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

import hub
from errors import CheckpointError, ConfigError
from hub import checkpoint, tensors
from hub import run as runs
from hub.families import FAMILIES
from hub.outputs import largest_difference
from training.command import guarded


def run(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "of the run that import makes", flag_values=values)
    flags.DEFINE_string("family", "", "by default the first that fits", flag_values=values)
    kinds = list(checkpoint.DTYPES)
    flags.DEFINE_enum("dtype", "float32", kinds, "of exported tensors", flag_values=values)
    flags.DEFINE_bool("debug", False, "print tracebacks", flag_values=values)
    try:
        verb, *rest = values(["hub", *argv])[1:] or [""]
    except flags.Error as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    if verb == "import" and len(rest) == 1 and values.workdir:
        runs.adopt(rest[0], Path(values.workdir))
        print(f"{values.workdir} holds {rest[0]}; begin with it: --init_from={values.workdir}")
    elif verb == "export" and len(rest) == 2:
        kind = runs.export(Path(rest[0]), Path(rest[1]), values.family, values.dtype)
        print(f"{rest[1]} is a {FAMILIES[kind].architecture}")
    elif verb == "check" and len(rest) == 1:
        check(Path(rest[0]))
    else:
        raise ConfigError(
            "say python -m hub import SRC --workdir=RUN, export RUN DST, or check DIR"
        )


def check(folder: Path) -> None:
    """Print the largest difference to each output of a reference, and to logits in float64."""
    if not (folder / "inputs.safetensors").is_file():
        raise CheckpointError(f"{folder} has no inputs.safetensors; give a folder with outputs too")
    inputs = tensors.read_file(folder / "inputs.safetensors")
    got = hub.forward(folder, inputs)
    for name in ("outputs_f64", "outputs"):
        path = folder / f"{name}.safetensors"
        for key, wanted in tensors.read_file(path).items() if path.is_file() else ():
            if key not in got:
                print(f"{name:12}{key:32}not made here")
            elif wanted.dtype.kind == "i":
                same = "equal" if np.array_equal(got[key], wanted) else "DIFFERENT"
                print(f"{name:12}{key:32}{same}")
            else:
                where = _real(key, wanted, inputs)
                print(f"{name:12}{key:32}{largest_difference(got[key], wanted, where):.1e} x RMS")


def _real(key: str, wanted: np.ndarray, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Which positions of an output are no padding."""
    decodes = "decoder_input_ids" in inputs and not key.startswith("encoder")
    name = "decoder_attention_mask" if decodes else "attention_mask"
    mask = inputs.get(name, np.ones_like(inputs["input_ids"])) != 0
    if wanted.shape[:2] == mask.shape:
        return mask
    if "router" in key and len(wanted) == mask.size:
        return mask.reshape(-1)
    return np.ones(wanted.shape[:1], bool)


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
