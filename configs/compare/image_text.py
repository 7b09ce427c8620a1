"""Compares attention and Mamba-2 at finding the caption of a picture, at equal training FLOPs.

    uv run --extra images compare.py --config=configs/compare/image_text.py

Both have a vision stack and a text stack of their mixer; Mamba-2 reads pictures in both directions.
The number of steps is solved to match the cost. The test split has handwritten digits and captions
that training did not see. All candidates have the same learning rate, which is not tuned.
"""

from configs.images import image_text
from protocol.study.study import Study


def get_config():
    """Returns the settings that both candidates share."""
    c = image_text.get_config()
    c.train.steps = 400
    c.checkpoint.every = 100_000
    c.log.console = "off"
    return c


def study():
    """Returns the study of two mixers that read images and texts."""
    mamba2 = ("mamba2+mlp",)
    return Study(
        candidates={
            "attention": {},
            "mamba2": {
                "model.layers": mamba2,
                "model.vision.layers": mamba2,
                "model.bidirectional.weights": "shared",
            },
        },
        reference="attention",
        comparisons=(("mamba2", "attention"),),
        match_by="steps",
        objectives=("contrastive",),
        metric="test/recall@1_of_100",
        tuning_metric="valid/recall@1_of_100",
        unit="R@1 of 100",
        better="higher",
        margin=0.02,
        seeds=(0, 1, 2),
    )
