"""Compares architectures after pretraining, chats and preferences (DPO), at equal training FLOPs.

    uv run python -m configs.post_training.preference chats.jsonl preferences.jsonl
    uv run compare.py --config=configs/compare/preference.py

Every run of preferences starts from a run on chats, and that from a pretrained run, all with the
same seed and architecture. The board compares the accuracy on held-out pairs, and states the FLOPs
of every stage in the cost of the study. Costs are matched in the last stage. The learning rates are
the same for all candidates and are not tuned.
"""

from configs.post_training import preference
from protocol.study.study import Study


def get_config():
    """Returns the settings of the last stage, which all candidates share."""
    c = preference.get_config()
    c.model.width, c.model.depth = 64, 2
    c.model.attention.heads, c.model.mamba2.head_dim = 4, 32
    c.model.mamba2.state_size, c.model.mamba2.chunk_size = 32, 32
    c.train.batch_size, c.train.seq_len, c.train.steps = 16, 256, 60
    c.optimizer.learning_rate, c.optimizer.warmup = 1e-3, 0.1
    c.eval.tasks = ("preference",)
    c.checkpoint.every = 100_000
    c.log.console = "off"
    return c


def study():
    """Returns the study of three architectures under preferences."""
    documents = {"data.source": "corpus", "data.path": "", "data.chat_template": ""}
    chats = {"data.path": "chats.jsonl"}
    shared = {"objective": "causal_lm", "eval.tasks": ("bits_per_byte",)}
    return Study(
        candidates={
            "attention": {},
            "mamba2": {"model.layers": ("mamba2+mlp",)},
            "hybrid": {"model.layers": ("mamba2+mlp", "attention+mlp")},
        },
        reference="attention",
        comparisons=(("mamba2", "attention"), ("hybrid", "attention")),
        earlier_stages={
            "base": shared | documents | {"train.steps": 200, "optimizer.learning_rate": 4e-3},
            "chat": shared | chats | {"train.steps": 60, "optimizer.learning_rate": 2e-3},
        },
        objectives=("preference",),
        metric="test/preference_accuracy",
        tuning_metric="valid/preference_accuracy",
        unit="accuracy",
        better="higher",
        margin=0.02,
        seeds=(0, 1, 2),
    )
