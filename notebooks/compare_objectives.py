# %% [markdown]
# # One backbone, every objective
#
# The same Transformer is trained to continue text, to fill in what is hidden, to say what was cut
# out, and to find which texts belong together, with the same training FLOPs. Their losses cannot be
# compared. What can: how well a logistic regression on their frozen features tells what a piece of
# held-out text is. That is a probe.
#
# **To stop and go on.** Interrupt a cell that trains: it finishes its step and saves. Run it
# again: it goes on from there, to the same bits. In Colab, mount Drive (the folder icon, *Mount
# Drive*) before the first cell, and the runs are on it: after a disconnect, run all cells again.
#
# **What was not run.** The project's tests execute this notebook on a CPU, with fewer steps.
# Nobody has yet run it in Colab or on a TPU.

# %%
# Finds isoflop. In Colab: clones it, and installs what it lacks beside the jax that is there.
import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

REPOSITORY = ""  # for Colab: what `git clone` takes to get your copy of isoflop
COLAB, DRIVE = "google.colab" in sys.modules, Path("/content/drive/MyDrive")
root = Path("/content/isoflop") if COLAB else Path.cwd()
if COLAB and not root.is_dir():
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, root], check=True)
os.chdir(next(p for p in (root, *root.parents) if (p / "leaderboard.py").is_file()))
sys.path.insert(0, os.getcwd())
RUNS = DRIVE / "isoflop" if DRIVE.is_dir() else Path("runs/notebooks")
if COLAB:
    here = {name: version(name) for name in ("jax", "jaxlib", "numpy")}
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--editable"]
    if subprocess.run([*pip, ".", *(f"{n}=={v}" for n, v in here.items())]).returncode:
        tpu = importlib.util.find_spec("libtpu")  # what is here is too old or too new
        subprocess.run([*pip, ".[tpu]" if tpu else "."], check=True)
    if {name: version(name) for name in here} != here:
        raise RuntimeError("jax was replaced: restart the session, then run this cell again")

# %% tags=["parameters"]
import jax

FAST = jax.default_backend() == "cpu"  # minutes on two cores
STEPS, LABELS = (60, ("source", "genre")) if FAST else (2000, ("source", "genre", "era", "book"))
SHARE = 8 if FAST else 1  # one in so many pieces of text is probed
WORKDIR = RUNS / f"compare_objectives-{STEPS}"

# %% [markdown]
# ## The candidates
#
# One model, whose only difference is the objective. The contrastive one reads pairs, two
# translations of a verse; the others read the same packed text.

# %%
from data import open_data
from eval import harness
from objectives import OBJECTIVES
from training.flags import frozen
from training.settings import Settings, defaults, resolved


def settings(objective):
    c = defaults()
    c.objective = objective
    c.data.tokenizer = "bpe:1024"
    c.model.width, c.model.depth = 64, 2
    c.model.attention.heads = 2
    c.train.batch, c.train.length, c.train.steps = 8, 128, STEPS
    c.optimizer.learning_rate, c.optimizer.warmup = 8e-3, STEPS // 10
    c.optimizer.schedule, c.optimizer.decay, c.optimizer.final = "wsd", 0.4, 0.0
    c.eval.tasks, c.eval.splits = harness.OWN[objective][:1], ("test",)
    c.train.compile_cache = str(WORKDIR / "compiled")
    c.log.every, c.log.console = max(STEPS // 5, 1), "off" if FAST else "plain"
    made = frozen(Settings, c)
    return resolved(made, open_data(made.data, made.reads).tokenizer.vocab)


names = list(OBJECTIVES)
candidates = {name: settings(name) for name in names}

# %% [markdown]
# ## The same cost
#
# A token costs less where fewer positions are scored: masked language modelling computes logits for
# the hidden tokens alone. So the steps are solved for equal training FLOPs, and what is then not
# equal is told as a ratio to the reference.

# %%
from protocol.budget import by_steps

matched = by_steps(candidates, "training_flops", reference="causal_lm", tolerance=0.05)
for one in matched:
    ratios = ", ".join(f"{k} {v:.2f}x" for k, v in one.ratios.items() if abs(v - 1) > 0.01)
    print(f"{one.name}: {one.settings.train.steps} steps, residual {one.residual:+.2%}; {ratios}")

# %% [markdown]
# ## Training
#
# This is what `train.py --config.objective=NAME --workdir=...` calls.

# %%
from training import launch

for one in matched:
    print(f"## {one.name}")
    launch.train(one.settings, WORKDIR / one.name, harness.judges)

# %% [markdown]
# ## Frozen probes
#
# Held-out works are cut into pieces of 256 bytes. The features of a piece are means over its
# tokens, of every layer; a logistic regression learns from them what the piece is of: its source
# (the Bible, a play, a speech) or its genre. It chooses layer and penalty on a part of its own, and
# is scored on another.
#
# Beside the trained models stand the same architecture untrained, a bag of words, and the commonest
# label. A trained model has shown something only where it is ahead of all three; after the few
# steps that `FAST` trains none is, and with so few pieces an accuracy is good to about .05.
# `python -m eval --run=RUN --tasks=probe` does the same for all labels, and records it in the run.

# %%
from eval.bag_of_words import bag_of_words
from eval.features import pooled, untrained
from eval.passages import STRETCH, pieces
from eval.probe import WORDS, labelled, majority, probed
from eval.subject import from_run

text = [piece for i, piece in enumerate(pieces(("test",))) if i // STRETCH % SHARE == 0]
words = [piece.text for piece in text]
subjects = {name: from_run(WORKDIR / name)[0] for name in names}
features = {name: pooled(subject, words) for name, subject in subjects.items()}
features["untrained"] = pooled(untrained(subjects["masked_lm"]), words)

accuracy = {}
for label in LABELS:
    some, task = labelled(label, text)
    bag = bag_of_words([words[i] for i in some], task.parts["train"], WORDS)[:, None]
    candidates = {name: own[some] for name, own in features.items()} | {"bag of words": bag}
    found = {name: probed(own, task).accuracy for name, own in candidates.items()}
    accuracy[label] = found | {"commonest label": majority(task)}
    print(f"{label}: {task.classes} classes, {len(task.parts['test'])} pieces to tell")
    for name, value in accuracy[label].items():
        print(f"  {name:16}{value:.3f}")

# %%
import matplotlib.pyplot as plt

figure, panels = plt.subplots(
    1, len(LABELS), figsize=(4 * len(LABELS), 3), sharey=True, layout="constrained"
)
for axes, (label, found) in zip(panels, accuracy.items(), strict=True):
    colors = [f"C{names.index(name)}" if name in names else "lightgrey" for name in found]
    bars = axes.barh([*found], [*found.values()], color=colors)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(title=label, xlim=(0, 1.15), xlabel="accuracy of the probe")
panels[0].invert_yaxis()
plt.show()

# %% [markdown]
# ## The board
#
# Each objective has a group of its own: what they lose is not alike, and so it is not ranked.

# %%
from protocol import render
from protocol.board import board
from protocol.collect import collect

_ = render.write(board(*collect([WORKDIR / name for name in names])), WORKDIR / "board")

# %%
import html

from IPython.display import display

page = (WORKDIR / "board/leaderboard.html").read_text("utf-8")
frame = f'<iframe srcdoc="{html.escape(page)}" width="100%" height="800"></iframe>'
display({"text/html": frame}, raw=True)
