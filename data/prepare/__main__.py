"""Prepares text: `python -m data.prepare --path='raw/*.jsonl.gz' --out=prepared`.

Then train on it: --config.data.source=jsonl --config.data.path=prepared/documents.jsonl.zst
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.prepare import PrepareConfig, prepare
from settings.command import run_command
from settings.flag_parser import make_parser
from settings.json_types import JsonObject
from settings.types import field_types, validate


def run(argv: Sequence[str]) -> None:
    """Prepares the text that the flags `argv` describe and prints the report."""
    parser = make_parser("python -m data.prepare", __doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder to write; must not exist")
    for field in dataclasses.fields(PrepareConfig):
        text = f"{field.metadata['help']} (default: %(default)r)"
        kind: Any = type(field.default)
        options = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        parser.add_argument(f"--{field.name}", default=field.default, help=text, **options)
    parser.add_argument("--debug", action="store_true", help="print tracebacks of errors")
    flags = vars(parser.parse_args(argv))
    flags.pop("debug")  # `run_command` reads it
    out, hints = flags.pop("out"), field_types(PrepareConfig)
    settings = {name: validate(value, hints[name], f"--{name}") for name, value in flags.items()}
    _print_report(prepare(PrepareConfig(**settings), out), out)


def _print_report(report: JsonObject, out: Path) -> None:
    counts = report["documents"]
    print(f"{counts['kept']:,} of {counts['read']:,} documents kept")
    failures = {name: rule["failed"] for name, rule in report.get("quality", {}).items()}
    rules = ", ".join(f"{name} {n:,}" for name, n in failures.items() if n)
    for stage, dropped in report["dropped"].items():
        details = f"  ({rules})" if stage == "quality" and rules else ""
        print(f"  {stage:14}{dropped:>10,}{details}")
    if counts["skipped"] or counts["replaced"]:
        skipped, replaced = counts["skipped"], counts["replaced"]
        print(f"  unreadable documents: {skipped:,} skipped, {replaced:,} repaired")
    print(f"{out / report['written']['kept']['file']}; details: {out / 'report.json'}")


def main(argv: Sequence[str]) -> int:
    """Runs the command with the flags `argv` and returns its exit code."""
    return run_command(
        run, argv, interrupted="stopped; the same command continues where this one ended"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
