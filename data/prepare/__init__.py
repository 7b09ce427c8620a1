"""Text made fit to train on: filtered, without duplicates, without what models are judged by.

`python -m data.prepare` reads documents in order and writes those that pass every stage:

    empty          no character but white space
    quality        the rules of Gopher (`quality.py`)
    toxicity       words of a list that the user gives (`toxicity.py`)
    contamination  n-grams that an evaluation set holds too (`contamination.py`)
    exact          the text of an earlier document, but for white space (`duplicates.py`)
    near           nearly the words of an earlier document (`duplicates.py`)

What drops a document cannot drop its copies: filters come before duplicates, so that of two copies
the first that passes them stays. The bytes written depend on neither workers nor blocks.
"""

from data.prepare.pipeline import prepare
from data.prepare.settings import PrepareConfig

__all__ = ["PrepareConfig", "prepare"]
