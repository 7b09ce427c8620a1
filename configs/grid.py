"""Combines every architecture with every objective, at tiny size.

    train.py --config=configs/grid.py:mamba2-contrastive

`python -m configs.grid` lists the combinations, with the reason if one is impossible. Objectives
that need text pairs read the verse pairs of the embedded corpus, and the others its text.
"""

import sys
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from configs import deltanet, dense, encdec, gated_conv, hybrid, lstm, mamba1, mamba2, moe
from errors import ConfigError
from objectives import OBJECTIVES
from settings.command import run_command
from settings.flag_parser import make_parser
from settings.tree import freeze
from settings.types import did_you_mean
from training.settings import Settings

ARCHITECTURES: dict[str, Callable[[str], ConfigDict]] = {
    "dense": dense.get_config,
    "moe": moe.get_config,
    "mamba1": mamba1.get_config,
    "mamba2": mamba2.get_config,
    "deltanet": deltanet.get_config,
    "lstm": lstm.get_config,
    "gated_conv": gated_conv.get_config,
    "hybrid": hybrid.get_config,
    "encdec": encdec.get_config,
}
OBJECTIVE_NAMES = (*OBJECTIVES, "mixture")


def get_config(pair="dense-causal_lm"):
    """Returns the settings of a pair ARCHITECTURE-OBJECTIVE.

    Raises:
        ConfigError: if the architecture or the objective does not exist.
    """
    architecture, _, objective = pair.partition("-")
    for name, table in ((architecture, ARCHITECTURES), (objective, OBJECTIVE_NAMES)):
        if name not in table:
            raise ConfigError(
                f"{pair!r} is not ARCHITECTURE-OBJECTIVE (mamba2-contrastive); "
                f"{did_you_mean(name, table)}"
            )
    c = ARCHITECTURES[architecture]("tiny")
    c.objective = objective
    return c


def unsupported_reason(architecture: str, objective: str) -> str:
    """Returns why a combination is impossible, or "" if it is possible."""
    try:
        freeze(Settings, get_config(f"{architecture}-{objective}"))
    except ConfigError as error:
        return str(error)
    return ""


def run(argv: Sequence[str]) -> None:
    """Prints every pair, and the reason where one is impossible."""
    make_parser("python -m configs.grid", __doc__).parse_args(argv)
    for architecture in ARCHITECTURES:
        for objective in OBJECTIVE_NAMES:
            why = unsupported_reason(architecture, objective)
            print(f"{architecture}-{objective:14}{'refused: ' + why if why else ''}".rstrip())


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
