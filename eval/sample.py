"""A sample of what the model writes: not a measure, but the first thing a person wants to see."""

from collections.abc import Iterator
from typing import ClassVar

import jax
import numpy as np

from eval.generate import Sampling, generate
from eval.task import Score, Subject


class Sample:
    version: ClassVar[int] = 1
    objective: ClassVar[str] = "causal_lm"

    def __init__(self, splits: tuple[str, ...] = ()):
        """It reads no split."""

    def __call__(self, subject: Subject) -> Iterator[Score]:
        cfg, tokenizer = subject.settings.eval, subject.data.tokenizer
        specials = tokenizer.specials
        prompt = np.concatenate([[specials.bos], tokenizer.encode([cfg.prompt])[0]])
        # The caches of this length were never trained on positions beyond a row.
        room = subject.settings.train.length - len(prompt)
        with jax.set_mesh(subject.mesh):
            (tokens,) = generate(
                subject.learner.model,
                [prompt.astype(np.int32)],
                max(min(cfg.sample, room), 0),
                key=jax.random.key(subject.settings.seed),
                stop=specials.eos,
                sampling=Sampling(temperature=0.8),
            )
        yield Score("sample", cfg.prompt + tokenizer.decode(tokens), len(tokens))
