"""Hard negatives in contrastive learning: none, given or mined, at equal training FLOPs.

compare.py --config=configs/compare/negatives.py
"""

from protocol.study import Study
from training.settings import defaults


def get_config():
    c = defaults()
    c.objective = "contrastive"
    c.data.tokenizer, c.data.neighbours = "bpe:1024", 1
    c.model.width, c.model.depth = 96, 2
    c.model.attention.heads = 4
    c.model.embed.scale = 10.0
    c.model.block.dropout = 0.1
    c.train.batch, c.train.length, c.train.steps = 32, 48, 300
    c.optimizer.learning_rate, c.optimizer.warmup = 3e-3, 20
    c.checkpoint.every = 1000
    c.eval.tasks, c.eval.splits, c.eval.batch = ("retrieval",), ("test",), 100
    c.log.console = "off"
    return c


def study():
    return Study(
        candidates={
            "none": {},
            "given": {"contrastive.negatives": 1},
            "mined": {"contrastive.mining.every": 25, "contrastive.mining.pool": 1024},
        },
        reference="none",
        comparisons=(("given", "none"), ("mined", "none"), ("mined", "given")),
        varies=("contrastive.negatives", "contrastive.mining"),
        rule="steps",
        objectives=("contrastive",),
        metric="test/recall@1",
        tuning_metric="valid/recall@1",
        unit="R@1",
        better="higher",
        margin=0.01,
        seeds=(0, 1, 2),
    )
