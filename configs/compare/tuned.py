"""The dense model and Mamba-2 of the quickstart, each with its own rate, decay, warmup and batch.

    compare.py --config=configs/compare/tuned.py --stage=tune
    compare.py --config=configs/compare/tuned.py

A search of 16 trials, the same for both candidates, tunes five settings together. The board then
says beside each difference how far other trials of the same number could move it (docs/sweeps.md).
The plan (--dry_run) lists what is tuned, what is fixed, and what both stages cost.
"""

from configs.compare.quickstart import CANDIDATES, get_config
from protocol.study.search_space import SearchSpace, TunedChoices, TunedRange
from protocol.study.study import Study

__all__ = ["get_config", "study"]


def study():
    """Returns the study of two architectures with a search."""
    return Study(
        candidates={name: CANDIDATES[name] for name in ("dense", "mamba2")},
        reference="mamba2",
        comparisons=(("mamba2", "dense"),),
        margin=0.02,
        search=SearchSpace(
            {
                "optimizer.learning_rate": TunedRange(1e-3, 3.2e-2),
                "optimizer.weight_decay": TunedRange(0.01, 0.5),
                "optimizer.beta2": TunedRange(0.9, 0.995, "log_complement"),
                "optimizer.warmup": TunedRange(0.02, 0.2),  # A share of the steps.
                "train.batch_size": TunedChoices((2, 4, 8)),
            },
            n_trials=16,
        ),
        tuning_seeds=(1000, 1001),
        results_dir="results/tuned",
    )
