"""Compares no, adjacent and mined hard negatives in contrastive learning at equal training FLOPs.

    compare.py --config=configs/compare/negatives.py

The adjacent negative is the verse before or after the match. The mined negative is the nearest of
512 training verses, which are embedded again every 20 steps. An additional text in every row costs
steps: 107 with an adjacent negative, 88 with a mined one, and 160 without. Expect on the test
split, among the same 1,000 candidates, R@1 .742 +- .042 without, .708 +- .047 adjacent and
.708 +- .082 mined (95 %, three seeds). These are not distinguishable: at this size, the study does
not show that a hard negative is worth its cost. All candidates have the same learning rate, which
is not tuned. The study takes half an hour on two cores shared with nine processes.
"""

from protocol.study.study import Study
from training.settings import defaults


def get_config():
    """Returns the settings that all candidates share."""
    c = defaults()
    c.objective = "contrastive"
    c.data.tokenizer, c.data.adjacent_negatives = "bpe:1024", 1
    c.model.width, c.model.depth = 64, 2
    c.model.attention.heads = 4
    c.model.embed.scale = 8.0
    c.model.block.dropout = 0.1
    c.train.batch_size, c.train.seq_len, c.train.steps = 32, 40, 160
    c.optimizer.learning_rate, c.optimizer.warmup = 3e-3, 12
    c.checkpoint.every = 1000
    c.eval.tasks, c.eval.batch_size = ("retrieval",), 100
    c.log.console = "off"
    return c


def study():
    """Returns the study of three kinds of hard negatives."""
    return Study(
        candidates={
            "none": {},
            "adjacent": {"contrastive.hard_negatives": 1},
            "mined": {"contrastive.mining.refresh_every": 20, "contrastive.mining.pool_size": 512},
        },
        reference="none",
        comparisons=(("adjacent", "none"), ("mined", "none"), ("mined", "adjacent")),
        varied_settings=("contrastive.hard_negatives", "contrastive.mining"),
        match_by="steps",
        objectives=("contrastive",),
        metric="test/recall@1",
        tuning_metric="valid/recall@1",
        unit="R@1",
        better="higher",
        margin=0.01,
        seeds=(0, 1, 2),
    )
