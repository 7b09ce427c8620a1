"""Every architecture under every objective, at tiny size.

    train.py --config=configs/grid.py:mamba2-contrastive

`python -m configs.grid` lists the pairs, and why some cannot be. Objectives that read what belongs
together take the verse pairs of the embedded corpus, the others its text.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import deltanet, dense, encdec, gated_conv, hybrid, lstm, mamba1, mamba2, moe
from errors import ConfigError
from objectives import OBJECTIVES
from schema import nearest
from training.settings import Settings
from training.tree import frozen

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
KINDS = (*OBJECTIVES, "mixture")


def get_config(pair="dense-causal_lm"):
    architecture, _, objective = pair.partition("-")
    for name, table in ((architecture, ARCHITECTURES), (objective, KINDS)):
        if name not in table:
            raise ConfigError(f"{pair!r} is no pair as mamba2-contrastive; {nearest(name, table)}")
    c = ARCHITECTURES[architecture]("tiny")
    c.objective = objective
    return c


def refusal(architecture: str, objective: str) -> str:
    """Why a pair cannot be; "": it can."""
    try:
        frozen(Settings, get_config(f"{architecture}-{objective}"))
    except ConfigError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    for architecture in ARCHITECTURES:
        for objective in KINDS:
            why = refusal(architecture, objective)
            print(f"{architecture}-{objective:14}{'refused: ' + why if why else ''}".rstrip())
