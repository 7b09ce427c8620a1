"""What architectures can learn: `python -m eval.capability --config=configs/reproduce/parity.py`.

Trains every candidate that the config declares on its probe at one budget, and prints a table.
`--probe=induction --config=configs/dense.py:tiny` tries the model of any other config, at the
budget of the task.
"""

import runpy
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from arch import ModelConfig
from errors import ConfigError
from eval.capability import PROBES, Capability
from eval.capability.learning import Budget, Learned, learn
from eval.capability.tasks import BUDGETS
from schema import changed, nearest
from training.command import guarded
from training.flags import parse
from training.settings import Settings


class Trial(NamedTuple):
    """What a config declares in `trial()`, on the defaults of the probe."""

    probe: Capability
    budget: Budget
    candidates: dict[str, ModelConfig]


def trial(name: str, declared: Mapping[str, Any], model: ModelConfig) -> Trial:
    """`declared` has the sections probe, budget and candidates, each of differences."""
    for key in declared:
        if key not in ("name", "probe", "budget", "candidates"):
            raise ConfigError(f"trial() has {key!r}; known: name, probe, budget, candidates")
    if not name:
        raise ConfigError(f"--probe= names no probe, nor does the config; {', '.join(PROBES)}")
    if name not in PROBES:
        raise ConfigError(f"--probe={name}: {nearest(name, PROBES)}")
    candidates = declared.get("candidates", {"model": {}})
    return Trial(
        changed(PROBES[name], declared.get("probe", {}), "probe"),
        changed(BUDGETS[name], declared.get("budget", {}), "budget"),
        {key: changed(model, own, f"candidates.{key}") for key, own in candidates.items()},
    )


def lines(name: str, probe: Capability, found: Learned) -> list[str]:
    """A line for each run and length: accuracy with its interval, and the answer's nats."""
    out = []
    for seed, run in enumerate(found.runs):
        for one in run:
            low, high = one.interval()
            out.append(
                f"{name:16} {found.rate:8.1e} {seed:4} {one.length:6} {one.accuracy:8.3f} "
                f"[{low:.3f}, {high:.3f}] {probe.chance(one.length):7.3f} {one.nats:8.3f}"
            )
    return out


def declare(values: flags.FlagValues) -> None:
    flags.DEFINE_string("probe", "", "by default that of the config", flag_values=values)
    flags.DEFINE_list("only", [], "candidates; by default all", flag_values=values)
    flags.DEFINE_bool("debug", False, "print tracebacks", flag_values=values)


def run(argv: Sequence[str]) -> None:
    command = parse(argv, Settings, declare, about=__doc__ or "")
    values, declared = command.flags, {}
    if values.config and (path := values.config.partition(":")[0]).endswith(".py"):
        declared = runpy.run_path(path).get("trial", dict)()
    name = values.probe or declared.get("name", "")
    asked = trial(name, declared, command.settings.model)
    for key in values.only:
        if key not in asked.candidates:
            raise ConfigError(f"--only={key}: {nearest(key, asked.candidates)}")
    print(f"{name}: {asked.probe}\n{asked.budget}")
    print("candidate        rate     seed length accuracy   95 % interval  chance     nats")
    for key in values.only or asked.candidates:
        start = time.perf_counter()
        found = learn(asked.candidates[key], asked.probe, asked.budget)
        print("\n".join(lines(key, asked.probe, found)))
        tried = ", ".join(f"{rate:.1e}: {nats:.3f}" for rate, nats in found.tried.items())
        choice = f"; nats on valid by rate: {tried}" if tried else ""
        print(f"    {time.perf_counter() - start:.0f} s{choice}", flush=True)


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
