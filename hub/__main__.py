"""Imports, exports and checks Hugging Face checkpoints.

python -m hub import SRC --workdir=RUN   make a run folder from a checkpoint
python -m hub export RUN DST             write a run as a checkpoint; options:
                                         --family=NAME --dtype=bfloat16
python -m hub check DIR                  compare a folder with its reference outputs;
                                         exit code 66: one differs, or there are none

`python -m hub COMMAND --help` describes the flags of a command.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

import hub
from errors import CheckpointError
from hub import checkpoint, safetensors_io, vocabulary
from hub import run as runs
from hub.reference_outputs import largest_difference
from settings.flag_parser import make_parser
from training.run.cli_errors import run_command

# Files in which `check` looks for outputs. In that of tests/goldens the logits are every second row
# of those that are not padding.
REFERENCE_OUTPUTS = ("outputs_f64", "outputs", "expected")
SAMPLED = "expected"
# Largest difference of an output that agrees, in units of its RMS, by its bytes per number.
TOLERANCES = {8: 1e-6, 4: 1e-3, 2: 5e-2}


def run(argv: Sequence[str]) -> None:
    """Runs one command line without the program's name."""
    args = parse_args(argv)
    if args.command == "import":
        tokenizer = runs.import_as_run(args.source, args.workdir, framing=args.framing)
        for line in vocabulary.describe(tokenizer):
            print(line)
        print(
            f"{args.workdir} has the parameters of {args.source}; "
            f"start a run from it with --init_from={args.workdir}"
        )
    elif args.command == "export":
        model_type = runs.export_run(args.run, args.target, args.family, args.dtype)
        print(f"{args.target} is a {model_type}")
    else:
        check(args.folder)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed arguments.

    Raises:
        ConfigError: if the command or a flag does not exist.
    """
    parser = make_parser("python -m hub", __doc__)
    parser.add_argument("--debug", action="store_true", help="print tracebacks of errors")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "make a run folder from a checkpoint"
    command = commands.add_parser("import", help=text, description=text, allow_abbrev=False)
    command.add_argument(
        "source", metavar="SRC", help="folder, or owner/name[@revision] of the hub"
    )
    command.add_argument(
        "--workdir", required=True, type=Path, metavar="RUN", help="run folder to create"
    )
    command.add_argument(
        "--framing",
        default="published",
        choices=get_args(runs.FramingChoice),
        help="what precedes a context, a prompt and a text: what the files of the model say, the "
        "token bos, or none (default: %(default)s)",
    )
    text = "write a run as a checkpoint"
    command = commands.add_parser("export", help=text, description=text, allow_abbrev=False)
    command.add_argument("run", type=Path, metavar="RUN", help="run folder that train.py wrote")
    command.add_argument("target", type=Path, metavar="DST", help="folder to write; must be empty")
    command.add_argument(
        "--family", default="", help="family of the export; by default the first that fits"
    )
    command.add_argument(
        "--dtype",
        default="float32",
        choices=list(checkpoint.DTYPES),
        help="dtype of the exported tensors (default: %(default)s)",
    )
    text = "compare a folder with its reference outputs"
    codes = "exit code 0: all outputs agree; 66: one differs, or there is nothing to compare"
    command = commands.add_parser(
        "check", help=text, description=f"{text}; {codes}", allow_abbrev=False
    )
    command.add_argument("folder", type=Path, metavar="DIR", help="folder with inputs.safetensors")
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="print tracebacks of errors")
    return parser.parse_args(argv)


def check(folder: Path) -> None:
    """Prints the largest difference in float64 to each reference output.

    Raises:
        CheckpointError: if the folder lacks the inputs or the outputs of its reference, or if an
            output differs from that of the reference.
    """
    if not (folder / "inputs.safetensors").is_file():
        raise CheckpointError(
            f"{folder} has no inputs.safetensors; give a folder that contains reference outputs"
        )
    inputs = safetensors_io.read_file(folder / "inputs.safetensors")
    if "input_ids" not in inputs:
        raise CheckpointError(f"{folder}/inputs.safetensors has no input_ids; add them")
    paths = {name: folder / f"{name}.safetensors" for name in REFERENCE_OUTPUTS}
    reference = {
        (name, key): expected
        for name, path in paths.items()
        for key, expected in (safetensors_io.read_file(path) if path.is_file() else {}).items()
    }
    if not reference:
        raise CheckpointError(
            f"{folder} has nothing to compare with: no outputs in "
            f"{' or '.join(path.name for path in paths.values())}; add those of the reference"
        )
    outputs = hub.forward(folder, inputs)
    computed = {names: expected for names, expected in reference.items() if names[1] in outputs}
    n_different = 0
    for (name, key), expected in reference.items():
        words, agrees = "not computed here", True
        if key in outputs:
            actual, mask = outputs[key], _is_token(key, outputs[key], inputs)
            if name == SAMPLED and key == "logits":
                actual = actual[mask][::2]
                mask = np.ones(len(actual), bool)
            words, agrees = _compare(actual, expected, mask)
        print(f"{name:12}{key:32}{words}{'' if agrees else '  DIFFERENT'}")
        n_different += not agrees
    if n_different or not computed:
        ways = "convert the weights again, or check that the outputs belong to them"
        raise CheckpointError(
            f"{folder}: {n_different} of {len(computed)} outputs differ from the reference; {ways}"
            if computed
            else f"{folder} has nothing to compare with: none of its outputs is computed here; "
            "add logits"
        )


def _compare(actual: np.ndarray, expected: np.ndarray, is_token: np.ndarray) -> tuple[str, bool]:
    """Returns in words how an output differs from that of the reference, and whether it agrees."""
    if actual.shape != expected.shape:
        return f"shape {actual.shape}, the reference has {expected.shape}", False
    if expected.dtype.kind == "i":
        n_other = int((actual != expected).sum())
        return f"{n_other} of {expected.size} ids are others" if n_other else "equal", not n_other
    difference = largest_difference(actual, expected, is_token)
    return f"{difference:.1e} x RMS", difference <= TOLERANCES[expected.dtype.itemsize]


def _is_token(key: str, actual: np.ndarray, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Returns a mask of the positions of an output that are not padding."""
    is_decoder = "decoder_input_ids" in inputs and not key.startswith("encoder")
    name = "decoder_attention_mask" if is_decoder else "attention_mask"
    ids = inputs["decoder_input_ids" if is_decoder else "input_ids"]
    mask = inputs.get(name, np.ones_like(ids)) != 0
    if actual.shape[:2] == mask.shape:
        return mask
    if "router" in key and len(actual) == mask.size:
        return mask.reshape(-1)
    if len(actual) == len(mask) and actual.ndim == 2:
        return mask[:, 0]  # An output of the first token of each row.
    return np.ones(actual.shape[:1], bool)


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
