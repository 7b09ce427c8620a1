"""Writes a sample of text from a model; it is no measure, but a first impression for a reader."""

from collections.abc import Iterator
from typing import ClassVar

import jax
import numpy as np

from eval.generate import Sampling, generate
from eval.task import EvalContext, Score


class TextSample:
    """Yields the continuation of the prompt in `eval.sample_prompt` as a score of text."""

    version: ClassVar[int] = 1

    def __init__(self, splits: tuple[str, ...] = ()):
        """Ignores the splits, since the task reads no data."""

    def __call__(self, ctx: EvalContext) -> Iterator[Score]:
        """Yields the prompt with its continuation."""
        cfg, tokenizer = ctx.settings.eval, ctx.data.tokenizer
        specials = tokenizer.specials
        prompt = np.concatenate([[specials.bos], tokenizer.encode([cfg.sample_prompt])[0]])
        # The model was never trained on positions beyond the length of a row.
        max_new_tokens = ctx.settings.train.seq_len - len(prompt)
        with jax.set_mesh(ctx.mesh):
            (tokens,) = generate(
                ctx.trainable.model,
                [prompt.astype(np.int32)],
                max(min(cfg.sample_tokens, max_new_tokens), 0),
                key=jax.random.key(ctx.settings.seed),
                stop_tokens=specials.eos,
                sampling=Sampling(temperature=0.8),
            )
        yield Score("sample", cfg.sample_prompt + tokenizer.decode(tokens), len(tokens))
