"""Compares what pretrained models learn of labels by fine-tuning, after equal training FLOPs.

    uv run compare.py --config=configs/compare/finetune.py

Each run is pretrained on the embedded corpus. The task `finetune` then adds one output layer, and
all parameters learn the genre of 1,000 passages of the held-out splits. The board compares the
accuracy on other passages; the FLOPs of fine-tuning are part of the cost of the study.
"""

from configs.compare import quickstart
from protocol.study.study import Study


def get_config():
    """Returns the settings that all candidates share."""
    c = quickstart.get_config()
    c.eval.tasks = ("bits_per_byte", "finetune")
    # A tiny model needs larger rates than those of BERT.
    c.eval.finetune.learning_rates = (1e-3, 3e-3)
    c.eval.finetune.max_examples, c.eval.finetune.max_tokens = 1000, 128
    c.eval.finetune.seeds = 1  # The seed of the run is that which is repeated.
    return c


def study():
    """Returns the study of three architectures that are fine-tuned."""
    candidates = {name: quickstart.CANDIDATES[name] for name in ("dense", "mamba2", "hybrid")}
    return Study(
        candidates=candidates,
        reference="mamba2",
        comparisons=(("mamba2", "dense"), ("hybrid", "dense")),
        metric="finetune_genre/accuracy",
        unit="accuracy",
        better="higher",
        margin=0.02,
        seeds=(0, 1, 2),
    )
