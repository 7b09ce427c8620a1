"""Tests fine-tuning: updates by another way, what must be learned, files, errors, and records."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from oracle import VOCAB, eval_context

from arch import SequenceInfo
from arch.layers.pooler import PoolerConfig
from data.tokenizers import ByteTokenizer
from errors import ConfigError, DataError
from eval import harness
from eval.__main__ import parse_args
from eval.finetuning import datasets, measures, recipe
from eval.finetuning.labelled_files import LabelledExample, read_labelled_files
from eval.finetuning.rows import encode_examples, padded_length
from eval.framing import Reading
from eval.tasks import finetune
from eval.tasks.finetune import FineTuning, recipe_digest, result_scores
from protocol.records.safe_read import CheckedFields
from protocol.records.scores import read_scores
from settings.changes import with_changes
from training.checkpoint.param_names import named_leaves
from training.settings import FinetuneConfig

RATE = 0.02


def context(objective="masked_lm", length=32, model_changes=None, **finetune):
    """Returns the context of a tiny model of bytes, with settings of fine-tuning."""
    cfg = tiny.config(depth=1, vocab_size=VOCAB, **(model_changes or {}))
    ctx = eval_context(tiny.model(cfg), config=cfg, objective=objective, length=length)
    changes = {f"eval.finetune.{name}": value for name, value in finetune.items()}
    return ctx._replace(settings=with_changes(ctx.settings, changes))


def dataset(make, problem="classes", n=96, seed=0):
    """Returns a data set whose examples are (texts, label) of `make(generator)`."""
    rng = np.random.default_rng(seed)
    parts = {"train": [], "valid": [], "test": []}
    for i in range(n):
        part = ("train", "train", "train", "train", "valid", "test")[i % 6]
        parts[part].append(LabelledExample(*make(rng), f"record {i}"))
    return datasets.make_dataset("letters", problem, parts, 0)


def letters(rng):
    """Returns a text in which one of two letters is common, and that letter."""
    label = rng.choice(["a", "b"])
    return ("".join(rng.choice([label, "c", "d"], rng.choice([8, 14]))),), str(label)


def tuner_of(data, **settings):
    fixed = {"learning_rates": (RATE,), "seeds": 1, "dropout": 0.0, "warmup": 0.0}
    ctx = context(**(fixed | settings))
    return recipe.make_fine_tuner(ctx, ctx.settings.eval.finetune, data)


class Adam:
    """AdamW by hand in float64, with clipping and a rate that falls to 0 (arXiv:1711.05101)."""

    def __init__(self, steps, decay):
        self.steps, self.decay, self.t, self.moments = steps, decay, 0, {}

    def update(self, params, grads):
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        rate = RATE * (1 - self.t / self.steps)
        self.t += 1
        out = dict(params)
        for name, g in grads.items():
            g = g * min(1.0, 1.0 / norm)
            m, v = self.moments.get(name, (0.0, 0.0))
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            self.moments[name] = m, v
            step = (m / (1 - 0.9**self.t)) / (np.sqrt(v / (1 - 0.999**self.t)) + 1e-6)
            out[name] = params[name] - rate * (step + 0.01 * self.decay[name] * params[name])
        return out


def test_the_layer_alone_is_a_softmax_regression_by_hand():
    tuner = tuner_of(dataset(letters, n=36), trained="layer", batch_size=8, epochs=2)
    model = tuner.ctx.trainable.model
    runner = recipe._Runner(tuner)
    trained = runner.train(RATE, seed=3)
    start = runner.start(RATE, 3).trainable.head
    params = {"w": np.asarray(start.w[...], float), "b": np.asarray(start.b[...], float)}
    assert 0.01 < params["w"].std() < 0.03 and not params["b"].any()
    adam = Adam(tuner.steps, {"w": True, "b": False})
    rows = [features(model, row.tokens) for row in tuner.rows["train"]]
    for indices, _ in recipe.batches(tuner, "train", 3):
        x = np.stack([rows[i] for i in indices])
        y = np.array([tuner.targets["train"][i] for i in indices])
        p = np.exp(x @ params["w"] + params["b"])
        error = p / p.sum(1, keepdims=True) - np.eye(2)[y]
        params = adam.update(params, {"w": x.T @ error / len(y), "b": error.mean(0)})
    np.testing.assert_allclose(trained.head.w[...], params["w"], atol=2e-5)
    np.testing.assert_allclose(trained.head.b[...], params["b"], atol=2e-5)
    before, after = named_leaves(model), named_leaves(trained.model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    # Reading alone is paid, for training and for the test.
    T = {x["tokens"].shape for _, x in recipe.batches(tuner, "train", 3)}
    assert {shape[1] for shape in T} == {16}
    n_rows = 8 * len([*recipe.batches(tuner, "train", 3)])
    assert runner.flops == n_rows * 16 * recipe._forward_flops(tuner, 16)


@jax.jit
def read_row(model, tokens):
    """Returns the vectors [1 T D] of one row without padding, read in both directions."""
    return model(tokens, SequenceInfo.unpacked(*tokens.shape, causal=False))[0]


def features(model, tokens):
    return np.asarray(read_row(model, tokens[None])[0], np.float64).mean(0)


def test_all_parameters_move_by_the_gradients_of_the_loss_of_single_rows():
    changes = {"pooler": PoolerConfig("first")}
    tuner = tuner_of(
        dataset(letters, n=12), batch_size=8, epochs=1, model_changes=changes, weight_decay=0.01
    )
    assert tuner.objective.pooling == "pooler" and tuner.steps == 1
    runner = recipe._Runner(tuner)
    start = runner.start(RATE, 0).trainable
    rows, targets = tuner.rows["train"], tuner.targets["train"]

    @jax.jit
    @jax.grad
    def gradient(trainable, ids, target):
        hidden = read_row(trainable.model, ids)
        pooler, layer = trainable.model.pooler, trainable.head
        y = jnp.tanh(hidden[0, 0] @ pooler.w_pool[...] + pooler.b_pool[...])
        scores = y @ layer.w[...] + layer.b[...]
        return jnp.log(jnp.exp(scores).sum()) - scores[target]

    pairs = zip(rows, targets, strict=True)
    by_row = [named_leaves(gradient(start, row.tokens[None], t)) for row, t in pairs]
    grads = {name: np.mean([np.asarray(g[name], float) for g in by_row], 0) for name in by_row[0]}
    params = {n: np.asarray(p, float) for n, p in named_leaves(start).items()}
    decays = {n: n.rpartition(".")[2] in MATRICES for n in params}
    expected = Adam(1, decays).update(params, grads)
    trained = named_leaves(runner.train(RATE, seed=0))
    assert sum(np.abs(grads[n]).max() > 1e-6 for n in grads) >= len(grads) - 2
    for name, value in expected.items():
        # Where a gradient is nearly 0, the first step of Adam amplifies its rounding.
        is_clear = np.abs(grads[name]) > 1e-4 * np.abs(grads[name]).max()
        difference = np.abs(np.asarray(trained[name]) - value)[is_clear]
        assert difference.size == 0 or difference.max() < 1e-4, name
        assert decays[name] or name.rpartition(".")[2] not in MATRICES


MATRICES = ("w", "table", "w_pool", "w_q", "w_k", "w_v", "w_qkv", "w_o", "w_in", "w_out", "w_gate")


def test_classes_are_learned_and_the_rate_is_selected_on_the_valid_part():
    data = dataset(letters, n=240)
    tuner = tuner_of(data, learning_rates=(1e-9, RATE), seeds=2, warmup=0.1, dropout=0.1)
    assert len({len(row.tokens) for row in tuner.rows["train"]}) == 2  # Some rows are padded.
    result = recipe.run_recipe(tuner)
    assert result.learning_rate == RATE and len(result.runs) == 2
    assert all(run["accuracy"] > 0.9 and run["f1"] > 0.9 for run in result.runs)
    assert result.runs[0] != result.runs[1]  # Another layer, order and dropout.


@pytest.mark.slow
def test_numbers_are_learned_at_their_own_scale():
    def make(rng):
        n = int(rng.integers(0, 14))
        return ("x" * n + "c" * (14 - n),), 1900.0 + 10 * n

    tuner = tuner_of(dataset(make, "regression", n=240), epochs=6, objective="causal_lm")
    assert tuner.objective.pooling == "last" and tuner.scale[0] > 1900
    (run,) = recipe.run_recipe(tuner).runs
    assert run["spearman"] > 0.9 and run["pearson"] > 0.9 and run["rmse"] < 25


KINDS = {"cat": "B-PET", "dog": "B-PET", "and": "O", "the": "O", "sees": "O"}


@pytest.mark.parametrize(
    "objective", ["masked_lm", pytest.param("causal_lm", marks=pytest.mark.slow)]
)
def test_labels_of_words_are_learned(objective):
    def make(rng):
        words = [str(word) for word in rng.choice(list(KINDS), rng.integers(1, 5))]
        return tuple(words), tuple(KINDS[word] for word in words)

    tuner = tuner_of(dataset(make, "tokens", n=240), epochs=6, objective=objective)
    (run,) = recipe.run_recipe(tuner).runs
    assert run["accuracy"] > 0.95 and run["span_f1"] > 0.9


def row_of(texts, max_tokens=99, words=False, last=False):
    reads = Reading(99, (1,), (1,), (2, 3), ())
    example = LabelledExample(texts, "x", "")
    options = {"has_words": words, "labels_last_token": last}
    return encode_examples(ByteTokenizer(), reads, [example], max_tokens, **options)[0]


def test_rows_are_framed_and_the_longer_text_is_cut():
    def ids(text):
        return [*text.encode()]

    row = row_of(("ab",))
    assert row.tokens.tolist() == [1, *ids("ab"), 2, 3] and not row.types.any()
    row = row_of(("ab", "cde"))
    assert row.tokens.tolist() == [1, *ids("ab"), 2, 3, *ids("cde"), 2, 3]
    assert row.types.tolist() == [0] * 5 + [1] * 5 and not row.is_cut
    row = row_of(("ab", "cdefgh"), max_tokens=9)
    assert row.tokens.tolist() == [1, *ids("ab"), 2, 3, *ids("cd"), 2, 3] and row.is_cut
    row = row_of(("abcd", "efghijkl"), max_tokens=11)
    assert row.tokens.tolist() == [1, *ids("abc"), 2, 3, *ids("efg"), 2, 3]
    row = row_of(("ab", "cd", "efg"), words=True)
    assert row.tokens.tolist() == [1, *ids("ab cd efg"), 2, 3]
    assert row.word_positions.tolist() == [1, 3, 6]
    row = row_of(("ab", "", "efg"), max_tokens=7, words=True, last=True)
    assert row.word_positions.tolist() == [2, 3, -1] and len(row.tokens) == 7 and row.is_cut
    assert [padded_length(n, 40) for n in (3, 17, 40)] == [16, 32, 48]


def test_spans_and_measures_by_hand():
    labels = ["B-A", "I-A", "O", "I-B", "B-B", "I-A"]
    assert measures.find_spans(labels) == {(0, 2, "A"), (3, 4, "B"), (4, 5, "B"), (5, 6, "A")}
    assert measures.span_f1([["B-A", "O", "B-B"]], [["B-A", "I-A", "B-B"]]) == 0.5
    data = dataset(letters)
    outputs = [np.log([0.9, 0.1]), np.log([0.4, 0.6]), np.log([0.7, 0.3])]
    found = measures.measure(data, outputs, [np.int32(0), np.int32(1), np.int32(1)])
    assert found["accuracy"] == pytest.approx(2 / 3) and found["f1"] == pytest.approx(2 / 3)
    assert found["nats"] == pytest.approx(-np.log([0.9, 0.6, 0.3]).mean())
    # scikit-learn's f1_score(["a", "a", "b"], ["a", "c", "b"], average="macro"): c has F1 0.
    outputs = [np.eye(4)[k] for k in (0, 2, 1)]
    three = data._replace(classes=("a", "b", "c", "d"))
    found = measures.measure(three, outputs, [np.int32(0), np.int32(0), np.int32(1)])
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    tagged = data._replace(problem="tokens", classes=("B-A", "O"))
    unread = [np.array([[np.nan, np.nan], [0.0, 1.0]])]
    assert measures.measure(tagged, unread, [np.array([1, 1])])["accuracy"] == 0.5
    constant = measures.regression_measures(np.zeros(3), np.arange(3.0))
    assert constant == {"pearson": 0, "spearman": 0, "rmse": pytest.approx(np.sqrt(5 / 3))}


def read(path, **settings):
    return read_labelled_files(str(path), FinetuneConfig(**settings))


def test_glue_files_become_data_sets(tmp_path):
    sst = tmp_path / "SST-2"
    sst.mkdir()
    (sst / "train.tsv").write_text('sentence\tlabel\na "good film \t1\nbad \t0\n')
    (sst / "dev.tsv").write_text("sentence\tlabel\nfine\t1\n")
    (sst / "test.tsv").write_text("index\tsentence\n0\tno label here\n")
    files = read(sst)
    assert (files.name, files.problem) == ("sst-2", "classes")
    assert files.parts["train"][0][:2] == (('a "good film ',), "1")
    assert set(files.parts) == {"train", "valid"}
    parts = datasets.fill_parts(files.parts)
    assert parts["test"] == files.parts["valid"]
    mrpc = tmp_path / "msr_paraphrase_train.txt"
    mrpc.write_text("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tone\ttwo\n")
    assert read(mrpc).parts["train"][0][:2] == (("one", "two"), "1")
    (tmp_path / "sts.jsonl").write_text(
        '{"sentence1": "a", "sentence2": "b", "score": 2.5}\n'
        '{"sentence1": "a", "sentence2": "c", "score": 5}\n'
    )
    files = read(tmp_path / "sts.jsonl")
    assert files.problem == "regression" and [e.label for e in files.parts["train"]] == [2.5, 5.0]
    (tmp_path / "ner.jsonl").write_text('{"tokens": ["a", "b"], "tags": ["O", "B-X"]}\n')
    files = read(tmp_path / "ner.jsonl")
    assert files.problem == "tokens" and files.parts["train"][0][:2] == (("a", "b"), ("O", "B-X"))
    long = 200_000 * "w"  # The csv module refuses more than 131,072 characters by default.
    (tmp_path / "own.csv").write_text(
        f'kind,body\r\nx,"one, two"\r\n\r\ny,"a ""b""\nc"\ny,6" of {long}\n\n'
    )
    files = read(tmp_path / "own.csv", text_fields=("body",), label_field="kind")
    rows = [(example.texts[0], example.label) for example in files.parts["train"]]
    assert rows == [("one, two", "x"), ('a "b"\nc', "y"), (f'6" of {long}', "y")]
    (tmp_path / "glue.tsv").write_text('sentence\tlabel\n\n"a\tx\n\n')
    assert read(tmp_path / "glue.tsv").parts["train"][0][:2] == (('"a',), "x")


def test_parts_are_cut_by_text():
    examples = [LabelledExample((f"text {i % 50}",), str(i % 2), "") for i in range(100)]
    parts = datasets.fill_parts({"train": examples})
    texts = {part: {e.texts for e in parts[part]} for part in parts}
    assert all(texts.values()) and not texts["train"] & (texts["valid"] | texts["test"])
    assert sum(map(len, parts.values())) == 100
    small = datasets.make_dataset("d", "classes", parts, 10)
    assert len(small.parts["train"]) == 10 and small.parts["test"] == parts["test"]
    smaller = datasets.make_dataset("d", "classes", parts, 5)
    assert smaller.parts["train"] == small.parts["train"][:5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sentence\tlabel\na\t1\nb\n", "line at byte 19 has 1 fields, the header has 2"),
        ('sentence,label\na,1\n"b,2\nc,1\n', "line at byte 19 is no row of commas"),
        ("sentence\tlabel\na\t1\n\t0\n", "line at byte 19 has no text under sentence"),
        ("sentence\tlabel\na\t1\nb\t\n", "line at byte 19 has no label under 'label'; add it"),
        ("phrase\tlabel\na\t1\n", "has the fields phrase, label; set eval.finetune.text_fields"),
        ("sentence\tkind\na\t1\n", "has no labelled training examples"),
    ],
)
def test_a_bad_table_is_refused_with_file_and_record(tmp_path, content, message):
    path = tmp_path / ("train.csv" if "," in content else "train.tsv")
    path.write_text(content)
    with pytest.raises((DataError, ConfigError), match=message) as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"tokens": ["a", "b"], "tags": ["O"]}', "has 1 labels for 2 words; give one label"),
        ('{"text": "a", "label": {"x": 1}}', "has the label {'x': 1}; a label is a text or"),
        ('{"text": 3, "label": "x"}', "has no text under text"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_record(tmp_path, line, message):
    path = tmp_path / "lines.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=f"{path}: the line at byte 0 {message}"):
        read(path)


def test_labels_that_cannot_be_learned_are_refused(tmp_path):
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "a\tx\nb\ty\n" * 9)
    (tmp_path / "dev.tsv").write_text("text\tlabel\na\tx\nb\tz\n")
    (tmp_path / "test.tsv").write_text("text\tlabel\na\tx\n")
    cfg = FinetuneConfig(labels=(), path=str(tmp_path))
    place = f"{tmp_path}/dev.tsv: the line at byte 15 has the label 'z', which no training example"
    with pytest.raises(DataError, match=f"{place} has .they have x, y.; correct it, or add"):
        datasets.load_datasets(cfg, ())
    (tmp_path / "dev.tsv").write_text("text\tlabel\na\tx\nb\ty\n")
    (data,) = datasets.load_datasets(cfg, ())
    with pytest.raises(ConfigError, match="two data sets of the name"):
        datasets.load_datasets(dataclasses.replace(cfg, path=f"{tmp_path},{tmp_path}"), ())
    with pytest.raises(ConfigError, match="neither labels nor a path"):
        datasets.load_datasets(dataclasses.replace(cfg, path=" , "), ())
    with pytest.raises(ConfigError, match="learning_rates is empty"):
        dataclasses.replace(cfg, learning_rates=()).check()
    with pytest.raises(DataError, match="has the label 'x', must be a number; correct it"):
        list(datasets.load_datasets(dataclasses.replace(cfg, problem="regression"), ()))
    with pytest.raises(DataError, match="has no example in its valid part; add examples"):
        datasets.make_dataset("d", "classes", {"train": data.parts["train"]}, 0)
    with pytest.raises(DataError, match="all training examples of d have the label 'x'"):
        datasets.make_dataset(
            "d", "classes", {p: data.parts["test"] for p in ("train", "valid", "test")}, 0
        )
    ctx = context(pooling="pooler")
    with pytest.raises(ConfigError, match="pooling is pooler, but the model has none; use mean"):
        recipe.make_fine_tuner(ctx, ctx.settings.eval.finetune, dataset(letters))
    ctx = context(objective="causal_lm", pooling="first")
    with pytest.raises(ConfigError, match="first sees one token of a causal model; use last"):
        recipe.make_fine_tuner(ctx, ctx.settings.eval.finetune, dataset(letters))


def test_the_corpus_has_classes_pairs_and_numbers():
    cfg = FinetuneConfig(labels=("era", "year", "verses"))
    era, year, verses = datasets.load_datasets(cfg, ("valid", "test"))
    assert len(era.classes) == 3 and year.problem == "regression"
    assert {len(d.parts["test"]) for d in (era, year)} == {len(era.parts["test"])}
    assert 1789 <= float(min(year.targets("train"))) <= float(max(year.targets("train"))) <= 2030
    assert verses.classes == ("other", "same")
    labels = [e.label for e in verses.parts["test"]]
    assert 0.4 < labels.count("same") / len(labels) < 0.6
    texts = {p: {e.texts[0] for e in verses.parts[p]} for p in verses.parts}
    assert len(texts["train"] & texts["test"]) < 0.01 * len(texts["test"])


def test_the_task_records_its_settings_and_the_board_tells_recipes_apart(tmp_path, monkeypatch):
    lines = [json.dumps({"text": t[0], "label": y}) for t, y in map(letters, [RNG] * 90)]
    (tmp_path / "ours.jsonl").write_text("\n".join(lines))
    ctx = context(labels=(), path=str(tmp_path / "ours.jsonl"), learning_rates=(RATE,), epochs=1)
    result = recipe.FinetuneResult(RATE, ({"accuracy": 0.5, "f1": 0.4},) * 3, 7.0)
    monkeypatch.setattr(finetune, "run_recipe", lambda tuner: result)
    scores = {score.name.removeprefix("finetune_ours/"): score for score in FineTuning()(ctx)}
    assert {"accuracy", "accuracy_low", "accuracy_high", "f1", "flops", "seconds"} <= {*scores}
    assert scores["flops"].value == 7 and scores["learning_rate"].value == RATE
    assert scores["accuracy"].weight == len(
        datasets.fill_parts(read(tmp_path / "ours.jsonl").parts)["test"]
    )
    assert scores["bag_of_words_accuracy"].value >= 0 and scores["majority_accuracy"].value < 1
    entry = harness.TASKS["finetune"]
    section = harness.read_section("finetune", ctx)
    assert entry.section == "finetune" and section["learning_rates"] == [RATE]
    complete = {"version": 1, "splits": ["valid", "test"], "scores": [], "settings": section}
    check = (1, ("valid", "test"), {})
    assert harness._is_complete(complete, *check, section)
    assert not harness._is_complete(complete, *check, section | {"epochs": 4})
    assert not harness._is_complete({**complete, "settings": {}}, *check, section)
    (data,) = datasets.load_datasets(ctx.settings.eval.finetune, ())
    cfg = ctx.settings.eval.finetune
    other = dataclasses.replace(cfg, epochs=2)
    moved = dataclasses.replace(cfg, path="elsewhere")
    assert recipe_digest(cfg, data) == recipe_digest(moved, data) != recipe_digest(other, data)
    rows = [score._asdict() for score in FineTuning()(ctx)]
    record = {"task": "finetune", "version": 1, "length": 32, "data": "d", "scores": rows}
    evaluations = read_scores([CheckedFields(record, "finetune.json")], "").evaluations
    assert recipe_digest(cfg, data) in evaluations["finetune_ours/accuracy"]
    assert data.digest("test") in evaluations["finetune_ours/accuracy"]
    args = parse_args(
        ["--run=r", "--config.eval.finetune.path=a", "--config.eval.finetune.seeds=5"]
    )
    assert vars(args)["config.eval.finetune.seeds"] == 5


RNG = np.random.default_rng(9)


def test_the_score_is_the_median_with_students_interval():
    values = (0.7, 0.9, 0.74)
    result = recipe.FinetuneResult(1e-3, tuple({"accuracy": v} for v in values), 0.0)
    scores = {s.name: s.value for s in result_scores(dataset(letters), result, "finetune_x")}
    assert scores["finetune_x/accuracy"] == 0.74
    half = 4.302653 * np.std(values, ddof=1) / np.sqrt(3)  # t(.975) with two degrees of freedom
    assert scores["finetune_x/accuracy_low"] == pytest.approx(0.78 - half, abs=1e-6)
    assert scores["finetune_x/accuracy_high"] == pytest.approx(0.78 + half, abs=1e-6)
