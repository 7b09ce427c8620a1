"""Preparation of training text: filters, deduplication and removal of evaluation text.

`python -m data.prepare` reads documents in order and writes those that pass every stage:

    empty          no character except white space
    quality        the quality rules of Gopher (`quality.py`)
    toxicity       words of a list that the user provides (`toxicity.py`)
    contamination  n-grams that also occur in an evaluation set (`contamination.py`)
    exact          the text of an earlier document, apart from white space (`duplicates.py`)
    near           nearly the same words as an earlier document (`duplicates.py`)

Filters come before deduplication, so that a document that a filter drops does not drop its copies:
of two copies, the first that passes the filters stays. The written bytes depend neither on the
number of workers nor on the size of blocks.
"""

from data.prepare.pipeline import prepare
from data.prepare.settings import PrepareConfig

__all__ = ["PrepareConfig", "prepare"]
