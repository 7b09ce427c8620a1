"""Tests that a model embeds sentences as its own files say (modules.json and its pooling)."""

import json

import hub_goldens as goldens
import numpy as np
import pytest
from tokenizer_files import write_words

import hub
from data.settings import DataConfig
from errors import CheckpointError, ConfigError
from eval.adapters.mteb import MtebEncoder
from eval.load_run import load_run
from hub.run import import_as_run
from hub.sentence_modules import read_sentence_modules

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TYPE = "sentence_transformers.models."


def write_modules(folder, pooling, kinds=("Transformer", "Pooling", "Normalize"), length=6):
    paths = ("", "1_Pooling", "2_Normalize", "3_Dense")
    modules = [{"path": p, "type": TYPE + kind} for p, kind in zip(paths, kinds, strict=False)]
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))


def make_folder(tmp_path):
    """Returns a BERT that embeds six tokens of a sentence by their first, and its ids."""
    folder = goldens.copy("bert", tmp_path / "x")
    values = json.loads((folder / "config.json").read_text())
    ids = write_words(folder, SPECIALS, single="[CLS] $A [SEP]", config=values)
    write_modules(folder, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    return folder, ids


def test_an_import_is_a_contrastive_run_where_the_files_embed_sentences(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        "training.runner.create_run_from_params", lambda settings, *rest: made.append(settings)
    )
    folder, _ = make_folder(tmp_path)
    import_as_run(str(folder), tmp_path / "first")
    (folder / "modules.json").unlink()
    import_as_run(str(folder), tmp_path / "second")
    first, second = made
    assert (first.objective, first.train.seq_len) == ("contrastive", 6)
    assert (first.contrastive.pooling, first.contrastive.view) == ("first", "bidirectional")
    assert (second.objective, second.train.seq_len > 6) == ("masked_lm", True)


@pytest.mark.slow
def test_a_sentence_is_its_first_token_where_the_files_say_so(tmp_path):
    folder, ids = make_folder(tmp_path)
    few = DataConfig(max_documents=400, max_shared=1.0)
    import_as_run(str(folder), tmp_path / "run", few)
    ctx = load_run(tmp_path / "run")[0]
    cut = [ids[t] for t in ("[CLS]", "w1", "w2", "w3", "w4", "[SEP]")]  # "w5" has no room
    row = np.array([cut])
    hidden = hub.forward(folder, {"input_ids": row})["last_hidden_state"][0, 0]
    vector = MtebEncoder(ctx).encode("w1 w2 w3 w4 w5")
    np.testing.assert_allclose(vector, hidden / np.linalg.norm(hidden), atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "found"),
    [
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}, "mean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean"),
        ({"pooling_mode": "cls"}, "first"),
    ],
    ids=str,
)
def test_poolings_of_old_and_new_files(tmp_path, pooling, found):
    assert read_sentence_modules(tmp_path) is None
    write_modules(tmp_path, pooling, length=None)
    assert read_sentence_modules(tmp_path) == (found, 0)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 9}))
    assert read_sentence_modules(tmp_path) == (found, 9)  # as newer files have it


def test_other_modules_are_refused_by_name(tmp_path):
    mean = {"pooling_mode_mean_tokens": True}
    for pooling, words in (
        ({"pooling_mode_max_tokens": True}, "pooling max_tokens is not"),
        (mean | {"pooling_mode_cls_token": True}, "pooling mean_tokens, cls_token is not"),
        ({}, "pooling none is not"),
    ):
        write_modules(tmp_path, pooling)
        with pytest.raises(ConfigError, match=words):
            read_sentence_modules(tmp_path)
    write_modules(tmp_path, mean, ("Transformer", "Pooling", "Dense"))
    with pytest.raises(ConfigError, match="modules Transformer, Pooling, Dense are not"):
        read_sentence_modules(tmp_path)
    modules = [{"path": "", "type": TYPE + "Transformer"}]
    modules += [{"path": "../..", "type": TYPE + "Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="is outside of"):
        read_sentence_modules(tmp_path)
    for content in ("{}", "[1]", "[" * 100_000):
        (tmp_path / "modules.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"modules\.json"):
            read_sentence_modules(tmp_path)
