"""Compile a run for a machine that need not be present.

    preflight.py --config=configs/scale/dense8b.py --topology=v5p:8x8x4
    preflight.py --config=configs/dense.py:small --devices=8      # on simulated CPU devices

It prints what `train.py --dry_run` prints, compiles the real step, and prints the memory that the
step needs on each device, its communication, and whether it fits (exit code 0). If it does not fit,
it suggests settings that do (exit code 77).
"""

import math
import os
import re
import sys
from collections.abc import Sequence

from absl import flags


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command beside the settings."""
    flags.DEFINE_integer(
        "devices",
        0,
        "Number of simulated CPU devices to compile for; 0: the devices of this machine.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "topology",
        "",
        "Machine to compile for: v5e:2x2, v5p:8x8x4, v6e:16x16, tpu7x:2x2x1, h100:8, cpu:8 ...",
        flag_values=values,
    )
    flags.DEFINE_bool("debug", False, "Print tracebacks of errors.", flag_values=values)


def run(argv: Sequence[str]) -> None:
    """Compiles the run that `argv` describes and prints the results.

    Raises: every error of `errors.py`; `run_command` prints it as one line.
    """
    from settings.cli import parse_args
    from training import runner
    from training.settings import Settings

    command = parse_args(argv, Settings, define_flags, description=__doc__ or "")
    runner.preflight(command.settings, command.provenance, command.flags.topology)


def force_host_devices(argv: Sequence[str]) -> None:
    """Sets the environment so that JAX uses the CPU, with the number of devices that flags state.

    JAX reads these variables when it is first imported. Compilation for another machine runs on the
    CPU.
    """
    counts, topologies = _flag_values("devices", argv), _flag_values("topology", argv)
    counts += [t.partition(":")[2] for t in topologies if t.startswith("cpu:")]
    if topologies or counts:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # otherwise libtpu queries the cloud's metadata
    if counts and re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*)*", counts[-1]):
        count = math.prod(map(int, counts[-1].split("x")))
        flag = f"--xla_force_host_platform_device_count={count}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


def _flag_values(name: str, argv: Sequence[str]) -> list[str]:
    """The values of a flag, written --name=value or --name value, with one dash or two."""
    args = [a if a.startswith("--") else f"-{a}" for a in argv]
    joined = [a.partition("=")[2] for a in args if a.startswith(f"--{name}=")]
    return joined + [b for a, b in zip(args, argv[1:], strict=False) if a == f"--{name}"]


if __name__ == "__main__":
    force_host_devices(sys.argv[1:])
    from training.run.cli_errors import run_command

    sys.exit(run_command(run, sys.argv[1:]))
