"""Fill-in-the-middle: rows in which the middle of a text follows its end (arXiv:2207.14255).

A stretch of a document, cut at two random places into prefix, middle and suffix, becomes

    PSM:  PRE prefix SUF suffix MID middle eos
    SPM:  PRE SUF suffix MID prefix middle eos

with the sentinels 0, 1 and 2 of the tokenizer as PRE, SUF and MID. It keeps its length: the end of
the stretch makes room for the sentinels (section 3, "context-level FIM"). The parts are of one
document, and eos ends the middle. Cuts are between tokens; cuts within tokens are left out.
"""

from typing import Literal

import numpy as np
from jaxtyping import Int

from objectives.token_sets import TokenizerLike

MIN_TOKENS = 4  # A shorter text stays as it is.
N_SENTINELS = 3
Order = Literal["PSM", "SPM"]


def fill_in_the_middle(
    tokens: Int[np.ndarray, " T"],
    tokenizer: TokenizerLike,
    rate: float,
    spm_rate: float,
    rng: np.random.Generator,
) -> Int[np.ndarray, " T"]:
    """Returns a slice of a framed document, with probability `rate` rearranged.

    Args:
        tokens: the slice, perhaps with the ids that frame the document.
        tokenizer: the tokenizer, with sentinels.
        rate: the probability of rearrangement.
        spm_rate: the probability of the order SPM where the slice is rearranged.
        rng: the generator.
    """
    is_changed, is_spm = rng.random(2) < (rate, spm_rate)
    specials = tokenizer.specials
    frame = (specials.bos, specials.eos)
    start = int(len(tokens) > 0 and tokens[0] in frame)
    stop = len(tokens) - int(len(tokens) > start and tokens[-1] == specials.eos)
    room = len(tokens) - start - N_SENTINELS - 1
    body = tokens[start:stop][: max(room, 0)]
    cuts = np.sort(rng.integers(0, len(body) + 1, 2))
    if not is_changed or len(body) < MIN_TOKENS:
        return tokens
    prefix, middle, suffix = np.split(body, cuts)
    order: Order = "SPM" if is_spm else "PSM"
    return np.concatenate(
        [
            tokens[:start],
            arrange(prefix, middle, suffix, specials.sentinels, order),
            np.array([specials.eos], tokens.dtype),
        ]
    )


def arrange(
    prefix: np.ndarray,
    middle: np.ndarray,
    suffix: np.ndarray,
    sentinels: tuple[int, ...],
    order: Order,
) -> np.ndarray:
    """Returns the three parts of a text in this order, behind their sentinels."""
    pre, suf, mid = (np.array([i], prefix.dtype) for i in sentinels[:N_SENTINELS])
    if order == "SPM":
        return np.concatenate([pre, suf, suffix, mid, prefix, middle])
    return np.concatenate([pre, prefix, suf, suffix, mid, middle])
