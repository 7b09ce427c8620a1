"""Fits scaling laws: `python -m protocol.fit RUNS...` or `python -m protocol.fit points.csv`.

Run folders give one fit for each candidate; a CSV file has the columns params, tokens and loss, and
may have budget, training_flops and epochs. What cannot be fitted is said, and the other approaches
are fitted all the same. docs/laws.md explains the output. jax is not needed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from errors import ConfigError, DataError
from protocol.board.figures import save_figures
from protocol.fit.describe import describe, to_json
from protocol.fit.figures import iter_figures
from protocol.fit.point_table import read_points
from protocol.fit.points import PointSet, read_runs
from protocol.fit.report import APPROACHES, FitSettings, fit_points
from protocol.records.fit_file import FORMAT
from settings.command import run_command
from settings.flag_parser import count_parser, make_parser
from settings.types import did_you_mean
from training.run.strict_json import encode_json

MAX_RESAMPLES = 10_000  # All of them are fitted as one array.


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed arguments."""
    parser = make_parser("python -m protocol.fit", __doc__)
    parser.add_argument("results", nargs="+", type=Path, help="run folders, or one CSV file")
    parser.add_argument(
        "--approach", default="1,2,3,surface", metavar="A,B", help="1, 2, 3, surface (default: all)"
    )
    parser.add_argument(
        "--budgets", default="", metavar="C,C", help="training FLOPs to compute the optimum at"
    )
    parser.add_argument(
        "--predict", default="", metavar="N:D,N:D", help="sizes and tokens to predict the loss at"
    )
    parser.add_argument(
        "--where", default="", metavar="KEY=VALUE,...", help="rows of a CSV file that are fitted"
    )
    parser.add_argument("--sha256", default="", help="SHA-256 that the CSV file must have")
    parser.add_argument(
        "--repetition",
        action="store_true",
        help="use the effective tokens of arXiv:2305.16264; else more than 4 epochs are left out",
    )
    parser.add_argument(
        "--with_head", action="store_true", help="count embedding and head of run folders in N"
    )
    parser.add_argument(
        "--outside", action="store_true", help="use minima of parabolas outside the sizes trained"
    )
    parser.add_argument(
        "--checkpoints",
        default="",
        metavar="SHARE",
        help="use scored checkpoints (python -m eval --step=N) too, after this share of the steps "
        "at the full learning rate, such as 0.5",
    )
    parser.add_argument(
        "--resamples", type=count_parser("--resamples"), default=200, help="bootstrap resamples"
    )
    parser.add_argument("--out", type=Path, help="folder for fit.json and pictures (PDF and SVG)")
    parser.add_argument("--debug", action="store_true", help="print tracebacks of errors")
    return parser.parse_args(argv)


def read_sources(args: argparse.Namespace) -> list[PointSet]:
    """Returns the points that the arguments name.

    Raises:
        ConfigError: if a flag does not suit the results.
    """
    kinds = [path.suffix.lower() for path in args.results]
    if kinds == [".csv"]:
        if args.checkpoints:
            raise ConfigError(
                "--checkpoints is for run folders; a CSV file has the columns run and "
                "before_cooldown"
            )
        where = dict(_split_pair("--where", text, "=") for text in _items(args.where))
        return [read_points(args.results[0], where, args.sha256)]
    for path, kind in zip(args.results, kinds, strict=True):
        if kind == ".csv" or (path.is_file() and kind != ".json"):
            raise ConfigError(
                f"{path} is a file among {len(kinds)} results; give run folders, or one file of "
                "points whose name ends in .csv"
            )
    if args.where or args.sha256:
        raise ConfigError(
            "--where and --sha256 are for a CSV file; give one file that ends in .csv"
        )
    share = _share("--checkpoints", args.checkpoints) if args.checkpoints else None
    return read_runs(args.results, args.with_head, share)


def parse_settings(args: argparse.Namespace) -> FitSettings:
    """Returns what the arguments ask for.

    Raises:
        ConfigError: if an approach is unknown or a value is no positive number.
    """
    approaches = tuple(dict.fromkeys(_items(args.approach)))
    if not approaches:
        raise ConfigError(f"--approach names none; known: {', '.join(APPROACHES)}")
    for name in approaches:
        if name not in APPROACHES:
            raise ConfigError(f"--approach={name}; {did_you_mean(name, APPROACHES)}")
    if args.resamples > MAX_RESAMPLES:
        raise ConfigError(f"--resamples={args.resamples}, must be at most {MAX_RESAMPLES}")
    targets = [_split_pair("--predict", text, ":") for text in _items(args.predict)]
    return FitSettings(
        approaches=approaches,
        budgets=tuple(_positive("--budgets", text) for text in _items(args.budgets)),
        targets=tuple((_positive("--predict", n), _positive("--predict", d)) for n, d in targets),
        n_resamples=args.resamples,
        with_repetition=args.repetition,
        with_outside=args.outside,
    )


def run(argv: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        DataError: if no approach fits the points of any candidate.
    """
    args = parse_args(argv)
    settings = parse_settings(args)
    reports = [fit_points(source, settings) for source in read_sources(args)]
    is_fitted = any(not result.problem for report in reports for result in report.results)
    paths: list[Path] = []
    try:
        if args.out and is_fitted:
            paths = save_figures(iter_figures(reports), args.out)
            tree = {"format": FORMAT, "reports": [to_json(report) for report in reports]}
            paths.insert(0, args.out / "fit.json")
            paths[0].write_text(encode_json(tree, indent=1) + "\n", "utf-8")
    finally:  # Files come first, because the reader of a pipe may end before all is printed.
        for report in reports:
            print("\n".join(describe(report)))
        for path in paths:
            print(path)
    if not is_fitted:
        raise DataError("nothing was fitted; the lines above say why by approach")


def main(argv: Sequence[str]) -> int:
    """Runs the command, prints errors as one line, and returns the exit code."""
    return run_command(run, argv)


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _split_pair(flag: str, text: str, separator: str) -> tuple[str, str]:
    left, found_separator, right = text.partition(separator)
    if not found_separator:
        raise ConfigError(f"{flag}={text} has no {separator!r}; write A{separator}B")
    return left, right


def _positive(flag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"{flag}={text}, must be a number above 0, such as 1e21")
    return value


def _share(flag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise ConfigError(f"{flag}={text}, must be a share from 0 to below 1, such as 0.5")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
