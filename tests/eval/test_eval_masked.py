"""Tests the evaluation mask: the content of its file, its use, and files that are refused."""

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
from eval.tasks.masked import MaskedTokenLoss
from protocol.records.run_record import read_run

T, MASK = 20, ByteTokenizer().specials.mask
TEXTS = ["a river runs through it", "we hold these truths", "call me", "né à Paris"]
PIECES = [np.frombuffer(t.encode(), np.uint8).astype(np.int32) for t in TEXTS]


@pytest.fixture
def ctx(tmp_path):
    data = types.SimpleNamespace(
        tokenizer=oracle.Bytes.tokenizer, test=made_store(tmp_path / "s", PIECES)
    )
    return with_(oracle.oracle(objective="masked_lm", length=T, batch=2)._replace(data=data))


def with_(ctx, **changes):
    settings = dataclasses.replace(ctx.settings, **changes)
    return ctx._replace(settings=settings, objective=settings.get_objective())


def evaluate_mask(ctx) -> dict:
    return {score.name: score.value for score in MaskedTokenLoss(splits=("test",))(ctx)}


def files(ctx) -> tuple[Path, Path]:
    folder = ctx.data.test.folder
    return folder / f"mask-{T}.bin", folder / f"mask-{T}.json"


def stream() -> np.ndarray:
    """All documents framed, after one another, in windows of T."""
    tokens = np.concatenate([[BOS, *piece, EOS] for piece in PIECES])
    return np.pad(tokens, (0, -len(tokens) % T), constant_values=-1).reshape(-1, T)


def hidden(ctx) -> np.ndarray:
    """Reads the mask file as docs/formats.md describes it."""
    bits, index = files(ctx)
    packed = np.fromfile(bits, np.uint8).reshape(-1, -(-T // 8))
    assert json.loads(index.read_text())["sha256"] == hashlib.sha256(bits.read_bytes()).hexdigest()
    return np.unpackbits(packed, axis=1, count=T).astype(bool)


def expected(mask: np.ndarray) -> float:
    """Returns the nats per masked token in float64; the model reads nothing but the mask token."""
    row = oracle.successor()[MASK]
    chance = row - np.log(np.exp(row).sum())
    return -chance[stream()[mask]].mean()


def test_what_is_judged_is_the_file(ctx):
    scores = evaluate_mask(ctx)
    mask, windows = hidden(ctx), stream()
    text = (windows >= 0) & (windows < 256)
    assert not (mask & ~text).any()
    assert mask.sum(1).tolist() == [max(round(0.15 * n), 1) for n in text.sum(1)]
    assert scores["test/masked_nats"] == pytest.approx(expected(mask), rel=1e-5)
    assert scores["test/mask_sha256"] == json.loads(files(ctx)[1].read_text())["sha256"]
    new_mask = np.zeros_like(mask)
    new_mask[:, 3] = text[:, 3]
    assert (new_mask != mask).any()
    bits, index = files(ctx)
    bits.write_bytes(np.packbits(new_mask, axis=1).tobytes())
    digest = hashlib.sha256(bits.read_bytes()).hexdigest()
    index.write_text(json.dumps(json.loads(index.read_text()) | {"sha256": digest}))
    new_scores = evaluate_mask(ctx)
    assert new_scores["test/masked_nats"] == pytest.approx(expected(new_mask), rel=1e-5)
    assert new_scores["test/mask_sha256"] == digest
    assert new_scores["test/eval_set_sha256"] != scores["test/eval_set_sha256"]


def test_the_mask_is_one_for_every_training_rate_and_batch(ctx):
    first = evaluate_mask(ctx)
    rate = dataclasses.replace(ctx.settings.masked_lm, mask_rate=0.4, mask_share=0.5, max_ngram=3)
    wide = dataclasses.replace(ctx.settings.eval, batch_size=16)
    changed = with_(ctx, masked_lm=rate, eval=wide)
    assert evaluate_mask(changed) == pytest.approx(first)
    for path in files(ctx):
        path.unlink()
    assert evaluate_mask(changed)["test/mask_sha256"] == first["test/mask_sha256"]
    longer = with_(ctx, train=dataclasses.replace(ctx.settings.train, seq_len=24))
    assert evaluate_mask(longer)["test/mask_sha256"] != first["test/mask_sha256"]


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1] ^= 16
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda bits, index: flipped(bits), "mask-20.bin is damaged.*samples the mask again"),
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
def test_a_file_that_is_not_as_it_was_made_is_refused(ctx, harm, message):
    evaluate_mask(ctx)
    harm(*files(ctx))
    with pytest.raises(DataError, match=message) as error:
        evaluate_mask(ctx)
    assert "\n" not in str(error.value)


def test_a_cache_that_cannot_be_written_costs_the_file_alone(ctx, monkeypatch, caplog):
    first = evaluate_mask(ctx)
    for path in files(ctx):
        path.unlink()

    def refused(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refused)
    assert evaluate_mask(ctx) == first and "Read-only file system" in caplog.text
    assert not files(ctx)[1].exists()


def test_the_board_ranks_rows_of_other_masks_apart(tmp_path):
    keys = []
    for name, digest in (("a", "11"), ("b", "11"), ("c", "22")):
        scores = [("test/eval_set_sha256", "33"), ("test/mask_sha256", digest)]
        folder = board_runs.run(tmp_path / name, scores=scores)
        keys.append(read_run(folder, name).keys["evaluation"])
    assert keys[0] == keys[1] != keys[2] and keys[0].endswith("eval_set_sha256 33, mask_sha256 11")
