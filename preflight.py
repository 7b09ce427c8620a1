"""Compile a run for a machine that need not be here.

    preflight.py --config=configs/scale/dense8b.py --topology=v5p:8x8x4
    preflight.py --config=configs/dense.py:small --devices=8      CPU devices, made for the purpose

Prints what `train.py --dry_run` prints, compiles the real step, and says what it takes of each
device, what it sends between them, and whether it fits (exit code 0), or what would (77).
"""

import math
import os
import re
import sys
from collections.abc import Sequence

from absl import flags


def declare(values: flags.FlagValues) -> None:
    what = "CPU devices to compile for; 0: the devices of this machine"
    flags.DEFINE_integer("devices", 0, what, lower_bound=0, flag_values=values)
    what = "machine to compile for: v5e:2x2, v5p:8x8x4, v6e:16x16, tpu7x:2x2x1, h100:8, cpu:8 ..."
    flags.DEFINE_string("topology", "", what, flag_values=values)
    flags.DEFINE_bool("debug", False, "print tracebacks", flag_values=values)


def run(argv: Sequence[str]) -> None:
    from training import launch
    from training.flags import parse
    from training.settings import Settings

    command = parse(argv, Settings, declare, about=__doc__ or "")
    launch.preflight(command.settings, command.provenance, command.flags.topology)


def pretend(argv: Sequence[str]) -> None:
    """Keep to the CPU what is compiled for elsewhere, and make the CPU devices that are asked for;
    JAX reads this when it is first imported."""
    counts, topologies = _given("devices", argv), _given("topology", argv)
    counts += [t.partition(":")[2] for t in topologies if t.startswith("cpu:")]
    if topologies or counts:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # libtpu would ask the cloud where it is
    if counts and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", counts[-1]):
        count = math.prod(map(int, counts[-1].split("x")))
        flag = f"--xla_force_host_platform_device_count={count}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


def _given(name: str, argv: Sequence[str]) -> list[str]:
    """The values of a flag, said as --name=value or --name value, with one dash or two."""
    words = [a if a.startswith("--") else f"-{a}" for a in argv]
    said = [a.partition("=")[2] for a in words if a.startswith(f"--{name}=")]
    return said + [b for a, b in zip(words, argv[1:], strict=False) if a == f"--{name}"]


if __name__ == "__main__":
    pretend(sys.argv[1:])
    from training.command import guarded

    sys.exit(guarded(run, sys.argv[1:]))
