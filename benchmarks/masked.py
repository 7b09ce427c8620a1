"""Measures the cost of the head of a masked language model relative to its encoder.

    uv run benchmarks/masked.py [--batch_size=4] [--seq_len=128]

Times a training step of 12 layers of width 512 with 32,000 ids under masked language modeling with
15 % masked tokens, and the step of the same encoder under a loss without logits, in alternating
rounds. Logits are computed only at masked tokens, so that the head adds .15 x 32,000 x 512
multiply-adds to the 37.7 million per token of the encoder, in theory a ratio of 1.07. The limit is
1.15. On two cores that eight other processes also used, the median over five rounds of 2 x 128
tokens was 1.06.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # before this folder's ops.py

from arch import ModelConfig, SequenceInfo
from arch.weighted_sum import AuxMetrics
from objectives import Batch, DummyTokenizer, LossTerm, MaskedLM, Metrics, Trainable
from training.optimizer import OptimizerConfig
from training.state import init_state, make_model_optimizer
from training.step import make_step

VOCAB, LIMIT, ROUNDS = 32_000, 1.15, 5
MODEL = ModelConfig(width=512, depth=12, vocab_size=VOCAB)


@dataclasses.dataclass(frozen=True)
class NoLogitsObjective:
    """An objective without a head: the mean square of the encoder's output."""

    sums_over_rows: ClassVar[bool] = True
    memory_bank: ClassVar[None] = None

    def make_head(self, model: ModelConfig, key: Any) -> None:
        """Returns None, because the objective has no parameters."""
        return None

    def term_weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the number of tokens as the weight of the loss."""
        return {"square": jnp.sum(batch["segment_ids"] != 0, dtype=jnp.float32)}

    def forward(
        self, trainable: Trainable, microbatch: Batch, key: Any
    ) -> tuple[jax.Array, AuxMetrics]:
        """Returns the encoder's output of a microbatch, and the metrics of its channels."""
        hidden, aux, _ = trainable.model(
            microbatch["tokens"], SequenceInfo.from_batch(microbatch, "bidirectional"), key=key
        )
        return hidden, aux

    def reduce(
        self, trainable: Trainable, out: tuple[jax.Array, AuxMetrics], batch: Batch
    ) -> tuple[dict[str, LossTerm], Metrics]:
        """Returns the loss of the encoder's output."""
        square = jnp.sum(jnp.square(out[0].astype(jnp.float32)))
        return {"square": LossTerm(square, self.term_weights(batch)["square"])}, {}


class TimedStep:
    """The compiled step of an objective, and its state."""

    def __init__(self, objective: Any, batch: Batch):
        cfg = OptimizerConfig()
        tx = make_model_optimizer(cfg, 100, MODEL, objective)
        step = make_step(objective, tx, cfg, steps=100, grad_accum_steps=1)
        self.state = jax.jit(lambda: init_state(MODEL, objective, tx, 4, 0))()
        self._step = jax.jit(step, donate_argnums=0).lower(self.state, batch).compile()
        self._batch = batch

    def seconds(self) -> float:
        """Runs one step and returns its seconds."""
        start = time.perf_counter()
        self.state, metrics = self._step(self.state, self._batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start


def main() -> None:
    """Runs the benchmark of the head and prints its result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--seq_len", type=int, default=128)
    args = parser.parse_args()
    objective, rng = MaskedLM(), np.random.default_rng(0)
    make_row = objective.make_row_fn(MODEL, args.seq_len, DummyTokenizer(vocab_size=VOCAB))
    texts = rng.integers(200, VOCAB, (args.batch_size, args.seq_len)).astype(np.int32)
    rows = [make_row([text], args.seq_len, rng) for text in texts]
    batch = {name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]}
    pair = [TimedStep(loss, batch) for loss in (objective, NoLogitsObjective())]
    times = [[timed.seconds() for timed in pair] for _ in range(ROUNDS + 1)][
        1:
    ]  # the first warms up
    with_head, without_head = (statistics.median(seconds) for seconds in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    print(f"rows x tokens            {args.batch_size} x {args.seq_len}")
    print(f"encoder alone            {without_head:.3f} s")
    print(f"masked language model    {with_head:.3f} s")
    print(f"ratio, median of rounds  {ratio:.3f}, limit {LIMIT}")


if __name__ == "__main__":
    main()
