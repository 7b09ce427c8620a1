"""A small model of one mixer whose sizes all follow the width, for rates that transfer over width.

python -m protocol.coordinates --config=configs/scale/width.py:mamba2
python -m protocol.transfer --config=configs/scale/width.py:mamba2 --out=transfer/mamba2

With attention or mamba2 and one layer (--config.model.depth=1), expect that no tap has a slope
above 0.1 between the widths 32 and 512 after 10 steps, and with
--config.model.parametrization=standard that logits have one above 0.7. docs/laws.md has the slopes
of all mixers.
"""

from arch import CHANNELS, MIXERS
from arch.scaling import sections_with_heads
from errors import ConfigError
from settings.types import did_you_mean
from training.settings import defaults


def get_config(mixer="attention"):
    """Returns the settings for a mixer, or for attention with a channel such as `moe`.

    Raises:
        ConfigError: if there is no such part.
    """
    if mixer not in MIXERS and mixer not in CHANNELS:
        raise ConfigError(f"mixer {mixer!r} is not known; {did_you_mean(mixer, MIXERS)}")
    c = defaults()
    c.model.layers = (f"attention+{mixer}",) if mixer in CHANNELS else (f"{mixer}+mlp",)
    c.model.parametrization, c.model.base_width = "mup", 128
    c.model.width, c.model.depth = 128, 2
    c.model.head.tied = False
    # The defaults of these sizes are rounded, or at most the width.
    c.model.mlp.width, c.model.moe.width, c.model.latent_attention.kv_rank = 384, 192, 64
    for section in sections_with_heads():
        c.model[section].heads = 8
    c.model.mamba2.head_dim, c.model.mamba2.state_size = 16, 32
    c.train.batch_size, c.train.seq_len, c.train.steps = 8, 128, 256
    c.optimizer.learning_rate, c.optimizer.warmup = 1.25e-3, 0.05
    return c
