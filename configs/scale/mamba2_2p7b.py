"""Trains the shape of Mamba-2 2.7B (arXiv:2405.21060, table 10), 2.70 billion parameters.

It has 64 blocks without channels.

preflight.py --config=configs/scale/mamba2_2p7b.py --topology=v5p:8x8x4
"""

from training.settings import defaults


def get_config():
    """Returns the settings of the 2.7B Mamba-2 model."""
    c = defaults()
    m = c.model
    m.width, m.depth, m.vocab_size = 2560, 64, 50288
    m.layers = ("mamba2+none",)
    m.mamba2.state_size, m.mamba2.head_dim, m.mamba2.chunk_size = 128, 64, 256
    m.dtype, m.remat, m.norm.eps = "bfloat16", "full", 1e-5
    c.train.batch_size, c.train.seq_len, c.train.steps = 256, 4096, 100_000
    c.optimizer.learning_rate, c.optimizer.warmup = 1.6e-4, 2000
    return c
