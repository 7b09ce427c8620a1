"""Make text fit to train on: `python -m data.prepare --path='raw/*.jsonl.gz' --out=prepared`.

Then train on it: --config.data.source=jsonl --config.data.path=prepared/documents.jsonl.zst
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from data.prepare import PrepareConfig, prepare
from errors import ConfigError, IsoflopError
from schema import annotations, fit


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists the flags")


def run(argv: Sequence[str]) -> None:
    parser = Parser("python -m data.prepare", allow_abbrev=False, description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder to make")
    for field in dataclasses.fields(PrepareConfig):
        text = f"{field.metadata['help']} (default: %(default)r)"
        kind: Any = type(field.default)
        switch = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        parser.add_argument(f"--{field.name}", default=field.default, help=text, **switch)
    given = vars(parser.parse_args(argv))
    out, hints = given.pop("out"), annotations(PrepareConfig)
    named = {name: fit(value, hints[name], f"--{name}") for name, value in given.items()}
    _say(prepare(PrepareConfig(**named), out), out)


def _say(report: dict[str, Any], out: Path) -> None:
    counts = report["documents"]
    print(f"{counts['kept']:,} of {counts['read']:,} documents kept")
    for stage, dropped in report["dropped"].items():
        broken = {name: rule["broken"] for name, rule in report.get("quality", {}).items()}
        rules = ", ".join(f"{name} {n:,}" for name, n in broken.items() if n)
        print(f"  {stage:14}{dropped:>10,}{f'  ({rules})' if stage == 'quality' and rules else ''}")
    if counts["skipped"] or counts["replaced"]:
        print(f"  {counts['skipped']:,} unreadable ones skipped, {counts['replaced']:,} mended")
    print(f"{out / report['written']['kept']['file']}; why: {out / 'report.json'}")


def main(argv: Sequence[str]) -> int:
    try:
        run(argv)
    except IsoflopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("stopped; nothing was kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
