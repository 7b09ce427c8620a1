"""The evaluation mask: what its file says, that it is what is judged, and what is refused."""

import dataclasses
import hashlib
import json
import types
from pathlib import Path

import board_runs
import numpy as np
import oracle
import pytest
from data_stores import BOS, EOS, made_store

from data.tokenizers import ByteTokenizer
from errors import DataError
from eval.masked import Masked
from protocol.records import read_run

T, MASK = 20, ByteTokenizer().specials.mask
TEXTS = ["a river runs through it", "we hold these truths", "call me", "né à Paris"]
PIECES = [np.frombuffer(t.encode(), np.uint8).astype(np.int32) for t in TEXTS]


@pytest.fixture
def subject(tmp_path):
    data = types.SimpleNamespace(
        tokenizer=oracle.Bytes.tokenizer, test=made_store(tmp_path / "s", PIECES)
    )
    return with_(oracle.oracle(objective="masked_lm", length=T, batch=2)._replace(data=data))


def with_(subject, **changes):
    settings = dataclasses.replace(subject.settings, **changes)
    return subject._replace(settings=settings, objective=settings.chosen())


def judged(subject) -> dict:
    return {score.name: score.value for score in Masked(splits=("test",))(subject)}


def files(subject) -> tuple[Path, Path]:
    folder = subject.data.test.folder
    return folder / f"mask-{T}.bin", folder / f"mask-{T}.json"


def stream() -> np.ndarray:
    """All documents framed, after one another, in windows of T."""
    whole = np.concatenate([[BOS, *piece, EOS] for piece in PIECES])
    return np.pad(whole, (0, -len(whole) % T), constant_values=-1).reshape(-1, T)


def hidden(subject) -> np.ndarray:
    """As docs/formats.md says to read it."""
    bits, index = files(subject)
    packed = np.fromfile(bits, np.uint8).reshape(-1, -(-T // 8))
    assert json.loads(index.read_text())["sha256"] == hashlib.sha256(bits.read_bytes()).hexdigest()
    return np.unpackbits(packed, axis=1, count=T).astype(bool)


def expected(mask: np.ndarray) -> float:
    """Nats a hidden token, in float64: the model reads a mask there, and knows nothing else."""
    row = oracle.successor()[MASK]
    chance = row - np.log(np.exp(row).sum())
    return -chance[stream()[mask]].mean()


def test_what_is_judged_is_the_file(subject):
    found = judged(subject)
    mask, windows = hidden(subject), stream()
    text = (windows >= 0) & (windows < 256)
    assert not (mask & ~text).any()
    assert mask.sum(1).tolist() == [max(round(0.15 * n), 1) for n in text.sum(1)]
    assert found["test/masked_nats"] == pytest.approx(expected(mask), rel=1e-5)
    assert found["test/mask"] == json.loads(files(subject)[1].read_text())["sha256"]
    other = np.zeros_like(mask)
    other[:, 3] = text[:, 3]
    assert (other != mask).any()
    bits, index = files(subject)
    bits.write_bytes(np.packbits(other, axis=1).tobytes())
    digest = hashlib.sha256(bits.read_bytes()).hexdigest()
    index.write_text(json.dumps(json.loads(index.read_text()) | {"sha256": digest}))
    again = judged(subject)
    assert again["test/masked_nats"] == pytest.approx(expected(other), rel=1e-5)
    assert again["test/mask"] == digest and again["test/set"] != found["test/set"]


def test_the_mask_is_one_for_every_training_rate_and_batch(subject):
    first = judged(subject)
    rate = dataclasses.replace(subject.settings.masked_lm, rate=0.4, mask=0.5, ngram=3)
    wide = dataclasses.replace(subject.settings.eval, batch=16)
    other = with_(subject, masked_lm=rate, eval=wide)
    assert judged(other) == pytest.approx(first)
    for path in files(subject):
        path.unlink()
    assert judged(other)["test/mask"] == first["test/mask"]
    longer = with_(subject, train=dataclasses.replace(subject.settings.train, length=24))
    assert judged(longer)["test/mask"] != first["test/mask"]


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1] ^= 16
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda bits, index: flipped(bits), "mask-20.bin is damaged.*drawn again"),
        (lambda bits, index: bits.write_bytes(b""), "mask-20.bin is damaged.*delete"),
        (lambda bits, index: bits.unlink(), "mask-20.json cannot be read"),
        (lambda bits, index: index.write_text("{"), "mask-20.json cannot be read"),
        (
            lambda bits, index: index.write_text(index.read_text().replace('"windows": 4', "")),
            "cannot be read",
        ),
        (
            lambda bits, index: index.write_text(
                json.dumps(json.loads(index.read_text()) | {"store": "x"})
            ),
            "must be.*delete .*mask-20",
        ),
    ],
)
def test_a_file_that_is_not_as_it_was_made_is_refused(subject, harm, said):
    judged(subject)
    harm(*files(subject))
    with pytest.raises(DataError, match=said) as error:
        judged(subject)
    assert "\n" not in str(error.value)


def test_a_cache_that_cannot_be_written_costs_the_file_alone(subject, monkeypatch, caplog):
    first = judged(subject)
    for path in files(subject):
        path.unlink()

    def refused(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refused)
    assert judged(subject) == first and "Read-only file system" in caplog.text
    assert not files(subject)[1].exists()


def test_the_board_ranks_rows_of_other_masks_apart(tmp_path):
    keys = []
    for name, digest in (("a", "11"), ("b", "11"), ("c", "22")):
        scores = [("test/set", "33"), ("test/mask", digest)]
        folder = board_runs.run(tmp_path / name, scores=scores)
        keys.append(read_run(folder, name).keys["evaluation"])
    assert keys[0] == keys[1] != keys[2] and keys[0].endswith("set 33, mask 11")
