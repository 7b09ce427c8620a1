"""Trains the shape of Llama 3.1 8B (arXiv:2407.21783, table 3), 8.03 billion parameters.

It fits 256 v5p chips under FSDP alone.

preflight.py --config=configs/scale/dense8b.py --topology=v5p:8x8x4
"""

from training.settings import defaults


def get_config():
    """Returns the settings of the dense 8B model."""
    c = defaults()
    m = c.model
    m.width, m.depth, m.vocab_size, m.head.tied = 4096, 32, 128256, False
    m.attention.heads, m.attention.kv_heads, m.mlp.width = 32, 8, 14336
    m.attention.rope.theta, m.norm.eps = 5e5, 1e-5
    m.dtype, m.remat = "bfloat16", "full"
    c.train.batch_size, c.train.seq_len, c.train.steps = 256, 4096, 100_000
    c.optimizer.learning_rate, c.optimizer.warmup = 3e-4, 2000
    return c
