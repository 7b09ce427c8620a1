"""Tests linear probes: the regression, the features, the selected layer, and the labels."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from oracle import VOCAB, eval_context

from arch import SequenceInfo
from arch.config import EncoderConfig
from data import corpus
from eval.baselines import labelled_passages
from eval.baselines.bag_of_words import bag_of_words
from eval.baselines.labelled_passages import LabelledPassage
from eval.baselines.logistic import fit_logistic, pca, standardize
from eval.features import pooled_features, with_random_init
from eval.harness import TASKS, resolve_tasks
from eval.tasks import probe
from training.settings import EvalConfig, Settings


def newton(x: np.ndarray, y: np.ndarray, K: int, l2: float) -> np.ndarray:
    """[K D + 1] by Newton's method with explicit derivatives."""
    N, D = x.shape
    extended = np.concatenate([x, np.ones((N, 1))], axis=1)
    w, penalty = np.zeros((K, D + 1)), l2 * np.tile([*[1.0] * D, 0.0], K)
    for _ in range(30):
        p = np.exp(extended @ w.T)
        p /= p.sum(axis=1, keepdims=True)
        slope = penalty * w.reshape(-1)
        bend = np.diag(penalty) + 1e-12 * np.eye(K * (D + 1))
        for n in range(N):
            slope += np.kron(p[n] - np.eye(K)[y[n]], extended[n]) / N
            bend += (
                np.kron(np.diag(p[n]) - np.outer(p[n], p[n]), np.outer(extended[n], extended[n]))
                / N
            )
        w -= np.linalg.lstsq(bend, slope, rcond=1e-9)[0].reshape(w.shape)
    return w


def test_the_regression_is_that_of_newtons_method():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=60)
    x = rng.normal(size=(60, 4)) + y[:, None] * [1, 0, -0.5, 0]
    for l2 in (1.0, 0.01):
        fitted, expected = fit_logistic(x, y, 3, l2), newton(x, y, 3, l2)
        np.testing.assert_allclose(fitted.weights, expected[:, :-1], atol=1e-4)
        np.testing.assert_allclose(
            fitted.bias - fitted.bias[0], expected[:, -1] - expected[0, -1], atol=1e-4
        )
        restarted = fit_logistic(x, y, 3, l2, init=fitted)
        np.testing.assert_allclose(restarted.weights, expected[:, :-1], atol=1e-4)
        np.testing.assert_allclose(np.exp(fitted.log_probs(x)).sum(axis=1), 1)


def test_what_is_fitted_is_fitted_on_train():
    rng = np.random.default_rng(1)
    x, train = rng.normal(size=(40, 6)) * [9, 5, 1, 1, 1, 0], np.arange(30)
    x[35:] += 100
    scaled = standardize(x, train)
    np.testing.assert_allclose(scaled[train, :5].std(axis=0), 1)
    np.testing.assert_allclose(scaled[train].mean(axis=0), 0, atol=1e-12)
    assert (scaled[:, 5] == 0).all()
    axes = pca(x, train, 2)
    variances = np.linalg.eigvalsh(np.cov(x[train].T, bias=True))[::-1][:2]
    np.testing.assert_allclose(axes[train].var(axis=0), variances)


TEXTS = ["a short one", "longer than one of the rows", "é", ""]  # rows of 11, 16, 11 and 2 bytes


@functools.partial(jax.jit, static_argnames=("causal", "prefix"))
def last_vectors(model, ids, *, causal, prefix):
    """Returns the last norm's vectors [1 T D] of a row of its own."""
    plain = SequenceInfo.unpacked(*ids.shape, causal=causal)
    is_prefix = jnp.ones(ids.shape, bool) if prefix else None
    seq = SequenceInfo(plain.positions, plain.segment_ids, is_prefix, causal)
    return (model.encode(ids, seq) if model.encoder is not None else model(ids, seq))[0]


