"""Compares runs: `leaderboard.py runs/ --out=board` reads run folders and writes a leaderboard.

RESULTS may include JSON files of external results (docs/results.md). Nothing that is read is
executed. The same folders give the same files. jax is not needed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from errors import IsoflopError
from protocol.board import export
from protocol.board.board import make_board
from protocol.board.verify import verify_board
from protocol.records.load import load_records


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "results", nargs="+", type=Path, help="run folders, folders of them, or JSON files"
    )
    parser.add_argument("--out", type=Path, help="folder for leaderboard.html, .md, .csv and .json")
    parser.add_argument(
        "--verify",
        type=Path,
        metavar="JSON",
        help="leaderboard.json to compare with the run folders",
    )
    return parser.parse_args(argv)


def show(results: Sequence[Path], out: Path | None = None) -> None:
    """Prints the board of the run folders and files `results`; writes its files to `out`."""
    board = make_board(*load_records(results))
    console = Console(highlight=False, emoji=False)
    export.print_board(board, console)
    if out:
        for path in export.write_board(board, out):
            console.print(str(path), markup=False, soft_wrap=True)


def check(published: Path, results: Sequence[Path]) -> int:
    """Compares a published leaderboard.json with the run folders.

    Returns the exit code: 0 if every row matches, else 65.
    """
    differences = verify_board(published, make_board(*load_records(results)))
    for line in differences or ["every row matches its run folder"]:
        Console(highlight=False, emoji=False).print(line, markup=False)
    return 65 if differences else 0


def run(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    args = parse_args(argv)
    if args.verify:
        return check(args.verify, args.results)
    show(args.results, args.out)
    return 0


def main(argv: Sequence[str]) -> int:
    """Runs the command, prints errors as one line, and returns the exit code."""
    try:
        return run(argv)
    except IsoflopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
