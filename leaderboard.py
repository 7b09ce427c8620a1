"""Compare runs: `leaderboard.py runs/ --out=board` reads run folders, and writes what they show.

Results from elsewhere are files of JSON among RESULTS (docs/results.md). Nothing that is read is
executed. The same folders give the same files; jax is not needed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from errors import IsoflopError
from protocol import render
from protocol.board import board
from protocol.collect import collect
from protocol.verify import changed


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("results", nargs="+", type=Path, help="run folders, folders of them, JSON")
    parser.add_argument("--out", type=Path, help="folder for leaderboard.html, .md, .csv and .json")
    parser.add_argument(
        "--verify",
        type=Path,
        metavar="JSON",
        help="a leaderboard.json that the folders must bear out",
    )
    return parser.parse_args(argv)


def run(argv: Sequence[str]) -> int:
    args = arguments(argv)
    found = board(*collect(args.results))
    console = Console(highlight=False, emoji=False)
    if args.verify:
        differing = changed(args.verify, found)
        for line in differing or ["every row is borne out by its run folder"]:
            console.print(line, markup=False)
        return 65 if differing else 0
    render.terminal(found, console)
    if args.out:
        for path in render.write(found, args.out):
            console.print(str(path), markup=False, soft_wrap=True)
    return 0


def main(argv: Sequence[str]) -> int:
    try:
        return run(argv)
    except IsoflopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