def by_hand(model, texts, *, causal, prefix=False, length=16):
    """Means of the last norm's vectors over rows of their own, without padding."""
    out = np.zeros((len(texts), tiny.WIDTH))
    for number, text in enumerate(texts):
        raw, vectors = list(text.encode()), []
        for at in range(0, len(raw), length):
            ids = np.array([raw[at : at + length]])
            hidden = last_vectors(model, ids, causal=causal, prefix=prefix)
            vectors.append(np.asarray(hidden[0], np.float64))
        if vectors:
            out[number] = np.concatenate(vectors).mean(axis=0)
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
    cfg = tiny.config(depth=1, vocab_size=VOCAB, **changes)
    model = tiny.model(cfg)
    features = pooled_features(eval_context(model, config=cfg, objective=objective), TEXTS)
    assert features.shape == (4, 3, tiny.WIDTH)
    expected = by_hand(model, TEXTS, causal=causal, prefix=prefix)
    np.testing.assert_allclose(features[:, -1], expected, atol=2e-5)
    table = np.asarray(model.embed.table[...], np.float64)
    np.testing.assert_allclose(
        features[0, 0], table[list(TEXTS[0].encode())].mean(axis=0), atol=1e-5
    )


def test_features_do_not_depend_on_the_batch():
    cfg = tiny.config(depth=1, vocab_size=VOCAB)
    ctx = eval_context(tiny.model(cfg), config=cfg, batch=16)
    single = np.concatenate([pooled_features(ctx, [text]) for text in TEXTS[:3]])
    np.testing.assert_allclose(pooled_features(ctx, TEXTS)[:3], single, atol=1e-5)
    untrained = with_random_init(ctx)
    assert jax.tree.structure(untrained.trainable.model) == jax.tree.structure(ctx.trainable.model)
    assert np.abs(pooled_features(untrained, TEXTS) - pooled_features(ctx, TEXTS)).max() > 0.01


def make_passages(n=300, layers=3, width=40):
    """Returns passages, and features whose layer 1 alone depends on the label."""
    rng = np.random.default_rng(3)
    y = rng.integers(2, size=n)
    parts = rng.choice(["train", "valid", "test"], size=n, p=[0.6, 0.2, 0.2])
    rows = zip(y, parts, strict=True)
    passages = [
        LabelledPassage(f"word w{rng.integers(9)}", part, {"kind": "ab"[i]}) for i, part in rows
    ]
    trained, untrained = rng.normal(size=(2, n, layers, width))
    trained[:, 1] += 6 * np.outer(y, rng.normal(size=width))
    return passages, trained, untrained


def test_a_label_is_found_in_the_layer_that_holds_it():
    passages, trained, untrained = make_passages()
    rows = {
        score.name: score for score in probe.evaluate_label("kind", passages, trained, untrained)
    }
    n = sum(p.probe_split == "test" for p in passages)
    assert rows["kind/accuracy"] == ("kind/accuracy", 1.0, n) and rows["kind/layer"].value == 1
    assert rows["kind/accuracy@32"].value == 1.0 and rows["kind/nats"].value < 0.1
    y = Counter(p.labels["kind"] for p in passages if p.probe_split == "test")
    train = Counter(p.labels["kind"] for p in passages if p.probe_split == "train")
    common = train.most_common(1)[0][0]
    assert rows["kind/majority_accuracy"].value == pytest.approx(y[common] / n)
    for name in ("untrained_accuracy", "untrained_accuracy@32", "bag_of_words_accuracy"):
        assert 0.3 < rows[f"kind/{name}"].value < 0.7
    assert rows["kind/uninformative"].value == 0


