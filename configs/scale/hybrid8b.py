"""The 8B Mamba-2 hybrid of Waleffe et al. (arXiv:2406.07887, table 6): 24 Mamba-2, 4 attention and
28 MLP layers, here as 28 pairs of a mixer and an MLP, one in seven with attention.

preflight.py --config=configs/scale/hybrid8b.py --topology=v5p:8x8x4
"""

from training.settings import defaults


def get_config():
    c = defaults()
    m = c.model
    m.width, m.depth, m.vocab, m.head.tied = 4096, 28, 256000, False
    m.layers = ("mamba2+mlp",) * 6 + ("attention+mlp",)
    m.attention.heads, m.attention.kv_heads, m.attention.head_width = 32, 8, 128
    m.attention.position = "none"
    m.mamba2.state, m.mamba2.head_width, m.mamba2.groups, m.mamba2.chunk = 128, 64, 8, 128
    m.mlp.gated, m.mlp.activation, m.mlp.width = False, "relu2", 16384
    m.dtype, m.remat, m.norm.eps = "bfloat16", "full", 1e-5
    c.train.batch, c.train.length, c.train.steps = 256, 4096, 100_000
    c.optimizer.learning_rate, c.optimizer.warmup = 3e-4, 2000
    return c
