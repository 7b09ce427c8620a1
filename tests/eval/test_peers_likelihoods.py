"""Slow: likelihoods of imported models are those of transformers with the models' own tokenizers.

Each model has the files that its own classes of transformers write. Nothing here says what frames
a text: the files do.
"""

import json
import subprocess
from itertools import islice
from pathlib import Path

import pytest
from peers import peer_python

from data import corpus
from eval.adapters.lm_harness import LmEvalModel
from eval.likelihood import compute_likelihoods
from eval.load_run import load_run
from hub.run import import_as_run

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "peers/likelihoods.py"
N_TEXTS = 50
N_ALONE = 10  # Texts without a context.
# Special ids that the tokenizer puts around "context" in each model, before and after.
FRAMES = {
    "gpt2": ([], []),
    "llama": ([1], []),
    "t5": ([], [1]),
    "opt": ([2], []),
    "gemma": ([2], []),
}


def make_pairs() -> list[tuple[str, str]]:
    """Returns contexts and texts from the corpus; the first ones have no context."""
    texts = [document.text for document in islice(corpus.iter_documents("valid"), 200)]
    lines = [line for text in texts for line in text.splitlines() if len(line.split()) > 9]
    pairs = list[tuple[str, str]]()
    for i, line in enumerate(lines[:N_TEXTS]):
        words = line.split()[: 8 + i]
        n = 0 if i < N_ALONE else 1 + i % (len(words) - 1)
        pairs.append((" ".join(words[:n]), " " * bool(n) + " ".join(words[n:])))
    return pairs[::-1]


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """Returns the folder of the models, the pairs, and the answers by model."""
    root = tmp_path_factory.mktemp("peers")
    texts = [document.text for document in islice(corpus.iter_documents("train"), 800)]
    pairs = make_pairs()
    (root / "requests.json").write_text(json.dumps({"texts": texts, "pairs": pairs}))
    argv = [peer_python(), str(SCRIPT), str(root), str(root / "requests.json")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    return root, pairs, json.loads((root / "answers.json").read_text())


@pytest.mark.parametrize("name", FRAMES)
def test_likelihoods_of_fifty_texts_are_those_of_the_published_frame(peers, name):
    root, pairs, answers = peers
    assert len(pairs) == N_TEXTS and sum(not context for context, _ in pairs) == N_ALONE
    import_as_run(str(root / name), root / f"{name}-run")
    ctx = load_run(root / f"{name}-run")[0]
    (bare,) = ctx.data.tokenizer.encode([pairs[0][0]])
    before, after = FRAMES[name]
    assert answers[f"{name} ids"] == [*before, *bare.tolist(), *after]
    ours = [-likelihood.nats for likelihood in compute_likelihoods(ctx, pairs)]
    assert ours == pytest.approx(answers[name], rel=2e-5, abs=2e-4)
    if name == "t5":
        model = LmEvalModel(ctx)
        assert model.loglikelihood_rolling([Request(pairs[-1][1])])[0] == pytest.approx(ours[-1])


class Request:
    """A request as lm-eval makes it."""

    def __init__(self, *args: str):
        self.args = args
