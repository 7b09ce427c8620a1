"""Slow: lm-eval's own Hugging Face backend and the adapter here, on equal models and requests."""

import json
import subprocess
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
from peers import peer_python

from data import corpus
from eval.adapters.lm_harness import LmEvalModel
from eval.framing import reading
from eval.load_run import load_run
from hub.run import import_as_run

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "peers/lm_eval_models.py"
SENTENCE = "And the earth was waste and void, and darkness was upon the face of the deep"
LONG = " ".join([SENTENCE] * 14)  # more tokens than the window of 320
PAIRS = [
    ("And the earth", " was"),
    ("And the earth", " was waste and void"),
    ("And the earth ", "was waste"),
    ("And the earth  ", "was waste"),
    ("And the earth\n", "was"),
    ("And the earth\n\n", " was"),
    ("And the ear", "th was"),  # a word that is cut
    ("and", "rew"),
    ("", "And the earth was"),
    ("", " And"),
    ("Caf\u00e9", " \u00e9t\u00e9"),
    ("\U0001f600", "\U0001f601"),
    ("x", "y"),
    ("Question: 2 + 2 =", " 4"),
    ("Question: 2 + 2 =", " 5"),
    ("A.", " B."),
    ("one\ttwo", "\tthree"),
    (SENTENCE, " of the waters"),
    (SENTENCE * 2, ", " + SENTENCE),
    (LONG, " and void"),
    (LONG + ".", " " + SENTENCE),
    ("x<|end|>", "y"),  # special tokens that a text spells
    ("<|start|>user\nHi<|end|>\n", "<|start|>assistant"),
]
ROLLING = [("And the earth was waste",), ("Caf\u00e9",), (SENTENCE,), (LONG,), ("x",)]
GENERATE = [
    ("And the earth", {"max_gen_toks": 16}),
    ("And the earth", {"until": [" the", "e"], "max_gen_toks": 16}),
    ("And the earth", {"until": "a", "max_new_tokens": 24, "do_sample": False}),
    ("x", {"until": ["<|end|>", "<|endoftext|>"], "max_gen_toks": 40}),
    ("And God said", {"until": []}),  # 256 new tokens
    (LONG, {"max_gen_toks": 8, "temperature": 0.0}),  # the prompt loses its beginning
    ("<|start|>user\nHi<|end|>", {"until": ["\n"], "max_gen_toks": 12}),
]
CHATS = [
    [{"role": "user", "content": "Hello"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " What is <|end|>? "},
        {"role": "assistant", "content": "A marker"},
        {"role": "user", "content": "Why"},
    ],
]


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """Returns the folder of the models and lm-eval's answers by model."""
    root = tmp_path_factory.mktemp("peers")
    texts = [document.text for document in islice(corpus.iter_documents("train"), 800)]
    kinds = {"texts": texts, "pairs": PAIRS, "rolling": ROLLING, "generate": GENERATE}
    (root / "requests.json").write_text(json.dumps(kinds | {"chats": CHATS}))
    argv = [peer_python(), str(SCRIPT), str(root), str(root / "requests.json")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    return root, json.loads((root / "answers.json").read_text())


def asked(arguments) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=args) for args in arguments]


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba2"])
def test_an_imported_model_answers_lm_eval_as_its_own_backend_does(peers, name):
    root, answers = peers
    import_as_run(str(root / name), root / f"{name}-run")
    ctx = load_run(root / f"{name}-run")[0]
    model, theirs = LmEvalModel(ctx), answers[name]
    ours = model.loglikelihood(asked(PAIRS))
    for pair, own, other in zip(PAIRS, ours, theirs["loglikelihood"], strict=True):
        assert own[0] == pytest.approx(other[0], rel=2e-5, abs=2e-4), pair
        assert own[1] == other[1], pair
    rolling = model.loglikelihood_rolling(asked(ROLLING))
    if name == "llama":
        # lm-eval also scores the bos that its tokenizer puts before a text, after another bos.
        others = {
            text: other[0]
            for (context, text), other in zip(PAIRS, theirs["loglikelihood"], strict=True)
            if not context
        }
        alone = model.loglikelihood_rolling(asked([(text,) for text in others]))
        assert alone == pytest.approx([*others.values()], rel=2e-5)
        assert all(own > other for own, other in zip(rolling, theirs["rolling"], strict=True))
    else:
        assert rolling == pytest.approx(theirs["rolling"], rel=2e-5)
    texts = model.generate_until(asked(GENERATE))
    assert texts == theirs["generate"]
    assert reading(ctx).window == theirs["max_length"]


def test_chats_are_written_and_answered_as_by_lm_evals_own_backend(peers):
    root, answers = peers
    run = root / "llama-chats"
    import_as_run(str(root / "llama"), run)
    model, theirs = LmEvalModel(load_run(run)[0]), answers["llama"]
    chats = [model.apply_chat_template(chat) for chat in CHATS]
    assert chats == theirs["chats"]
    limit = {"until": ["<|end|>"], "max_gen_toks": 12}
    assert model.generate_until(asked([(chat, limit) for chat in chats])) == theirs["replies"]
    unfinished = [*CHATS[0], {"role": "assistant", "content": "So "}]
    assert model.apply_chat_template(unfinished, False) == theirs["unfinished"]
