"""Finds the best rate over widths: `python -m protocol.transfer --config=FILE.py --out=DIR`.

A model is trained at each width at an odd number of rates, a factor of 2^1/2 apart, whose middle is
the rate of the config. DIR/transfer.json has all trials; the same command continues it, with
another rate or other --rates too. Under a parametrization whose rates transfer, the best rates
differ by at most 1.5. docs/laws.md explains the output.
"""

import hashlib
import json
import sys
from collections.abc import Sequence

from absl import flags

from protocol.records.plan_file import without_settings
from settings.cli import parse_args
from settings.tree import as_json
from storage.paths import expand_user
from training.run.cli_errors import run_command
from training.settings import Settings, resolve


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command beside the settings."""
    flags.DEFINE_list("widths", ["32", "64", "128", "256"], "The widths.", flag_values=values)
    flags.DEFINE_integer("rates", 7, "Rates at each width, an odd number.", flag_values=values)
    flags.DEFINE_integer("seeds", 1, "Seeds of each trial.", 1, flag_values=values)
    flags.DEFINE_string("out", "transfer", "A folder for results.", flag_values=values)
    flags.DEFINE_bool("debug", False, "Print tracebacks of errors.", flag_values=values)


def run(argv: Sequence[str]) -> None:
    """Runs the command.

    Raises: every error of `errors.py`; `run_command` prints it as one line.
    """
    command = parse_args(argv, Settings, define_flags, description=__doc__ or "")
    args = command.flags
    # These load most of the project, which --help does not need.
    from data.open_stores import open_data
    from protocol.board.figures import save_figures
    from protocol.coordinates.measure import parse_widths
    from protocol.transfer.figures import iter_figures
    from protocol.transfer.search import RateTrial, describe, search_rates, to_json
    from training.run.atomic_io import read_json, write_json

    widths = parse_widths(args.widths)
    data = open_data(command.settings.data, command.settings.store_kinds)
    settings = resolve(command.settings, data.tokenizer.vocab_size)
    digest = search_digest(settings, data.fingerprint)
    record = expand_user(args.out, "--out") / "transfer.json"
    saved = read_json(record) or {}
    if saved.get("settings_sha256") != digest:
        saved = {}
    done = [RateTrial(*trial) for trial in saved.get("trials", [])]

    def save(trial: RateTrial) -> None:
        done.append(trial)
        print(f"width {trial.width}, rate {trial.rate:.4g}: {trial.loss:.4f}", flush=True)
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, {"settings_sha256": digest, "trials": [list(t) for t in done]})

    search = search_rates(settings, data, widths, args.rates, args.seeds, list(done), save)
    write_json(record, {"settings_sha256": digest} | to_json(search))
    print("\n".join(describe(search)), flush=True)
    for path in (record, *save_figures(iter_figures(search), record.parent)):
        print(path)


def search_digest(settings: Settings, fingerprint: str) -> str:
    """Returns the hash of what all trials of a search share: all but the rate and the seed."""
    tree = without_settings(as_json(settings), ("seed", "optimizer.learning_rate"))
    shared = json.dumps(tree | {"data": fingerprint}, sort_keys=True)
    return hashlib.sha256(shared.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
