"""Compares dense, Mixture of Experts, Mamba-2 and hybrid at equal training FLOPs and equal tokens.

    compare.py --config=configs/compare/quickstart.py

The study trains three seeds of a tiny size on the embedded corpus in a few minutes on two CPU
cores. The models are small enough for their text, about 5 tokens a parameter, to learn more than
the bigram table of that text. It cannot be concluded which architecture is better at another size,
on other text or with more training. Mamba-2 is the reference of the cost, because its size changes
in the largest steps, and the width of the other candidates' channels is solved to match this cost.
All pairs are declared, so that the rows can be ranked. `configs/compare/known_answers.py` has
candidates of which the answer is known.

Expect Mamba-2 2.284, hybrid 2.315, MoE 2.524 and dense 2.580 bits per byte on the test split, all
below the bigram table of the text that they saw, 2.643 (`results/quickstart/leaderboard.md`). All
pairs are told apart but MoE and dense, a borderline: roundings of another machine may decide it.
"""

import itertools

from protocol.study.study import Study
from training.settings import defaults

CANDIDATES = {
    "dense": {},
    "moe": {"model.layers": ("attention+moe",)},
    "mamba2": {"model.layers": ("mamba2+none",), "model.width": 64},
    "hybrid": {"model.layers": ("mamba2+mlp", "attention+mlp")},
}


def get_config():
    """Returns the settings that all candidates share."""
    c = defaults()
    c.data.tokenizer = "bpe:512"
    c.model.width, c.model.depth = 48, 2
    c.model.attention.heads, c.model.mamba2.head_dim = 3, 32
    c.model.mamba2.state_size, c.model.mamba2.chunk_size = 32, 32
    c.model.mlp.width = 128
    c.model.moe.num_experts, c.model.moe.width = 4, 64
    c.train.batch_size, c.train.seq_len, c.train.steps = 4, 128, 1200
    c.optimizer.learning_rate, c.optimizer.warmup = 8e-3, 100
    c.optimizer.schedule, c.optimizer.cooldown_fraction = "wsd", 0.4
    c.optimizer.final_lr_ratio = 0.0
    c.checkpoint.every = 100_000
    c.eval.tasks = ("bits_per_byte", "baselines")
    c.eval.limit = 0  # The whole split, as the recorded results.
    c.log.console, c.log.every = "off", 50
    return c


def study():
    """Returns the study of four architectures."""
    return Study(
        candidates=CANDIDATES,
        reference="mamba2",
        comparisons=tuple(itertools.combinations(CANDIDATES, 2)),
        margin=0.02,
        tuning_seeds=(1000, 1001),
        results_dir="results/quickstart",
    )
