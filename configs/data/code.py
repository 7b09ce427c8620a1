"""Trains a model on code in 11 languages, half of it as fill-in-the-middle, on two CPU cores.

    python -m data.fetch text                  # prints FOLDER (162 MB of packages)
    python -m data.prepare --path=FOLDER/code.jsonl --quality= --out=prepared/code
    train.py --config=configs/data/code.py:tiny --workdir=runs/code

In half of the stretches of documents the middle follows the end (arXiv:2207.14255): as prefix,
suffix, middle or as suffix, prefix, middle, with equal probability. Held-out code is scored from
left to right, and the paper finds that this does not get worse by it. To see the cost, train again
with --config.causal_lm.fim_rate=0. The evaluation at the end states bits per byte of each language.

With --config.train.steps=300 --config.train.seq_len=128, expect bits per byte of 2.26 in TypeScript
(.29 tokens per byte), 2.37 in HTML (.30), 2.55 in C++ (.33), 2.61 in SQL (.31), 2.90 in Zig (.38),
3.03 in CMake (.37), 3.18 in Python (.41) and 3.24 in C (.43), on the part of the test split that
the automatic limit selects. That run took 97 CPU seconds, with one seed.
"""

from configs import apply_size
from training.settings import defaults

PREPARED = "prepared/code/documents.jsonl.zst"


def get_config(size="tiny"):
    """Returns the settings of a model of code of one size."""
    c = defaults()
    apply_size(c, size)
    c.data.source, c.data.path, c.data.groups.field = "jsonl", PREPARED, "language"
    c.data.tokenizer = "bpe:4096"
    c.data.valid_share = c.data.test_share = 0.02
    c.data.max_shared = 0.2  # Files of one project begin with the same license.
    c.causal_lm.fim_rate = 0.5
    c.eval.tasks = ("bits_per_byte", "by_group", "sample")
    return c
