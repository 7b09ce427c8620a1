"""What frames a text that the model of an evaluation reads (`training/text_reading.py`)."""

from data.framing import Reading
from eval.task import EvalContext
from training.text_reading import reading_of_run


def reading(ctx: EvalContext) -> Reading:
    """Returns how the model of a run reads texts."""
    return reading_of_run(ctx.settings, ctx.data.tokenizer.framing)
