"""Trains the dense Transformer on FineWeb-Edu sample-10BT (arXiv:2406.17557) with byte-level BPE.

    uv run --extra datasets train.py --config=configs/data/fineweb_edu.py:small

The text is streamed from the Hugging Face hub at a pinned revision. A hash of its text assigns one
document in a thousand to the validation split and one to the test split. `max_documents` keeps the
first run short.
"""

from configs import dense


def get_config(size="small"):
    """Returns the settings of the dense Transformer of one size on FineWeb-Edu."""
    c = dense.get_config(size)
    c.data.source = "datasets"
    c.data.path = "HuggingFaceFW/fineweb-edu"
    c.data.config_name = "sample-10BT"
    c.data.revision = "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9"
    c.data.max_documents = 200_000
    c.data.valid_share = c.data.test_share = 0.001
    c.data.tokenizer = "bpe:16384"
    return c
