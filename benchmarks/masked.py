"""What the head of a masked language model costs beside the encoder alone.

    uv run benchmarks/masked.py [--batch=4] [--length=128]

Times a training step of 12 layers of width 512 with 32,000 ids, hiding 15 %, and the step of the
same encoder under a loss that asks for no logits; rounds alternate. Logits are computed where
tokens are hidden, so that the head adds .15 x 32,000 x 512 multiply-adds to the body's 37.7 million
a token: 1.07 times in theory. The limit is 1.15. On two cores that eight processes used too, the
median over five rounds of 2 x 128 tokens was 1.06.
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

from arch import ModelConfig, Sequence
from arch.terms import Aux
from objectives import Batch, Blank, Learner, MaskedLM, Metrics, Term
from training.optimizer import OptimizerConfig
from training.state import initial, transformation
from training.step import make_step

VOCAB, LIMIT, ROUNDS = 32_000, 1.15, 5
MODEL = ModelConfig(width=512, depth=12, vocab=VOCAB)


@dataclasses.dataclass(frozen=True)
class Bare:
    """The mean square of what an encoder gives: a loss without a head."""

    additive: ClassVar[bool] = True
    bank: ClassVar[None] = None

    def head(self, model: ModelConfig, key: Any) -> None:
        return None

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        return {"square": jnp.sum(batch["segments"] != 0, dtype=jnp.float32)}

    def encode(self, learner: Learner, micro: Batch, key: Any) -> tuple[jax.Array, Aux]:
        hidden, aux, _ = learner.model(micro["tokens"], Sequence.of(micro, "both"), key=key)
        return hidden, aux

    def reduce(
        self, learner: Learner, out: tuple[jax.Array, Aux], batch: Batch
    ) -> tuple[dict[str, Term], Metrics]:
        square = jnp.sum(jnp.square(out[0].astype(jnp.float32)))
        return {"square": Term(square, self.weights(batch)["square"])}, {}


class Timed:
    """The compiled step of an objective, and its state."""

    def __init__(self, objective: Any, batch: Batch):
        cfg = OptimizerConfig()
        tx = transformation(cfg, 100, MODEL, objective)
        step = make_step(objective, tx, cfg, steps=100, accumulate=1)
        self.state = jax.jit(lambda: initial(MODEL, objective, tx, 4, 0))()
        self._step = jax.jit(step, donate_argnums=0).lower(self.state, batch).compile()
        self._batch = batch

    def seconds(self) -> float:
        began = time.perf_counter()
        self.state, metrics = self._step(self.state, self._batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    args = parser.parse_args()
    objective, rng = MaskedLM(), np.random.default_rng(0)
    example = objective.host(MODEL, args.length, Blank(vocab=VOCAB))
    texts = rng.integers(200, VOCAB, (args.batch, args.length)).astype(np.int32)
    rows = [example([text], args.length, rng) for text in texts]
    batch = {name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]}
    pair = [Timed(made, batch) for made in (objective, Bare())]
    times = [[one.seconds() for one in pair] for _ in range(ROUNDS + 1)][1:]  # the first warms up
    whole, bare = (statistics.median(some) for some in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    print(f"rows x tokens            {args.batch} x {args.length}")
    print(f"encoder alone            {bare:.3f} s")
    print(f"masked language model    {whole:.3f} s")
    print(f"ratio, median of rounds  {ratio:.3f}, limit {LIMIT}")


if __name__ == "__main__":
    main()