def test_a_label_that_words_tell_is_uninformative():
    passages, trained, untrained = make_passages()
    informative = [p._replace(text=f"{p.text} {p.labels['kind']}b") for p in passages]
    rows = {
        score.name: score.value
        for score in probe.evaluate_label("kind", informative, trained, untrained)
    }
    assert rows["kind/bag_of_words_accuracy"] == 1 and rows["kind/uninformative"] == 1
    narrow = {
        s.name
        for s in probe.evaluate_label("kind", passages, trained[..., :31], untrained[..., :31])
    }
    assert not any("@" in name for name in narrow)  # a missing value stays missing


def test_nothing_of_the_test_part_is_used_to_choose():
    passages, trained, untrained = make_passages()
    test = [i for i, p in enumerate(passages) if p.probe_split == "test"]
    changed = trained.copy()
    changed[test] = np.random.default_rng(4).normal(size=changed[test].shape) * 50
    rows = {s.name: s.value for s in probe.evaluate_label("kind", passages, changed, untrained)}
    assert rows["kind/layer"] == 1 and rows["kind/accuracy"] < 0.7


def test_words_are_counted_where_they_are_common():
    bag = bag_of_words(["The cat, the dog", "a dog a", "rare rare rare"], [0, 1], 3)
    # The first two texts count a 2, dog 2, the 2, cat 1. They do not have "rare".
    np.testing.assert_allclose(np.expm1(bag), [[0, 1, 2], [2, 1, 0], [0, 0, 0]])


def test_pieces_are_cut_between_characters():
    text = "é" * 5 + "abc" * 30
    passages = list(labelled_passages.split_text(text, 7))
    assert text.startswith("".join(passages)) and all(5 < len(p.encode()) <= 7 for p in passages)
    assert len(text.encode()) - len("".join(passages).encode()) < 7
    assert passages[0] == "ééé"


def test_labels_of_the_held_out_corpus():
    passages = labelled_passages.load_passages(("valid", "test"))
    kinds = {
        name: Counter(p.labels[name] for p in passages if name in p.labels) for name in probe.LABELS
    }
    assert set(kinds["source"]) == {"shakespeare", "sotu", "bible"}
    assert set(kinds["genre"]) == {"comedy", "tragedy", "address", "narrative", "wisdom", "gospel"}
    assert set(kinds["book"]) == {"8", "17", "21", "32", "43", "44"}
    assert len(kinds["era"]) == 3
    assert kinds["genre"]["address"] == kinds["source"]["sotu"] == sum(kinds["era"].values())
    for name, counts in kinds.items():
        for part in ("train", "valid", "test"):
            labels = {
                p.labels[name] for p in passages if p.probe_split == part and name in p.labels
            }
            assert labels == set(counts), (name, part)
    assert all(len(p.text.encode()) <= labelled_passages.PASSAGE_BYTES for p in passages)
    assert not {p.text for p in passages if p.probe_split == "train"} & {
        p.text for p in passages if p.probe_split == "test"
    }


def test_the_task_runs_for_every_objective(monkeypatch):
    rng = np.random.default_rng(5)

    def works(split):
        for source, name in (("shakespeare", "macbeth"), ("bible", "8-1"), ("sotu", "1994-A-1")):
            letters = rng.choice(list("abcdefgh "), size=256 * 25)
            yield corpus.CorpusDocument(source, name, "".join(letters))

    monkeypatch.setattr(corpus, "iter_documents", works)
    cfg = tiny.config(depth=1, vocab_size=VOCAB)
    ctx = eval_context(tiny.model(cfg), config=cfg, objective="masked_lm", length=64)
    scores = {s.name: s for s in probe.LinearProbe(splits=("test",), labels=("source",))(ctx)}
    assert scores["source/accuracy"].weight == 3 * 4 and "source/accuracy@32" not in scores
    for objective in ("causal_lm", "masked_lm", "denoising"):
        settings = Settings(objective=objective, eval=EvalConfig(tasks=("probe", "similarity")))
        assert resolve_tasks(settings) == ("probe", "similarity")
    assert isinstance(TASKS["probe"](), probe.LinearProbe)
