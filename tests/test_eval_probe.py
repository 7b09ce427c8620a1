"""Frozen-feature probes: the regression, the features, the choice of layer, the labels."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from oracle import VOCAB, subject

from arch import Sequence
from arch.config import EncoderConfig
from data import corpus
from eval import passages, probe
from eval.bag_of_words import bag_of_words
from eval.features import pooled, untrained
from eval.harness import TASKS, chosen
from eval.logistic import fit, principal, standardised
from eval.passages import Piece
from training.settings import EvalConfig, Settings


def newton(x: np.ndarray, y: np.ndarray, K: int, l2: float) -> np.ndarray:
    """[K D + 1] by Newton's method with explicit derivatives."""
    N, D = x.shape
    one = np.concatenate([x, np.ones((N, 1))], axis=1)
    w, penalty = np.zeros((K, D + 1)), l2 * np.tile([*[1.0] * D, 0.0], K)
    for _ in range(30):
        p = np.exp(one @ w.T)
        p /= p.sum(axis=1, keepdims=True)
        slope = penalty * w.reshape(-1)
        bend = np.diag(penalty) + 1e-12 * np.eye(K * (D + 1))
        for n in range(N):
            slope += np.kron(p[n] - np.eye(K)[y[n]], one[n]) / N
            bend += np.kron(np.diag(p[n]) - np.outer(p[n], p[n]), np.outer(one[n], one[n])) / N
        w -= np.linalg.lstsq(bend, slope, rcond=1e-9)[0].reshape(w.shape)
    return w


def test_the_regression_is_that_of_newtons_method():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=60)
    x = rng.normal(size=(60, 4)) + y[:, None] * [1, 0, -0.5, 0]
    for l2 in (1.0, 0.01):
        made, right = fit(x, y, 3, l2), newton(x, y, 3, l2)
        np.testing.assert_allclose(made.weights, right[:, :-1], atol=1e-4)
        np.testing.assert_allclose(made.bias - made.bias[0], right[:, -1] - right[0, -1], atol=1e-4)
        other = fit(x, y, 3, l2, start=made)
        np.testing.assert_allclose(other.weights, right[:, :-1], atol=1e-4)
        np.testing.assert_allclose(np.exp(made.log_shares(x)).sum(axis=1), 1)


def test_what_is_fitted_is_fitted_on_train():
    rng = np.random.default_rng(1)
    x, train = rng.normal(size=(40, 6)) * [9, 5, 1, 1, 1, 0], np.arange(30)
    x[35:] += 100
    scaled = standardised(x, train)
    np.testing.assert_allclose(scaled[train, :5].std(axis=0), 1)
    np.testing.assert_allclose(scaled[train].mean(axis=0), 0, atol=1e-12)
    assert (scaled[:, 5] == 0).all()
    axes = principal(x, train, 2)
    variances = np.linalg.eigvalsh(np.cov(x[train].T, bias=True))[::-1][:2]
    np.testing.assert_allclose(axes[train].var(axis=0), variances)


TEXTS = ["a short one", "one of more bytes than the row of sixteen", "é", ""]


def by_hand(made, texts, *, causal, prefix=False, length=16):
    """Means of the last norm's vectors over rows of their own, without padding."""
    out = np.zeros((len(texts), tiny.WIDTH))
    for number, text in enumerate(texts):
        raw, seen = list(text.encode()), []
        for at in range(0, len(raw), length):
            ids = jnp.asarray([raw[at : at + length]])
            plain = Sequence.plain(*ids.shape, causal=causal)
            seq = Sequence(
                plain.positions,
                plain.segments,
                jnp.ones(ids.shape, bool) if prefix else None,
                causal,
            )
            hidden = made.encode(ids, seq) if made.encoder is not None else made(ids, seq)
            seen.append(np.asarray(hidden[0][0], np.float64))
        if seen:
            out[number] = np.concatenate(seen).mean(axis=0)
    return out


@pytest.mark.parametrize(
    ("objective", "changes", "causal", "prefix"),
    [
        ("causal_lm", {}, True, False),
        ("masked_lm", {}, False, False),
        ("denoising", {}, True, True),
        ("denoising", {"encoder": EncoderConfig(depth=1)}, False, False),
    ],
    ids=["causal", "masked", "prefix", "encoder"],
)
def test_features_are_means_over_tokens_as_the_objective_reads(objective, changes, causal, prefix):
    cfg = tiny.config(depth=1, vocab=VOCAB, **changes)
    made = tiny.model(cfg)
    found = pooled(subject(made, config=cfg, objective=objective), TEXTS)
    assert found.shape == (4, 3, tiny.WIDTH)
    expected = by_hand(made, TEXTS, causal=causal, prefix=prefix)
    np.testing.assert_allclose(found[:, -1], expected, atol=2e-5)
    table = np.asarray(made.embed.table[...], np.float64)
    np.testing.assert_allclose(found[0, 0], table[list(TEXTS[0].encode())].mean(axis=0), atol=1e-5)


def test_features_do_not_depend_on_the_batch():
    cfg = tiny.config(depth=1, vocab=VOCAB)
    judged = subject(tiny.model(cfg), config=cfg, batch=16)
    one = np.concatenate([pooled(judged, [text]) for text in TEXTS[:3]])
    np.testing.assert_allclose(pooled(judged, TEXTS)[:3], one, atol=1e-5)
    begun = untrained(judged)
    assert jax.tree.structure(begun.learner.model) == jax.tree.structure(judged.learner.model)
    assert np.abs(pooled(begun, TEXTS) - pooled(judged, TEXTS)).max() > 0.01


