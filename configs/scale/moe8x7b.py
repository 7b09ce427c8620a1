"""Trains the shape of Mixtral 8x7B (arXiv:2401.04088), 46.7 billion parameters.

It fits 256 v5p chips with expert parallelism over 8 devices.

preflight.py --config=configs/scale/moe8x7b.py --topology=v5p:8x8x4
"""

from training.settings import defaults


def get_config():
    """Returns the settings of the 8x7B Mixture of Experts."""
    c = defaults()
    m = c.model
    m.width, m.depth, m.vocab_size, m.head.tied = 4096, 32, 32000, False
    m.layers = ("attention+moe",)
    m.attention.heads, m.attention.kv_heads = 32, 8
    m.moe.num_experts, m.moe.top_k, m.moe.width, m.moe.capacity_factor = 8, 2, 14336, 1.25
    m.attention.rope.theta, m.norm.eps = 1e6, 1e-5
    m.dtype, m.remat = "bfloat16", "full"
    c.mesh.expert = 8
    c.train.batch_size, c.train.seq_len, c.train.steps = 256, 4096, 100_000
    c.optimizer.learning_rate, c.optimizer.warmup = 3e-4, 2000
    return c
