"""Writes a sample of text from a model; it is no measure, but a first impression for a reader."""

from collections.abc import Iterator
from typing import ClassVar

from data.loss_weights import WeightedPart
from eval.generate import Sampling
from eval.task import EvalContext, Score
from eval.text_generation import (
    Continuation,
    TextRequest,
    continue_texts,
    encode_prompt,
    text_model,
)
from training.run.console import LOGGER

NO_TEXT = Continuation("", 0, "length")


class TextSample:
    """Yields the continuation of the prompt in `eval.sample_prompt` as a score of text."""

    version: ClassVar[int] = 1

    def __init__(self, splits: tuple[str, ...] = ()):
        """Ignores the splits, since the task reads no data."""

    def __call__(self, ctx: EvalContext) -> Iterator[Score]:
        """Yields the prompt with its continuation, which ends where the window ends."""
        cfg, target = ctx.settings.eval, text_model(ctx)
        part = WeightedPart(cfg.sample_prompt)
        prompt = encode_prompt(target.tokenizer, target.reads, (part,))
        room = max(target.reads.window - len(prompt), 0)
        if cfg.sample_tokens > room:
            LOGGER.info("  the sample has %d tokens, with which the window is full", room)
        n_new = min(cfg.sample_tokens, room)
        request = TextRequest(0, prompt, n_new, sampling=Sampling(temperature=0.8))
        target = target._replace(batch_size=1)
        (result,) = continue_texts(target, [request], ctx.settings.seed) if n_new else (NO_TEXT,)
        yield Score("sample", cfg.sample_prompt + result.text, result.n_tokens)
