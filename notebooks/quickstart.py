# %% [markdown]
# # Quickstart: three architectures at the same cost
#
# A dense Transformer, a Mixture of Experts and a Mamba-2 are trained on public-domain English
# that comes with the project, with equal training FLOPs and equal tokens. The last cell shows the
# leaderboard.
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
STEPS, SEEDS = 30 if FAST else 600, (0, 1, 2)
CONSOLE = "off" if FAST else "plain"  # "plain" tells every step that is logged
WORKDIR = RUNS / f"quickstart-{STEPS}"

# %% [markdown]
# ## What is compared
#
# What all candidates share is settings, as in the files of `configs/`. What they differ in, and
# what will be claimed, is a study: it is declared, and hashed, before anything runs.

# %%
from training.flags import frozen
from training.settings import Settings, defaults

c = defaults()
c.data.tokenizer = "bpe:1024"
c.model.width, c.model.depth = 64, 2
c.model.attention.heads = 2
c.model.mlp.width = 64
c.model.moe.experts, c.model.moe.width = 4, 32
c.model.mamba2.state, c.model.mamba2.chunk = 32, 32
c.train.batch, c.train.length, c.train.steps = 8, 128, STEPS
c.optimizer.learning_rate, c.optimizer.warmup = 8e-3, STEPS // 10
c.optimizer.schedule, c.optimizer.decay, c.optimizer.final = "wsd", 0.4, 0.0
c.eval.tasks, c.eval.batch = ("bits_per_byte",), 128
c.log.every, c.log.console = max(STEPS // 10, 1), CONSOLE
shared = frozen(Settings, c)

# %%
from protocol.study import Study

declared = Study(
    candidates={
        "dense": {"model.layers": ("attention+mlp",)},
        "moe": {"model.layers": ("attention+moe",)},
        "mamba2": {"model.layers": ("mamba2+none",)},
    },
    reference="mamba2",
    comparisons=(("moe", "dense"), ("mamba2", "dense")),
    margin=0.02,
    seeds=SEEDS,
)

# %% [markdown]
# ## The plan
#
# The width of the channels of dense and MoE is solved for the cost of Mamba-2. What cannot be
# equal at the same time is told, and so is the smallest difference that the study could claim.

# %%
from data import open_data
from protocol import conduct, plan, study

made = study.planned(declared, shared, open_data(shared.data).tokenizer.vocab)
runs = plan.reported(made.plan, conduct.untuned(made.plan))
print(*plan.lines(made.plan, runs, {}), *study.unmatched(made), sep="\n")

# %% [markdown]
# ## Training
#
# Each run has a folder with everything that is needed to reproduce and to judge it. This is what
# `compare.py --config=configs/compare/quickstart.py` does, with a larger study.

# %%
results = conduct.conduct(runs, WORKDIR, print, declared.metric)

# %% [markdown]
# ## Learning curves

# %%
import json

import matplotlib.pyplot as plt

colors = dict(zip(declared.candidates, ("C0", "C1", "C2"), strict=True))
for run in runs:
    rows = [json.loads(row) for row in (WORKDIR / run.name / "metrics.jsonl").open()]
    rows = [row for row in rows if "bits_per_byte" in row]
    tokens, bits = zip(*((row["tokens"], row["bits_per_byte"]) for row in rows), strict=True)
    name = run.key.candidate
    plt.plot(tokens, bits, colors[name], label=name if run.seed == SEEDS[0] else None)
plt.xlabel("tokens")
plt.ylabel("bits per byte, training")
plt.legend()
plt.show()

# %% [markdown]
# ## The board
#
# It ranks only what is alike, and says what can be concluded: of so few steps, nothing about these
# architectures beyond them.

# %%
from protocol import render
from protocol.board import board
from protocol.collect import collect

_ = render.write(board(*collect([WORKDIR / run.name for run in runs])), WORKDIR / "board")

# %%
import html

from IPython.display import display

page = (WORKDIR / "board/leaderboard.html").read_text("utf-8")
frame = f'<iframe srcdoc="{html.escape(page)}" width="100%" height="800"></iframe>'
display({"text/html": frame}, raw=True)
