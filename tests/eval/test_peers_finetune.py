"""Slow: an imported BERT is fine-tuned as transformers fine-tunes it with equal settings."""

import json
import re
import statistics
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from peers import peer_python

from eval.finetuning import datasets, recipe
from eval.load_run import load_run
from hub.run import import_as_run
from training.settings import FinetuneConfig

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "peers/finetune_bert.py"
RATE = 4e-3  # The weights are random, and learn little at the rates of pretrained ones.


def test_a_fine_tuned_bert_is_as_good_as_with_transformers(tmp_path):
    def run(*argv: object) -> None:
        command = [peer_python(), str(SCRIPT), *map(str, argv)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert not done.returncode, done.stderr[-2000:]

    cfg = FinetuneConfig(labels=("source",), learning_rates=(RATE,), seeds=3, max_tokens=64)
    (data,) = datasets.load_datasets(cfg, ("valid", "test"))
    words = Counter(
        word
        for example in data.parts["train"]
        for word in re.findall(r"[a-z]+|[.,;:!?]", example.texts[0].lower())
    )
    (tmp_path / "words.txt").write_text("\n".join(word for word, _ in words.most_common(800)))
    run("make", tmp_path / "bert", tmp_path / "words.txt")
    settings = {"learning_rate": RATE, "epochs": cfg.epochs, "batch_size": cfg.batch_size}
    settings |= {"warmup": cfg.warmup, "weight_decay": cfg.weight_decay}
    settings |= {"max_tokens": cfg.max_tokens, "seeds": cfg.seeds}
    texts = {part: [[e.texts[0], e.label] for e in data.parts[part]] for part in ("train", "test")}
    content = {"classes": data.classes, "recipe": settings, **texts}
    (tmp_path / "data.json").write_text(json.dumps(content))
    run("train", tmp_path / "bert", tmp_path / "data.json", tmp_path / "theirs.json")
    theirs = json.loads((tmp_path / "theirs.json").read_text())
    import_as_run(str(tmp_path / "bert"), tmp_path / "run")
    tuner = recipe.make_fine_tuner(load_run(tmp_path / "run")[0], cfg, data)
    assert tuner.objective.pooling == "pooler"
    ours = [measures["accuracy"] for measures in recipe.run_recipe(tuner).runs]
    print("ours", ours, "theirs", theirs)
    majority = max(Counter(e.label for e in data.parts["test"]).values())
    assert min(ours) > majority / len(data.parts["test"]) + 0.2
    assert statistics.median(ours) == pytest.approx(statistics.median(theirs), abs=0.02)
