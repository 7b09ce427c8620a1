"""Hard negatives in contrastive learning: none, given or mined, at equal training FLOPs.

    compare.py --config=configs/compare/negatives.py

The given one is the verse before the match or after it, the mined one the nearest of 512 training
verses, which are read again every 20 steps. A text more in every row costs steps: 107 with a given,
88 with a mined one, 160 without. Expect on the test split, among the same 1,000 candidates, R@1
.742 +- .042 without, .708 +- .047 given, .708 +- .082 mined (95 %, three seeds): not
distinguishable; at this size a hard negative is not shown to be worth what it costs. The learning
rate is the same for all and tuned for none. Half an hour on two cores shared with nine processes.
"""

from protocol.study import Study
from training.settings import defaults


def get_config():
    c = defaults()
    c.objective = "contrastive"
    c.data.tokenizer, c.data.neighbours = "bpe:1024", 1
    c.model.width, c.model.depth = 64, 2
    c.model.attention.heads = 4
    c.model.embed.scale = 8.0
    c.model.block.dropout = 0.1
    c.train.batch, c.train.length, c.train.steps = 32, 40, 160
    c.optimizer.learning_rate, c.optimizer.warmup = 3e-3, 12
    c.checkpoint.every = 1000
    c.eval.tasks, c.eval.batch = ("retrieval",), 100
    c.log.console = "off"
    return c


def study():
    return Study(
        candidates={
            "none": {},
            "given": {"contrastive.negatives": 1},
            "mined": {"contrastive.mining.every": 20, "contrastive.mining.pool": 512},
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
