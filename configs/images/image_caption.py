"""Trains a model to write captions behind pictures (LLaVA, arXiv:2304.08485), from scratch.

    uv run --extra images train.py --config=configs/images/image_caption.py
    uv run --extra images train.py --config=configs/images/image_caption.py:alone

A vision stack of 3 layers reads pictures of two to four handwritten digits, and a decoder of 3
layers reads its 16 patches and then the caption. Expect caption_bits_per_byte .157 (.153 to .160)
on the test split given the picture, and .267 (.264 to .269) from the same captions alone. Neither
handwritten digits nor captions of the test split are in training, which takes 130 and 95 CPU
seconds.
"""

from training.settings import defaults


def get_config(images="with"):
    """Returns the settings of a model of captions, with or without their images."""
    c = defaults()
    c.data.source, c.data.tokenizer = "digits", "bpe:512"
    c.model.width, c.model.depth, c.model.attention.heads = 96, 3, 4
    if images == "with":
        c.model.vision.depth, c.model.vision.projector = 3, "mlp"
        c.model.vision.patch_size = 8
        # The pixels of the canvas, most of which are black.
        c.model.vision.mean, c.model.vision.std = (0.15,), (0.3,)
    # 16 patches and the text.
    c.train.batch_size, c.train.seq_len, c.train.steps = 64, 32, 1000
    c.optimizer.learning_rate = 2e-3
    c.eval.tasks = ("bits_per_byte", "captions", "baselines")
    c.eval.limit, c.eval.every, c.checkpoint.every = 0, 0, 0
    return c
