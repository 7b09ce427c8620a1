"""Checks coordinates of all mixers: `python benchmarks/coordinates.py --out=FILE`.

Each mixer of `configs/scale/width.py`, with one layer, is checked under muP at the widths 32 to
512, and under the standard parametrization at two of them. `--only=A,B`, `--rules=mup` and
`--seeds=N` select. A mixer that the file has already is not measured again.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # before this folder's ops.py

from arch import MIXERS
from data.open_stores import open_data
from protocol.coordinates.measure import check_coordinates
from settings.changes import with_changes
from settings.cli import load_config
from settings.tree import freeze
from training.settings import Settings, resolve

WIDTHS = {"mup": (32, 64, 128, 256, 512), "standard": (32, 128)}
STEPS = 10


def main() -> None:
    """Measures what the file lacks, and writes it after every mixer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join((*MIXERS, "moe")))
    parser.add_argument("--rules", default=",".join(WIDTHS))
    parser.add_argument("--seeds", type=int, default=4)
    args = parser.parse_args()
    results = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
    for parametrization in args.rules.split(","):
        widths = WIDTHS[parametrization]
        for name in args.only.split(","):
            key = f"{name} {parametrization}"
            if key in results:
                continue
            settings = freeze(Settings, load_config(f"configs/scale/width.py:{name}", Settings))
            changes = {"model.parametrization": parametrization, "model.depth": 1}
            settings = with_changes(settings, changes)
            data = open_data(settings.data, settings.store_kinds)
            settings = resolve(settings, data.tokenizer.vocab_size)
            check = check_coordinates(settings, data, widths, STEPS, args.seeds)
            results[key] = check.last_step()
            print(key, *check.steepest(), flush=True)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
