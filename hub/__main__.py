"""Imports, exports and checks Hugging Face checkpoints.

python -m hub import SRC --workdir=RUN   make a run folder from a checkpoint
python -m hub export RUN DST             write a run as a checkpoint; options:
                                         --family=NAME --dtype=bfloat16
python -m hub check DIR                  compare a folder with its reference outputs
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

import hub
from errors import CheckpointError, ConfigError
from hub import checkpoint, safetensors_io
from hub import run as runs
from hub.families import FAMILIES
from hub.reference_outputs import largest_difference
from settings.cli import asks_for_help, format_flags
from training.run.cli_errors import run_command


def run(argv: Sequence[str]) -> None:
    """Runs one command line without the program's name.

    Raises:
        ConfigError: if the command or a flag does not exist.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "Run folder that import creates.", flag_values=values)
    flags.DEFINE_string(
        "family", "", "Family of the export; by default the first that fits.", flag_values=values
    )
    dtypes = list(checkpoint.DTYPES)
    flags.DEFINE_enum(
        "dtype", "float32", dtypes, "Dtype of the exported tensors.", flag_values=values
    )
    flags.DEFINE_bool("debug", False, "Print tracebacks of errors.", flag_values=values)
    if asks_for_help(argv):
        print("\n".join([__doc__ or "", *format_flags(values)]))
        return
    try:
        command, *args = values(["hub", *argv])[1:] or [""]
    except flags.Error as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    if command == "import" and len(args) == 1 and values.workdir:
        runs.import_as_run(args[0], Path(values.workdir))
        print(
            f"{values.workdir} has the parameters of {args[0]}; "
            f"start a run from it with --init_from={values.workdir}"
        )
    elif command == "export" and len(args) == 2:
        model_type = runs.export_run(Path(args[0]), Path(args[1]), values.family, values.dtype)
        print(f"{args[1]} is a {FAMILIES[model_type].architecture}")
    elif command == "check" and len(args) == 1:
        check(Path(args[0]))
    else:
        raise ConfigError(
            "usage: python -m hub import SRC --workdir=RUN, export RUN DST, or check DIR"
        )


def check(folder: Path) -> None:
    """Prints the largest difference to each reference output, and to the logits in float64.

    Raises:
        CheckpointError: if the folder has no inputs.safetensors.
    """
    if not (folder / "inputs.safetensors").is_file():
        raise CheckpointError(
            f"{folder} has no inputs.safetensors; give a folder that contains reference outputs"
        )
    inputs = safetensors_io.read_file(folder / "inputs.safetensors")
    outputs = hub.forward(folder, inputs)
    for name in ("outputs_f64", "outputs"):
        path = folder / f"{name}.safetensors"
        for key, expected in safetensors_io.read_file(path).items() if path.is_file() else ():
            if key not in outputs:
                print(f"{name:12}{key:32}not computed here")
            elif expected.dtype.kind == "i":
                result = "equal" if np.array_equal(outputs[key], expected) else "DIFFERENT"
                print(f"{name:12}{key:32}{result}")
            else:
                mask = _is_token(key, expected, inputs)
                print(
                    f"{name:12}{key:32}{largest_difference(outputs[key], expected, mask):.1e} x RMS"
                )


def _is_token(key: str, expected: np.ndarray, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Returns a mask of the positions of an output that are not padding."""
    is_decoder = "decoder_input_ids" in inputs and not key.startswith("encoder")
    name = "decoder_attention_mask" if is_decoder else "attention_mask"
    mask = inputs.get(name, np.ones_like(inputs["input_ids"])) != 0
    if expected.shape[:2] == mask.shape:
        return mask
    if "router" in key and len(expected) == mask.size:
        return mask.reshape(-1)
    return np.ones(expected.shape[:1], bool)


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
