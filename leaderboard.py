"""Compares runs: `leaderboard.py runs/ --out=board` reads run folders and writes a leaderboard.

RESULTS may include JSON files of external results (docs/results.md). Nothing that is read is
executed. The same folders give the same files. jax is not needed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from errors import ConfigError
from protocol.board import export
from protocol.board.board import Board, make_board
from protocol.board.check import list_contradictions
from protocol.board.fitted_laws import add_fits
from protocol.board.verify import verify_board
from protocol.records.load import iter_run_folders, load_records
from settings.command import run_command
from settings.flag_parser import count_parser, make_parser
from storage import scratch


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed arguments."""
    parser = make_parser("leaderboard.py", __doc__)
    parser.add_argument(
        "results",
        nargs="+",
        type=Path,
        help="run folders, folders of them, JSON files, or URLs of these (s3://, gs://)",
    )
    parser.add_argument("--out", type=Path, help="folder for leaderboard.html, .md, .csv and .json")
    parser.add_argument(
        "--figures", type=Path, metavar="DIR", help="folder for each chart as PDF and SVG"
    )
    parser.add_argument(
        "--verify",
        type=Path,
        metavar="JSON",
        help="leaderboard.json to compare with the run folders",
    )
    parser.add_argument(
        "--fit",
        type=Path,
        metavar="JSON",
        help="fit.json of python -m protocol.fit, whose laws the board shows",
    )
    parser.add_argument("--debug", action="store_true", help="print tracebacks of errors")
    parser.add_argument(
        "--check",
        action="store_true",
        help="list all contradictions inside and between the run folders; exit with 65 if any",
    )
    parser.add_argument(
        "--cost", action="store_true", help="with --check: compute costs again from the settings"
    )
    parser.add_argument(
        "--rerun",
        type=count_parser("--rerun"),
        default=0,
        metavar="N",
        help="train N random runs again and compare; exit with 65 if one differs",
    )
    return parser.parse_args(argv)


def show(
    results: Sequence[Path],
    out: Path | None = None,
    figures: Path | None = None,
    fit: Path | None = None,
) -> None:
    """Prints the board of the run folders and files `results`, with the laws of `fit`.

    Its files are written to the folder `out`, and its charts to the folder `figures`.
    """
    board = build_board(results, fit)
    console, paths = Console(highlight=False, emoji=False), list[Path]()
    try:
        if out:
            out = scratch.local_path(out)
            paths += export.write_board(board, out)
            scratch.upload_tree(out)
        if figures:
            from protocol.board.figures import write_figures  # matplotlib takes a second to import.

            paths += write_figures(board, figures)
    finally:  # Files come first, because the reader of a pipe may end before all is printed.
        export.print_board(board, console)
        for path in paths:
            console.print(str(path), markup=False, soft_wrap=True)


def check_folders(results: Sequence[Path], *, with_cost: bool) -> int:
    """Prints all contradictions inside and between run folders.

    Returns the exit code: 0 if there are none, else 65.
    """
    records, unreadable = load_records(results)
    lines = list_contradictions(records, unreadable, make_board(records, unreadable))
    if with_cost:
        from protocol.study.recheck import check_costs  # It needs jax.

        lines += check_costs(iter_run_folders(results))
    console = Console(highlight=False, emoji=False)
    for line in lines or [f"{len(records)} runs, no contradictions"]:
        console.print(line, markup=False, soft_wrap=True)
    return 65 if lines else 0


def train_again(results: Sequence[Path], count: int) -> int:
    """Trains `count` random runs again and prints how they compare.

    Returns the exit code: 0 if all are the same, else 65.
    """
    from protocol.study.recheck import rerun  # It needs jax.

    console = Console(highlight=False, emoji=False)

    def print_line(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    compared = rerun(iter_run_folders(results), count, print_line)
    for line in (line for result in compared for line in result.lines):
        print_line(line)
    differing = [result.folder for result in compared if result.differs]
    print_line(f"{len(compared)} trained again, {len(differing)} differ")
    return 65 if differing or not compared else 0


def build_board(results: Sequence[Path], fit: Path | None = None) -> Board:
    """Returns the board of run folders and files, with the laws of a fit.json."""
    board = make_board(*load_records(results))
    return add_fits(board, fit) if fit else board


def check(published: Path, results: Sequence[Path], fit: Path | None = None) -> int:
    """Compares a published leaderboard.json with the run folders and the fit.json.

    Returns the exit code: 0 if every row matches, else 65.
    """
    differences = verify_board(published, build_board(results, fit))
    for line in differences or ["every row matches its run folder"]:
        Console(highlight=False, emoji=False).print(line, markup=False)
    return 65 if differences else 0


def run(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code.

    Raises:
        ConfigError: if the flags contradict each other.
    """
    args = parse_args(argv)
    if args.fit:
        args.fit = scratch.local_copy(args.fit)
    args.results = [scratch.local_copy(path, without=("checkpoints",)) for path in args.results]
    if args.cost and not args.check:
        raise ConfigError("--cost is a part of --check; give both")
    if args.verify:
        return check(args.verify, args.results, args.fit)
    if args.check:
        return check_folders(args.results, with_cost=args.cost)
    if args.rerun:
        return train_again(args.results, args.rerun)
    show(args.results, args.out, args.figures, args.fit)
    return 0


def main(argv: Sequence[str]) -> int:
    """Runs the command, prints errors as one line, and returns the exit code."""
    return run_command(run, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
