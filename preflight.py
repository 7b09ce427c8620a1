"""Compile a run without starting it: `preflight.py --config=configs/dense.py:small --devices=8`.

Prints what `train.py --dry_run` prints, then compiles the real step for so many devices (CPU ones,
made for the purpose) and sets the compiler's memory beside the estimate.
"""

import os
import sys
from collections.abc import Sequence

from absl import flags


def declare(values: flags.FlagValues) -> None:
    what = "CPU devices to compile for; 0: the devices of this machine"
    flags.DEFINE_integer("devices", 0, what, lower_bound=0, flag_values=values)
    flags.DEFINE_bool("debug", False, "print tracebacks", flag_values=values)


def run(argv: Sequence[str]) -> None:
    from training import launch
    from training.flags import parse
    from training.settings import Settings

    command = parse(argv, Settings, declare, about=__doc__ or "")
    launch.preflight(command.settings, command.provenance)


def pretend(argv: Sequence[str]) -> None:
    """Make the devices that --devices asks for; JAX reads this when it is first imported."""
    asked = [a.partition("=")[2] for a in argv if a.startswith("--devices=")]
    if asked and asked[-1].isdigit() and int(asked[-1]):
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={asked[-1]}"


if __name__ == "__main__":
    pretend(sys.argv[1:])
    from training.command import guarded

    sys.exit(guarded(run, sys.argv[1:]))
