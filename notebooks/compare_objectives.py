# %% [markdown]
# # One backbone, every objective
#
# The same Transformer is trained under each objective of the project, with the same training
# FLOPs. Losses of different objectives cannot be compared. What can: how well a logistic
# regression on the frozen features tells what a piece of held-out text is. That is a probe.
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
RUNS = DRIVE / "isoflop" if DRIVE.is_dir() else Path("runs/notebooks").absolute()
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

FAST = jax.default_backend() == "cpu"  # under three minutes on two cores
STEPS, LABELS = (60, ("source", "genre")) if FAST else (2000, ("source", "genre", "era", "book"))
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
    c.eval.tasks = harness.OWN[objective][:1]
    c.train.compile_cache = str(WORKDIR / "compiled")
    c.log.every, c.log.console = max(STEPS // 5, 1), "plain"
    made = frozen(Settings, c)
    return resolved(made, open_data(made.data, made.reads).tokenizer.vocab)


names = list(OBJECTIVES)
candidates = {name: settings(name) for name in names}

# %% [markdown]
# ## The same cost
#
# A token costs less where fewer positions are scored, so the steps are solved for equal training
# FLOPs. What is then not equal is told as a ratio.

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
# The probe reads features of every layer, chooses layer and penalty on its own valid part, and is
# scored on its test part. Beside the features of a trained model stand those of the same
# architecture untrained, a bag of words, and the commonest label. Where a bag of words does as
# well as any model, the label tells nothing about objectives. `python -m eval --run=RUN
# --tasks=probe` makes the same scores for all labels, and records them in the run.

# %%
from eval.features import pooled, untrained
from eval.passages import pieces
from eval.probe import judged
from eval.subject import from_run

text = pieces(("valid", "test"))
words = [piece.text for piece in text]
scores, begun = {}, None
for name in names:
    subject = from_run(WORKDIR / name)[0]
    own = pooled(subject, words)
    begun = pooled(untrained(subject), words)
    scores[name] = {s.name: s.value for label in LABELS for s in judged(label, text, own, begun)}

# %%
baselines = ("untrained_accuracy", "bag_of_words_accuracy", "majority_accuracy")
for label in LABELS:
    print(f"{label} (accuracy)")
    for name in names:
        print(f"  {name:24}{scores[name][f'{label}/accuracy']:.3f}")
    for base in baselines:
        print(f"  {base.removesuffix('_accuracy'):24}{scores[names[0]][f'{label}/{base}']:.3f}")

# %%
import matplotlib.pyplot as plt
import numpy as np

figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
bars = [*names, *baselines]
for place, name in enumerate(bars):
    own, key = (scores[name], "accuracy") if name in scores else (scores[names[0]], name)
    heights = [own[f"{label}/{key}"] for label in LABELS]
    at = np.arange(len(LABELS)) + 0.8 * place / len(bars)
    color = f"C{place}" if name in scores else str(0.4 + 0.15 * (place - len(names)))
    axes.bar(at, heights, 0.75 / len(bars), color=color, label=name.removesuffix("_accuracy"))
axes.set_xticks(np.arange(len(LABELS)) + 0.35, LABELS)
axes.set_ylabel("accuracy of the probe")
axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## The board
#
# Each objective has a group of its own: what they lose is not alike, and so it is not ranked.

# %%
import leaderboard

_ = leaderboard.run([*(str(WORKDIR / name) for name in names), f"--out={WORKDIR / 'board'}"])

# %%
import html

from IPython.display import display

page = (WORKDIR / "board/leaderboard.html").read_text("utf-8")
frame = f'<iframe srcdoc="{html.escape(page)}" width="100%" height="800"></iframe>'
display({"text/html": frame}, raw=True)
