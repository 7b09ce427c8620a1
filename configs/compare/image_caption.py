"""Compares captions given their picture with captions alone, at equal training FLOPs.

    uv run --extra images compare.py --config=configs/compare/image_caption.py

The candidate `alone` spends the FLOPs of the vision stack on more steps with the same captions. The
test split has handwritten digits and captions that training did not see. Both candidates have the
same learning rate, which is not tuned.
"""

from configs.images import image_caption
from protocol.study.study import Study


def get_config():
    """Returns the settings that both candidates share."""
    c = image_caption.get_config()
    c.train.steps = 400
    c.eval.tasks = ("captions",)
    c.checkpoint.every = 100_000
    c.log.console = "off"
    return c


def study():
    """Returns the study of what a picture is worth."""
    return Study(
        candidates={
            "picture": {},
            "alone": {"model.vision.depth": 0, "model.vision.projector": "none"},
        },
        reference="picture",
        comparisons=(("picture", "alone"),),
        match_by="steps",
        metric="test/caption_bits_per_byte",
        tuning_metric="valid/caption_bits_per_byte",
        margin=0.01,
        seeds=(0, 1, 2),
    )
