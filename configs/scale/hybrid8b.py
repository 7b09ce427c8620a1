"""Trains the 8B Mamba-2 hybrid of Waleffe et al. (arXiv:2406.07887, table 6).

The published model has 24 Mamba-2, 4 attention and 28 MLP layers. Here these are 28 pairs of a
mixer and an MLP, and the mixer of every seventh pair is attention.

preflight.py --config=configs/scale/hybrid8b.py --topology=v5p:8x8x4
"""

from training.settings import defaults


def get_config():
    """Returns the settings of the 8B hybrid."""
    c = defaults()
    m = c.model
    m.width, m.depth, m.vocab_size, m.head.tied = 4096, 28, 256000, False
    m.layers = ("mamba2+mlp",) * 6 + ("attention+mlp",)
    m.attention.heads, m.attention.kv_heads, m.attention.head_dim = 32, 8, 128
    m.attention.position_encoding = "none"
    m.mamba2.state_size, m.mamba2.head_dim, m.mamba2.n_groups, m.mamba2.chunk_size = 128, 64, 8, 128
    m.mlp.gated, m.mlp.activation, m.mlp.width = False, "relu2", 16384
    m.dtype, m.remat, m.norm.eps = "bfloat16", "full", 1e-5
    c.train.batch_size, c.train.seq_len, c.train.steps = 256, 4096, 100_000
    c.optimizer.learning_rate, c.optimizer.warmup = 3e-4, 2000
    return c
