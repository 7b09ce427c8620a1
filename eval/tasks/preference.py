"""Evaluates preferences: whether the chosen reply of held-out pairs has the higher reward.

`preference_accuracy` comes with its exact 95 % interval over pairs, and the margin is the mean
difference of rewards (`objectives/preference.py`). `preference_likelihood_accuracy` is the share of
pairs whose chosen reply is likelier under the model, and `preference_reference_accuracy` that under
the reference, from which the run started: a baseline that needs no preferences. The score
`eval_set_sha256` is the hash of all pairs as the model reads them.
"""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from scipy import stats

from data.loader import Batches
from data.store import TokenStore
from data.text_rows import make_row_source
from eval.task import EvalContext, Score
from eval.tasks.bits_per_byte import evaluate_store, mean_terms
from training.distributed.multihost import to_host
from training.memory_bank import SINGLE_OBJECTIVE

MEANS = (
    *("accuracy", "preference_nats", "margin"),
    *("likelihood_accuracy", "reference_accuracy"),
)


class PreferenceAccuracy:
    """Measures how often the chosen reply has the higher reward, and by how much."""

    version: ClassVar[int] = 1

    def __init__(self, splits: tuple[str, ...] = ("valid", "test")):
        self.splits = splits

    def __call__(self, ctx: EvalContext) -> Iterator[Score]:
        """Yields the scores of every split."""
        for split in self.splits:
            store = getattr(ctx.data, split)
            reference = np.asarray(to_host(ctx.banks[SINGLE_OBJECTIVE][split]))
            totals, digest = evaluate_store(ctx, store, read_pairs(ctx, store, reference))
            yield from mean_terms(totals, split, "preference", MEANS)
            right, n_pairs = map(round, totals["accuracy"])
            interval = stats.binomtest(right, n_pairs).proportion_ci()
            yield Score(f"{split}/preference_accuracy_low", float(interval.low))
            yield Score(f"{split}/preference_accuracy_high", float(interval.high))
            yield Score(f"{split}/eval_set_sha256", digest)


def read_pairs(
    ctx: EvalContext, store: TokenStore, reference: np.ndarray
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the pairs of a split in order, in batches, with their likelihoods in `reference`."""
    settings, objective = ctx.settings, ctx.objective.for_eval()
    spec = objective.row_spec(settings.model, settings.train.seq_len)
    make_row = objective.make_row_fn(settings.model, settings.train.seq_len, ctx.data.tokenizer)
    batch_size = -(-settings.eval.batch_size // ctx.mesh.size) * ctx.mesh.size
    batches = Batches(make_row_source(store, spec), batch_size, make_row, 0)
    for number in range(len(batches)):
        arrays = batches[number]
        yield arrays | {"reference": reference[arrays["record"]]}
