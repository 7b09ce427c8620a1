"""Fine-tuning on chats: all of a chat is read, replies alone are targets (as Vicuna was trained,
lmsys.org/blog/2023-03-30-vicuna), on two CPU cores.

    python -m configs.chat chats.jsonl
    train.py --config=configs/dense.py:tiny --config.train.steps=200 --workdir=base
    python -m hub export base folder
    train.py --config=configs/chat.py --init_from=folder --workdir=chat

The first command writes 1,500 chats of the embedded corpus' verse pairs: the user says a verse as
Young has it, the assistant as the World English Bible. Any other file of chats will do, and any
folder of the hub, with its own model and tokenizer (`--config=RUN/run.json` of an imported one).

Expect 2.57 bits per byte of the replies of the test split; the first ten steps see 3.33. It took 5
minutes on two cores that ten other processes used too.
"""

import json
import sys
from itertools import islice
from pathlib import Path

from configs import dense
from data import corpus

CHATS = 1500


def get_config():
    c = dense.get_config("tiny")
    c.data.source, c.data.path, c.data.chat = "jsonl", "chats.jsonl", "vicuna"
    c.data.valid_share = c.data.test_share = 0.05
    c.train.steps, c.optimizer.warmup = 100, 10
    c.optimizer.learning_rate = 1e-3  # a quarter of what it was trained with
    return c


def write(path: Path) -> None:
    with path.open("w") as file:
        for plain, literal in islice(corpus.pairs("train"), CHATS):
            said = ({"role": "user", "content": literal}, {"role": "assistant", "content": plain})
            file.write(json.dumps({"messages": said}) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
