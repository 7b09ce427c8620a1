"""Trains architectures on a probe: `python -m eval.capability --config=FILE`.

Every candidate that the config declares (as in configs/reproduce/parity.py) is trained at the same
budget, and a table of accuracies is printed. With `--probe=induction
--config=configs/dense.py:tiny` the model of any other config is trained, at the budget of the task
of that name.
"""

import runpy
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

from arch import ModelConfig
from errors import ConfigError
from eval.capability import PROBES, CapabilityProbe
from eval.capability.learning import Budget, CapabilityResult, run_probe
from eval.capability.tasks import BUDGETS
from settings.changes import with_changes
from settings.cli import parse_args
from settings.json_types import JsonObject
from settings.types import did_you_mean
from training.run.cli_errors import run_command
from training.settings import Settings


class CapabilityTrial(NamedTuple):
    """Holds what the function `trial()` of a config declares, completed by the probe's defaults."""

    probe: CapabilityProbe
    budget: Budget
    candidates: dict[str, ModelConfig]


def make_trial(name: str, overrides: JsonObject, model: ModelConfig) -> CapabilityTrial:
    """Builds the trial of the probe `name` from the sections probe, budget and candidates.

    Each section has only the values that differ from the defaults.

    Raises:
        ConfigError: if a section or the probe does not exist.
    """
    for key in overrides:
        if key not in ("name", "probe", "budget", "candidates"):
            raise ConfigError(f"trial() has {key!r}; known: name, probe, budget, candidates")
    if not name:
        names = ", ".join(PROBES)
        raise ConfigError(f"neither --probe nor the config names a probe; known: {names}")
    if name not in PROBES:
        raise ConfigError(f"--probe={name}: {did_you_mean(name, PROBES)}")
    candidates = overrides.get("candidates", {"model": {}})
    return CapabilityTrial(
        with_changes(PROBES[name], overrides.get("probe", {}), "probe"),
        with_changes(BUDGETS[name], overrides.get("budget", {}), "budget"),
        {
            key: with_changes(model, changes, f"candidates.{key}")
            for key, changes in candidates.items()
        },
    )


def format_results(name: str, probe: CapabilityProbe, result: CapabilityResult) -> list[str]:
    """Returns one line per seed and length: accuracy with its interval, and the answer's nats."""
    lines = []
    for seed, accuracies in enumerate(result.runs):
        for x in accuracies:
            low, high = x.confidence_interval()
            lines.append(
                f"{name:16} {result.learning_rate:8.1e} {seed:4} {x.seq_len:6} {x.accuracy:8.3f} "
                f"[{low:.3f}, {high:.3f}] {probe.chance_accuracy(x.seq_len):7.3f} {x.nats:8.3f}"
            )
    return lines


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command, which are not settings."""
    flags.DEFINE_string(
        "probe", "", "Probe to train on; by default that of the config.", flag_values=values
    )
    flags.DEFINE_list(
        "candidates",
        [],
        "Names of the candidates to train, separated by commas; by default all.",
        flag_values=values,
    )
    flags.DEFINE_bool("debug", False, "Print tracebacks of errors.", flag_values=values)


def run(argv: Sequence[str]) -> None:
    """Trains the candidates and prints the table of their results.

    Raises:
        ConfigError: if --candidates has a name that the config does not declare.
    """
    command = parse_args(argv, Settings, define_flags, description=__doc__ or "")
    values, overrides = command.flags, {}
    if values.config and (path := values.config.partition(":")[0]).endswith(".py"):
        overrides = runpy.run_path(path).get("trial", dict)()
    name = values.probe or overrides.get("name", "")
    trial = make_trial(name, overrides, command.settings.model)
    for key in values.candidates:
        if key not in trial.candidates:
            raise ConfigError(f"--candidates={key}: {did_you_mean(key, trial.candidates)}")
    print(f"{name}: {trial.probe}\n{trial.budget}")
    print("candidate        rate     seed length accuracy   95 % interval  chance     nats")
    for key in values.candidates or trial.candidates:
        start = time.perf_counter()
        result = run_probe(trial.candidates[key], trial.probe, trial.budget)
        print("\n".join(format_results(key, trial.probe, result)))
        losses = ", ".join(f"{rate:.1e}: {nats:.3f}" for rate, nats in result.tuning_losses.items())
        summary = f"; validation nats by learning rate: {losses}" if losses else ""
        print(f"    {time.perf_counter() - start:.0f} s{summary}", flush=True)


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
