"""Small token stores and a plain objective for the tests of `data`."""

import json
from pathlib import Path

import numpy as np

from data.images.settings import ImagesConfig
from data.open_stores import Data, open_data
from data.settings import DataConfig
from data.store import TokenStore
from data.store_writer import TokenStoreWriter
from data.tokenizers import ByteTokenizer

BOS, EOS, VOCAB = 257, 258, 365  # of the byte tokenizer, fixed by DESIGN


def made_store(folder: Path, documents: list[np.ndarray]) -> TokenStore:
    """A store of byte documents; empty ones are dropped on the way."""
    writer = TokenStoreWriter(folder, ByteTokenizer())
    writer.add(documents, [len(d) for d in documents])
    writer.finish({})
    return TokenStore(folder)


def distinct(lengths: list[int]) -> list[np.ndarray]:
    """Documents of these lengths, as different as bytes allow."""
    rng = np.random.default_rng(7)
    return [rng.integers(256, size=n).astype(np.int32) for n in lengths]


def next_token(pieces: list[np.ndarray], length: int, rng: np.random.Generator) -> dict:
    """The row of a causal language model, and one random number."""
    row = {n: np.zeros(length, np.int32) for n in ("tokens", "targets", "positions", "segment_ids")}
    at = 0
    for segment, piece in enumerate(pieces, start=1):
        end = at + len(piece) - 1
        row["tokens"][at:end], row["targets"][at:end] = piece[:-1], piece[1:]
        row["positions"][at:end] = np.arange(end - at)
        row["segment_ids"][at:end] = segment
        at = end
    weights = (row["segment_ids"] > 0).astype(np.float32)
    noise = np.full(length, rng.integers(1 << 30))
    return row | {"weights": weights, "is_prefix": np.zeros(length, bool), "noise": noise}


def image_data(cache: Path, size: int) -> Data:
    """Returns data of random pictures with captions that name how bright they are."""
    folder, rng = cache / "pictures", np.random.default_rng(0)
    folder.mkdir()
    lines = []
    for i in range(40):
        bright = int(rng.integers(256))
        np.save(folder / f"{i}.npy", np.full((size, size), bright, np.uint8))
        text = f"{'dark' if bright < 128 else 'bright'} picture {i}"
        lines.append(json.dumps({"image": f"{i}.npy", "text": text}))
    (folder / "pictures.jsonl").write_text("\n".join(lines))
    return open_data(
        DataConfig(
            source="images",
            path=str(folder / "pictures.jsonl"),
            images=ImagesConfig(size=size),
            cache=str(cache),
            valid_share=0.2,
            test_share=0.2,
        )
    )
