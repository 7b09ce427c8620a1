# %% [markdown]
# # Quickstart: three architectures at the same cost
#
# A dense Transformer, a Mixture of Experts and a Mamba-2 are trained on public-domain English text
# that ships with the project. Training FLOPs and tokens are equal. The last cell shows the
# leaderboard.
#
# **To interrupt and resume.** Interrupt a cell that trains: it finishes its step and saves a
# checkpoint. Run the cell again: it resumes, with the same bits. In Colab, mount Drive (the folder
# icon, *Mount Drive*) before the first cell. The runs are then stored on Drive, and after a
# disconnect you run all cells again.
#
# **What was not run.** The project's tests execute this notebook on a CPU, with fewer steps.
# It has not been run in Colab or on a TPU yet.

# %%
# Finds the project's folder. In Colab, clones it and installs its packages beside Colab's jax.
import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

REPOSITORY = ""  # for Colab: the address of your copy of isoflop, as `git clone` takes it
COLAB, DRIVE = "google.colab" in sys.modules, Path("/content/drive/MyDrive")
root = Path("/content/isoflop") if COLAB else Path.cwd()
if COLAB and not root.is_dir():
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, root], check=True)
os.chdir(next(p for p in (root, *root.parents) if (p / "leaderboard.py").is_file()))
sys.path.insert(0, os.getcwd())
RUNS = DRIVE / "isoflop" if DRIVE.is_dir() else Path("runs/notebooks")
if COLAB:
    versions = {name: version(name) for name in ("jax", "jaxlib", "numpy")}
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--editable"]
    if subprocess.run([*pip, ".", *(f"{n}=={v}" for n, v in versions.items())]).returncode:
        tpu = importlib.util.find_spec("libtpu")  # Colab's jax is too old or too new
        subprocess.run([*pip, ".[tpu]" if tpu else "."], check=True)
    if {name: version(name) for name in versions} != versions:
        raise RuntimeError("jax was replaced: restart the session, then run this cell again")

# %% tags=["parameters"]
import jax

FAST = jax.default_backend() == "cpu"  # a few minutes on two cores
STEPS, SEEDS = 30 if FAST else 600, (0, 1, 2)
CONSOLE = "off" if FAST else "plain"  # "plain" prints every logged step
WORKDIR = RUNS / f"quickstart-{STEPS}"

# %% [markdown]
# ## What is compared
#
# The settings that all candidates share are written as in the files of `configs/`. How the
# candidates differ, and which claims will be tested, is a study. It is declared and hashed before
# anything runs.

# %%
from settings.cli import freeze
from training.settings import Settings, defaults

c = defaults()
c.data.tokenizer = "bpe:1024"
c.model.width, c.model.depth = 64, 2
c.model.attention.heads = 2
c.model.mlp.width = 64
c.model.moe.num_experts, c.model.moe.width = 4, 32
c.model.mamba2.state_size, c.model.mamba2.chunk_size = 32, 32
c.train.batch_size, c.train.seq_len, c.train.steps = 8, 128, STEPS
c.optimizer.learning_rate, c.optimizer.warmup = 8e-3, STEPS // 10
c.optimizer.schedule, c.optimizer.cooldown_fraction, c.optimizer.final_lr_ratio = "wsd", 0.4, 0.0
c.eval.tasks, c.eval.batch_size = ("bits_per_byte",), 128
c.log.every, c.log.console = max(STEPS // 10, 1), CONSOLE
shared_settings = freeze(Settings, c)

# %%
from protocol.study.study import Study

study = Study(
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
# The widths of the channels of dense and MoE are solved for the cost of Mamba-2. The plan prints
# which costs cannot be equal at the same time, and the smallest difference that the study can
# claim.

# %%
from data.open_stores import open_data
from protocol.study.plan import format_plan, reported_runs
from protocol.study.run_study import default_choices
from protocol.study.study import describe_unmatched, make_plan

vocab_size = open_data(shared_settings.data).tokenizer.vocab_size
matched_plan = make_plan(study, shared_settings, vocab_size)
runs = reported_runs(matched_plan.plan, default_choices(matched_plan.plan))
print(*format_plan(matched_plan.plan, runs, {}), *describe_unmatched(matched_plan), sep="\n")

# %% [markdown]
# ## Training
#
# Each run has a folder with everything that is needed to reproduce and to evaluate it.
# `compare.py --config=configs/compare/quickstart.py` does the same with a larger study.

# %%
from protocol.study.run_study import run_all

results = run_all(runs, WORKDIR, print, study.metric)

# %% [markdown]
# ## Learning curves

# %%
import json

import matplotlib.pyplot as plt

colors = dict(zip(study.candidates, ("C0", "C1", "C2"), strict=True))
for run in runs:
    rows = [json.loads(line) for line in (WORKDIR / run.name / "metrics.jsonl").open()]
    rows = [row for row in rows if "bits_per_byte" in row]
    tokens, bits = zip(*((row["tokens"], row["bits_per_byte"]) for row in rows), strict=True)
    name = run.cell_key.candidate
    plt.plot(tokens, bits, colors[name], label=name if run.seed == SEEDS[0] else None)
plt.xlabel("tokens")
plt.ylabel("bits per byte, training")
plt.legend()
plt.show()

# %% [markdown]
# ## The board
#
# The board ranks only what is comparable, and prints what can be concluded. The conclusions hold
# for this size and this number of steps only.

# %%
from protocol.board.board import make_board
from protocol.board.export import write_board
from protocol.records.load import load_records

board = make_board(*load_records([WORKDIR / run.name for run in runs]))
_ = write_board(board, WORKDIR / "board")

# %%
import html

from IPython.display import display

page = (WORKDIR / "board/leaderboard.html").read_text("utf-8")
frame = f'<iframe srcdoc="{html.escape(page)}" width="100%" height="800"></iframe>'
display({"text/html": frame}, raw=True)
