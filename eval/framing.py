"""What frames a text that a model reads: ids around it, its window, and the ids that end a reply.

A run that was trained reads as in training. A model that was imported, and not trained here, reads
as its own files say (`data/framing.py`): its window may be longer than the rows of the run.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.framing import Framing
from eval.task import EvalContext

Ids = tuple[int, ...]
DEFAULT_WINDOW = 2048  # Tokens of an imported model whose files state no limit, as in lm-eval.


class Reading(NamedTuple):
    """How a model reads texts."""

    window: int  # Number of tokens of a row; 0: unknown.
    prefix: Ids  # Ids before a context, a prompt or a text to embed.
    empty_context: Ids  # Ids before a text without a context.
    suffix: Ids  # Ids after a whole text to embed.
    stop_ids: Ids  # Each of these ids ends a continuation.

    def frame(self, ids: np.ndarray) -> np.ndarray:
        """Returns a context or prompt behind the prefix, which is not repeated."""
        if tuple(ids[: len(self.prefix)].tolist()) == self.prefix:
            return ids.astype(np.int32)
        return np.concatenate([self.prefix, ids]).astype(np.int32)


def reading(ctx: EvalContext) -> Reading:
    """Returns how the model of a run reads texts."""
    settings, framing = ctx.settings, ctx.data.tokenizer.framing
    if not settings.train.steps:
        positions = settings.model.positions
        limit = positions.max_length if positions.learned else 0
        return imported_reading(framing, DEFAULT_WINDOW, limit)
    return Reading(
        settings.train.seq_len,
        framing.document_prefix,
        framing.document_prefix or framing.empty_context,
        framing.document_suffix,
        _unique([*framing.stop_ids, *framing.document_suffix]),
    )


def imported_reading(framing: Framing, default_window: int, max_positions: int = 0) -> Reading:
    """Returns how a published model reads texts, by its own files.

    Args:
        framing: what the files say.
        default_window: the window if the files state none; 0: unknown.
        max_positions: the number of learned positions, which no window exceeds; 0: no limit.
    """
    window = framing.window or default_window
    return Reading(
        min(window, max_positions) if max_positions and window else window,
        framing.text_prefix,
        framing.empty_context,
        framing.text_suffix,
        _unique(framing.stop_ids),
    )


def _unique(ids: Sequence[int]) -> Ids:
    return tuple(sorted(set(ids)))