def made_up(n=300, layers=3, width=40):
    """Pieces whose label stands in layer 1 alone, and in one word of their text."""
    rng = np.random.default_rng(3)
    y = rng.integers(2, size=n)
    parts = rng.choice(["train", "valid", "test"], size=n, p=[0.6, 0.2, 0.2])
    rows = zip(y, parts, strict=True)
    text = [Piece(f"word w{rng.integers(9)}", part, {"kind": "ab"[i]}) for i, part in rows]
    own, begun = rng.normal(size=(2, n, layers, width))
    own[:, 1] += 6 * np.outer(y, rng.normal(size=width))
    return text, own, begun


def test_a_label_is_found_in_the_layer_that_holds_it():
    text, own, begun = made_up()
    rows = {score.name: score for score in probe.judged("kind", text, own, begun)}
    n = sum(piece.part == "test" for piece in text)
    assert rows["kind/accuracy"] == ("kind/accuracy", 1.0, n) and rows["kind/layer"].value == 1
    assert rows["kind/accuracy@32"].value == 1.0 and rows["kind/nats"].value < 0.1
    y = Counter(piece.labels["kind"] for piece in text if piece.part == "test")
    train = Counter(piece.labels["kind"] for piece in text if piece.part == "train")
    common = train.most_common(1)[0][0]
    assert rows["kind/majority_accuracy"].value == pytest.approx(y[common] / n)
    for name in ("untrained_accuracy", "untrained_accuracy@32", "bag_of_words_accuracy"):
        assert 0.3 < rows[f"kind/{name}"].value < 0.7
    assert rows["kind/out_of_conclusions"].value == 0


def test_a_label_that_words_tell_is_out_of_conclusions():
    text, own, begun = made_up()
    said = [p._replace(text=f"{p.text} {p.labels['kind']}b") for p in text]
    rows = {score.name: score.value for score in probe.judged("kind", said, own, begun)}
    assert rows["kind/bag_of_words_accuracy"] == 1 and rows["kind/out_of_conclusions"] == 1
    narrow = {s.name for s in probe.judged("kind", text, own[..., :31], begun[..., :31])}
    assert not any("@" in name for name in narrow)  # a missing value stays missing


def test_nothing_of_the_test_part_is_used_to_choose():
    text, own, begun = made_up()
    test = [i for i, piece in enumerate(text) if piece.part == "test"]
    changed = own.copy()
    changed[test] = np.random.default_rng(4).normal(size=changed[test].shape) * 50
    rows = {s.name: s.value for s in probe.judged("kind", text, changed, begun)}
    assert rows["kind/layer"] == 1 and rows["kind/accuracy"] < 0.7


def test_words_are_counted_where_they_are_common():
    bag = bag_of_words(["The cat, the dog", "a dog a", "rare rare rare"], [0, 1], 3)
    # of the first two: a 2, dog 2, the 2, cat 1; "rare" is not known
    np.testing.assert_allclose(np.expm1(bag), [[0, 1, 2], [2, 1, 0], [0, 0, 0]])


def test_pieces_are_cut_between_characters():
    text = "é" * 5 + "abc" * 30
    found = list(passages.cut(text, 7))
    assert text.startswith("".join(found)) and all(5 < len(p.encode()) <= 7 for p in found)
    assert len(text.encode()) - len("".join(found).encode()) < 7
    assert found[0] == "ééé"


def test_labels_of_the_held_out_corpus():
    text = passages.pieces(("valid", "test"))
    kinds = {
        name: Counter(p.labels[name] for p in text if name in p.labels) for name in probe.LABELS
    }
    assert set(kinds["source"]) == {"shakespeare", "sotu", "bible"}
    assert set(kinds["genre"]) == {"comedy", "tragedy", "address", "narrative", "wisdom", "gospel"}
    assert set(kinds["book"]) == {"8", "17", "21", "32", "43", "44"}
    assert len(kinds["era"]) == 3
    assert kinds["genre"]["address"] == kinds["source"]["sotu"] == sum(kinds["era"].values())
    for name, found in kinds.items():
        for part in ("train", "valid", "test"):
            own = {p.labels[name] for p in text if p.part == part and name in p.labels}
            assert own == set(found), (name, part)
    assert all(len(p.text.encode()) <= passages.BYTES for p in text)
    assert not {p.text for p in text if p.part == "train"} & {
        p.text for p in text if p.part == "test"
    }


def test_the_task_runs_for_every_objective(monkeypatch):
    rng = np.random.default_rng(5)

    def works(split):
        for source, name in (("shakespeare", "macbeth"), ("bible", "8-1"), ("sotu", "1994-A-1")):
            letters = rng.choice(list("abcdefgh "), size=256 * 25)
            yield corpus.Passage(source, name, "".join(letters))

    monkeypatch.setattr(corpus, "passages", works)
    cfg = tiny.config(depth=1, vocab=VOCAB)
    judged = subject(tiny.model(cfg), config=cfg, objective="masked_lm", length=64)
    scores = {s.name: s for s in probe.Probe(splits=("test",), labels=("source",))(judged)}
    assert scores["source/accuracy"].weight == 3 * 4 and "source/accuracy@32" not in scores
    for objective in ("causal_lm", "masked_lm", "denoising"):
        settings = Settings(objective=objective, eval=EvalConfig(tasks=("probe", "similarity")))
        assert chosen(settings) == ("probe", "similarity")
    assert TASKS["probe"] is probe.Probe
