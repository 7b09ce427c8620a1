"""Checks the sizes of vectors over widths: `python -m protocol.coordinates --config=FILE.py`.

A model is trained for a few steps at each width, at the constant rate of the config, under its
`model.parametrization`. The slope of a tap is that of the logarithm of its root mean square over
the logarithm of the width; under a rule whose rates transfer, all are near 0. docs/laws.md explains
the output.
"""

import json
import sys
from collections.abc import Sequence

from absl import flags

from settings.cli import parse_args
from storage.paths import expand_user
from training.run.cli_errors import run_command
from training.settings import Settings, resolve


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command beside the settings."""
    flags.DEFINE_list(
        "widths", ["32", "64", "128", "256", "512"], "The widths.", flag_values=values
    )
    flags.DEFINE_integer("steps", 10, "Steps of training.", lower_bound=0, flag_values=values)
    flags.DEFINE_integer(
        "seeds", 3, "Models of each width, whose squares are averaged.", 1, flag_values=values
    )
    flags.DEFINE_string(
        "out", "", "A folder for coordinates.json and pictures.", flag_values=values
    )
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
    from protocol.coordinates.figures import iter_figures
    from protocol.coordinates.measure import check_coordinates, parse_widths
    from training.run.run_paths import check_writable

    widths = parse_widths(args.widths)
    folder = expand_user(args.out, "--out")
    if args.out:
        check_writable(folder)
    data = open_data(command.settings.data, command.settings.store_kinds)
    settings = resolve(command.settings, data.tokenizer.vocab_size)
    check = check_coordinates(settings, data, widths, args.steps, args.seeds)
    print("\n".join(check.describe()), flush=True)
    if args.out:
        paths = save_figures(iter_figures(check), folder)
        record = folder / "coordinates.json"
        record.write_text(json.dumps(check.to_json(), indent=1) + "\n", "utf-8")
        for path in (record, *paths):
            print(path)


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
