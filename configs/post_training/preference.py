"""Prefers replies in plain English, after fine-tuning on chats, on two CPU cores.

    python -m configs.post_training.preference chats.jsonl preferences.jsonl
    train.py --config=configs/dense.py:tiny --config.train.steps=200 --workdir=base
    train.py --config=configs/post_training/chat.py --init_from=base --workdir=chat
    train.py --config=configs/post_training/preference.py --init_from=chat --workdir=preference

The three stages are pretraining, fine-tuning on chats, and preferences (DPO, arXiv:2305.18290). The
first command writes the chats of `configs/post_training/chat.py`, and 1,500 preferences from the
verses after those: the user says a verse in Young's translation, the reply in that of the World
English Bible is chosen, and the reply that repeats the user is rejected.
"""

import json
import sys
from itertools import islice
from pathlib import Path

from configs.post_training import chat
from data import corpus

N_PREFERENCES = 1500


def get_config():
    """Returns the settings of training on preferences, after `configs/post_training/chat.py`."""
    c = chat.get_config()
    c.objective, c.data.path = "preference", "preferences.jsonl"
    c.data.max_shared = 0.05  # the offerings of Numbers 7 repeat each other
    c.train.steps, c.optimizer.learning_rate = 60, 3e-4
    return c


def write_example_preferences(path: Path) -> None:
    """Writes preferences for plain English over the words of the user."""
    pairs = corpus.iter_text_pairs("train")
    with path.open("w") as file:
        for plain, literal in islice(pairs, chat.N_CHATS, chat.N_CHATS + N_PREFERENCES):
            if plain != literal:
                record = {"prompt": literal, "chosen": plain, "rejected": literal}
                file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    chat.write_example_chats(Path(sys.argv[1]))
    write_example_preferences(Path(sys.argv[2]))
